"""An offer: all files that a project consists of, packed small enough to go ahead of them.

It holds what the manifest holds, and which files are executable, which no manifest can say. The
host finds out from it which files it lacks, and only those are sent.

Form: ``RTO1``; the length of the next part as four bytes, big-endian; the names, sorted by their
bytes, with NUL between them, compressed by zlib; the SHA-256 of each as 32 bytes; a bit for each,
the first one lowest, that says whether it is executable. Digests can't be compressed, so that they
stand by themselves, half as long as in hex; all of it in Base64 (RFC 4648), to pass through JSON.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from . import tree
from .atomic import write_bytes
from .errors import TrainError
from .file_names import to_bytes, to_name
from .manifest import MAX_LINES, MODERN, Manifest, parse
from .manifest_lines import join_line
from .problems import RefusedError
from .staging import MAX_MANIFEST

FOLDER = "offers"
"""Where offers wait for their files, in the folder of the sync's own state."""

AN_HOUR = 3600.0
"""Seconds that an offer waits; a link that broke may bring the same one again after it was used."""

_MAGIC = b"RTO1"
_DIGEST = 32  # bytes
_NAME = re.compile(r"[0-9a-f]{64}")


class Offer(Mapping[str, str]):
    """The digests of a project's files, SHA-256 in hex by name, in the order of the names' bytes.

    :param files: digest and executability of each file, by name.
    :raises RefusedError: for names that no manifest may hold together.
    :ivar raw: the manifest's bytes, as ``sha256sum`` would write them.
    :ivar manifest: the same, checked.
    :ivar executable: the names of those that are executable.
    """

    def __init__(self, files: Iterable[tuple[str, str, bool]]) -> None:
        listed = sorted((to_bytes(name), digest, runs) for name, digest, runs in files)
        self.raw = b"".join(join_line(digest, name) for name, digest, _ in listed)
        self.executable = frozenset(to_name(name) for name, _, runs in listed if runs)
        self.manifest: Manifest = parse(self.raw, MODERN) if listed else Manifest(MODERN, "sha256")
        if self.manifest.problems:
            raise RefusedError(
                "The training project", self.manifest.problems, "Rename or exclude those files."
            )
        self.names = list(self.manifest.lines)

    @property
    def sha256(self) -> str:
        """The digest of manifest and executable bits together, by which an offer is known."""
        state = hashlib.sha256(self.raw)  # without a NUL, so that the names can't be taken for it
        for name in self.names:
            if name in self.executable:
                state.update(b"\0" + to_bytes(name))
        return state.hexdigest()

    def __getitem__(self, name: str) -> str:
        return self.manifest.digest_of(name)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.lines

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def packed(self) -> str:
        """The offer as text."""
        names = zlib.compress(b"\0".join(map(to_bytes, self.names)), 6)
        bits = bytearray(-(-len(self.names) // 8))
        for place, name in enumerate(self.names):
            if name in self.executable:
                bits[place // 8] |= 1 << place % 8
        digests = b"".join(bytes.fromhex(self[name]) for name in self.names)
        content = b"".join((_MAGIC, struct.pack(">I", len(names)), names, digests, bits))
        return base64.b64encode(content).decode("ascii")


def unpack(text: str) -> Offer:
    """The offer that :meth:`Offer.packed` wrote.

    :raises TrainError: when it is damaged; RefusedError when it names what none may.
    """
    try:
        content = base64.b64decode(text, validate=True)
        if content[:4] != _MAGIC:
            raise ValueError("it doesn't begin as one")
        (length,) = struct.unpack_from(">I", content, 4)
        names = _names(content[8 : 8 + length])
        digests = content[8 + length :]
        count = len(names)
        if len(digests) != count * _DIGEST + -(-count // 8):
            raise ValueError("its length is wrong")
    except (binascii.Error, ValueError, struct.error) as error:
        raise TrainError(
            f"The list of the project's files arrived damaged ({error}).",
            "Run the same command again.",
            "integrity",
        ) from error
    bits = digests[count * _DIGEST :]
    return Offer(
        (
            to_name(name),
            digests[place * _DIGEST : (place + 1) * _DIGEST].hex(),
            bool(bits[place // 8] >> place % 8 & 1),
        )
        for place, name in enumerate(names)
    )


def _names(packed: bytes) -> list[bytes]:
    inflate = zlib.decompressobj()
    try:
        joined = inflate.decompress(packed, MAX_MANIFEST)
    except zlib.error:
        raise ValueError("its names don't unpack") from None
    if inflate.unconsumed_tail or not inflate.eof or inflate.unused_data:
        raise ValueError("its names don't end where they should")
    if joined.count(b"\0") >= MAX_LINES:  # before there is a list of them, which takes memory
        raise ValueError(f"it has over {MAX_LINES:,} names")
    return joined.split(b"\0") if joined else []


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
        if time.time() - os.stat(path).st_mtime >= AN_HOUR:
            os.unlink(path)
