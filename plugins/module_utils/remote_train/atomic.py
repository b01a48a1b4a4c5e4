"""Files that are either the old one or the new one, never half of either.

The order is the one that survives a crash at any instant: write a temporary file beside the
target, fsync it, rename it over the target, fsync the folder (POSIX rename is atomic; the
folder's fsync makes it durable).
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any


def write_bytes(path: str, content: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``content``, creating its folder when it is missing.

    An empty folder in the file's place is replaced as well; one with something in it is kept.

    :param durable: whether it must outlive a loss of power: that takes two waits for the disk.
    :raises OSError: for such a folder, and where the disk takes no more.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            if durable:
                os.fsync(stream.fileno())
        try:
            os.replace(temporary, path)
        except IsADirectoryError:
            os.rmdir(path)
            os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_folder(folder)


def write_text(path: str, content: str, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``content`` in UTF-8.

    A name that is no UTF-8 stands in it with escapes, which JSON reads back as it was.
    """
    write_bytes(path, content.encode("utf-8", "backslashreplace"), mode, durable)


def write_json(path: str, value: Any, mode: int = 0o644, durable: bool = True) -> None:
    """Replace ``path`` by ``value`` as JSON that a person can read."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n", mode, durable)


def sync_folder(folder: str) -> None:
    """Make a rename in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
