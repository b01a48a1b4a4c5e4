"""An archive that arrives in parts, so that a link that breaks costs one part and not all of it.

The parts lie in a folder. Each is called by where it begins and where it ends, in bytes with
twelve digits, as ``000000000000-000001048576``, and is there as a whole or not at all.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterable
from typing import BinaryIO, cast

from . import tree
from .errors import TrainError

_PART = re.compile(r"(\d{12})-(\d{12})")


def name(start: int, end: int) -> str:
    """The name of the part that holds the bytes from ``start`` up to, and without, ``end``."""
    return f"{start:012}-{end:012}"


def arrived(names: Iterable[str]) -> list[tuple[str, int]]:
    """The parts among ``names`` that follow each other from the start, each with its end.

    Two uploads may have cut one archive in two ways, where a controller that was killed went on
    for a while: of all the ways from part to part, it is one that comes furthest.
    """
    found = [match for one in names if (match := _PART.fullmatch(one))]
    before: dict[int, tuple[str, int]] = {0: ("", 0)}  # of each place that is reached
    for start, end, called in sorted((int(match[1]), int(match[2]), match[0]) for match in found):
        if start in before:
            before.setdefault(end, (called, start))
    chain, at = [], max(before)
    while at:
        called, start = before[at]
        chain.append((called, at))
        at = start
    return chain[::-1]


def open_parts(folder: str) -> BinaryIO:
    """The archive whose parts lie in ``folder``, to be read from its start.

    :raises TrainError: when a part can't be read, or is not as long as its name says.
    """
    paths, sizes, before = [], [], 0
    for found, end in arrived(os.listdir(folder)):
        paths.append(os.path.join(folder, found))
        sizes.append(end - before)
        before = end
    for path, size in zip(paths, sizes):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise TrainError(f"{path} is not what was sent.", "Remove it.", "integrity")
    return cast("BinaryIO", io.BufferedReader(_Joined(paths), 1024 * 1024))


class _Joined(io.RawIOBase):
    """Several files as one."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self._paths = paths
        self._at = 0  # of the part that is open, or comes next
        self._open: BinaryIO | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """To the start only."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Back to the start."""
        if offset or whence != os.SEEK_SET:
            raise io.UnsupportedOperation("an archive in parts is read from its start")
        self._shut()
        self._at = 0
        return 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """The next bytes, out of one part."""
        while self._at < len(self._paths):
            if self._open is None:
                descriptor = os.open(self._paths[self._at], tree.FILE_FLAGS)
                self._open = os.fdopen(descriptor, "rb", buffering=0)
            count = self._open.readinto(buffer)  # type: ignore[attr-defined]
            if count:
                return int(count)
            self._shut()
            self._at += 1
        return 0

    def close(self) -> None:
        """Let go of the part that is open."""
        self._shut()
        super().close()

    def _shut(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
