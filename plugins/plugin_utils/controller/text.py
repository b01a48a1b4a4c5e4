"""Text that came from somewhere else, before a person's terminal gets it."""

from __future__ import annotations

from ansible.utils.display import get_text_width


def printable(text: str) -> str:
    """``text`` without control characters: a host could hide or fake lines with them."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def fitting(text: str, columns: int) -> str:
    """As much of one line as fits; Chinese signs take two columns each."""
    if get_text_width(text) <= columns:
        return text
    while text and get_text_width(text) > columns - 1:
        text = text[:-1]
    return text + "\u2026"
