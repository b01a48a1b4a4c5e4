"""The way to a file through open folders, on which no symlink is followed.

Each folder is opened from the one above it with ``O_NOFOLLOW``, and each file from its folder. So
what is opened is what the name says, also while somebody changes the tree.
"""

from __future__ import annotations

import errno
import os
import stat

from .file_names import parents, to_bytes

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a FIFO that stands in a file's place would wait for ever.
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Folder:
    """An open folder; closed when the last one who needs it has let go of it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


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

    :param root: a path, or a folder that another chain began with.
    :param create: make the folders that are missing on the way.
    :raises OSError: when ``root`` can't be opened as a folder.
    """

    def __init__(self, root: bytes | Folder, create: bool = False) -> None:
        self._create = create
        if isinstance(root, bytes):
            root = Folder(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.root = root
        self._open: list[tuple[str, Folder]] = []
        self._last: tuple[str, Folder] | None = None
        self._dead: UnusableError | None = None

    def folder_of(self, name: str) -> Folder:
        """The open folder that ``name`` lies in; its descriptor is good while it is held.

        :raises UnusableError: when there is none, or a symlink is on the way.
        """
        above = name.rpartition("/")[0]
        if self._last and self._last[0] == above:
            return self._last[1]
        if self._dead and name.startswith(self._dead.at + "/"):
            raise self._dead
        self._last = None
        while self._open and not name.startswith(self._open[-1][0]):
            self._open.pop()
        for at in parents(name)[len(self._open) :]:
            outer = self._open[-1][1] if self._open else self.root
            try:
                descriptor = self._enter(last_part(at), outer.descriptor)
            except OSError as error:
                kind = why_not(error, outer, at)
                detail = error.strerror or ""
                self._dead = UnusableError(at, "blocked" if kind == "special" else kind, detail)
                raise self._dead from None
            self._open.append((at + "/", Folder(descriptor)))
        self._last = (above, self._open[-1][1] if self._open else self.root)
        return self._last[1]

    def open_file(self, name: str) -> int:
        """A descriptor to read ``name`` with.

        :raises UnusableError: as :meth:`folder_of`; :raises OSError: for a symlink too.
        """
        return os.open(last_part(name), FILE_FLAGS, dir_fd=self.folder_of(name).descriptor)

    def _enter(self, base: bytes, above: int) -> int:
        try:
            return os.open(base, FOLDER_FLAGS, dir_fd=above)
        except FileNotFoundError:
            if not self._create:
                raise
        os.mkdir(base, dir_fd=above)
        return os.open(base, FOLDER_FLAGS, dir_fd=above)


def last_part(name: str) -> bytes:
    """What ``name`` is called in its folder."""
    return to_bytes(name.rpartition("/")[2])


def why_not(error: OSError, folder: Folder, name: str) -> str:
    """The kind of a thing that didn't open."""
    if error.errno == errno.ENOENT:
        return "missing"
    try:
        mode = os.stat(last_part(name), dir_fd=folder.descriptor, follow_symlinks=False).st_mode
    except OSError:
        return "unreadable"
    if stat.S_ISLNK(mode):
        return "symlink"
    # ENOTDIR: a file where a folder is needed; ENXIO: a socket, or a device that isn't there.
    return "special" if error.errno in {errno.ENOTDIR, errno.ENXIO} else "unreadable"
