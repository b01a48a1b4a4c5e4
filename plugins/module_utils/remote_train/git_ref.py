"""What is asked for of a repository: a branch, a tag or a commit, and where the remote has it."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import TrainError
from .file_names import shown
from .git_program import Git
from .git_url import without_secrets

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What git allows in no name of a ref (git-check-ref-format(1)), and what would be an option.
_ILLEGAL = re.compile(r"^[-/]|[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|^\.|\.lock(?:/|$)|[./]$|^@$")
_KINDS = {"refs/heads/": "branch", "refs/tags/": "tag"}


class Ref(NamedTuple):
    """What is asked for.

    :param name: the branch or tag without ``refs/…/``, or the commit.
    :param kind: ``branch``, ``tag``, ``commit``, or empty where only the remote can say it.
    """

    name: str
    kind: str

    @property
    def full(self) -> str:
        """The name as the remote has it."""
        places = {kind: place for place, kind in _KINDS.items()}
        return places.get(self.kind, "") + self.name


def parse_ref(text: str) -> Ref:
    """What ``text`` asks for; an empty one asks for the remote's default branch.

    :raises TrainError: for what can be no name of a branch or tag.
    """
    if _COMMIT.fullmatch(text.lower()):
        return Ref(text.lower(), "commit")
    if _ILLEGAL.search(text):
        raise TrainError(
            f"sync_git_ref is {shown(text)!r}, which can't be the name of a branch or a tag.",
            "Give a branch, a tag, or a commit by all of its digits.",
        )
    for place, kind in _KINDS.items():
        if text.startswith(place):
            return Ref(text[len(place) :], kind)
    return Ref(text, "")


def find(git: Git, wanted: Ref) -> tuple[Ref, str]:
    """Which kind of ref it is at the remote, and its commit there; a commit is its own.

    :raises TrainError: where the remote can't be asked or has none of that name.
    """
    if wanted.kind == "commit":
        return wanted, wanted.name
    where = without_secrets(git.remote.url)
    there = _listed(git, wanted)
    if not wanted.name:
        name = there.pop("", "")
        if not name.startswith("refs/heads/") or name not in there:
            raise TrainError(
                f"{where} has no default branch, or nothing in it yet.",
                "Push to it, or name a branch in sync_git_ref.",
            )
        wanted = Ref(name[len("refs/heads/") :], "branch")
    found = {
        kind: there.get(f"{place}{wanted.name}^{{}}") or there[place + wanted.name]
        for place, kind in _KINDS.items()
        if place + wanted.name in there and wanted.kind in ("", kind)
    }
    if len(found) > 1:
        raise TrainError(
            f"{shown(wanted.name)} is both a branch and a tag in {where}.",
            f"Write refs/heads/{wanted.name} or refs/tags/{wanted.name}.",
        )
    for kind, commit in found.items():
        return Ref(wanted.name, kind), commit
    short = " A commit is named by all of its digits." * bool(
        re.fullmatch(r"[0-9a-f]{4,39}", wanted.name)
    )
    raise TrainError(
        f"There is no {wanted.kind or 'branch or tag'} {shown(wanted.name)} in {where}.",
        f"Check sync_git_ref, and whether it was pushed.{short}",
    )


def _listed(git: Git, wanted: Ref) -> dict[str, str]:
    """The remote's refs that may be meant, and under the empty name what its HEAD points to."""
    if wanted.name:
        patterns = [f"{place}{wanted.name}" for place in _KINDS]
        patterns.append(f"refs/tags/{wanted.name}^{{}}")
    else:
        patterns = ["HEAD", "refs/heads/*"]
    said = git.read("ls-remote", "--symref", "--", git.remote.url, *patterns, what="ask the remote")
    found = {}
    for line in said.decode("utf-8", "surrogateescape").splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: "):
            if name == "HEAD":
                found[""] = value[len("ref: ") :]
        else:
            found[name] = value
    return found


def commit_of(git: Git, name: str = "HEAD") -> str:
    """The commit that a name stands for here; empty where it stands for none."""
    return git.line("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}")
