"""Text that came from somewhere else, before a person's terminal gets it."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` without control characters: a host could hide or fake lines with them."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
