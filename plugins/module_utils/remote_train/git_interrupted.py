"""Take up a pull that was killed: put away what its git has left, and lose nothing else.

A git that is killed leaves lock files, and files of the coming commit, one of them cut off, in a
tree whose index knows nothing of them. A note in the repository says which commit was coming.
What is the beginning of a file of that commit holds nothing that the commit doesn't hold.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
from collections.abc import Iterator
from typing import IO

from . import live
from .atomic import write_json
from .errors import TrainError
from .file_names import shown, to_name
from .git_program import Git
from .hashing import BLOCK, new_hash

NOTE = "remote-train-pull.json"
"""The file in the repository that is there while a pull changes the tree."""


def note(git: Git, target: str) -> None:
    """Say which commit is coming, before the tree is changed for it."""
    write_json(_note(git), {"target": target})


def over(git: Git) -> None:
    """The pull has come to its end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_note(git))


def target(git: Git) -> str:
    """The commit that a pull was bringing when it was killed; empty where none was."""
    return str(live.read_json(_note(git)).get("target") or "")


def _note(git: Git) -> str:
    return os.path.join(git.line("rev-parse", "--absolute-git-dir"), NOTE)


def require_no_git(git: Git) -> None:
    """Refuse to go on while a git of this user is at work in the tree.

    :raises TrainError: with the number of its process.
    """
    for pid in _at_work(os.path.realpath(git.root)):
        raise TrainError(
            f"A git is still at work in {git.root} on the host (process {pid}).",
            "Wait for it to end, or end it there; then run this again.",
        )


def _at_work(root: str) -> Iterator[int]:
    # Where there is no /proc, none is found, and git's own locks still hold.
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or isn't ours to look at
            with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as stream:
                if not stream.read().startswith("git"):
                    continue
            where = os.readlink(f"/proc/{name}/cwd")
            if where == root or where.startswith(root + "/"):
                yield int(name)


def unlock(git: Git) -> list[str]:
    """Remove the locks that dead gits have left in the repository and its submodules'.

    No git names anything else so: a name that ends in ``.lock`` is none for a branch.
    """
    removed = []
    top = git.line("rev-parse", "--absolute-git-dir")
    for where, folders, files in os.walk(top):
        if os.path.basename(where) in {"objects", "hooks"}:
            folders[:] = []
            continue
        for file in files:
            if file.endswith(".lock"):
                os.unlink(os.path.join(where, file))
                removed.append(os.path.join(where, file))
    return removed


def drop_halves(git: Git) -> None:
    """Remove the repositories of submodules whose clone was killed: git goes on with none of them.

    One without any ref and without an index holds nothing but what a clone was fetching.
    """
    modules = os.path.join(git.line("rev-parse", "--absolute-git-dir"), "modules")
    for where, folders, files in os.walk(modules):
        if "HEAD" in files:
            folders[:] = {"modules"}.intersection(folders)  # what else is in it is its own
            continue
        for name in list(folders):
            if not _holds_anything(os.path.join(where, name)):
                shutil.rmtree(os.path.join(where, name))
                folders.remove(name)
    _drop_pointers(git)


def _holds_anything(folder: str) -> bool:
    """Whether a ref or an index lies anywhere below."""
    for where, _, files in os.walk(folder):
        below = os.path.relpath(where, folder).split(os.sep)
        if {"index", "packed-refs"} & set(files) or ("refs" in below and files):
            return True
    return False


def _drop_pointers(git: Git) -> None:
    """Remove what led from a submodule's folder to such a repository."""
    for entry in git.names("ls-files", "-s", "-z"):
        if not entry.startswith(b"160000 "):
            continue
        inner = git.inside(os.fsdecode(entry.partition(b"\t")[2]))
        pointer = os.path.join(inner.folder, ".git")
        if os.path.isdir(pointer):
            _drop_pointers(inner)
        elif os.path.isfile(pointer):
            with open(pointer, encoding="utf-8", errors="surrogateescape") as stream:
                place = stream.read().removeprefix("gitdir: ").rstrip("\n")
            if os.path.isdir(os.path.join(inner.folder, place)):
                _drop_pointers(inner)
            else:
                os.unlink(pointer)


