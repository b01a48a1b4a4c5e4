"""Which files belong to the training project; asked on the controller.

A whitelist says it if there is one, else git does. A symlink among the files is an error, or is
followed where that is asked for, and never passed over in silence: the host would train on
something else than the user sees.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
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
from .git_program import own_environment
from .manifest import is_manifest_name

DEFAULT_WHITELIST = "scripts/training_sync_whitelist.txt"
# Made where the project runs, so the controller's copies have no place on the host.
NEVER_AT_TOP = "outputs"
NEVER_ANYWHERE = {".git", "__pycache__"}

_LINK_HINT = "name the link in sync_exclude, or sync what it leads to with sync_follow_links."


class ProjectFile(NamedTuple):
    """A file that is synced.

    :param name: relative to the project, ``/`` between folders (see :mod:`file_names`).
    :param size: bytes.
    :param executable: whether its owner may run it.
    :param path: where it is read from, absolute and without a link in it, when a symlink led there;
        empty for a file that lies where its name says.
    """

    name: str
    size: int
    executable: bool
    path: str = ""


def list_files(
    project_src: str,
    whitelist: str | None = None,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    tracked_apart: str | None = None,
) -> list[ProjectFile]:
    """The project's files, sorted by the bytes of their names.

    :param whitelist: path, taken from the project when relative; by default
        ``scripts/training_sync_whitelist.txt`` when it is there, else git's tracked files count.
    :param exclude: shell patterns on the whole relative path; what matches a folder takes away
        all that is in it.
    :param follow_links: whether a symlink counts as the file it leads to, or as all that is in the
        folder it leads to, in the project or not; else it is an error.
    :param tracked_apart: a folder of the project: only what git doesn't track counts then, of the
        whitelist, or else of this folder, which may be missing.
    :raises TrainError: when the project, the whitelist or a file of it is missing, when neither
        whitelist nor git can say, for a symlink that is not followed, that leads to nothing or back
        to a folder it lies in, and for what is no regular file.
    """
    if not os.path.isdir(project_src):
        raise TrainError(
            f"There is no training project in {project_src}.",
            "Set project_src to the folder that holds it.",
            "data",
        )
    listing = os.path.join(project_src, whitelist or DEFAULT_WHITELIST)
    if whitelist or os.path.lexists(listing):
        names = _whitelisted(project_src, listing, exclude, follow_links)
    elif tracked_apart is None:
        names = iter(tracked(project_src))
    elif os.path.lexists(os.path.join(project_src, tracked_apart)):
        folder = os.fsencode(tracked_apart)
        names = _listed(project_src, folder, "the folder of data", exclude, follow_links)
    else:
        names = iter(())
    apart = frozenset() if tracked_apart is None else frozenset(tracked(project_src))
    found = _Looker(project_src, exclude, follow_links)
    files = {
        file.name: file
        for name in names
        if name not in apart and not _left_out(name, exclude)
        for file in found.files(name)
    }
    return sorted(files.values(), key=lambda file: to_bytes(file.name))


def _never(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == NEVER_AT_TOP or not NEVER_ANYWHERE.isdisjoint(parts)


def _left_out(name: str, exclude: Sequence[str]) -> bool:
    if _never(name) or is_apple_double(name) or is_manifest_name(name):
        return True
    if not exclude:
        return False
    spans = [*parents(name), name]
    return any(fnmatchcase(span, pattern.rstrip("/")) for pattern in exclude for span in spans)


class _Looker:
    """Looks at files by their names, and at each folder on the way once."""

    def __init__(self, root: str, exclude: Sequence[str], follow_links: bool) -> None:
        self._root = os.fsencode(root)
        self._exclude = exclude
        self._follow_links = follow_links
        self._linked: dict[str, bool] = {}
        self._at: tuple[str, bool] | None = None  # the folder of the file before, and what it is

    def files(self, name: str) -> Iterator[ProjectFile]:
        """The file of this name, or all files that a symlink of this name leads to."""
        linked = self._below_a_link(name)
        status = self._status(name)
        if stat.S_ISLNK(status.st_mode) or linked:
            yield from self._followed(name, self._path(name), ())
            return
        if stat.S_ISDIR(status.st_mode):
            raise _error(
                name,
                "is a git submodule that is not checked out",
                "Run `git submodule update --init --recursive`, or name it in sync_exclude.",
            )
        yield _file(name, status)

    def _below_a_link(self, name: str) -> bool:
        """Whether a symlink is on the way to a file; each folder is looked at once."""
        above = name.rpartition("/")[0]
        if self._at and self._at[0] == above:
            return self._at[1]
        linked = False
        for folder in parents(name):
            if folder not in self._linked:
                self._linked[folder] = stat.S_ISLNK(self._status(folder).st_mode)
                if self._linked[folder]:
                    _target(folder, self._path(folder))
            linked = linked or self._linked[folder]
        self._at = above, linked
        return linked

    def _path(self, name: str) -> bytes:
        return os.path.join(self._root, to_bytes(name))

    def _status(self, name: str) -> os.stat_result:
        try:
            status = os.lstat(self._path(name))
        except OSError as error:
            raise _error(
                name,
                f"belongs to the training project and can't be read: {error.strerror}",
                "Bring it back, or take it out of git or the whitelist.",
            ) from error
        if stat.S_ISLNK(status.st_mode) and not self._follow_links:
            raise _error(
                name,
                "in the training project is a symlink",
                f"Put the file itself there, {_LINK_HINT}",
            )
        return status

    def _followed(self, name: str, path: bytes, way: tuple[bytes, ...]) -> Iterator[ProjectFile]:
        """The files that ``path`` leads to, under the name ``name``.

        :param way: the folders, by their real paths, that the links lie in that led here.
        """
        status = _target(name, path)
        real = os.path.realpath(path)
        if not stat.S_ISDIR(status.st_mode):
            yield _file(name, status, real)
            return
        way = (*way, os.path.realpath(os.path.dirname(path)))
        # What would come round for ever has to pass a link that leads above one passed before it.
        if os.path.islink(path) and any(_is_above(real, folder) for folder in way):
            raise _error(
                name,
                "in the training project is a symlink that leads back to a folder it lies in",
                "Name it in sync_exclude.",
            )
        try:
            for found in tree.walk(real, "", lambda folder: self._skip(f"{name}/{folder}")):
                inner = f"{name}/{found.name}"
                if not self._skip(inner):
                    yield from self._found(inner, found, real, way)
        except OSError as error:
            raise _unreadable(name, error.strerror or "") from error

    def _found(
        self, name: str, found: tree.Finding, folder: bytes, way: tuple[bytes, ...]
    ) -> Iterator[ProjectFile]:
        path = os.path.join(folder, to_bytes(found.name))
        if found.kind == "unreadable":
            raise _unreadable(name, found.detail)
        if found.kind == "symlink":
            yield from self._followed(name, path, way)
        else:
            yield _file(name, os.lstat(path), path)

    def _skip(self, name: str) -> bool:
        return _left_out(name, self._exclude)


def _target(name: str, path: bytes) -> os.stat_result:
    """What a symlink leads to. :raises TrainError: when that is nothing."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "leads in a circle"
        elif error.errno == errno.ENOENT and os.path.islink(path):
            reason = f"leads to {shown(os.readlink(path))}, and nothing is there"
        else:
            raise _unreadable(name, error.strerror or "") from error
        raise _error(
            name,
            f"in the training project is a symlink that {reason}",
            "Mend it, or name it in sync_exclude.",
        ) from None


