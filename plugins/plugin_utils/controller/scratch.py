"""A folder on this machine for what is on its way, and gone with it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator

_NAME = re.compile(r"remote-train-(\d+)-.*")


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A folder of mode 0700 below the system's folder for temporary files (``TMPDIR``).

    Ctrl-C ends the process that has one at once. What such processes left goes before a new one
    is made.
    """
    _sweep(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=f"remote-train-{os.getpid()}-") as folder:
        yield folder


def _sweep(place: str) -> None:
    for name in os.listdir(place):
        found = _NAME.fullmatch(name)
        path = os.path.join(place, name)
        with contextlib.suppress(OSError):
            if found and os.lstat(path).st_uid == os.geteuid() and not _lives(int(found[1])):
                shutil.rmtree(path)


def _lives(pid: int) -> bool:
    """Whether there is a process of this number; another one by now is taken for the same."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
