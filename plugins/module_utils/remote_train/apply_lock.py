"""One apply at a time on a host: a file that is locked as long as one is at work.

The kernel lets go of the lock with the process, whatever ended that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from .disk_errors import cannot
from .errors import TrainError

NAME = "apply.lock"


@contextlib.contextmanager
def held(state_dir: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of ``state_dir``, which is made when it is missing.

    :param wait: seconds for which whoever holds it is waited for.
    :raises TrainError: when another process holds it, or it can't be made.
    """
    path = os.path.join(state_dir, NAME)
    try:
        os.makedirs(state_dir, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)  # whoever may open it may hold it
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise TrainError(
                f"The lock {path} is a symlink.",
                "Remove it, and see who put it there.",
                "integrity",
            ) from error
        raise cannot(f"The folder {state_dir} can't be used", error) from error
    try:
        until = time.monotonic() + wait
        while not _taken(descriptor):
            if time.monotonic() >= until:
                raise TrainError(
                    f"Another sync is at work on this host (it holds {path}).",
                    "Wait for it to end and run this again.",
                    "ops",
                )
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
