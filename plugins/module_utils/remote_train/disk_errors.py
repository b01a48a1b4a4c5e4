"""What the system says when a file can't be written, as a sentence and what to do about it."""

from __future__ import annotations

import errno
import os

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
