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
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, NamedTuple

from . import hashing
from .file_names import parents, shown, to_bytes, to_name

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that stands in a file's place would wait for ever.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

LARGE = 1024 * 1024  # bytes from which a file is a thread's work by itself
MAX_DEPTH = 200  # folders below each other; each is open while what is in it is looked at


class Stamp(NamedTuple):
    """What tells one state of a file from another without reading it."""

    inode: int
    size: int
    mtime_ns: int


def stamp_of(status: os.stat_result) -> Stamp:
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


class _Folder:
    """An open folder; closed when the last one who needs it has let go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class _Task(NamedTuple):
    folder: _Folder
    name: str


class UnusableError(Exception):
    """A folder on the way can't be entered, for the reason that :attr:`kind` says."""

    def __init__(self, at: str, kind: str, detail: str = "") -> None:
        super().__init__(at)
        self.at = at
        self.kind = kind
        self.detail = detail


class OpenPath:
    """The chain of open folders that leads to the file at hand.

    Names come sorted, so most have the folder of the one before.

    :param create: make the folders that are missing on the way.
    :raises OSError: when ``root`` can't be opened as a folder.
    """

    def __init__(self, root: bytes, create: bool = False) -> None:
        self._create = create
        self._root = _Folder(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._open: list[tuple[str, _Folder]] = []
        self._dead: UnusableError | None = None

    def folder_of(self, name: str) -> _Folder:
        """The open folder that ``name`` lies in; its descriptor is good while it is held.

        :raises UnusableError: when there is none, or a symlink is on the way.
        """
        if self._dead and name.startswith(self._dead.at + "/"):
            raise self._dead
        while self._open and not name.startswith(self._open[-1][0]):
            self._open.pop()
        for at in parents(name)[len(self._open) :]:
            above = self._open[-1][1] if self._open else self._root
            try:
                descriptor = self._enter(to_bytes(at.rpartition("/")[2]), above.descriptor)
            except OSError as error:
                kind = _why(error, above, at)
                detail = error.strerror or ""
                self._dead = UnusableError(at, "blocked" if kind == "special" else kind, detail)
                raise self._dead from None
            self._open.append((at + "/", _Folder(descriptor)))
        return self._open[-1][1] if self._open else self._root

    def open_file(self, name: str) -> int:
        """A descriptor to read ``name`` with.

        :raises UnusableError: as :meth:`folder_of`; :raises OSError: for a symlink too.
        """
        base = to_bytes(name.rpartition("/")[2])
        return os.open(base, FILE_FLAGS, dir_fd=self.folder_of(name).descriptor)

    def _enter(self, base: bytes, above: int) -> int:
        try:
            return os.open(base, FOLDER_FLAGS, dir_fd=above)
        except FileNotFoundError:
            if not self._create:
                raise
        os.mkdir(base, dir_fd=above)
        return os.open(base, FOLDER_FLAGS, dir_fd=above)


def _why(error: OSError, folder: _Folder, name: str) -> str:
    """The kind of a thing that didn't open."""
    if error.errno == errno.ENOENT:
        return "missing"
    try:
        mode = os.stat(
            to_bytes(name.rpartition("/")[2]), dir_fd=folder.descriptor, follow_symlinks=False
        ).st_mode
    except OSError:
        return "unreadable"
    if stat.S_ISLNK(mode):
        return "symlink"
    # ENOTDIR: a file where a folder is needed; ENXIO: a socket, or a device that isn't there.
    return "special" if error.errno in {errno.ENOTDIR, errno.ENXIO} else "unreadable"


def examine(
    root: bytes,
    names: Iterable[str],
    digest_of: Callable[[str], str],
    algorithm: str = "sha256",
    workers: int | None = None,
) -> Iterator[Finding]:
    """One finding for each of ``names``; the order is the same for the same tree.

    :param digest_of: the digest that a name should have.
    :raises OSError: when ``root`` can't be opened as a folder.
    """
    count = workers or hashing.default_workers()

    def work(share: list[_Task], *, alone: bool) -> tuple[list[Finding], list[_Task]]:
        findings, later = [], []
        for task in share:
            finding = _look(task, digest_of(task.name), algorithm, alone)
            if finding is None:
                later.append(task)
            else:
                findings.append(finding)
        return findings, later

    path = OpenPath(root)
    pending: deque[Future[tuple[list[Finding], list[_Task]]]] = deque()

    with ThreadPoolExecutor(count) as pool:

        def drain(down_to: int) -> Iterator[Finding]:
            while len(pending) > down_to:
                findings, later = pending.popleft().result()
                for task in later:
                    pending.append(pool.submit(work, [task], alone=True))
                yield from findings

        share: list[_Task] = []
        for name in sorted(names):
            try:
                share.append(_Task(path.folder_of(name), name))
            except UnusableError as reason:
                yield Finding(name, reason.kind, at=reason.at, detail=reason.detail)
                continue
            if len(share) == hashing.SHARE:
                pending.append(pool.submit(work, share, alone=False))
                share = []
                yield from drain(4 * count)  # what is open stays a small number of folders
        pending.append(pool.submit(work, share, alone=False))
        yield from drain(0)


def _look(task: _Task, expected: str, algorithm: str, alone: bool) -> Finding | None:
    """The finding for one file; None for a large one that should not hold up its neighbours."""
    folder, name = task
    try:
        descriptor = os.open(
            to_bytes(name.rpartition("/")[2]), FILE_FLAGS, dir_fd=folder.descriptor
        )
    except OSError as error:
        return Finding(name, _why(error, folder, name), at=name, detail=error.strerror or "")
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            return Finding(name, "folder", at=name)
        if not stat.S_ISREG(status.st_mode):
            return Finding(name, "special", at=name)
        if status.st_size >= LARGE and not alone:
            return None
        digest, size = hashing.descriptor_digest(descriptor, algorithm)
    except OSError as error:
        return Finding(name, "unreadable", at=name, detail=error.strerror or "")
    finally:
        os.close(descriptor)
    kind = "same" if digest == expected else "different"
    mode = stat.S_IMODE(status.st_mode)
    executable = bool(mode & stat.S_IXUSR)
    return Finding(name, kind, digest, size, executable, name, "", mode, stamp_of(status))


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
