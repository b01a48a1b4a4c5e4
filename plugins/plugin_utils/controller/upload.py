"""Send an archive in parts, so that a link that breaks costs one part and not all of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from remote_train import parts
from remote_train.errors import TrainError

from .link import Link
from .progress import Meter

FIRST = 1024 * 1024
"""Bytes of the first part."""

LARGEST = 64 * 1024 * 1024
"""Bytes of the largest part; it is held in memory."""

PART_SECONDS = 1.5
"""How long a part should take, so that the progress moves and little is lost."""

# What other syncs left here, a day and older, goes; then the parts that are here already.
_PREPARE = (
    'mkdir -p -m 0700 -- "$1" && '
    'find "$1" -mindepth 1 -maxdepth 1 -mmin +1440 -exec rm -rf -- {} + ; '
    'mkdir -p -m 0700 -- "$2" && ls -- "$2"'
)
# A link that is cut looks like an end of the input: only a part that is whole gets its name.
# Under another name for each, since two may send the same; what is not whole goes.
_TAKE = (
    'part="$1.$$" && cat > "$part" && [ "$(wc -c < "$part")" -eq "$2" ] && mv -f -- "$part" "$1"'
    ' || { rm -f -- "$part"; exit 1; }'
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

    def send(self, path: str, folder: str, meter: Meter) -> str:
        """Send one archive; the folder of its parts there.

        :param folder: below ``incoming``, the same for the same archive.
        :raises TrainError: when the host can't take it.
        """
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        prepare = ["sh", "-c", _PREPARE, "sh", self._incoming, there]
        before = parts.arrived(self._link(lambda: self._run(prepare, b"")).splitlines())
        at = before[-1][1] if before else 0
        size = os.path.getsize(path)
        if at > size:
            raise TrainError(
                f"{there} on the host holds more than was ever sent.", "Remove it there.", "ops"
            )
        meter.skip(at)
        length = FIRST
        with open(path, "rb") as stream:
            stream.seek(at)
            while piece := stream.read(length):
                began = time.monotonic()
                self._send(piece, os.path.join(there, parts.name(at, at + len(piece))))
                at += len(piece)
                meter.add(len(piece))
                length = _next(length, time.monotonic() - began)
        return there

    def place(self, path: str, folder: str) -> str:
        """Send a small file in one piece, beside an archive; its path there."""
        there = os.path.join(self._incoming, folder, os.path.basename(path))
        with open(path, "rb") as stream:
            self._send(stream.read(), there)
        return there

    def _send(self, piece: bytes, there: str) -> None:
        words = ["sh", "-c", _TAKE, "sh", there, str(len(piece))]
        self._link(lambda: self._run(words, piece))


def _next(length: int, seconds: float) -> int:
    """How long the next part should be: at most twice as long, so that one stall decides little."""
    wanted = int(length * PART_SECONDS / max(seconds, 1e-3))
    return max(FIRST, min(wanted, 2 * length, LARGEST))
