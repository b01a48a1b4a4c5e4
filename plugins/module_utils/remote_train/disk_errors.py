"""What the system says when a file can't be written, as a sentence and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping

from .errors import TrainError

_HINTS = {
    errno.ENOSPC: "Free some space and run it again.",
    errno.EDQUOT: "Free some space and run it again.",
    errno.EROFS: "Mount it for writing, or choose another project_root.",
    errno.EACCES: "Let this user write there, or choose another project_root.",
    errno.EPERM: "Let this user write there, or choose another project_root.",
    errno.EXDEV: "Let the whole project lie on one file system.",
}
_WORDS = {
    errno.ENOSPC: "there is no room on the target's disk",
    errno.EDQUOT: "there is no room on the target's disk (quota)",
    errno.EXDEV: "it is on another file system than the staging folder",
}


def cannot(what: str, error: OSError) -> TrainError:
    """``what`` can't be done, for the reason that the system gave.

    :param what: the beginning of a sentence, such as ``/srv/x can't be made``.
    """
    number = error.errno or 0
    words = _WORDS.get(number) or os.strerror(number)
    return TrainError(f"{what}: {words}.", _HINTS.get(number, ""), "infra")


_PRINTED = {
    errno.ENOSPC: r"No space left on device|os error 28\b|\bENOSPC\b",
    errno.EDQUOT: r"Disk quota exceeded|os error 122\b",
    errno.EROFS: r"Read-only file system|os error 30\b",
}


def printed(text: str) -> int:
    """The error number of a disk that a program's words speak of, 0 where they don't."""
    return next((number for number, words in _PRINTED.items() if re.search(words, text)), 0)


def refused(what: str, number: int, places: Mapping[str, str]) -> TrainError:
    """``what`` can't be done, since one of the disks that it writes to takes nothing.

    :param number: the error's number.
    :param places: the folders that were written to, with what may be done beside making room. The
        disk that is meant is found by looking: a program doesn't always say where it wrote.
    """
    looks = {folder: look for folder in places if (look := _look(folder))}
    if number == errno.EROFS:
        meant = [folder for folder, look in looks.items() if look.f_flag & os.ST_RDONLY]
        words, remedy = "can only be read", "Mount it for writing"
    else:
        meant = sorted(looks, key=lambda folder: _room(looks[folder]))
        words, remedy = "is full", "Free some space there"
        if number == errno.EDQUOT:
            words = "takes no more of this user's (quota)"
    folder = (meant or list(places))[0]
    return TrainError(
        f"{what}: the disk of {folder} {words}.", f"{remedy}, or {places[folder]}.", "infra"
    )


def _room(look: os.statvfs_result) -> int:
    """Bytes that are free; none where no file can be made. Some file systems count no inodes."""
    return 0 if look.f_files and not look.f_favail else look.f_bavail * look.f_frsize


def _look(folder: str) -> os.statvfs_result | None:
    """The file system that a folder lies on, or would."""
    while folder != os.path.dirname(folder):
        try:
            return os.statvfs(folder)
        except OSError:
            folder = os.path.dirname(folder)
    return None
