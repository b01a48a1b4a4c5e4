"""The training project on the host as git brings it: look what a pull would do, and pull.

It goes forward or not at all: nothing that a person has changed or committed on the host is ever
lost, and where git can't keep it, the pull is refused in words. ``ansible.builtin.git`` resets
hard over commits that were not pushed, which is why this talks to git by itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from . import apply_lock, git_interrupted, git_untracked, runs
from .atomic import write_bytes
from .errors import TrainError
from .file_names import first_of, parents, shown, to_bytes, to_name
from .git_failures import InTheWayError
from .git_forbid import (
    BROUGHT,
    PINNED,
    require_clean,
    require_not_ours,
    require_origin,
    require_pushed,
    require_room,
    require_signed,
)
from .git_look import Commit, Look, last_commits, look
from .git_program import Git, has_git
from .git_ref import Ref, commit_of, parse_ref
from .git_submodules import repositories, update
from .git_url import parse, without_secrets

UNTRACKED = git_untracked.STATE


class Pulled(NamedTuple):
    """What a pull did, or would do.

    :param before: the commit that was checked out; empty where there was none.
    :param after: the one that is now.
    :param changed: whether anything changed.
    :param ref: what was asked for.
    :param files: the paths that differ between the two, with the sign of what happened to each:
        ``+``, ``~`` or ``-``; None where the commit isn't here to look into.
    :param last: the last five commits of what is checked out.
    :param warnings: what a person should know.
    """

    before: str
    after: str
    changed: bool
    ref: Ref
    files: list[tuple[str, str]] | None
    last: list[Commit]
    warnings: list[str]

    def told(self, check: bool) -> list[str]:
        """What happened, or would happen, then the last commits, a line each."""
        what = self.ref.kind if self.ref.kind == "commit" else f"{self.ref.kind} {self.ref.name}"
        if not self.changed:
            head = f"  git: {what} is at {self.after[:12]} already"
        else:
            verb = "would go" if check else "went"
            many = "" if self.files is None else f", files that differ: {len(self.files)}"
            head = f"  git: {what} {verb} from {self.before[:12] or 'nothing'}"
            head += f" to {self.after[:12]}{many}"
        return [head, *(f"    {one.short}  {one.date}  {one.subject}" for one in self.last)]


def pull(
    root: str,
    url: str,
    ref: str = "",
    allow_dirty: bool = False,
    *,
    check: bool = False,
    allowed_signers: str | None = None,
) -> Pulled:
    """Bring the project to a commit, and its submodules to theirs.

    :param allow_dirty: go on where tracked files are changed, as far as git can keep the changes.
    :param check: change nothing, and say what would happen.
    :param allowed_signers: the text of an allowed-signers file: the commit, or the tag that is
        pinned, has to be signed by one of them. None asks for no signature.
    :raises TrainError: where it can't be done, or something would be lost.
    """
    git, wanted = _start(root, url, ref)
    if check:
        return _preview(git, look(git, wanted), allow_dirty, allowed_signers)
    with apply_lock.held(os.path.join(root, runs.SYNC)):
        return _pull(git, wanted, allow_dirty, allowed_signers)


def _start(root: str, url: str, ref: str) -> tuple[Git, Ref]:
    remote, wanted = parse(url), parse_ref(ref)
    git = Git(root, remote)
    outer = Git("/", remote, root)
    outer.read("--version")
    if not has_git(root):
        require_room(root)
    else:
        require_origin(git)
    return git, wanted


# -- what would happen -----------------------------------------------------------------------------


def _preview(git: Git, found: Look, allow_dirty: bool, signers: str | None) -> Pulled:
    if found.head:
        require_clean(git, found, allow_dirty)
    warnings = list(_warnings(git, found))
    files: list[tuple[str, str]] | None = []
    if found.interrupted:
        warnings.append("A pull was interrupted; the next one takes it up.")
        files = None
    elif found.changes and found.head:
        with tempfile.TemporaryDirectory(prefix="remote-train-") as folder:
            # With the objects that are there and a place of its own for those to come.
            aside = Git(folder, git.remote, git.root)
            aside.read("init", "--quiet", "--bare", *_format(found.target), ".")
            objects = git.line("rev-parse", "--git-path", "objects")
            with open(os.path.join(folder, "objects", "info", "alternates"), "wb") as stream:
                stream.write(os.fsencode(os.path.join(git.folder, objects)) + b"\n")
            target = _fetch(aside, found, git.remote.url)
            require_not_ours(aside, target)
            require_signed(aside, found, target, signers)
            require_pushed(git, found, target, aside)
            if not found.behind and not _moves_submodules(aside, found.head, target):
                files = _difference(aside, found.head, target)
            else:
                files = None  # what is new in there isn't here to look into
            return Pulled(found.head, target, True, found.ref, files, found.last, warnings)
    elif found.changes:
        files = None
    else:
        require_signed(git, found, found.head, signers)
    return Pulled(found.head, found.target, found.changes, found.ref, files, found.last, warnings)


def _format(target: str) -> list[str]:
    # Older ones know only the one format, and not the word.
    return ["--object-format=sha256"] if len(target) == 64 else []


def _warnings(git: Git, found: Look) -> Iterator[str]:
    if found.dirty:
        yield (
            f"{first_of(found.dirty)} in {git.root} on the host: changed there, and used as it is."
        )
    if not git.remote.protected and found.ref.kind != "commit":
        yield (
            f"Nothing protects what comes from {git.remote.url}: anybody on the way can change it."
            " Use https or ssh, or pin a commit."
        )


def _moves_submodules(git: Git, before: str, after: str) -> bool:
    """Whether the commit of any submodule differs between two commits."""
    words = ("-r", "-z", "--raw", "--no-renames", "--ignore-submodules=none")
    entries = git.names("diff-tree", *words, before, after, "--")
    return any(b"160000" in entry.split()[:2] for entry in (e[1:] for e in entries[::2]))


def _difference(git: Git, before: str, after: str) -> list[tuple[str, str]]:
    """The paths that differ between two commits, those of submodules aside."""
    if before == after:
        return []
    if not before:
        names = git.names("ls-tree", "-r", "-z", "--name-only", after)
        return [("+", to_name(name)) for name in names]
    words = ("--name-status", "-z", "--no-renames", "--ignore-submodules=all", "--no-ext-diff")
    parts = git.read("diff", *words, before, after, "--").split(b"\0")[:-1]
    signs = {b"A": "+", b"D": "-"}
    return [(signs.get(s, "~"), to_name(name)) for s, name in zip(parts[::2], parts[1::2])]


# -- the pull --------------------------------------------------------------------------------------


def _pull(git: Git, wanted: Ref, allow_dirty: bool, signers: str | None) -> Pulled:
    if not has_git(git.folder):
        require_room(git.root)
    there, warnings = _look_after_death(git, wanted)
    if there.head:
        require_clean(git, there, allow_dirty)
    warnings += _warnings(git, there)
    if not there.changes:
        require_signed(git, there, there.head, signers)
        return Pulled(there.head, there.head, False, there.ref, [], there.last, warnings)
    heads = {path: commit_of(inner) for path, inner, _ in repositories(git)}
    _name_origin(git, there.target)
    target = _fetch(git, there, "origin")
    require_not_ours(git, target)
    require_signed(git, there, target, signers)
    require_pushed(git, there, target, git)
    # Killed after the checkout, it is the one before that says what git no longer tracks.
    before = commit_of(git, BROUGHT) if there.interrupted else there.head
    git_interrupted.note(git, target)
    try:
        with git_untracked.let_go(git, target):
            _check_out(git, there, target)
        _keep_ignored(git, before, target)
        git.read("update-ref", BROUGHT, target, what="note what it has brought")
        update(git)
    except InTheWayError:
        git_interrupted.over(git)  # nothing is half done
        raise
    git_interrupted.over(git)
    files = _difference(git, there.head, target)
    for path, inner, _ in repositories(git):
        inside = _difference(inner, heads.pop(path, ""), commit_of(inner))
        files += [(sign, f"{path}/{name}") for sign, name in inside]
    warnings += [
        f"{shown(path)} is no submodule any more; its files stay on the host."
        for path in heads
        if os.path.lexists(os.path.join(git.root, path))
    ]
    pointers = _pointers(git)
    if pointers:
        warnings.append(
            f"{first_of(pointers)} on the host holds only a pointer of Git LFS: install git-lfs"
            " there, run `git lfs install` and `git lfs pull`."
        )
    files.sort(key=lambda file: to_bytes(file[1]))
    return Pulled(there.head, target, True, there.ref, files, last_commits(git), warnings)


def _name_origin(git: Git, target: str) -> None:
    """Make the repository where there is none, and name its origin where that has no name."""
    made = git
    if not has_git(git.folder):
        # Made aside and renamed, so that a half of one is never taken for one.
        made = Git(os.path.join(git.root, runs.SYNC, "git.new"), git.remote, git.root)
        shutil.rmtree(made.folder, ignore_errors=True)
        os.mkdir(made.folder)
        made.read("init", "--quiet", *_format(target), what="make a repository")
    if not made.line("config", "--get", "remote.origin.url"):
        made.read("remote", "add", "origin", git.remote.url, what="name its origin")
    if made is not git:
        os.rename(os.path.join(made.folder, ".git"), os.path.join(git.folder, ".git"))
        os.rmdir(made.folder)


def _look_after_death(git: Git, wanted: Ref) -> tuple[Look, list[str]]:
    """Look, after taking back what a pull that was killed has left."""
    coming = git_interrupted.target(git) if has_git(git.folder) else ""
    if not coming:
        return look(git, wanted), []
    git_interrupted.require_no_git(git)
    removed = git_interrupted.unlock(git)
    git_interrupted.drop_halves(git)
    touched = git_interrupted.take_back(git, coming)
    for path, inner, commit in repositories(git):
        touched += [f"{path}/{name}" for name in git_interrupted.take_back(inner, commit)]
    return look(git, wanted, settled=True), [git_interrupted.told(removed, touched)]


def _fetch(git: Git, found: Look, source: str) -> str:
    """Bring the commits; the one that is asked for, as it is now.

    :raises TrainError: where it can't be fetched.
    """
    ref = found.ref
    specs = []
    if ref.kind == "commit" and not git.ask("cat-file", "-e", found.target + "^{commit}").status:
        git.read("update-ref", PINNED, found.target, what="note what is pinned")
        return found.target
    if ref.kind != "branch":
        # Not as a tag: one of that name may be there, and be the person's own.
        specs.append(f"+{ref.full}:{PINNED}")
    if ref.kind == "branch" or not found.head:
        specs.append("+refs/heads/*:refs/remotes/origin/*")
    words = ("fetch", "--progress", "--no-recurse-submodules", "--refmap=", "--", source)
    try:
        git.work(*words, *specs, what=f"fetch {shown(ref.name)}")
    except TrainError as error:
        if ref.kind == "commit" and "There is no " in error.message:
            raise TrainError(
                f"The commit {ref.name} is not in {without_secrets(git.remote.url)}, or its server"
                " doesn't give it away by itself.",
                "Check sync_git_ref, and whether it was pushed.",
            ) from error
        raise
    place = f"refs/remotes/origin/{ref.name}" if ref.kind == "branch" else PINNED
    target = commit_of(git, place)
    if not target:
        raise TrainError(
            f"{shown(ref.name)} in {without_secrets(git.remote.url)} names no commit.",
            "Give a branch, a tag of a commit, or a commit.",
        )
    return target


def _check_out(git: Git, found: Look, target: str) -> None:
    words = ["checkout", "--progress", "--no-overwrite-ignore"]
    what = f"check out {target[:12]}"
    if found.ref.kind != "branch":
        git.work(*words, "--detach", target, "--", what=what)
        return
    name = found.ref.name
    new = not commit_of(git, f"refs/heads/{name}")
    # It was seen that this is forward, so that nothing is reset.
    git.work(*words, "--no-track", "-B", name, target, "--", what=what)
    if new:
        git.read("config", f"branch.{name}.remote", "origin")
        git.read("config", f"branch.{name}.merge", f"refs/heads/{name}")


def _keep_ignored(git: Git, before: str, after: str) -> None:
    """Put back what git no longer tracks and ignores now: such data goes by delta from then on.

    Git itself removes it, and the plan that says what delta sends was made before.
    """
    if not before:
        return
    names = [name for sign, name in _difference(git, before, after) if sign == "-"]
    # What lies below a link now can't come back there, and git ends at such a name.
    gone = {to_bytes(name) for name in names if not _is_below_a_link(git.folder, name)}
    if not gone:
        return
    listed = b"".join(name + b"\0" for name in sorted(gone))
    done = git.ask("check-ignore", "--no-index", "-z", "--stdin", given=listed)
    if done.status not in (0, 1):  # 1: none is
        raise git.failed(done, "say what it ignores")
    ignored = done.out.split(b"\0")
    old = git_interrupted.blobs_of(git, before) if any(ignored) else {}
    for name in gone.intersection(ignored, old):
        path = os.path.join(git.folder, os.fsdecode(name))
        mode = old[name].split()[0]
        if mode != "120000" and not os.path.lexists(path):
            content = git.read("cat-file", "--filters", f"{before}:{os.fsdecode(name)}")
            write_bytes(path, content, int(mode[-3:], 8))


def _is_below_a_link(folder: str, name: str) -> bool:
    above = (os.path.join(os.fsencode(folder), to_bytes(part)) for part in parents(name))
    return any(os.path.islink(path) for path in above)


def _pointers(git: Git) -> list[str]:
    """The files of Git LFS that are not what they stand for."""
    try:
        with open(os.path.join(git.folder, ".gitattributes"), "rb") as stream:
            if b"filter=lfs" not in stream.read():
                return []
    except OSError:
        return []
    found = []
    for name in git.names("ls-files", "-z"):
        path = os.path.join(os.fsencode(git.folder), name)
        if os.path.isfile(path) and os.path.getsize(path) < 1024:
            with open(path, "rb") as stream:
                if stream.read(43) == b"version https://git-lfs.github.com/spec/v1\n":
                    found.append(to_name(name))
    return found
