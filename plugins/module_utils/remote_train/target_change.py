"""What has to be done to a target so that it holds what a manifest lists, and what forbids it.

Nothing is changed here. Removed is only what the manifest applied before lists, this one doesn't,
and nobody has changed since.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from . import tree
from .digest_cache import DigestCache
from .file_names import collision_key, first_of, is_within, parents, shown, to_bytes, to_name
from .manifest import MODERN, Manifest, read_manifest
from .problems import Problems

MAX_PART = 255  # bytes of one part of a name (NAME_MAX of the usual file systems)


@dataclass
class Change:
    """What has to be done to the target, and what stands against it. Everything goes by name.

    :ivar write: what is there now, of each file to add or replace.
    :ivar same: the files that have the right bytes already.
    :ivar remove: the files to remove.
    :ivar kept: files to remove that were changed on the target since, so left there.
    :ivar overwritten: files to replace that were changed on the target since.
    :ivar foreign: files to replace that no apply has put there.
    """

    write: dict[str, tree.Finding] = field(default_factory=dict)
    same: dict[str, tree.Finding] = field(default_factory=dict)
    remove: dict[str, tree.Finding] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    overwritten: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    def admit_writes(
        self, root: bytes, findings: Iterable[tree.Finding], lines: Mapping[str, int]
    ) -> None:
        """Sort files that are to be there by what is there now; call when ``remove`` is known.

        :param lines: the number of each file's line in a manifest, where it has one.
        """
        for found in findings:
            if found.kind == "same":
                self.same[found.name] = found
            elif found.kind in {"different", "missing"} or _gives_way(root, found, self.remove):
                self.write[found.name] = found
            else:
                self.problems.add(*tree.obstacle(found), lines.get(found.name), found.name)

    def warnings(self, where: str) -> list[str]:
        """What a user should know of what they changed themselves."""
        told = []
        if self.kept:
            told.append(
                f"Kept, since it was changed on the host, though {where} no longer has it:"
                f" {first_of(self.kept)}."
            )
        if self.overwritten:
            told.append(
                f"Replaced, though it was changed on the host: {first_of(self.overwritten)}."
                " The version before this one keeps what it was."
            )
        if self.foreign:
            told.append(
                f"Replaced, though no sync had put it there: {first_of(self.foreign)}."
                " The version before this one keeps what it was."
            )
        return told


def _gives_way(root: bytes, found: tree.Finding, remove: dict[str, tree.Finding]) -> bool:
    """Whether what stands in the way goes anyway: a file, or a folder of files, to be removed."""
    if found.kind == "blocked":
        return found.at in remove
    if found.kind == "folder":
        return all(inner.name in remove for inner in tree.walk(root, found.name))
    return False


def to_manifest(
    root: str,
    state_dir: str,
    manifest: Manifest,
    previous: Manifest | None,
    cache: DigestCache | None = None,
) -> Change:
    """What brings ``root`` to ``manifest``, and everything on the target that stands against it.

    :param state_dir: the folder that nothing in a manifest may touch, where it lies in ``root``.
    :param previous: the manifest that was applied last, if one was.
    :param cache: of the digests of the files there, where they may be known by it.
    """
    change = Change()
    _admit_names(change, root, state_dir, manifest)
    raw_root = os.fsencode(root)
    if not os.path.isdir(raw_root):
        if os.path.lexists(raw_root):
            change.problems.add("not-a-folder", f"{root} is not a folder")
        change.write = {name: tree.Finding(name, "missing") for name in manifest.lines}
        return change
    if previous:
        gone = previous.lines.keys() - manifest.lines.keys()
        for found in tree.examine(
            raw_root, gone, previous.digest_of, previous.algorithm, cache=cache
        ):
            if found.kind == "same":
                change.remove[found.name] = found
            elif found.kind == "different":
                change.kept.append(found.name)
    change.admit_writes(
        raw_root,
        tree.examine(raw_root, manifest.lines, manifest.digest_of, manifest.algorithm, cache=cache),
        manifest.lines,
    )
    change.foreign = [
        name
        for name, found in change.write.items()
        if found.kind == "different" and not (previous and name in previous.lines)
    ]
    if previous and manifest.algorithm == previous.algorithm:
        change.overwritten = [
            name
            for name, found in change.write.items()
            if found.kind == "different"
            and name in previous.lines
            and found.digest != previous.digest_of(name)
        ]
    return change


def cache_path(state_dir: str) -> str:
    """Where the digests of a target's files are remembered."""
    return os.path.join(state_dir, "digests")


def applied_before(state_dir: str, warnings: list[str]) -> Manifest | None:
    """The manifest that was applied last, if one was and it can be read; else a warning is added.

    :raises TrainError: when something else than a file stands there.
    """
    path = os.path.join(state_dir, MODERN)
    if not os.path.lexists(path):
        return None
    manifest = read_manifest(path)
    if manifest.problems:
        warnings.append(
            f"{path} is damaged, so nothing is removed: {manifest.problems.items[0].message}."
        )
        return None
    return manifest


def _admit_names(change: Change, root: str, state_dir: str, manifest: Manifest) -> None:
    """Find the names that no target takes, whatever is on it."""
    state = os.path.realpath(os.fsencode(state_dir))
    own = to_name(os.path.relpath(state, os.path.realpath(os.fsencode(root))))
    # Without case: on a file system that has none, another spelling is the same folder.
    own_key = collision_key(own)
    for name, line in manifest.lines.items():
        if is_within(collision_key(name), own_key):
            message = f"{shown(name)} lies in {shown(own)}, which no bundle may change"
            change.problems.add("reserved-path", message, line, name)
        if name.count("/") > tree.MAX_DEPTH:
            message = f"{shown(name[:60])}... lies over {tree.MAX_DEPTH} folders deep"
            change.problems.add("too-deep", message, line, name)
        if len(name) > MAX_PART // 4 and any(
            len(to_bytes(part)) > MAX_PART for part in name.split("/")
        ):
            message = f"{shown(name[:60])}... has a part of over {MAX_PART} bytes"
            change.problems.add("name-too-long", message, line, name)


def folders_to_make(change: Change) -> list[str]:
    """The folders on the way to what is written that aren't there, outermost first."""
    # Where a name is missing, its folders may be too; a file on the way is one that is removed.
    names = (n for n, f in change.write.items() if f.kind in {"missing", "blocked"})
    return sorted({folder for name in names for folder in parents(name)})


def folders_to_empty(root: str, change: Change, made: Iterable[str]) -> set[str]:
    """The folders that go when they are left empty: no others than applies have made.

    A folder in whose place a file comes goes as a whole.
    """
    gone = {folder for name in change.remove for folder in parents(name)} & set(made)
    for name, found in change.write.items():
        if found.kind == "folder":
            gone.update(_folders_in(os.path.join(os.fsencode(root), to_bytes(name)), name))
    return gone - {folder for name in change.write for folder in parents(name)}


def _folders_in(path: bytes, name: str) -> Iterator[str]:
    for at, _folders, _files in os.walk(path):
        below = to_name(os.path.relpath(at, path))
        yield name if below == "." else f"{name}/{below}"
