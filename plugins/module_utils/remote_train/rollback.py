"""Go back to a version that is kept: an apply like any other, whose bytes are on the host already.

What a user changed on the host in the meantime is never lost: a file that would be replaced and
is no longer what was applied is a reason to refuse, and one that would be removed is kept, with a
warning. Files that didn't change between that version and the present one are left as they are.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from . import apply_lock, commit, recovery, target_change, transaction, tree, versions
from .errors import TrainError
from .file_names import shown
from .hashing import new_hash
from .manifest import Manifest, parse, read_manifest
from .problems import RefusedError, refused
from .staging import STAGED_FLAGS
from .tree_result import TreeResult, line
from .versions import Before, Version

PIECE = 1024 * 1024  # bytes copied at a time
_CHOOSE = "Nothing was changed. Choose another version."


@dataclass
class RollbackResult(TreeResult):
    """What going back changed, or would change.

    :param left: the number of the version that was there before.
    :param target: the number of the version that was gone back to; the version that is there now
        has its files under a number of its own.
    """

    left: int = 0
    target: int = 0


def rollback(
    root: str,
    state_dir: str,
    version: int | None = None,
    check: bool = False,
    keep: int = versions.KEEP,
    workers: int | None = None,
) -> RollbackResult:
    """Make the files of ``root`` what they were in ``version``; all of it or nothing.

    :param state_dir: as that of the applies before.
    :param version: its number; None for the one before the present one.
    :param check: say what would change, and write nothing at all.
    :param keep: how many versions are kept beside the new one.
    :raises RefusedError: when the target, or what is kept, is not as it should be.
    :raises TrainError: when there is no such version, or an apply is at work.
    """
    began = time.monotonic()
    if check:
        if recovery.pending(state_dir):
            raise TrainError(
                f"A sync of {root} was interrupted, so what going back would change isn't known.",
                "Run it without check mode, or sync; either finishes or undoes it first.",
                "ops",
            )
        result = _Back(root, state_dir, version, workers).look()
    else:
        if not os.path.isdir(state_dir):
            raise _none_kept(root)  # without leaving a lock in a folder that isn't there
        with apply_lock.held(state_dir):
            recovered = recovery.recover_locked(root, state_dir)
            transaction.clear(state_dir)
            result = _Back(root, state_dir, version, workers).go(keep)
        if recovered:
            result.warnings.insert(0, recovered.sentence)
    result.seconds = time.monotonic() - began
    return result


class _Back:
    """The way from the present version of one target to one that is kept."""

    def __init__(self, root: str, state_dir: str, number: int | None, workers: int | None) -> None:
        self._root = root
        self._state_dir = state_dir
        self._present, self._target = _choose(root, state_dir, number)
        past = versions.past(state_dir, self._target.number, self._present.number)
        self._folders = past.folders
        self._back = {name: before for name, before in past.files.items() if before is not None}
        self._gone = past.files.keys() - self._back.keys()
        self._manifest = _manifest_bytes(root, state_dir, self._target)
        self._listed = Manifest("", "sha256") if self._manifest is None else parse(self._manifest)
        self._change = self._decide(workers)

    def look(self) -> RollbackResult:
        """Check everything, the kept bytes too, and say what would change."""
        return self._result({name: self._copy(name, None) for name in self._change.write})

    def go(self, keep: int) -> RollbackResult:
        """Check everything, and change the target."""
        present, target, change = self._present, self._target, self._change
        with commit.staging_folder(self._state_dir) as staging:
            staged, sizes = {}, {}
            for number, name in enumerate(sorted(change.write)):
                staged[name] = os.path.join(staging, "new", str(number))
                sizes[name] = self._copy(name, staged[name])
            result = self._result(sizes)
            result.version = present.number
            if target.number != present.number:
                new = commit.New(
                    staged=staged,
                    modes=self._modes(),
                    names=self._listed.lines,
                    manifest=self._manifest,
                    version=Version(
                        0,
                        by="rollback",
                        of=str(target.number),
                        sha256=target.sha256,
                        put=self._put(),
                    ),
                    folders=self._folders,
                )
                result.version = commit.commit(
                    self._root, self._state_dir, staging, change, new, keep
                )
        return result

    def _decide(self, workers: int | None) -> target_change.Change:
        """What has to be done. :raises RefusedError: with all that stands against it."""
        change = target_change.Change()
        if not self._gone and not self._back:
            return change
        root = os.fsencode(self._root)
        applied = _applied(self._state_dir, self._present)
        put = self._present.put

        def as_applied(name: str) -> str:
            return put.get(name) or (applied.digest_of(name) if name in applied.lines else "")

        for found in tree.examine(root, self._gone, as_applied, "sha256", workers):
            if found.kind == "same":
                change.remove[found.name] = found
            elif found.kind not in {"missing", "blocked"}:
                change.kept.append(found.name)
        wanted = tree.examine(
            root, self._back, lambda name: self._back[name].sha256, "sha256", workers
        )
        change.admit_writes(root, wanted, {})
        for name, found in sorted(change.write.items()):
            if found.kind == "different" and found.digest != as_applied(name):
                message = f"{shown(name)} was changed on the host since it was applied"
                change.problems.add("changed-since", message, name=name)
        if change.problems:
            hint = (
                "Nothing was changed. Put these files aside; or sync first, which keeps them as"
                " they are in the version before."
            )
            raise RefusedError(self._root, change.problems, hint)
        return change

    def _put(self) -> dict[str, str]:
        """The digests of what is there then and is not what the manifest lists."""
        before = self._present.put.items()
        there = {name: digest for name, digest in before if name not in self._gone}
        there.update((name, old.sha256) for name, old in self._back.items())
        listed = self._listed
        return {
            name: digest
            for name, digest in there.items()
            if name not in listed.lines or listed.digest_of(name) != digest
        }

    def _modes(self) -> dict[str, int]:
        """The files that have their old bytes already, but another mode."""
        return {
            name: self._back[name].mode & 0o777
            for name, found in self._change.same.items()
            if found.mode != self._back[name].mode & 0o777
        }

    def _result(self, sizes: Mapping[str, int]) -> RollbackResult:
        result = RollbackResult(left=self._present.number, target=self._target.number)
        result.fill(self._change, sizes, self._modes())
        for name in result.written:
            old = self._back[name]
            result.after.append(line(old.sha256, bool(old.mode & stat.S_IXUSR), name))
        result.warnings = self._change.warnings(f"version {self._target.number}")
        return result

    def _copy(self, name: str, target: str | None) -> int:
        """Copy a file's old bytes, or read them only, and hold them against their digest.

        A copy, since a link would let whoever writes to the file change what is kept.
        """
        old = self._back[name]
        where = f"version {self._target.number}"
        if not old.path:
            message = f"the bytes that {shown(name)} had are not kept; only its mode is"
            raise refused(where, "not-kept", message, _CHOOSE, name)
        sha256, size = new_hash("sha256"), 0
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(_open_kept(old, where, name))
            if target is not None:
                descriptor = os.open(target, STAGED_FLAGS, 0o600)
                copy = stack.enter_context(os.fdopen(descriptor, "wb"))
                os.fchmod(descriptor, old.mode & 0o777)
            while piece := source.read(PIECE):
                sha256.update(piece)
                size += len(piece)
                if target is not None:
                    copy.write(piece)
        if sha256.hexdigest() != old.sha256:
            message = f"the bytes that are kept of {shown(name)} are not those that it had"
            raise refused(where, "kept-damaged", message, _CHOOSE, name)
        return size


def _open_kept(old: Before, where: str, name: str) -> BinaryIO:
    try:
        descriptor = os.open(old.path, tree.FILE_FLAGS)
    except OSError as error:
        message = f"the bytes that are kept of {shown(name)} can't be read: {error.strerror}"
        raise refused(where, "kept-unreadable", message, _CHOOSE, name) from error
    return os.fdopen(descriptor, "rb")


def _choose(root: str, state_dir: str, number: int | None) -> tuple[Version, Version]:
    """The present version, and the one to go back to."""
    found = versions.versions(state_dir)
    if not found:
        raise _none_kept(root)
    if number is None:
        if len(found) == 1:
            raise _none_kept(root)
        return found[-1], found[-2]
    for version in found:
        if version.number == number:
            return found[-1], version
    there = ", ".join(str(version.number) for version in found)
    raise TrainError(f"Version {number} of {root} is not kept.", f"Those that are: {there}.", "ops")


def _none_kept(root: str) -> TrainError:
    return TrainError(
        f"No version of {root} is kept that could be gone back to.",
        "One is kept with each sync that changes something, unless sync_keep is 0. What git brings"
        " goes back by sync_git_ref; with code_sync_mode=git, a rollback is of what came beside.",
        "ops",
    )


def _manifest_bytes(root: str, state_dir: str, target: Version) -> bytes | None:
    """The manifest of a version; None where it has none, as before the first apply."""
    path = versions.manifest_of(state_dir, target.number)
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        if target.files:
            message = "its manifest is gone"
            raise refused(
                f"version {target.number} of {root}", "kept-damaged", message, _CHOOSE
            ) from None
        return None
    problems = parse(content).problems
    if problems:
        raise RefusedError(path, problems, _CHOOSE)
    return content


def _applied(state_dir: str, present: Version) -> Manifest:
    """What the present version lists; nothing where nothing is applied."""
    path = versions.manifest_of(state_dir, present.number)
    return read_manifest(path) if os.path.lexists(path) else Manifest(path, "sha256")
