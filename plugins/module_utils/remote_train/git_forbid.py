"""What forbids a pull: what a person would lose, and what nobody vouches for."""

from __future__ import annotations

import os

from . import git_signed, git_untracked, runs
from .disk_errors import cannot
from .errors import TrainError
from .file_names import first_of, shown, to_name
from .git_look import Look
from .git_program import Git
from .git_ref import commit_of
from .git_submodules import repositories
from .git_url import same, without_secrets
from .manifest import MODERN, read_manifest

BROUGHT = "refs/remote-train/brought"
"""The commit that the last pull has brought: it was at the remote, whatever that did since."""

PINNED = "refs/remote-train/pinned"
"""What is pinned now: kept, though no branch at the remote may hold it any more."""

OURS = "outputs"
SHOWN = 5  # names in an error
_GIT_STATES = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
}


def require_room(root: str) -> None:
    """A clone goes where nothing is, or only what this project has put there.

    :raises TrainError: for a folder that holds anything else.
    """
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot(f"{root} on the host can't be looked into", error) from error
    brought = _listed(os.path.join(root, git_untracked.STATE, MODERN))
    tops = {name.partition("/")[0] for name in brought}
    strange = [name for name in names if name != OURS and to_name(os.fsencode(name)) not in tops]
    strange += _strange(root, [name for name in names if name in tops], brought)
    if not strange:
        return
    if _listed(os.path.join(root, runs.SYNC, MODERN)):
        raise TrainError(
            f"{root} on the host holds the files of an earlier sync without git"
            f" ({first_of(strange)}).",
            "Choose another project_root for code_sync_mode=git, or move those files away there; "
            "outputs/ can stay.",
        )
    raise TrainError(
        f"{root} on the host holds files and no git repository ({first_of(strange)}).",
        "Choose a project_root that is empty, or move those files away there.",
    )


def _strange(root: str, tops: list[str], brought: set[str]) -> list[str]:
    """The files below ``tops`` that are not among ``brought``."""
    found = []
    for top in tops:
        path = os.path.join(root, top)
        if os.path.islink(path) or not os.path.isdir(path):
            files = [path]
        else:
            files = [os.path.join(at, file) for at, _, files in os.walk(path) for file in files]
        names = (to_name(os.fsencode(os.path.relpath(file, root))) for file in files)
        found += [name for name in names if name not in brought]
    return sorted(found)


def _listed(manifest: str) -> set[str]:
    """The names in the manifest of what was applied; none where nothing was."""
    if not os.path.isfile(manifest):
        return set()
    return {name for name, _ in read_manifest(manifest).items()}


def require_origin(git: Git) -> None:
    """The repository that is there is of the URL that is asked for.

    :raises TrainError: where it is another one's, or git can't read it.
    """
    git.read("rev-parse", "--git-dir")
    there = git.line("config", "--get", "remote.origin.url")
    if there and not same(there, git.remote.url):
        raise TrainError(
            f"{git.root} on the host was cloned from {shown(without_secrets(there))}, and"
            f" {without_secrets(git.remote.url)} is asked for.",
            "Correct sync_git_url, choose another project_root, or change it there with "
            "`git remote set-url origin URL`.",
        )


def require_clean(git: Git, found: Look, allow_dirty: bool) -> None:
    """Refuse over changes that nobody allowed, and in the middle of another piece of work.

    :raises TrainError: with the first names.
    """
    own = git.line("rev-parse", "--absolute-git-dir")
    for name, work in _GIT_STATES.items():
        if os.path.lexists(os.path.join(own, name)):
            raise TrainError(
                f"A {work} that somebody began in {git.root} on the host isn't finished.",
                f"Finish it there, or give it up with `git {work} --abort`.",
            )
    if found.dirty and not allow_dirty:
        names = ", ".join(shown(name) for name in found.dirty[:SHOWN])
        more = f" and {len(found.dirty) - SHOWN} more" if len(found.dirty) > SHOWN else ""
        raise TrainError(
            f"Files that git tracks were changed in {git.root} on the host: {names}{more}.",
            "Commit and push them from there, or undo them with `git checkout -- FILE`; "
            "sync_git_allow_dirty=true pulls beside them where git can keep them.",
        )


