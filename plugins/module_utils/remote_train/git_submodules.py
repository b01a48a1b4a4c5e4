"""The submodules of the project on the host: which there are, and at which commits."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .file_names import shown
from .git_program import Git, has_git
from .git_ref import commit_of


def submodules(git: Git) -> dict[str, str]:
    """The submodules right below a repository, with the commit that its index names."""
    # Listing the index takes its time, and without that file there is nothing to find.
    if not os.path.lexists(os.path.join(git.folder, ".gitmodules")):
        return {}
    found = {}
    for entry in git.names("ls-files", "-s", "-z"):
        facts, _, name = entry.partition(b"\t")
        mode, commit, _stage = facts.split()
        if mode == b"160000":
            found[os.fsdecode(name)] = commit.decode()
    return found


def repositories(git: Git, above: str = "") -> Iterator[tuple[str, Git, str]]:
    """The submodules that are there, at any depth: path from the root, git in it, its commit."""
    for name, commit in submodules(git).items():
        inner = git.inside(name)
        if has_git(inner.folder):
            yield above + name, inner, commit
            yield from repositories(inner, f"{above}{name}/")


def behind(git: Git, above: str = "") -> list[str]:
    """The submodules that are not at the commit that is named, with their folders."""
    found = []
    left_out: set[str] | None = None
    for name, commit in submodules(git).items():
        inner = git.inside(name)
        if not has_git(inner.folder):
            left_out = _left_out(git) if left_out is None else left_out
            if name not in left_out:
                found.append(above + name)
        elif commit_of(inner) != commit or not inner.names("ls-files", "-z"):
            found.append(above + name)
        else:
            found += behind(inner, f"{above}{name}/")
    return found


def _left_out(git: Git) -> set[str]:
    """The submodules that the project, or a person on the host, doesn't want to be fetched."""
    update, paths = {}, {}
    for source in (("--file", ".gitmodules"), ()):
        done = git.ask("config", "-z", *source, "--get-regexp", r"^submodule\..*\.(path|update)$")
        for entry in done.out.split(b"\0"):
            key, _, value = os.fsdecode(entry).partition("\n")
            name, _, field = key.partition(".")[2].rpartition(".")
            if field == "path" and source:
                paths[name] = value
            elif field == "update":
                update[name] = value
    return {path for name, path in paths.items() if update.get(name) == "none"}


def update(git: Git) -> None:
    """Bring each submodule to its commit: level by level, so that each one's URLs are today's."""
    names = submodules(git)
    if not names:
        return
    git.read("submodule", "--quiet", "sync", what="note the URLs of its submodules")
    for name in names:
        inner = git.inside(name)
        if has_git(inner.folder) and not commit_of(inner):
            # Cloned, and killed before its HEAD came: git goes on from any commit, not from none.
            one = ("--count=1", "--format=%(objectname)", "refs/remotes")
            fetched = inner.line("for-each-ref", *one)
            if fetched and not inner.names("ls-files", "-z"):
                inner.read("update-ref", "--no-deref", "HEAD", fetched)
    words = ("submodule", "update", "--init", "--progress")
    git.work(*words, what="update the submodules")
    for name, commit in names.items():
        inner = git.inside(name)
        if has_git(inner.folder):
            if commit_of(inner) == commit and not inner.names("ls-files", "-z"):
                # Cloned, and killed before its files came: to git it is where it belongs.
                checkout = ("checkout", "--no-overwrite-ignore", "--detach", commit, "--")
                inner.work(*checkout, what=f"check out the submodule {shown(name)}")
            update(inner)
