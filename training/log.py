"""Writes the log: standard output, of which a line lost is better than a training lost."""

from __future__ import annotations

import contextlib


def say(text: str) -> None:
    """Write a line to the log; on a full disk, say, it is left out."""
    with contextlib.suppress(OSError):
        print(text, flush=True)