def take_back(git: Git, coming: str) -> list[str]:
    """Take back what a checkout of ``coming`` that was killed has done to the tree.

    :returns: the names of the files that were put back or away.
    """
    if git.ask("cat-file", "-e", coming + "^{commit}").status:
        return []  # it never got so far
    head = git.line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    index = _index(git)
    blobs = blobs_of(git, coming)
    before = blobs_of(git, head) if head and index else {}
    differ = sorted(n for n in {**before, **blobs} if before.get(n) != blobs.get(n))
    # The index comes after the files and before HEAD: it may be the new one already.
    early = {name: before.get(name) for name in differ if index.get(name) == blobs.get(name)}
    if head and early:
        entries = (_entry(name, entry, len(head)) for name, entry in early.items())
        git.read("update-index", "-z", "--index-info", given=b"".join(entries))
        index.update(early)
    touched, gone = [], []
    for name in differ:
        path = os.path.join(os.fsencode(git.folder), name)
        if not os.path.lexists(path):
            # One that is to go, or that was unlinked to be written anew.
            half = True
        else:
            half = name in blobs and _is_half(git, before.get(name), blobs[name], path)
            if half:
                os.unlink(path)
                touched.append(to_name(name))
        if half and index.get(name):
            gone.append(name)
    if gone:
        listed = b"".join(name + b"\0" for name in gone)
        git.read("checkout-index", "-f", "-q", "-u", "-z", "--stdin", given=listed)
    return sorted({*touched, *(to_name(name) for name in gone)})


def _entry(name: bytes, entry: str | None, digits: int) -> bytes:
    """A line for ``git update-index --index-info``; without an entry, the name is taken out."""
    return f"{entry or '0 ' + '0' * digits}\t".encode() + name + b"\0"


def _index(git: Git) -> dict[bytes, str | None]:
    """What the index has of each file, as :func:`blobs_of`; of one in conflict, any."""
    found: dict[bytes, str | None] = {}
    for line in git.names("ls-files", "-s", "-z"):
        facts, _, name = line.partition(b"\t")
        found[name] = facts.decode().rpartition(" ")[0]
    return found


def blobs_of(git: Git, commit: str) -> dict[bytes, str]:
    """The object of each file in a commit, with its mode before it."""
    found = {}
    for entry in git.names("ls-tree", "-r", "-z", commit):
        facts, _, name = entry.partition(b"\t")
        mode, kind, number = facts.split()
        if kind == b"blob":
            found[name] = f"{mode.decode()} {number.decode()}"
    return found


def _is_half(git: Git, before: str | None, coming: str, path: bytes) -> bool:
    """Whether a file, or a link, is the beginning of what was coming, and not what was before."""
    content = _opened(path)
    if content is None:
        return False
    with content:
        number = _number(content, coming)
        if before and number == before.split()[1] and _has_mode(before, path):
            return False
        return number == coming.split()[1] or _begins(git, coming, content)


def _opened(path: bytes) -> IO[bytes] | None:
    """A file, or the target of a link, to read; None for anything else."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return io.BytesIO(os.readlink(path))
        return open(path, "rb") if stat.S_ISREG(mode) else None
    except OSError:
        return None


def _number(content: IO[bytes], entry: str) -> str:
    """What git would call these bytes (gitformat-loose, objects), as long as it calls another."""
    # The algorithm is git's; what stands behind it is only bytes that git itself has checked.
    made = new_hash("sha256" if len(entry.split()[1]) == 64 else "sha1")
    made.update(b"blob %d\0" % content.seek(0, os.SEEK_END))
    content.seek(0)
    while block := content.read(BLOCK):
        made.update(block)
    return made.hexdigest()


def _has_mode(entry: str, path: bytes) -> bool:
    """Whether a file is the kind of file, or of link, that an object stands for."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return entry.startswith("120000")
    return entry.startswith("100755" if mode & stat.S_IXUSR else "100644")


def _begins(git: Git, entry: str, content: IO[bytes]) -> bool:
    """Whether an object's content begins with ``content``."""
    content.seek(0)
    with git.piped("cat-file", "blob", entry.split()[1]) as whole:
        while block := content.read(BLOCK):
            if whole.read(len(block)) != block:
                return False
    return True


def told(removed: list[str], touched: list[str]) -> str:
    """A sentence on what was put away."""
    parts = []
    if removed:
        parts.append(f"removed the lock {shown(removed[0])}")
        if len(removed) > 1:
            parts[-1] += f" and {len(removed) - 1} more"
    if touched:
        parts.append(f"took back {len(touched)} files that it had begun to write")
    return f"A pull was interrupted; this one {' and '.join(parts) or 'goes on where it was'}."
