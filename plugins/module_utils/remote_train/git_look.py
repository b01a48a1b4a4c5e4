"""What there is of the project on the host, and what a pull would make of it."""

from __future__ import annotations

from typing import NamedTuple

from . import git_interrupted
from .file_names import shown, to_bytes, to_name
from .git_program import Git, has_git
from .git_ref import Ref, commit_of, find
from .git_submodules import behind, repositories

SHOWN = 5  # commits


class Commit(NamedTuple):
    """A commit for a person: short number, time in ISO 8601, first line."""

    short: str
    date: str
    subject: str


class Look(NamedTuple):
    """What there is, and what a pull would make of it.

    :param head: the commit that is checked out; empty where there is none yet.
    :param branch: the branch that is checked out; empty where a commit is.
    :param dirty: the tracked files that are changed, those of submodules with their folder.
    :param ref: what was asked for; its ``kind`` says whether a branch, a tag or a commit.
    :param target: the commit that this is at the remote.
    :param behind: the submodules that are not at the commit that the project names.
    :param interrupted: whether a pull was killed; the next one takes it up.
    :param last: the last five commits of what is checked out.
    """

    head: str
    branch: str
    dirty: list[str]
    ref: Ref
    target: str
    behind: list[str]
    interrupted: bool
    last: list[Commit]

    @property
    def changes(self) -> bool:
        """Whether a pull would change anything."""
        branch = self.ref.name if self.ref.kind == "branch" else ""
        return (
            self.head != self.target
            or self.branch != branch
            or bool(self.behind)
            or self.interrupted
        )


def look(git: Git, wanted: Ref, settled: bool = False) -> Look:
    """Look at the project on the host and at the remote; changes nothing on disk.

    :param wanted: what is asked for; a commit needs no network.
    :param settled: whether what a pull that was killed has left was put away.
    :raises TrainError: where a pull can't work at all.
    """
    if not has_git(git.folder):
        found, target = find(Git("/", git.remote, git.root), wanted)
        return Look("", "", [], found, target, [], False, [])
    found, target = find(git, wanted)
    head = commit_of(git)
    interrupted = bool(git_interrupted.target(git))
    # What a dead git has left is none of a person's changes.
    whole = settled or not interrupted
    return Look(
        head,
        git.line("symbolic-ref", "--quiet", "--short", "HEAD") if head else "",
        _dirty(git) if head and whole else [],
        found,
        target,
        behind(git) if whole else [],
        interrupted,
        last_commits(git) if head else [],
    )


def last_commits(git: Git) -> list[Commit]:
    """The last commits of what is checked out, the newest first."""
    out = git.read("log", f"-{SHOWN}", "--format=%h%x00%cI%x00%s", "--encoding=UTF-8", "HEAD", "--")
    rows = (line.split(b"\0", 2) for line in out.split(b"\n") if line)
    return [Commit(*(shown(part) for part in row)) for row in rows]


def _dirty(git: Git) -> list[str]:
    names = _changed(git)
    for path, inner, _ in repositories(git):
        # One that was cloned and never checked out has no file that could be changed.
        if inner.names("ls-files", "-z"):
            names += [f"{path}/{name}" for name in _changed(inner)]
    return sorted(names, key=to_bytes)


def _changed(git: Git) -> list[str]:
    entries = iter(
        git.names("status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules=all")
    )
    found = []
    for entry in entries:
        found.append(to_name(entry[3:]))
        if b"R" in entry[:2] or b"C" in entry[:2]:
            next(entries, None)  # where it came from
    return found
