"""Digests of files, remembered by what a look at them shows, so that they needn't be read again.

A file is taken for unchanged while its inode, size, mtime and ctime are. mtime and size can be set
by whoever likes; the ctime is the kernel's own: each write, rename and ``touch -d`` moves it on.

Except within one tick of the file system's clock (some ms, on some file systems two seconds): what
is written in the tick of an earlier change leaves the ctime as it was. Git meets the same with its
index, and calls such entries racily clean (git's Documentation/technical/racy-git.txt). So what
counts here is the time that the file system itself gives to a new file, taken before anything is
looked at. A digest is kept only where the file's ctime lies before that: then it was read in a
later tick, and any change since has another ctime. Files younger than the run are read again by
the next one. Git compares with the time of the index written afterwards, which is too late for a
file that changed between the two. A clock that is not the file system's (that of an NFS client)
says nothing, nor does a tick that is finer than the file's.

Not seen are bytes that reach a file past the file system (a disk written to directly), stores into
a memory-mapped page that was written to before and is not on the disk yet, and, on a file system
that keeps no ctime of its own (some that are made by FUSE), an edit that keeps size and mtime.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
from contextlib import suppress
from itertools import compress
from typing import TYPE_CHECKING

from .file_names import to_bytes

if TYPE_CHECKING:
    from .tree import Status

_MAGIC = b"remote-train digest cache 1\n"
_HEADER = struct.Struct("<32sQQ")  # digest of the root's path, length of the names, their count
_KEY = struct.Struct("<QQqq")  # inode, size, mtime, ctime, the times in ns
_DIGEST = 32  # bytes
_RECORD = _KEY.size + _DIGEST


class DigestCache:
    """The SHA-256 digests of regular files below one folder; not for use by several threads.

    Never an error: a file that is damaged, foreign or writable by others is as an empty one.

    :param path: where it is kept, mode 0600. Its folder is not made: without one, nothing is kept.
    :param root: the folder that the names start from; the cache of another one is ignored. Only
        what lies on the same file system as this folder is remembered.
    """

    def __init__(self, path: str, root: str | bytes) -> None:
        self.path = path
        self._root = os.path.realpath(os.fsencode(root))
        self._places: dict[str, int] = {}
        self._records = b""
        self._noted: dict[str, bytes] = {}
        self._device, self._time = self._file_system()
        with suppress(OSError, ValueError, struct.error):
            self._load()
        self._seen = bytearray(len(self._places))

    def known(self, name: str, status: os.stat_result | Status) -> str:
        """The digest in lower-case hex of the file that looks like ``status``, or ``""``.

        :param status: from ``lstat``, or ``fstat`` of a file that was opened without following.
        """
        place = self._places.get(name)
        if place is None:
            return ""
        self._seen[place] = 1
        start = place * _RECORD
        middle = start + _KEY.size
        if self._records[start:middle] != _key(status) or status.st_dev != self._device:
            return ""
        return self._records[middle : start + _RECORD].hex()

    def note(self, name: str, status: os.stat_result | Status, digest: str) -> None:
        """Remember the digest of a regular file, unless it is too young to be sure of.

        :param status: from before its bytes were read.
        :param digest: SHA-256 in hex.
        """
        if (
            status.st_dev == self._device
            and status.st_ctime_ns < self._time
            and self.known(name, status) != digest
        ):
            self._noted[name] = _key(status) + bytes.fromhex(digest)

    def save(self) -> bool:
        """Write what was noted, atomically; False where there is nothing new, or it isn't possible.

        It need not survive a crash of the machine: what is damaged then counts as empty.
        """
        if not self._noted:
            return False
        entries = self._kept()
        entries.update(self._noted)
        names = b"\0".join(map(to_bytes, entries))
        content = b"".join(
            (
                _MAGIC,
                _HEADER.pack(hashlib.sha256(self._root).digest(), len(names), len(entries)),
                names,
                *entries.values(),
            )
        )
        try:
            descriptor, temporary = tempfile.mkstemp(  # mode 0600
                dir=os.path.dirname(self.path) or ".", prefix=".", suffix=".tmp"
            )
        except OSError:
            return False
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.write(hashlib.sha256(content).digest())
            os.replace(temporary, self.path)
        except BaseException as error:
            with suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError):
                return False
            raise
        self._noted = {}
        return True

    def _kept(self) -> dict[str, bytes]:
        """The loaded entries; when most were not asked for, without the files that are gone."""
        entries = {
            name: self._records[place * _RECORD : (place + 1) * _RECORD]
            for name, place in self._places.items()
        }
        if self._seen.count(0) > self._seen.count(1):
            for name in compress(self._places, (not seen for seen in self._seen)):
                if not os.path.lexists(os.path.join(self._root, to_bytes(name))):
                    del entries[name]
        return entries

    def _load(self) -> None:
        """Read the file. :raises ValueError: and others, for one that is not to be used."""
        with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            status = os.fstat(stream.fileno())
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_mode & 0o022
            ):
                return
            content = stream.read()
        start, end = len(_MAGIC) + _HEADER.size, len(content) - _DIGEST
        if hashlib.sha256(memoryview(content)[:end]).digest() != content[end:]:
            return
        root, length, count = _HEADER.unpack_from(content, len(_MAGIC))
        if not content.startswith(_MAGIC) or root != hashlib.sha256(self._root).digest():
            return
        names = content[start : start + length].decode("utf-8", "surrogateescape").split("\0")
        if len(names) != count or end - start - length != count * _RECORD:
            return
        self._places = dict(zip(names, range(count)))
        self._records = content[start + length : end]

    def _file_system(self) -> tuple[int, int]:
        """The device of the root's files, and their clock's time in ns; 0 where it isn't known.

        A new file has both, and no name where that is possible. An overlay's folders may have
        another device than the files in them.
        """
        try:
            device = os.stat(self._root).st_dev
        except OSError:
            return -1, 0
        with suppress(OSError, AttributeError):  # no O_TMPFILE: macOS, NFS; or root is read-only
            return _look_at(os.open(self._root, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600))
        folder = os.path.dirname(self.path) or "."
        with suppress(OSError):
            if os.stat(folder).st_dev == device:
                descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
                os.unlink(temporary)
                return _look_at(descriptor)
        return device, 0


def _key(status: os.stat_result | Status) -> bytes:
    return _KEY.pack(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _look_at(descriptor: int) -> tuple[int, int]:
    """Device and mtime of a new file; closes it."""
    try:
        status = os.fstat(descriptor)
        return status.st_dev, status.st_mtime_ns
    finally:
        os.close(descriptor)
