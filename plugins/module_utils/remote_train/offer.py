"""An offer: all files that a project consists of, packed small enough to go ahead of them.

It holds what the manifest holds, and which files are executable, which no manifest can say. The
host finds out from it which files it lacks, and only those are sent.

Form: ``RTO1``; the length of the next part as four bytes, big-endian; the names, sorted by their
bytes, with NUL between them, compressed by zlib; the SHA-256 of each as 32 bytes; a bit for each,
the first one lowest, that says whether it is executable. Digests can't be compressed, so that they
stand by themselves, half as long as in hex; all of it in Base64 (RFC 4648), to pass through JSON.
"""

from __future__ import annotations

import array
import base64
import binascii
import functools
import hashlib
import io
import itertools
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from . import tree
from .atomic import write_bytes
from .errors import TrainError
from .file_names import to_bytes, to_name
from .manifest import MAX_LINES, MODERN, Manifest, parse
from .manifest_lines import join_line
from .problems import RefusedError
from .staging import MAX_MANIFEST

if TYPE_CHECKING:
    from hashlib import _Hash  # the class has a name in the type stubs only

FOLDER = "offers"
"""Where offers wait for their files, in the folder of the sync's own state."""

A_DAY = 86400.0
"""Seconds that an offer waits; a link that broke may bring the same one again after it was used."""

_MAGIC = b"RTO1"
_DIGEST = 32  # bytes
_BLOCK = 64 * 1024  # bytes of names or lines at a time
_NAMES = 2000  # packed at a time
_NAME = re.compile(r"[0-9a-f]{64}")


