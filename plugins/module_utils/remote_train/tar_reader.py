"""A strict reader of ``.tar.gz``: one pass, bounded memory, no name trusted.

The standard library's reader is made to read what it can. It stops without a word at a broken
header, takes what follows a gzip member for more of the same, and reads a long name of any length
into memory. Here each of these is refused. Header blocks are still decoded by
:meth:`tarfile.TarInfo.frombuf`. Formats: RFC 1952, POSIX.1-2001 (pax), GNU tar manual,
"Basic Tar Format".
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .file_names import to_bytes

BLOCK = 512
CHUNK = 256 * 1024  # bytes of the compressed file per read
PIECE = 1024 * 1024  # bytes of a member handed out at a time
MAX_HEADER = 1024 * 1024  # bytes of a long name or of a member's pax records
MAX_MEMBERS = 2_000_000

_KIND = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hard-link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
    tarfile.GNUTYPE_SPARSE: "sparse",
}


class CorruptError(Exception):
    """The archive can't be read on from here.

    :param problem: the stable identifier of the rule.
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message


class NoRoomError(CorruptError):
    """It has more bytes than may be unpacked, which may well be the disk's fault."""


class Member(NamedTuple):
    """What the archive says of one member.

    :param kind: ``file``, ``folder``, ``symlink``, ``hard-link``, ``device``, ``fifo``,
        ``sparse`` or ``unknown``.
    :param name: as written, not yet checked.
    :param size: bytes that follow.
    :param mode: permission bits, setuid and setgid among them.
    """

    kind: str
    name: bytes
    size: int
    mode: int


class Gunzip:
    """The bytes inside one gzip member, and the SHA-256 of the compressed bytes that were read."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._left = limit
        self._limit = limit
        self._hash = hashlib.sha256()

    def _compressed(self) -> bytes:
        chunk = self._stream.read(CHUNK)
        self._hash.update(chunk)
        return chunk

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer only at the end. :raises CorruptError: if there is none."""
        parts: list[bytes] = []
        missing = size
        while missing and not self._inflate.eof:
            source = self._inflate.unconsumed_tail or self._compressed()
            try:
                part = self._inflate.decompress(source, missing)
            except zlib.error as error:
                raise CorruptError("not-gzip", f"it is not sound gzip data ({error})") from None
            if not source and not part:
                raise CorruptError("truncated", "it ends before its gzip data does")
            parts.append(part)
            missing -= len(part)
        self._left -= size - missing
        self.expect(0)
        return b"".join(parts)

    def expect(self, size: int) -> None:
        """Say that ``size`` bytes will come. :raises NoRoomError: when they are too many."""
        if size > self._left:
            raise NoRoomError(
                "too-large", f"it unpacks to more than the {self._limit:,} bytes there is room for"
            )

    def exactly(self, size: int) -> bytes:
        """``size`` bytes. :raises CorruptError: when there are fewer."""
        data = self.read(size)
        if len(data) != size:
            raise CorruptError("truncated", "it ends in the middle of a member")
        return data

    def finish(self) -> str:
        """Read to the end, where nothing may follow; the SHA-256 of the whole file."""
        while padding := self.read(PIECE):
            if padding.strip(b"\0"):
                raise CorruptError("trailing-data", "something follows after the archive's end")
        rest = self._inflate.unused_data
        while rest:
            if rest.strip(b"\0"):
                raise CorruptError("concatenated-gzip", "something follows after its gzip data")
            rest = self._compressed()
        return self._hash.hexdigest()


class TarReader:
    """The members of an archive in order; :meth:`body` gives the bytes of the one at hand.

    :param stream: the compressed file, at its start.
    :param limit: bytes that it may unpack to.
    :param most: members that it may have; :data:`MAX_MEMBERS` at most.
    """

    def __init__(self, stream: BinaryIO, limit: int, most: int | None = None) -> None:
        self._gunzip = Gunzip(stream, limit)
        self._most = MAX_MEMBERS if most is None else min(most, MAX_MEMBERS)
        self._left = 0
        self._padding = 0

    def members(self) -> Iterator[Member]:
        """Each member. :raises CorruptError: where the archive is broken."""
        count = 0
        while True:
            for _piece in self.body():
                pass  # what the caller didn't want
            self._gunzip.exactly(self._padding)
            self._padding = 0
            member = self._header()
            if member is None:
                return
            count += 1
            if count > self._most:
                raise CorruptError("too-many-members", f"it has over {self._most:,} members")
            yield member

    def body(self) -> Iterator[bytes]:
        """The bytes of the member at hand that were not read yet, a piece at a time."""
        while self._left:
            piece = self._gunzip.exactly(min(PIECE, self._left))
            self._left -= len(piece)
            yield piece

    def finish(self) -> str:
        """After the last member: the SHA-256 of the whole compressed file."""
        return self._gunzip.finish()

    def _header(self) -> Member | None:
        long_name = None
        pax: dict[bytes, bytes] = {}
        while True:
            info = self._block()
            if info is None:
                if long_name is not None or pax:
                    raise CorruptError("bad-header", "an extended header has no member behind it")
                return None
            if info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = self._extra(info).rstrip(b"\0")
            elif info.type == tarfile.GNUTYPE_LONGLINK:
                self._extra(info)  # the link itself is refused
            elif info.type == tarfile.XHDTYPE:
                pax.update(_pax_records(self._extra(info)))
            elif info.type == tarfile.XGLTYPE:
                if {b"path", b"size"} & _pax_records(self._extra(info)).keys():
                    raise CorruptError("bad-pax-header", "a global header sets a path or a size")
            else:
                return self._member(info, long_name, pax)

    def _member(
        self, info: tarfile.TarInfo, long_name: bytes | None, pax: dict[bytes, bytes]
    ) -> Member:
        kind = _KIND.get(info.type, "unknown")
        if any(key.startswith((b"GNU.sparse", b"SCHILY.realsize")) for key in pax):
            kind = "sparse"
        name = pax.get(b"path", to_bytes(info.name) if long_name is None else long_name)
        try:
            size = int(pax.get(b"size", b"%d" % info.size))
        except ValueError:
            raise CorruptError("bad-pax-header", "a size is not a number") from None
        if size < 0:
            raise CorruptError("bad-header", "a member has a negative size")
        # Links, devices and folders have no bytes behind their header, whatever size it gives.
        has_body = kind in {"file", "sparse", "unknown"}
        self._left = size if has_body else 0
        self._gunzip.expect(self._left)  # before a byte of it is written anywhere
        self._padding = -self._left % BLOCK
        return Member(kind, name, self._left, info.mode)

    def _block(self) -> tarfile.TarInfo | None:
        block = self._gunzip.read(BLOCK)
        if len(block) != BLOCK:
            raise CorruptError("truncated", "it has no end mark; the end is missing")
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if block.count(0) == BLOCK:
                return None
            raise CorruptError("bad-header", f"a header is damaged ({error})") from None

    def _extra(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= MAX_HEADER:
            raise CorruptError(
                "header-too-large", f"a long name or its like has over {MAX_HEADER:,} bytes"
            )
        data = self._gunzip.exactly(info.size)
        self._gunzip.exactly(-info.size % BLOCK)
        return data


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: length, blank, key, equals sign, value, newline."""
    records = {}
    while data.strip(b"\0"):
        digits, blank, _rest = data[:20].partition(b" ")
        length = int(digits) if blank and digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if not equals or length > len(data) or not value.endswith(b"\n"):
            raise CorruptError("bad-pax-header", "a pax header is damaged")
        records[key] = value[:-1]
        data = data[length:]
    return records
