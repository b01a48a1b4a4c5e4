"""Fetch files in ranges, so that a link that breaks costs one range and not all of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator

from remote_train.errors import TrainError
from remote_train.hashing import file_digest

from .link import Link
from .progress import Meter
from .progress import size as shown_size

FOLDER = ".incoming"
"""Where what is on its way home lies, in the folder that it comes home to."""

FIRST = 1024 * 1024
"""Bytes of the first range."""

LARGEST = 8 * 1024 * 1024
"""Bytes of the largest range. It is held in memory, where Ansible copies it with each piece."""

RANGE_SECONDS = 1.5
"""How long a range should take, so that the progress moves and little is lost."""

RESERVE = 16 * 1024 * 1024
"""Bytes of the disk at home that are left free."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

# A shell may greet before it does what it was asked for; the file begins behind the mark.
_READ = 'printf %s "$1" && exec 3< "$2" && tail -c "+$3" <&3 | head -c "$4"'

Run = Callable[[list[str]], bytes]
"""Runs a program on the host; gives the bytes that it printed."""


class Download:
    """Brings files into a folder, each under its digest until it is whole and verified.

    What a link that broke, or a controller that was killed, left of a file counts: only the rest
    is fetched. Digests name what is there, so that nothing else is ever taken for it.

    :param run: runs one program on the host; raises AnsibleConnectionFailure or TrainError.
    :param link: tries it again when the connection breaks.
    :param folder: from :func:`incoming`.
    """

    def __init__(self, run: Run, link: Link, folder: str) -> None:
        self._run = run
        self._link = link
        self._folder = folder

    def left(self, size: int, sha256: str) -> int:
        """How many bytes of a file are yet to be fetched."""
        at = _length(self._part(sha256))
        return size - at if at <= size else size

    def fetch(self, there: str, size: int, sha256: str, meter: Meter) -> str:
        """Fetch one file, verify it, and bring it to the disk; its path here.

        :param there: its path on the host.
        :param size: in bytes.
        :raises TrainError: category integrity, where what came is not what it should be.
        """
        path = self._part(sha256)
        with open(os.open(path, _FLAGS, 0o644), "ab") as stream:
            if os.fstat(stream.fileno()).st_size > size:
                stream.truncate(0)
            at = os.fstat(stream.fileno()).st_size
            meter.skip(at)
            length = FIRST
            while at < size:
                began = time.monotonic()
                piece = self._range(there, at, min(length, size - at))
                stream.write(piece)
                stream.flush()
                at += len(piece)
                meter.add(len(piece))
                length = _next(length, time.monotonic() - began)
            os.fsync(stream.fileno())
        if file_digest(path, "sha256") != sha256:
            os.unlink(path)  # nobody knows which of its bytes are wrong
            raise TrainError(
                f"{there} did not arrive as the host has listed it.",
                "Give the same command again.",
                "integrity",
            )
        return path

    def _range(self, there: str, at: int, length: int) -> bytes:
        """So many bytes of a file, from a place on."""
        mark = secrets.token_hex(8)
        words = ["sh", "-c", _READ, "sh", mark, there, str(at + 1), str(length)]
        _greeting, found, piece = self._link(lambda: self._run(words)).partition(mark.encode())
        if not found or len(piece) < length:
            raise TrainError(
                f"{there} is shorter than the host has listed it.",
                "Give the same command again.",
                "integrity",
            )
        return bytes(piece[:length])

    def _part(self, sha256: str) -> str:
        if not _DIGEST.fullmatch(sha256):  # the host says it, and it becomes a path
            raise TrainError(
                f"The host offers a file of the digest {sha256!r}, which is none.",
                "Don't trust this host.",
                "integrity",
            )
        return os.path.join(self._folder, sha256)


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def incoming(home: str, say: Callable[[str], None]) -> Iterator[str]:
    """The folder for what comes home, for one command at a time.

    What stands in it afterwards is what is not yet at its place; it is gone when it is empty.

    :param say: is told where another command is waited for.
    """
    folder = os.path.join(home, FOLDER)
    descriptor = _locked(folder, say)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
        os.close(descriptor)


def clear(folder: str) -> None:
    """Remove what was fetched and is of no use any more."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)  # a bundle's files, whose command was killed
        else:
            os.unlink(entry.path)


def require_room(home: str, needed: int) -> None:
    """See to it that the disk at home takes so many bytes more.

    :raises TrainError: where it doesn't.
    """
    disk = os.statvfs(home)
    free = disk.f_bavail * disk.f_frsize
    if free < needed + RESERVE:
        raise TrainError(
            f"There is no room for the results in {home}: {shown_size(needed + RESERVE)} are"
            f" needed, and {shown_size(free)} are free.",
            "Make room there, or name another folder with collect_dest; then give the same"
            " command again.",
            "infra",
        )


def _locked(folder: str, say: Callable[[str], None]) -> int:
    """The folder's descriptor, which holds its lock."""
    told = False
    while True:
        os.makedirs(folder, 0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if not told:
                say("  Another command brings results home; it is waited for.")
            told = True
            time.sleep(0.5)
            continue
        except OSError:
            return descriptor  # a file system without locks
        with contextlib.suppress(FileNotFoundError):  # whoever had it may have removed it
            if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                return descriptor
        os.close(descriptor)


def _length(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _next(length: int, seconds: float) -> int:
    """How long the next range should be: at most twice as long, since one stall decides little."""
    wanted = int(length * RANGE_SECONDS / max(seconds, 1e-3))
    return max(FIRST, min(wanted, 2 * length, LARGEST))