class Offer(Mapping[str, str]):
    """The digests of a project's files, SHA-256 in hex by name, in the order of the names' bytes.

    A million names take 240 MB, and making, packing or unpacking them less than 300: each name is
    there once, and the manifest's bytes are made when they are asked for.

    :param files: digest and executability of each file, by name.
    :raises RefusedError: for names that no manifest may hold together.
    :raises ValueError: for what is no SHA-256 in hex.
    :ivar manifest: what ``sha256sum`` would write of these files, as it is read and checked.
    :ivar executable: the names of those that are executable.
    """

    def __init__(self, files: Iterable[tuple[str, str, bool]]) -> None:
        listed = _Listed([], bytearray(), bytearray())
        for name, digest, runs in files:
            listed.names.append(name)
            listed.digests.extend(bytes.fromhex(digest))
            listed.runs.append(runs)
        if len(listed.digests) != _DIGEST * len(listed.names):
            raise ValueError("a digest has another length than a SHA-256")
        self._take(listed)

    @classmethod
    def _of(cls, listed: _Listed) -> Offer:
        offer = cls.__new__(cls)
        offer._take(listed)
        return offer

    def _take(self, listed: _Listed) -> None:
        """List all of it; its names are gone then."""
        names, count = listed.names, len(listed.names)
        # Strings go by code points, and so do their bytes in UTF-8, but for those that are none.
        plain = all(map(str.isascii, names))
        order = array.array(
            "I",
            sorted(
                range(count),
                key=names.__getitem__ if plain else lambda place: to_bytes(names[place]),
            ),
        )
        state = hashlib.sha256()
        self.manifest = Manifest(MODERN, "sha256")
        if names:
            lines: io.RawIOBase = _Lines(_blocks(listed, order, state))
            self.manifest = parse(io.BufferedReader(lines, _BLOCK), MODERN)
        if self.manifest.problems:
            raise RefusedError(
                "The training project", self.manifest.problems, "Rename or exclude those files."
            )
        self.executable = _Executable(self.manifest, bytes(listed.runs[place] for place in order))
        # A line that doesn't count (an AppleDouble's) is left out here as well.
        self._state = state if len(self) == count else hashlib.sha256(self.raw)

    @functools.cached_property
    def names(self) -> list[str]:
        """The names in the order in which places count."""
        return list(self.manifest.lines)

    @property
    def raw(self) -> bytes:
        """The manifest's bytes, as ``sha256sum`` would write them; made anew each time."""
        stream = io.BytesIO()  # joined without holding all of it twice
        stream.writelines(join_line(digest, to_bytes(name)) for name, digest in self.items())
        return stream.getvalue()

    @property
    def sha256(self) -> str:
        """The digest of manifest and executable bits together, by which an offer is known."""
        state = self._state.copy()  # of no NUL, so that the names can't be taken for it
        for name in self.executable:
            state.update(b"\0" + to_bytes(name))
        return state.hexdigest()

    def __getitem__(self, name: str) -> str:
        return self.manifest.digest_of(name)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.lines

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.lines)

    def __len__(self) -> int:
        return len(self.manifest.lines)

    def packed(self) -> str:
        """The offer as text."""
        text, rest = "", b""
        for piece in self._pieces():
            rest += piece
            whole = len(rest) // 3 * 3  # bytes that Base64 takes without padding
            text += base64.b64encode(rest[:whole]).decode("ascii")
            rest = rest[whole:]
        text += base64.b64encode(rest).decode("ascii")
        return text

    def _pieces(self) -> Iterator[bytes]:
        deflate = zlib.compressobj(6)
        packed = []
        before = b""
        for some in _some(self, _NAMES):
            packed.append(deflate.compress(before + to_bytes("\0".join(some))))
            before = b"\0"
        packed.append(deflate.flush())
        names = b"".join(packed)
        yield _MAGIC + struct.pack(">I", len(names))
        yield names
        for some in _some(self, _NAMES):
            yield bytes.fromhex("".join([self[name] for name in some]))
        bits = bytearray(-(-len(self) // 8))
        for place, runs in enumerate(self.executable.bits()):
            if runs:
                bits[place // 8] |= 1 << place % 8
        yield bytes(bits)


def _some(names: Iterable[str], count: int) -> Iterator[list[str]]:
    """The names, so many at a time."""
    rest = iter(names)
    while some := list(itertools.islice(rest, count)):
        yield some


class _Executable(Set[str]):
    """The names that are executable: a byte for each line, so that it may be all of a million."""

    def __init__(self, manifest: Manifest, runs: bytes) -> None:
        self._lines = manifest.lines
        self._runs = runs
        self._count = sum(self.bits())

    def bits(self) -> Iterator[int]:
        """1 for each name that is executable, 0 for each other one, in order."""
        return (self._runs[line - 1] for line in self._lines.values())

    def __contains__(self, name: object) -> bool:
        line = self._lines.get(name)  # type: ignore[call-overload]  # any object may be asked for
        return line is not None and bool(self._runs[line - 1])

    def __iter__(self) -> Iterator[str]:
        return itertools.compress(self._lines, self.bits())

    def __len__(self) -> int:
        return self._count


class _Listed(NamedTuple):
    """Names in any order; their digests, packed; and a byte for each, whether it is executable."""

    names: list[str]
    digests: bytearray
    runs: bytearray


def _blocks(listed: _Listed, order: Sequence[int], state: _Hash) -> Iterator[bytes]:
    """The manifest's lines, some at a time; names and digests are let go of when they are made."""
    names, digests = listed.names, listed.digests
    for start in range(0, len(order), 500):
        lines = []
        for place in order[start : start + 500]:
            digest = digests[place * _DIGEST : (place + 1) * _DIGEST].hex()
            lines.append(join_line(digest, to_bytes(names[place])))
            names[place] = ""
        block = b"".join(lines)
        state.update(block)
        yield block
    names.clear()
    digests.clear()


class _Lines(io.RawIOBase):
    """A file of blocks that are made when they are read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        super().__init__()
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any buffer is given
        """The next bytes; none at the end."""
        block = self._rest or next(self._blocks, b"")
        size = min(len(block), len(buffer))
        buffer[:size] = block[:size]
        self._rest = block[size:]
        return size


def unpack(text: str) -> Offer:
    """The offer that :meth:`Offer.packed` wrote.

    :raises TrainError: when it is damaged; RefusedError when it names what none may.
    """
    try:
        content = base64.b64decode(text, validate=True)
        del text  # some 50 MB for a million names
        if content[:4] != _MAGIC:
            raise ValueError("it doesn't begin as one")
        (length,) = struct.unpack_from(">I", content, 4)
        names = _names(content[8 : 8 + length])
        count = len(names)
        digests = bytearray(memoryview(content)[8 + length :])
        del content
        if len(digests) != count * _DIGEST + -(-count // 8):
            raise ValueError("its length is wrong")
    except (binascii.Error, ValueError, struct.error) as error:
        raise TrainError(
            f"The list of the project's files arrived damaged ({error}).",
            "Run the same command again.",
            "integrity",
        ) from error
    runs = bytearray(count)
    for place, bits in enumerate(digests[count * _DIGEST :]):
        for bit in range(8) if bits else ():
            if bits >> bit & 1 and 8 * place + bit < count:
                runs[8 * place + bit] = 1
    return Offer._of(_Listed(names, digests, runs))


def _names(packed: bytes) -> list[str]:
    """The names, unpacked and split block by block."""
    inflate = zlib.decompressobj()
    names: list[str] = []
    begun = bytearray()  # a name whose end is in a later block
    size = 0
    while packed and not inflate.eof:
        try:
            block = inflate.decompress(packed, _BLOCK)
        except zlib.error:
            raise ValueError("its names don't unpack") from None
        packed = inflate.unconsumed_tail
        size += len(block)
        if size > MAX_MANIFEST:
            break
        begun += block
        ends = block.count(b"\0")
        if len(names) + ends >= MAX_LINES:  # before there is a list of them, which takes memory
            raise ValueError(f"it has over {MAX_LINES:,} names")
        if ends:
            whole, _, rest = begun.rpartition(b"\0")
            names += to_name(bytes(whole)).split("\0")
            begun = rest
    if packed or not inflate.eof or inflate.unused_data:
        raise ValueError("its names don't end where they should")
    if size:
        names.append(to_name(bytes(begun)))
    return names


# -- kept on the host until its files come -----------------------------------------------------


def keep(state_dir: str, offer: Offer, text: str) -> bool:
    """Keep a packed offer, so that it need not be sent twice; False where that isn't possible.

    Nothing is kept where there is no state yet: a look at a machine leaves nothing on it.
    """
    if not os.path.isdir(state_dir):
        return False
    folder = os.path.join(state_dir, FOLDER)
    with suppress(OSError):
        os.makedirs(folder, 0o700, exist_ok=True)
        _forget(folder)
        write_bytes(os.path.join(folder, offer.sha256), text.encode("ascii"), 0o600)
        return True
    return False


def kept(state_dir: str, sha256: str) -> Offer:
    """The offer that was kept under this digest.

    :raises TrainError: when there is none, or it is another one.
    """
    gone = TrainError(
        "The host no longer has the list of the files that were to come.",
        "Run the same command again.",
        "integrity",
    )
    if not _NAME.fullmatch(sha256):
        raise gone
    try:
        path = os.path.join(state_dir, FOLDER, sha256)
        with open(os.open(path, tree.FILE_FLAGS), "rb") as stream:  # a FIFO is not waited for
            offer = unpack(stream.read(2 * MAX_MANIFEST).decode("ascii", "replace"))
    except OSError as error:
        raise gone from error
    if offer.sha256 != sha256:
        raise gone
    return offer


def _forget(folder: str) -> None:
    """Let go of the offers that have waited long enough."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if time.time() - os.stat(path).st_mtime >= A_DAY:
            os.unlink(path)
