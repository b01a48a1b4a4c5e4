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

from . import apply_lock, git_interrupted, git_untracked, project_files, runs
from .atomic import write_bytes
from .disk_errors import cannot
from .errors import TrainError
from .file_names import first_of, shown, to_bytes, to_name
from .git_failures import InTheWayError
from .git_program import Git
from .git_ref import Ref, find, parse_ref
from .git_url import parse, same, without_secrets
from .manifest import MODERN, read_manifest

BROUGHT = "refs/remote-train/brought"
"""The commit that the last pull has brought: it was at the remote, whatever that did since."""

PINNED = "refs/remote-train/pinned"
"""What is pinned now: kept, though no branch at the remote may hold it any more."""

UNTRACKED = git_untracked.STATE

OURS = "outputs"
SHOWN = 5  # commits, and names in an error
_GIT_STATES = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
}


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


def tracked(project_src: str) -> set[str]:
    """The files that git tracks in a project on this machine, with those of its submodules.

    :raises TrainError: where git doesn't know the project.
    """
    return set(project_files.tracked(project_src))


def look(root: str, url: str, ref: str = "") -> Look:
    """Look at the project on the host and at the remote; changes nothing on disk.

    :param root: the project's root on the host.
    :param url: where to pull from.
    :param ref: a branch, a tag or a full commit number, which needs no network; by default the
        branch that is the remote's own default.
    :raises TrainError: where a pull can't work at all.
    """
    git, wanted = _start(root, url, ref)
    return _look(git, wanted)


def pull(
    root: str, url: str, ref: str = "", allow_dirty: bool = False, *, check: bool = False
) -> Pulled:
    """Bring the project to a commit, and its submodules to theirs.

    :param allow_dirty: go on where tracked files are changed, as far as git can keep the changes.
    :param check: change nothing, and say what would happen.
    :raises TrainError: where it can't be done, or something would be lost.
    """
    git, wanted = _start(root, url, ref)
    if check:
        return _preview(git, _look(git, wanted), allow_dirty)
    with apply_lock.held(os.path.join(root, runs.SYNC)):
        return _pull(git, wanted, allow_dirty)


def _start(root: str, url: str, ref: str) -> tuple[Git, Ref]:
    remote, wanted = parse(url), parse_ref(ref)
    git = Git(root, remote)
    outer = Git("/", remote, root)
    outer.read("--version")
    if not _has_git(root):
        _require_room(root)
    else:
        _require_origin(git)
    return git, wanted


def _has_git(folder: str) -> bool:
    return os.path.lexists(os.path.join(folder, ".git"))


def _require_room(root: str) -> None:
    """A clone goes where nothing is, or only what this project has put there.

    :raises TrainError: for a folder that holds anything else.
    """
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    except OSError as error:
        raise cannot(f"{root} on the host can't be looked into", error) from error
    brought = _listed(os.path.join(root, UNTRACKED, MODERN))
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


def _require_origin(git: Git) -> None:
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


def _look(git: Git, wanted: Ref, settled: bool = False) -> Look:
    if not _has_git(git.folder):
        found, target = find(Git("/", git.remote, git.root), wanted)
        return Look("", "", [], found, target, [], False, [])
    found, target = find(git, wanted)
    head = _head(git)
    interrupted = bool(git_interrupted.target(git))
    # What a dead git has left is none of a person's changes.
    whole = settled or not interrupted
    return Look(
        head,
        git.line("symbolic-ref", "--quiet", "--short", "HEAD") if head else "",
        _dirty(git) if head and whole else [],
        found,
        target,
        _behind(git) if whole else [],
        interrupted,
        _last(git) if head else [],
    )


def _head(git: Git, name: str = "HEAD") -> str:
    return git.line("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}")


def _last(git: Git) -> list[Commit]:
    out = git.read("log", f"-{SHOWN}", "--format=%h%x00%cI%x00%s", "--encoding=UTF-8", "HEAD", "--")
    rows = (line.split(b"\0", 2) for line in out.split(b"\n") if line)
    return [Commit(*(shown(part) for part in row)) for row in rows]


def _submodules(git: Git) -> dict[str, str]:
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


