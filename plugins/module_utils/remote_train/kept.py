"""What a run keeps beside its record: the adapters, markers and logs that its list names.

``run_<timestamp>/kept/`` holds them by their paths under the project root, so that
``sha256sum -c ../outputs.sha256`` in it verifies them. They are second hard links to what lies in
``outputs``: a training writes new files in place of the old ones, which then stay here alone. So a
run costs the room of what the next ones have changed, and no byte is copied.

Where a file may be written over as it lies (by a command of the user's own), or a link can't be
made (another file system), it is copied, by a clone of its blocks where the file system has that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping

from . import runs
from .file_names import IllegalNameError, clean, shown, to_bytes
from .hashing import file_digest

FOLDER = "kept"
"""In a run's folder; no list of the run's own files names what is in it."""

RESERVE = 256 * 1024 * 1024
"""Bytes of the disk that a copy leaves free: it is worth less than what a run has yet to write."""

_FICLONE = 0x40049409  # ioctl_ficlone(2); Linux


def fill(
    sync: str,
    run: str,
    listed: Mapping[str, str],
    source: Callable[[str], str],
    copied: Collection[str] = (),
) -> list[str]:
    """Make ``kept/`` of a run what its list says; done again, it does nothing.

    :param sync: the folder that the runs lie in.
    :param listed: SHA-256 by path under the project root.
    :param source: where such a path lies.
    :param copied: the paths whose files may be written over as they lie.
    :returns: a sentence for each file that could not be kept.
    """
    folder = os.path.join(sync, run, FOLDER)
    os.makedirs(folder, exist_ok=True)
    problems = []
    with _locked(folder):
        before = _of_the_run_before(sync, run) if copied else {}
        for name, digest in sorted(listed.items()):
            try:
                path = os.path.join(folder, _safe(name))
                if _is_there(path, source(name), digest):
                    continue
                old = before.get(name, ("", ""))
                if name not in copied:
                    _put(source(name), path)
                elif old[0] == digest:
                    _put(old[1], path)
                else:
                    _put(source(name), path, link=False)
            except OSError as error:
                problems.append(f"{shown(name)} is not kept with {run}: {error.strerror}.")
        _remove_others(folder, listed)
    return problems


def missing(sync: str, run: str, listed: Mapping[str, str]) -> list[str]:
    """The names in a run's list that it doesn't keep; their bytes are not looked at."""
    folder = os.path.join(sync, run, FOLDER)
    return sorted(name for name in listed if not _is_file(os.path.join(folder, name)))


def _safe(name: str) -> str:
    """A name that becomes a path; a list may have come from another machine.

    :raises OSError: for one that could lead elsewhere.
    """
    try:
        return clean(to_bytes(name))
    except IllegalNameError as error:
        raise OSError(errno.EINVAL, f"its name {error.reason}") from error


def _is_there(path: str, source: str, digest: str) -> bool:
    """Whether a file is kept already, as itself or by its bytes."""
    if not _is_file(path):
        return False
    with contextlib.suppress(OSError):
        if os.path.samefile(path, source):
            return True
    return file_digest(path, "sha256") == digest


def _is_file(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path)


def _put(source: str, path: str, *, link: bool = True) -> None:
    """Put another link to a file, or else a copy of it, into place."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        if not (link and _linked(source, temporary)):
            _copy(source, temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _linked(source: str, path: str) -> bool:
    try:
        os.link(source, path, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without links, or too many of them
        return False
    return True


def _copy(source: str, path: str) -> None:
    with open(source, "rb") as old, open(path, "xb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            disk = os.statvfs(os.path.dirname(path))
            if disk.f_bavail * disk.f_frsize < os.fstat(old.fileno()).st_size + RESERVE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            shutil.copyfileobj(old, new, 1024 * 1024)


def _of_the_run_before(sync: str, run: str) -> dict[str, tuple[str, str]]:
    """Digest and path of each file that the newest other run keeps, by its name."""
    for other in runs.found(sync):
        listed = runs.listed(os.path.join(sync, other, "outputs.sha256"))
        folder = os.path.join(sync, other, FOLDER)
        if other != run and listed and os.path.isdir(folder):
            return {
                name: (digest, os.path.join(folder, name))
                for name, digest in listed.items()
                if _is_file(os.path.join(folder, name))
            }
    return {}


def _remove_others(folder: str, listed: Mapping[str, str]) -> None:
    """Remove what the list no longer names."""
    for where, folders, files in os.walk(folder, topdown=False):
        for name in files:
            path = os.path.join(where, name)
            if os.path.relpath(path, folder) not in listed:
                os.unlink(path)
        for name in folders:
            with contextlib.suppress(OSError):  # it is not empty, or a link
                os.rmdir(os.path.join(where, name))


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Two controllers may gather one run at once."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
