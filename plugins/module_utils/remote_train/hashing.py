"""Digests of files, as fast as the processor makes them.

hashlib uses the processor's SHA instructions and lets go of the interpreter's lock above 2 KiB,
so threads scale for large files. For small files the system calls are what costs: one ``open``
and one ``read`` are a seventh of what ``open()`` and ``hashlib.file_digest`` take.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from hashlib import _Hash  # the class has a name in the type stubs only

FilePath = Union[str, bytes]

SMALL = 64 * 1024  # bytes that one read brings
BLOCK = 1024 * 1024  # bytes per read of a larger file: far above what switching threads costs
SHARE = 32  # files that a thread takes at a time, so that small ones don't pay for the queue


def new_hash(algorithm: str, start: bytes = b"") -> _Hash:
    """A hash of these bytes; SHA-1 also where a policy (FIPS) forbids it for signatures.

    :raises ValueError: for an algorithm that hashlib doesn't know.
    """
    if algorithm == "sha256":  # by its name it takes longer to find than 500 bytes to hash
        return hashlib.sha256(start, usedforsecurity=False)
    return hashlib.new(algorithm, start, usedforsecurity=False)


def digest_of(content: bytes) -> str:
    """The SHA-256 of these bytes, in lower-case hex."""
    return new_hash("sha256", content).hexdigest()


def default_workers() -> int:
    """The number of processors that this process may use, 32 at most."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        usable = os.cpu_count() or 1
    return min(usable, 32)


def descriptor_digest(
    descriptor: int, algorithm: str = "sha256", likely: int = SMALL
) -> tuple[str, int]:
    """The digest in lower-case hex, and the number of bytes, from here to the end of the file.

    :param likely: bytes that there are, as far as is known: reading no more room than that takes
        is twice as fast for small files.
    :raises OSError: when reading fails.
    """
    wanted = likely + 1 if likely < SMALL else SMALL
    block = os.read(descriptor, wanted)
    size = len(block)
    state = new_hash(algorithm, block)
    if size < wanted:  # of a regular file, a short read is its end
        return state.hexdigest(), size
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while count := os.readv(descriptor, [buffer]):
        state.update(view[:count])
        size += count
    return state.hexdigest(), size


def file_digest(path: FilePath, algorithm: str = "sha256") -> str:
    """The digest of one file in lower-case hex. Follows a symlink, as ``sha256sum`` does.

    :raises OSError: when the file can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return descriptor_digest(descriptor, algorithm)[0]
    finally:
        os.close(descriptor)


def digest_files(
    paths: Iterable[FilePath], algorithm: str = "sha256", workers: int | None = None
) -> dict[FilePath, str]:
    """The digest of each file in lower-case hex, in the order given.

    :param workers: threads; by default as many as there are processors.
    :raises OSError: for the first file that can't be read.
    """
    wanted = list(paths)
    count = workers or default_workers()
    share = max(1, min(SHARE, len(wanted) // (4 * count)))
    shares = [wanted[start : start + share] for start in range(0, len(wanted), share)]

    def digests(some: list[FilePath]) -> list[str]:
        return [file_digest(path, algorithm) for path in some]

    with ThreadPoolExecutor(count) as pool:
        return dict(zip(wanted, itertools.chain.from_iterable(pool.map(digests, shares))))