def _repositories(git: Git, above: str = "") -> Iterator[tuple[str, Git, str]]:
    """The submodules that are there, at any depth: path from the root, git in it, its commit."""
    for name, commit in _submodules(git).items():
        inner = git.inside(name)
        if _has_git(inner.folder):
            yield above + name, inner, commit
            yield from _repositories(inner, f"{above}{name}/")


def _dirty(git: Git) -> list[str]:
    names = _changed(git)
    for path, inner, _ in _repositories(git):
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


def _behind(git: Git, above: str = "") -> list[str]:
    found = []
    left_out: set[str] | None = None
    for name, commit in _submodules(git).items():
        inner = git.inside(name)
        if not _has_git(inner.folder):
            left_out = _left_out(git) if left_out is None else left_out
            if name not in left_out:
                found.append(above + name)
        elif _head(inner) != commit or not inner.names("ls-files", "-z"):
            found.append(above + name)
        else:
            found += _behind(inner, f"{above}{name}/")
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


# -- what forbids a pull ---------------------------------------------------------------------------


def _require_clean(git: Git, found: Look, allow_dirty: bool) -> None:
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


def _require_pushed(git: Git, found: Look, target: str, at: Git) -> None:
    """Refuse where a commit on the host would be left behind, or a branch can't go forward.

    :param target: the commit to come.
    :param at: a repository that has it beside all that ``git`` has.
    :raises TrainError: with what stands against it.
    """
    if found.head and not found.branch:
        _require_reachable(git, found.head, f"{git.root} on the host")
    for path, inner, commit in _repositories(git):
        head = _head(inner)
        on_branch = inner.line("symbolic-ref", "--quiet", "HEAD")
        if head and head != commit and inner.names("ls-files", "-z"):
            where = f"The submodule {shown(path)} of {git.root} on the host"
            _require_reachable(inner, head, where, branches=not on_branch)
    if found.ref.kind != "branch":
        return
    own = _head(git, f"refs/heads/{found.ref.name}")
    if not own or not at.ask("merge-base", "--is-ancestor", own, target).status:
        return
    name = shown(found.ref.name)
    if git.line("rev-parse", "--is-shallow-repository") == "true":
        raise TrainError(
            f"The clone in {git.root} on the host is shallow, so that git can't tell whether"
            f" {name} goes forward.",
            f"Run there: git -C {git.root} fetch --unshallow",
        )
    brought = _head(git, BROUGHT)
    if brought and not git.ask("merge-base", "--is-ancestor", own, brought).status:
        raise TrainError(
            f"The branch {name} was rewritten at the remote: {own[:12]}, which is on the host, is"
            " no part of it any more.",
            f"If that is meant, pin the new commit (sync_git_ref={target}), or run there: "
            f"git -C {git.root} reset --keep {target[:12]}",
        )
    count = at.line("rev-list", "--count", own, "--not", target) or "some"
    verb = "commits" if count != "1" else "commit"
    raise TrainError(
        f"The branch {name} in {git.root} on the host has {count} {verb} that the remote doesn't"
        " have.",
        "Push from there, or put them aside with `git branch NAME` and `git reset --keep "
        f"origin/{name}`.",
    )


def _require_reachable(git: Git, head: str, where: str, branches: bool = True) -> None:
    kept = ["--remotes", "--tags", *(["--branches"] if branches else [])]
    kept += [name for name in (BROUGHT, PINNED) if _head(git, name)]
    if git.line("rev-list", "-n", "1", head, "--not", *kept):
        raise TrainError(
            f"{where} is at {head[:12]}, a commit that the remote doesn't have.",
            "Push it from there, or keep it with `git branch NAME`.",
        )


def _require_not_ours(git: Git, target: str) -> None:
    """Refuse a commit that would write into this project's own folder on the host.

    :raises TrainError: where it tracks ``outputs/training_sync``, or ``outputs`` is no folder.
    """
    for name, allowed in ((OURS, ("", "tree")), (runs.SYNC, ("",))):
        if git.line("cat-file", "-t", f"{target}:{name}") not in allowed:
            raise TrainError(
                f"The commit {target[:12]} tracks {name}, where this project keeps its own files"
                " on the host.",
                f"Take it out with `git rm -r --cached {name}`, and push that.",
                "data",
            )


