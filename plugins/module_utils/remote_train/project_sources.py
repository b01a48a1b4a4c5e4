"""The bytes of a project's files, read from where they lie: in the project, or where a link led.

A file in the project is reached without following any link. One that a link led to was resolved
when it was listed, so that its last part may no longer be a link when it is opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from . import hashing, tree
from .digest_cache import DigestCache
from .project_files import ProjectFile

_AT_ONCE = 1024  # files that links led to, whose digests the cache is asked for at a time


def open_source(project: tree.OpenPath, file: ProjectFile) -> int:
    """A descriptor to read ``file`` with.

    :param project: the project's own folder.
    :raises OSError: when it can't be opened; :raises tree.UnusableError: when it can't be reached.
    """
    return os.open(file.path, tree.FILE_FLAGS) if file.path else project.open_file(file.name)


def examine(
    project_src: str, files: Sequence[ProjectFile], cache: DigestCache | None = None
) -> Iterator[tree.Finding]:
    """What each of ``files`` is now: ``different`` with its digest, or what stands against it.

    :param cache: of digests by the files' names in the project; the caller saves it.
    :raises OSError: when the project can't be opened as a folder.
    """
    names = [file.name for file in files if not file.path]
    yield from tree.examine(os.fsencode(project_src), names, lambda _name: "", cache=cache)
    followed = [file for file in files if file.path]
    with ThreadPoolExecutor(hashing.default_workers()) as pool:
        for start in range(0, len(followed), _AT_ONCE):
            some = followed[start : start + _AT_ONCE]
            known = [_known(file, cache) for file in some]  # the cache is for one thread
            for digest, (finding, status) in zip(known, pool.map(_look, some, known)):
                if cache and status and not digest:
                    cache.note(finding.name, status, finding.digest)
                yield finding


def _known(file: ProjectFile, cache: DigestCache | None) -> str:
    try:
        return cache.known(file.name, os.lstat(file.path)) if cache else ""
    except OSError:
        return ""


def _look(file: ProjectFile, digest: str) -> tuple[tree.Finding, os.stat_result | None]:
    """What the file is, and its status where its bytes are known."""
    name = file.name
    try:
        descriptor = os.open(file.path, tree.FILE_FLAGS)
    except OSError as error:
        kind = {errno.ENOENT: "missing", errno.ELOOP: "symlink"}.get(error.errno or 0, "unreadable")
        return tree.Finding(name, kind, at=name, detail=error.strerror or ""), None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "special"
            return tree.Finding(name, kind, at=name), None
        size = status.st_size
        if not digest:
            digest, size = hashing.descriptor_digest(descriptor)
    except OSError as error:
        return tree.Finding(name, "unreadable", at=name, detail=error.strerror or ""), None
    finally:
        os.close(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    executable, stamp = bool(mode & stat.S_IXUSR), tree.stamp_of(status)
    return tree.Finding(name, "different", digest, size, executable, name, "", mode, stamp), status
