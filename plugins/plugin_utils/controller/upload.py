"""Send a large file in parts, so that a link that breaks costs one part and not all of it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable

from remote_train import parts
from remote_train.errors import TrainError

from .link import Link
from .progress import Meter
from .progress import size as shown_size

FIRST = 1024 * 1024
"""Bytes of the first part."""

LARGEST = 64 * 1024 * 1024
"""Bytes of the largest part; it is held in memory."""

PART_SECONDS = 1.5
"""How long a part should take, so that the progress moves and little is lost."""

RESERVE = 256 * 1024 * 1024
"""Bytes of the host's disk that are left free."""

# What other syncs left here, and nothing came to for a day, goes; then the room on the disk in
# KiB, and the parts that are here already.
_PREPARE = (
    'mkdir -p -m 0700 -- "$1" "$3" && touch -- "$3" && '
    'find "$1" -mindepth 1 -maxdepth 1 -mmin +1440 -exec rm -rf -- {} + ; '
    'mkdir -p -m 0700 -- "$2" && df -Pk -- "$2" | tail -n 1 && ls -- "$2"'
)
# A link that is cut looks like an end of the input: only a part that is whole gets its name.
# Under another name for each, since two may send the same; what is not whole goes.
_TAKE = (
    'part="$1.$$" && touch -c -- "$3" && cat > "$part" && [ "$(wc -c < "$part")" -eq "$2" ] && '
    'mv -f -- "$part" "$1" || { rm -f -- "$part"; exit 1; }'
)

_LENGTH = 'if [ -f "$1" ]; then wc -c < "$1"; else echo 0; fi'
_JOIN = (
    'target=$1; cd -- "$2" && shift 2 && mkdir -p -m 0700 -- "$(dirname -- "$target")" && '
    'cat -- "$@" > "$target.whole" && mv -f -- "$target.whole" "$target" && '
    'cd / && rm -rf -- "$OLDPWD"'
)

Run = Callable[[list[str], bytes], str]
"""Runs a program on the host with these words and this input; gives what it printed."""


class Upload:
    """Brings archives into a folder on the host, each into a folder of parts by its name.

    :param run: runs one program there, or raises AnsibleConnectionFailure.
    :param link: tries it again when the connection breaks.
    :param incoming: the folder for all that arrives; by what it is called there, an upload that
        was cut off is found again.
    """

    def __init__(self, run: Run, link: Link, incoming: str) -> None:
        self._run = run
        self._link = link
        self._incoming = incoming
        self._reached = 0  # bytes of the archive at hand that were there already
        self._restarts = 3

    def send(self, path: str, folder: str, meter: Meter, unpacked: int = 0) -> str:
        """Send one archive; the folder of its parts there.

        :param folder: below ``incoming``, the same for the same archive.
        :param unpacked: bytes that the archive's files will take there besides.
        :raises TrainError: when the host can't take it.
        """
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        size = os.path.getsize(path)
        before, room = self._arrived(folder, there)
        at = _end(before)
        if at > size:
            raise TrainError(
                f"{there} on the host holds more than was ever sent.", "Remove it there.", "ops"
            )
        needed = size - at + unpacked + RESERVE
        if room < needed:
            raise TrainError(
                f"There is no room for it on the host: {shown_size(needed)} are needed in"
                f" {self._incoming}, and {shown_size(room)} are free.",
                "Make room on that disk.",
                "infra",
            )
        meter.skip(at)
        self._reached = at
        while at < size:
            try:
                at = self._rest(path, at, folder, there, meter)
            except TrainError:
                # Another sync of the same files has ended, and has taken the parts away with it.
                left = _end(self._arrived(folder, there)[0])
                if left >= self._reached or self._restarts == 0:
                    raise
                self._restarts -= 1
                at = left
        return there

    def missing(self, path: str, folder: str) -> bool:
        """Whether a part of an archive that was sent is no longer there."""
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        return _end(self._arrived(folder, there)[0]) < os.path.getsize(path)

    def _rest(self, path: str, at: int, folder: str, there: str, meter: Meter) -> int:
        """Send what comes after the first ``at`` bytes; the archive's length."""
        length = FIRST
        with open(path, "rb") as stream:
            stream.seek(at)
            while piece := stream.read(length):
                began = time.monotonic()
                self._send(piece, os.path.join(there, parts.name(at, at + len(piece))), folder)
                at += len(piece)
                self._reached = at
                meter.add(len(piece))
                length = _next(length, time.monotonic() - began)
        return at

    def _arrived(self, folder: str, there: str) -> tuple[list[tuple[str, int]], int]:
        """The parts of an archive that are there, and how many more bytes may be."""
        own = os.path.join(self._incoming, folder)
        prepare = ["sh", "-c", _PREPARE, "sh", self._incoming, there, own]
        disk, *names = self._link(lambda: self._run(prepare, b"")).splitlines()
        return parts.arrived(names), _room(disk)

    def whole(self, path: str, folder: str, meter: Meter) -> str:
        """Send one file and join its parts; its path there.

        One of its length that is there already counts as sent: whoever uses it verifies its digest.

        :param folder: below ``incoming``, for this file and others.
        :raises TrainError: when the host can't take it.
        """
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        length = ["sh", "-c", _LENGTH, "sh", there]
        size = os.path.getsize(path)
        if int(self._link(lambda: self._run(length, b"")).split()[-1]) == size:
            meter.skip(size)
            return there
        # Parts, and then the whole beside them: its size counts twice.
        lie = self.send(path, f"{folder}.parts", meter, size)
        names = [name for name, _end in self._arrived(f"{folder}.parts", lie)[0]]
        self._link(lambda: self._run(["sh", "-c", _JOIN, "sh", there, lie, *names], b""))
        return there

    def place(self, path: str, folder: str) -> str:
        """Send a small file in one piece, beside an archive; its path there."""
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        with open(path, "rb") as stream:
            self._send(stream.read(), there, folder)
        return there

    def _send(self, piece: bytes, there: str, folder: str) -> None:
        own = os.path.join(self._incoming, folder)
        words = ["sh", "-c", _TAKE, "sh", there, str(len(piece)), own]
        self._link(lambda: self._run(words, piece))


def _end(arrived: list[tuple[str, int]]) -> int:
    """How many bytes of an archive these parts hold."""
    return arrived[-1][1] if arrived else 0


def _room(line: str) -> int:
    """The bytes that are free, out of the last line of ``df -Pk`` (POSIX.1-2017)."""
    found = re.search(r"\s(\d+)\s+\d+%\s+/", line)
    # A system that says it in another way: a full disk is found out later.
    return int(found[1]) * 1024 if found else sys.maxsize


def _next(length: int, seconds: float) -> int:
    """How long the next part should be: at most twice as long, so that one stall decides little."""
    wanted = int(length * PART_SECONDS / max(seconds, 1e-3))
    return max(FIRST, min(wanted, 2 * length, LARGEST))
