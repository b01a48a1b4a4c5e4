"""The old bytes of files that an apply replaces or removes, kept before it is begun."""

from __future__ import annotations

import errno
import os
import stat

from . import tree
from .file_names import shown, to_bytes
from .hashing import descriptor_digest
from .journal import Entry
from .problems import RefusedError, refused

# What a file system without hard links says, or one that has enough of them; and the kernel of a
# file that is another user's (protected_hardlinks, proc(5)).
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
COPY = 1024 * 1024  # bytes at a time


class Keeper:
    """Keeps old files under numbers in one folder: by a hard link, where there are such.

    :param folder: on the file system of ``root``.
    """

    def __init__(self, root: str, folder: str) -> None:
        self._root = root
        self._path = tree.OpenPath(os.fsencode(root))
        self._folder = folder
        self._count = 0

    def keep(self, found: tree.Finding, entry: Entry) -> Entry:
        """The entry with what was kept.

        :param found: what is known of the file.
        :raises RefusedError: when it is another one by now.
        """
        saved = str(self._count)
        self._count += 1
        there = os.path.join(self._folder, saved)
        try:
            folder = self._path.folder_of(found.name)
            base = to_bytes(found.name.rpartition("/")[2])
            copied = not _link(base, folder.descriptor, there)
            if copied:
                self._copy(found.name, there)
            old = os.stat(base, dir_fd=folder.descriptor, follow_symlinks=False)
        except (tree.UnusableError, FileNotFoundError, IsADirectoryError):
            raise self._changed(found.name) from None
        kept = os.lstat(there)
        known = found.stamp if copied else tree.stamp_of(kept)
        if not stat.S_ISREG(kept.st_mode) or tree.stamp_of(old) != known:
            raise self._changed(found.name)
        # A link can give a file another number where it lay in a lower layer (overlayfs).
        if (copied or known != found.stamp) and _digest(there, found.digest) != found.digest:
            raise self._changed(found.name)
        return entry._replace(
            saved=saved,
            old=tree.stamp_of(old),
            copy=tree.stamp_of(kept),
            old_mode=stat.S_IMODE(old.st_mode),
            sha256=found.digest if len(found.digest) == 64 else _digest(there),
        )

    def sha256(self, found: tree.Finding) -> str:
        """The SHA-256 of a file on the target, also where it was looked at by SHA-1."""
        if len(found.digest) == 64:
            return found.digest
        descriptor = self._path.open_file(found.name)
        try:
            return descriptor_digest(descriptor)[0]
        finally:
            os.close(descriptor)

    def _copy(self, name: str, there: str) -> None:
        source = self._path.open_file(name)
        try:
            status = os.fstat(source)
            target = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(target, "wb") as stream:
                while block := os.read(source, COPY):
                    stream.write(block)
                stream.flush()
                os.fchmod(stream.fileno(), stat.S_IMODE(status.st_mode))
                os.utime(stream.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
                os.fsync(stream.fileno())
        finally:
            os.close(source)

    def _changed(self, name: str) -> RefusedError:
        message = f"{shown(name)} changed on the host while the sync was being prepared"
        hint = "Nothing was changed. Run it again."
        return refused(self._root, "changed-on-target", message, hint, name)


def _link(base: bytes, folder: int, there: str) -> bool:
    """Whether a hard link could be made."""
    try:
        os.link(base, there, src_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _digest(path: str, like: str = "") -> str:
    """The digest of a file, by the algorithm that ``like`` was made with."""
    descriptor = os.open(path, tree.FILE_FLAGS)
    try:
        return descriptor_digest(descriptor, "sha1" if len(like) == 40 else "sha256")[0]
    finally:
        os.close(descriptor)
