"""What was written survives a power cut: files and folders brought to the disk.

A few are brought there one by one. For many, each ``fsync`` would be a commit of the file
system's own, so the whole file system is brought there once (syncfs(2), Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable

from . import tree

FEW = 32  # files and folders for which a call each costs less than the whole file system


def bring(paths: Iterable[str], on: str) -> None:
    """Bring the bytes of files, and the names in folders, to the disk.

    :param on: a folder on the file system that all of them lie on.
    :raises OSError: when the disk fails.
    """
    wanted = list(paths)
    if len(wanted) > FEW and _whole(on):
        return
    for path in wanted:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _one(descriptor)
        finally:
            os.close(descriptor)


def bring_folders(root: bytes, folders: Iterable[str]) -> None:
    """Bring the names in folders under ``root`` to the disk; none is reached through a symlink.

    :param folders: the empty name is the root itself; what is gone is passed over.
    """
    wanted = sorted(folders)
    if len(wanted) > FEW and _whole(os.fsdecode(root)):
        return
    path = tree.OpenPath(root)
    for folder in wanted:
        with contextlib.suppress(tree.UnusableError):
            _one(path.folder_of(f"{folder}/." if folder else ".").descriptor)


def _one(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing for folders
            raise


def _whole(folder: str) -> bool:
    """Bring the file system that ``folder`` is on to the disk; False where that can't be asked."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):  # not Linux
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syncfs(descriptor) == 0:
            return True
        number = ctypes.get_errno()
    finally:
        os.close(descriptor)
    if number == errno.ENOSYS:
        return False
    raise OSError(number, os.strerror(number))