# -- what would happen -----------------------------------------------------------------------------


def _preview(git: Git, found: Look, allow_dirty: bool) -> Pulled:
    if found.head:
        _require_clean(git, found, allow_dirty)
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
            _require_not_ours(aside, target)
            _require_pushed(git, found, target, aside)
            files = _difference(aside, found.head, target)
            return Pulled(found.head, target, True, found.ref, files, found.last, warnings)
    elif found.changes:
        files = None
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


def _pull(git: Git, wanted: Ref, allow_dirty: bool) -> Pulled:
    if not _has_git(git.folder):
        _require_room(git.root)
    there, warnings = _look_after_death(git, wanted)
    if there.head:
        _require_clean(git, there, allow_dirty)
    warnings += _warnings(git, there)
    if not there.changes:
        return Pulled(there.head, there.head, False, there.ref, [], there.last, warnings)
    heads = {path: _head(inner) for path, inner, _ in _repositories(git)}
    _name_origin(git, there.target)
    target = _fetch(git, there, "origin")
    _require_not_ours(git, target)
    _require_pushed(git, there, target, git)
    git_interrupted.note(git, target)
    try:
        with git_untracked.let_go(git, target):
            _check_out(git, there, target)
        _keep_ignored(git, there.head, target)
        git.read("update-ref", BROUGHT, target, what="note what it has brought")
        _update_submodules(git)
    except InTheWayError:
        git_interrupted.over(git)  # nothing is half done
        raise
    git_interrupted.over(git)
    files = _difference(git, there.head, target)
    for path, inner, _ in _repositories(git):
        inside = _difference(inner, heads.pop(path, ""), _head(inner))
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
    return Pulled(there.head, target, True, there.ref, files, _last(git), warnings)


def _name_origin(git: Git, target: str) -> None:
    """Make the repository where there is none, and name its origin where that has no name."""
    made = git
    if not _has_git(git.folder):
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
    coming = git_interrupted.target(git) if _has_git(git.folder) else ""
    if not coming:
        return _look(git, wanted), []
    git_interrupted.require_no_git(git)
    removed = git_interrupted.unlock(git)
    git_interrupted.drop_halves(git)
    touched = git_interrupted.take_back(git, coming)
    for path, inner, commit in _repositories(git):
        touched += [f"{path}/{name}" for name in git_interrupted.take_back(inner, commit)]
    return _look(git, wanted, settled=True), [git_interrupted.told(removed, touched)]


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
    target = _head(git, place)
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
    new = not _head(git, f"refs/heads/{name}")
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
    gone = {to_bytes(name) for sign, name in _difference(git, before, after) if sign == "-"}
    if not gone:
        return
    listed = b"".join(name + b"\0" for name in sorted(gone))
    ignored = git.ask("check-ignore", "--no-index", "-z", "--stdin", given=listed).out.split(b"\0")
    old = git_interrupted.blobs_of(git, before) if any(ignored) else {}
    for name in gone.intersection(ignored, old):
        path = os.path.join(git.folder, os.fsdecode(name))
        mode = old[name].split()[0]
        if mode != "120000" and not os.path.lexists(path):
            content = git.read("cat-file", "--filters", f"{before}:{os.fsdecode(name)}")
            write_bytes(path, content, int(mode[-3:], 8))


def _update_submodules(git: Git) -> None:
    """Bring each submodule to its commit: level by level, so that each one's URLs are today's."""
    names = _submodules(git)
    if not names:
        return
    git.read("submodule", "--quiet", "sync", what="note the URLs of its submodules")
    words = ("submodule", "update", "--init", "--progress")
    git.work(*words, what="update the submodules")
    for name, commit in names.items():
        inner = git.inside(name)
        if _has_git(inner.folder):
            if _head(inner) == commit and not inner.names("ls-files", "-z"):
                # Cloned, and killed before its files came: to git it is where it belongs.
                checkout = ("checkout", "--no-overwrite-ignore", "--detach", commit, "--")
                inner.work(*checkout, what=f"check out the submodule {shown(name)}")
            _update_submodules(inner)


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