def _is_above(folder: bytes, other: bytes) -> bool:
    return os.path.commonpath((folder, other)) == folder


def _file(name: str, status: os.stat_result, path: bytes = b"") -> ProjectFile:
    if not stat.S_ISREG(status.st_mode):
        raise _error(
            name, "in the training project is not a regular file", "Name it in sync_exclude."
        )
    executable = bool(status.st_mode & stat.S_IXUSR)
    return ProjectFile(name, status.st_size, executable, os.fsdecode(path))


def _unreadable(name: str, reason: str) -> TrainError:
    return _error(name, f"can't be read: {reason}", "Make it readable, or name it in sync_exclude.")


def _error(name: str, sentence: str, hint: str) -> TrainError:
    return TrainError(f"{shown(name)} {sentence}.", hint, "data")


def tracked(project_src: str) -> list[str]:
    """The names of the files that git tracks, with those of its submodules.

    :raises TrainError: when git can't say, or tracks none.
    """
    command = ["git", "-C", project_src, "ls-files", "-z", "--cached", "--recurse-submodules"]
    try:
        # The project is the user's own, and the user's own git is the one to ask.
        done = subprocess.run(command, capture_output=True, env=own_environment(), check=False)
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


def _whitelisted(
    project_src: str, listing: str, exclude: Sequence[str], follow_links: bool
) -> Iterator[str]:
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
        yield from _listed(project_src, line, f"{listing}, line {number}", exclude, follow_links)
    if not any_line:
        raise TrainError(
            f"The whitelist {listing} names nothing.", "Write a path or folder a line.", "data"
        )


def _listed(
    project_src: str, line: bytes, where: str, exclude: Sequence[str], follow_links: bool
) -> Iterator[str]:
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
        if follow_links:
            yield name  # the links on the way are followed with the name
            return
        raise TrainError(
            f"{where}: {shown(os.fsencode(error.filename or name))} on the way to {shown(name)}"
            " is a symlink.",
            f"Put the folder itself there, {_LINK_HINT}",
            "data",
        ) from error