def require_pushed(git: Git, found: Look, target: str, at: Git) -> None:
    """Refuse where a commit on the host would be left behind, or a branch can't go forward.

    :param target: the commit to come.
    :param at: a repository that has it beside all that ``git`` has.
    :raises TrainError: with what stands against it.
    """
    if found.head and not found.branch:
        _require_reachable(git, found.head, f"{git.root} on the host")
    for path, inner, commit in repositories(git):
        head = commit_of(inner)
        on_branch = inner.line("symbolic-ref", "--quiet", "HEAD")
        if head and head != commit and inner.names("ls-files", "-z"):
            where = f"The submodule {shown(path)} of {git.root} on the host"
            _require_reachable(inner, head, where, branches=not on_branch)
    if found.ref.kind != "branch":
        return
    own = commit_of(git, f"refs/heads/{found.ref.name}")
    if not own or not at.ask("merge-base", "--is-ancestor", own, target).status:
        return
    name = shown(found.ref.name)
    if git.line("rev-parse", "--is-shallow-repository") == "true":
        raise TrainError(
            f"The clone in {git.root} on the host is shallow, so that git can't tell whether"
            f" {name} goes forward.",
            f"Run there: git -C {git.root} fetch --unshallow",
        )
    brought = commit_of(git, BROUGHT)
    if brought and not git.ask("merge-base", "--is-ancestor", own, brought).status:
        raise TrainError(
            f"The branch {name} was rewritten at the remote: {own[:12]}, which is on the host, is"
            " no part of it any more.",
            f"If that is meant, run there: {_take(git, name)}",
        )
    count = at.line("rev-list", "--count", own, "--not", target) or "some"
    verb = "commits" if count != "1" else "commit"
    raise TrainError(
        f"The branch {name} in {git.root} on the host has {count} {verb} that the remote doesn't"
        " have.",
        f"Push from there; or put them aside with `git branch NAME {own[:12]}`, and run there:"
        f" {_take(git, name)}",
    )


def _take(git: Git, branch: str) -> str:
    """What a person runs to have a branch as it is at the remote, whatever is checked out."""
    there = f"git -C {git.root}"
    return f"{there} fetch origin {branch} && {there} checkout -B {branch} FETCH_HEAD"


def _require_reachable(git: Git, head: str, where: str, branches: bool = True) -> None:
    kept = ["--remotes", "--tags", *(["--branches"] if branches else [])]
    kept += [name for name in (BROUGHT, PINNED) if commit_of(git, name)]
    if git.read("rev-list", "-n", "1", head, "--not", *kept):
        raise TrainError(
            f"{where} is at {head[:12]}, a commit that the remote doesn't have.",
            "Push it from there, or keep it with `git branch NAME`.",
        )


def require_not_ours(git: Git, target: str) -> None:
    """Refuse a commit that would write into this project's own folder on the host.

    :raises TrainError: where it tracks ``outputs/training_sync``, or ``outputs`` is no folder.
    """
    for name, allowed in ((OURS, b"040000"), (runs.SYNC, b"")):
        entries = git.names("ls-tree", "-z", "--full-tree", target, "--", name)
        if any(entry.split()[0] != allowed for entry in entries):
            raise TrainError(
                f"The commit {target[:12]} tracks {name}, where this project keeps its own files"
                " on the host.",
                f"Take it out with `git rm -r --cached {name}`, and push that.",
                "data",
            )


def require_signed(git: Git, found: Look, commit: str, signers: str | None) -> None:
    """Refuse a commit that none of the allowed signers has signed, where one has to.

    :param git: a repository that has it, and under :data:`PINNED` the tag that is pinned.
    """
    if signers is not None:
        pinned = found.ref.kind == "tag" and commit_of(git, PINNED) == commit
        tag = found.ref.name if pinned else ""
        git_signed.require(git, commit, signers, tag, PINNED)
