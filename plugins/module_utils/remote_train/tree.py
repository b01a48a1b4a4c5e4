"""What is really there under a folder: listed files examined, unlisted ones found.

No symlink is ever followed below the root: each folder is opened from the one above it with
``O_NOFOLLOW``, and each file from its folder. So what is hashed is what the name says, also
while somebody changes the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from . import forked, hashing
from .file_names import shown, to_bytes, to_name
from .open_path import (
    FILE_FLAGS,
    FOLDER_FLAGS,
    Folder,
    OpenPath,
    UnusableError,
    last_part,
    why_not,
)

if TYPE_CHECKING:
    from .digest_cache import DigestCache

__all__ = [
    "FILE_FLAGS",
    "MAX_DEPTH",
    "Finding",
    "OpenPath",
    "Stamp",
    "Status",
    "UnusableError",
    "examine",
    "obstacle",
    "stamp_of",
    "walk",
]

LARGE = 1024 * 1024  # bytes from which a file is a thread's work by itself
SHARE = 256  # names that a worker takes at a time, so that small files don't pay for the queue
MANY = 1000  # names from which forking is quicker than waiting for the interpreter's lock
# Names for which processes are forked at a time: what each of them touches is memory that is no
# longer shared, until it ends.
BATCH = 100_000
MAX_DEPTH = 200  # folders below each other; each is open while what is in it is looked at


class Stamp(NamedTuple):
    """What tells one state of a file from another without reading it."""

    inode: int
    size: int
    mtime_ns: int


def stamp_of(status: os.stat_result | Status) -> Stamp:
    """The stamp of a file that was looked at. A link or a rename leaves it as it is."""
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


class Finding(NamedTuple):
    """What a name turned out to be.

    :param kind: ``same``, ``different`` (a regular file, by its digest), ``missing``,
        ``symlink``, ``folder``, ``special`` (FIFO, socket, device), ``unreadable``, or
        ``blocked``: something else than a folder is on the way.
    :param digest: lower-case hex of a regular file that could be read, else empty.
    :param size: bytes hashed.
    :param at: the name, or the part of it, that the kind is about.
    :param detail: the system's own words for ``unreadable``.
    :param mode: permission bits of a regular file.
    :param stamp: of a regular file, from before its bytes were read.
    """

    name: str
    kind: str
    digest: str = ""
    size: int = 0
    executable: bool = False
    at: str = ""
    detail: str = ""
    mode: int = 0
    stamp: Stamp = Stamp(0, 0, 0)


class Status(NamedTuple):
    """What a look at a file shows, under the names that ``os.stat_result`` has for it."""

    st_mode: int
    st_dev: int
    st_ino: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int


# What became of a name, in a form that marshal takes: kind, at and detail as in a Finding; of a
# regular file an empty kind, the digest, the bytes hashed, and the fields of its Status. ``large``
# is one that should not hold up its neighbours. Flat, since there may be a million of them.
_Look = tuple[Any, ...]


def examine(
    root: bytes,
    names: Iterable[str],
    digest_of: Callable[[str], str],
    algorithm: str = "sha256",
    workers: int | None = None,
    cache: DigestCache | None = None,
) -> Iterator[Finding]:
    """One finding for each of ``names``; the order is the same for the same tree and cache.

    :param digest_of: the digest that a name should have.
    :param workers: threads or processes; by default as many as there are processors.
    :param cache: of the SHA-256 of files below ``root``: what it knows isn't read again, what it
        doesn't know is noted there; the caller saves it. Other algorithms pass it by.
    :raises OSError: when ``root`` can't be opened as a folder.
    """
    path = OpenPath(root)
    wanted = sorted(names)
    if algorithm != "sha256":
        cache = None
    if cache:
        unknown = []
        for name in wanted:
            if recalled := _recall(path, name, cache):
                digest, seen = recalled
                stamp = stamp_of(seen)
                yield _regular(name, digest, seen.st_size, seen.st_mode, stamp, digest_of(name))
            else:
                unknown.append(name)
        wanted = unknown
    for name, look in _looks(path.root, wanted, algorithm, workers or hashing.default_workers()):
        if look[0]:
            kind, at, detail = look
            yield Finding(name, kind, at=at, detail=detail)
            continue
        _, digest, size, mode, device, inode, length, mtime, ctime = look
        if cache:
            cache.note(name, Status(mode, device, inode, length, mtime, ctime), digest)
        yield _regular(name, digest, size, mode, Stamp(inode, length, mtime), digest_of(name))


def _regular(name: str, digest: str, size: int, mode: int, stamp: Stamp, expected: str) -> Finding:
    kind = "same" if digest == expected else "different"
    executable = bool(mode & stat.S_IXUSR)
    return Finding(name, kind, digest, size, executable, name, "", stat.S_IMODE(mode), stamp)


def _recall(path: OpenPath, name: str, cache: DigestCache) -> tuple[str, os.stat_result] | None:
    """Digest and status of a file that the cache knows; None for all else, missing ones too."""
    try:
        folder = path.folder_of(name)
        status = os.stat(last_part(name), dir_fd=folder.descriptor, follow_symlinks=False)
    except (OSError, UnusableError):
        return None
    digest = stat.S_ISREG(status.st_mode) and cache.known(name, status)
    return (digest, status) if digest else None


def _looks(
    root: Folder, names: list[str], algorithm: str, count: int
) -> Iterator[tuple[str, _Look]]:
    """Each name with what became of it. Large files are a thread's work by themselves."""

    def look_through(block: list[str]) -> list[_Look]:
        path = OpenPath(root)
        return [_look(path, name, algorithm, LARGE) for name in block]

    def look_alone(name: str) -> _Look:
        return _look(OpenPath(root), name, algorithm, None)

    large: deque[tuple[str, Future[_Look]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        for name, look in _small(pool, look_through, names, count):
            if look[0] != "large":
                yield name, look
                continue
            large.append((name, pool.submit(look_alone, name)))
            if len(large) > 4 * count:
                first, future = large.popleft()
                yield first, future.result()
        for name, future in large:
            yield name, future.result()


def _small(
    pool: ThreadPoolExecutor,
    work: Callable[[list[str]], list[_Look]],
    names: list[str],
    count: int,
) -> Iterator[tuple[str, _Look]]:
    """Each name with what ``work`` finds, which is over in a moment."""
    for begin in range(0, len(names), BATCH):
        batch = names[begin : begin + BATCH]
        share = max(1, min(SHARE, len(batch) // (4 * count)))
        blocks = [batch[start : start + share] for start in range(0, len(batch), share)]
        if count == 1:
            results = (work(block) for block in blocks)
        elif len(batch) >= MANY and forked.possible():
            results = forked.each(work, blocks, count)
        else:
            results = _in_threads(pool, work, blocks, 4 * count)
        with closing(results):
            for block, looks in zip(blocks, results):
                yield from zip(block, looks)


def _in_threads(
    pool: ThreadPoolExecutor,
    work: Callable[[list[str]], list[_Look]],
    blocks: list[list[str]],
    ahead: int,
) -> Generator[list[_Look], None, None]:
    pending: deque[Future[list[_Look]]] = deque()
    for block in blocks:
        pending.append(pool.submit(work, block))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _look(path: OpenPath, name: str, algorithm: str, large: int | None) -> _Look:
    """What becomes of one name.

    :param large: size in bytes from which a file is only said to be large.
    """
    try:
        folder = path.folder_of(name)
    except UnusableError as reason:
        return reason.kind, reason.at, reason.detail
    try:
        descriptor = os.open(last_part(name), FILE_FLAGS, dir_fd=folder.descriptor)
    except OSError as error:
        return why_not(error, folder, name), name, error.strerror or ""
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "special"
            return kind, name, ""
        if large is not None and status.st_size >= large:
            return "large", name, ""
        digest, size = hashing.descriptor_digest(descriptor, algorithm, status.st_size)
    except OSError as error:
        return "unreadable", name, error.strerror or ""
    finally:
        os.close(descriptor)
    return (
        "",
        digest,
        size,
        status.st_mode,
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def obstacle(finding: Finding) -> tuple[str, str]:
    """The problem's identifier and sentence for any finding that is not ``same``."""
    name, at = shown(finding.name), shown(finding.at)
    way = "" if finding.at == finding.name else f", on the way to {name}"
    return {
        "different": ("digest-differs", f"{name} has another digest than listed"),
        "missing": ("missing", f"{name} is not there"),
        "symlink": ("symlink", f"{at} is a symlink{way}"),
        "folder": ("not-a-regular-file", f"{name} is a folder, not a file"),
        "special": ("not-a-regular-file", f"{name} is not a regular file"),
        "blocked": ("not-a-folder", f"{at} is not a folder{way}"),
        "unreadable": ("unreadable", f"{at} can't be read{way}: {finding.detail}"),
    }[finding.kind]


def walk(
    root: bytes, below: str = "", skip: Callable[[str], bool] = lambda _folder: False
) -> Iterator[Finding]:
    """Everything under ``root`` that is not a folder: ``file``, ``symlink``, ``special``.

    A folder that can't be read is found as ``unreadable``. Folders themselves are not found.

    :param below: only what is in this folder of it.
    :param skip: says for a folder's name that nothing in it is wanted.
    :raises OSError: when ``root`` can't be opened, and, with the part at fault as its file name,
        when ``below`` can't be reached without following a symlink.
    """
    try:
        start = OpenPath(root).folder_of(below + "/" if below else "")
    except UnusableError as reason:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", to_bytes(reason.at)) from None
    yield from _walk(start.descriptor, below + "/" if below else "", skip)


def _walk(descriptor: int, prefix: str, skip: Callable[[str], bool]) -> Iterator[Finding]:
    # Read whole and sorted, so that one scan is open at a time and the order is stable.
    with os.scandir(descriptor) as scan:
        children = sorted((os.fsencode(child.name), _kind(child)) for child in scan)
    for raw, kind in children:
        name = prefix + to_name(raw)
        if kind != "folder":
            yield Finding(name, kind, at=name)
            continue
        if skip(name):
            continue
        if name.count("/") >= MAX_DEPTH:
            yield Finding(name, "unreadable", at=name, detail=f"over {MAX_DEPTH} folders deep")
            continue
        try:
            inner = os.open(raw, FOLDER_FLAGS, dir_fd=descriptor)
        except OSError as error:
            yield Finding(name, "unreadable", at=name, detail=error.strerror or "")
            continue
        try:
            yield from _walk(inner, name + "/", skip)
        finally:
            os.close(inner)


def _kind(child: os.DirEntry[str]) -> str:
    if child.is_symlink():
        return "symlink"
    if child.is_dir(follow_symlinks=False):
        return "folder"
    return "file" if child.is_file(follow_symlinks=False) else "special"
