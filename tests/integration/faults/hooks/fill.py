"""Fills a disk."""

from __future__ import annotations

import contextlib
import os


def fill(path: str | os.PathLike[str]) -> None:
    """Write into a file until the disk takes no more byte."""
    with open(path, "wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while stream.write(b"x" * size):
                    pass
