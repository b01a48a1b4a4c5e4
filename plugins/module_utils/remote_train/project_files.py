"""Which files belong to the training project; asked on the controller.

A whitelist says it if there is one, else git does. A symlink among the files is an error and
never passed over in silence: the host would train on something else than the user sees.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from . import tree
from .errors import TrainError
from .file_names import (
    IllegalNameError,
    clean,
    is_apple_double,
    parents,
    shown,
    to_bytes,
    to_name,
)
from .manifest import is_manifest_name

DEFAULT_WHITELIST = "scripts/training_sync_whitelist.txt"
# Made where the project runs, so the controller's copies have no place on the host.
NEVER_AT_TOP = "outputs"
NEVER_ANYWHERE = {".git", "__pycache__"}


class ProjectFile(NamedTuple):
    """A file that is synced.

    :param name: relative to the project, ``/`` between folders (see :mod:`file_names`).
    :param size: bytes.
    :param executable: whether its owner may run it.
    """

    name: str
    size: int
    executable: bool


def list_files(
    project_src: str, whitelist: str | None = None, exclude: Sequence[str] = ()
) -> list[ProjectFile]:
    """The project's files, sorted by the bytes of their names.

    :param whitelist: path, taken from the project when relative; by default
        ``scripts/training_sync_whitelist.txt`` when it is there, else git's tracked files count.
    :param exclude: shell patterns on the whole relative path; what matches a folder takes away
        all that is in it.
    :raises TrainError: when the project, the whitelist or a file of it is missing, when neither
        whitelist nor git can say, for a symlink, and for what is no regular file.
    """
    if not os.path.isdir(project_src):
        raise TrainError(
            f"There is no training project in {project_src}.",
            "Set project_src to the folder that holds it.",
            "data",
        )
    listing = os.path.join(project_src, whitelist or DEFAULT_WHITELIST)
    if whitelist or os.path.lexists(listing):
        names = _whitelisted(project_src, listing, exclude)
    else:
        names = iter(_tracked(project_src))
    wanted = {name for name in names if not _left_out(name, exclude)}
    found = _Looker(project_src)
    return [found.file(name) for name in sorted(wanted, key=to_bytes)]


def _never(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == NEVER_AT_TOP or not NEVER_ANYWHERE.isdisjoint(parts)


def _left_out(name: str, exclude: Iterable[str]) -> bool:
    if _never(name) or is_apple_double(name) or is_manifest_name(name):
        return True
    spans = [*parents(name), name]
    return any(fnmatchcase(span, pattern.rstrip("/")) for pattern in exclude for span in spans)


class _Looker:
    """Looks at files by their names, and at each folder on the way once."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._folders: set[str] = set()

    def _status(self, name: str) -> os.stat_result:
        try:
            status = os.lstat(os.path.join(self._root, to_bytes(name)))
        except OSError as error:
            raise TrainError(
                f"{shown(name)} belongs to the training project and can't be read:"
                f" {error.strerror}.",
                "Bring it back, or take it out of git or the whitelist.",
                "data",
            ) from error
        if stat.S_ISLNK(status.st_mode):
            raise TrainError(
                f"{shown(name)} in the training project is a symlink.",
                "Put the file itself there, or name the link in sync_exclude.",
                "data",
            )
        return status

    def file(self, name: str) -> ProjectFile:
        for folder in parents(name):
            if folder not in self._folders:
                self._status(folder)
                self._folders.add(folder)
        status = self._status(name)
        if stat.S_ISDIR(status.st_mode):
            raise TrainError(
                f"{shown(name)} is a git submodule that is not checked out.",
                "Run `git submodule update --init --recursive`, or name it in sync_exclude.",
                "data",
            )
        if not stat.S_ISREG(status.st_mode):
            raise TrainError(
                f"{shown(name)} in the training project is not a regular file.",
                "Name it in sync_exclude.",
                "data",
            )
        return ProjectFile(name, status.st_size, bool(status.st_mode & stat.S_IXUSR))


def _tracked(project_src: str) -> list[str]:
    # Without the variables that git sets for its hooks, which would point to another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", project_src, "ls-files", "-z", "--cached", "--recurse-submodules"]
    try:
        # The project is the user's own, and the user's own git is the one to ask.
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        reason = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
    except FileNotFoundError:
        done, reason = None, "git is not installed"
    if done is None or done.returncode:
        raise TrainError(
            f"Nothing says which files belong to the training project {project_src}: it has no"
            f" {DEFAULT_WHITELIST}, and git can't tell ({reason}).",
            "Write that whitelist (a path or folder a line), or put the project under git.",
            "data",
        )
    names = [to_name(raw) for raw in done.stdout.split(b"\0") if raw]
    if not names:
        raise TrainError(
            f"git tracks no file in the training project {project_src}.",
            f"`git add` its files, or write {DEFAULT_WHITELIST}.",
            "data",
        )
    return names


def _whitelisted(project_src: str, listing: str, exclude: Sequence[str]) -> Iterator[str]:
    try:
        with open(listing, "rb") as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        raise TrainError(
            f"The whitelist {listing} can't be read: {error.strerror}.", "", "data"
        ) from error
    any_line = False
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or line.startswith(b"#"):
            continue
        any_line = True
        yield from _listed(project_src, line, f"{listing}, line {number}", exclude)
    if not any_line:
        raise TrainError(
            f"The whitelist {listing} names nothing.", "Write a path or folder a line.", "data"
        )


def _listed(project_src: str, line: bytes, where: str, exclude: Sequence[str]) -> Iterator[str]:
    root = os.fsencode(project_src)
    try:
        name = "" if line in {b".", b"./"} else clean(line.rstrip(b"/") or b"/")
    except IllegalNameError as error:
        raise TrainError(
            f"{where}: {shown(line)} {error.reason}.", "Paths start at the project.", "data"
        ) from None
    if name and _never(name):
        raise TrainError(
            f"{where}: {shown(name)} is never synced.",
            f"{NEVER_AT_TOP}/ and .git stay where they are; take the line out.",
            "data",
        )
    path = os.path.join(root, to_bytes(name))
    if not os.path.lexists(path):
        raise TrainError(
            f"{where}: there is no {shown(name)} in {project_src}.",
            "Correct the line, or take it out.",
            "data",
        )
    if name and _left_out(name, exclude):
        return
    if os.path.islink(path) or not os.path.isdir(path):
        yield name
        return
    try:
        for finding in tree.walk(root, name, lambda folder: _left_out(folder, exclude)):
            if finding.kind == "unreadable" and not _left_out(finding.name, exclude):
                raise TrainError(
                    f"{where}: {shown(finding.name)} can't be read: {finding.detail}.", "", "data"
                )
            yield finding.name
    except NotADirectoryError as error:
        raise TrainError(
            f"{where}: {shown(os.fsencode(error.filename or name))} on the way to {shown(name)}"
            " is a symlink.",
            "Put the folder itself there, or name the link in sync_exclude.",
            "data",
        ) from error
