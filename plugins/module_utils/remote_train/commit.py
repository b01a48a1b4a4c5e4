"""From files that are staged and verified to a target that has them: kept, journaled, swapped.

Until the journal is in its place, nothing of the target has changed: the old files only have
another link, in the staging folder, under which they are kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

from . import durable, journal, transaction, tree, versions
from .disk_errors import cannot
from .file_names import first_of, parents, to_bytes
from .journal import ADD, MODE, REMOVE, REPLACE, Entry, Journal
from .keeper import Keeper
from .manifest import MODERN
from .target_change import Change, folders_to_empty, folders_to_make
from .versions import Version


class New(NamedTuple):
    """What a target is to become.

    :param staged: the path of each file that is to be written.
    :param modes: the permission bits of each file that has the right bytes, and needs other ones.
    :param names: all files that are known as applied then.
    :param manifest: its bytes; None where nothing is to be known as applied.
    :param version: what is said of it; number, files and folders are filled in here.
    :param folders: the mode of each folder that is made with another one than the usual.
    """

    staged: Mapping[str, str]
    modes: Mapping[str, int]
    names: Collection[str]
    manifest: bytes | None
    version: Version
    folders: Mapping[str, int] = MappingProxyType({})


@contextlib.contextmanager
def staging_folder(state_dir: str) -> Iterator[str]:
    """A folder of mode 0700 with ``new`` for the files to write.

    It is removed in the end, unless an apply was begun with it and could not be ended.

    :raises TrainError: when the disk takes nothing.
    """
    staging = None
    try:
        staging = tempfile.mkdtemp(prefix=journal.STAGING, dir=state_dir)
        os.mkdir(os.path.join(staging, "new"))
        yield staging
    except OSError as error:
        raise cannot(f"The sync can't be prepared in {state_dir}", error) from error
    finally:
        if staging and not journal.pending(state_dir):
            shutil.rmtree(staging, ignore_errors=True)  # what is left of it goes with the next one


def commit(
    root: str, state_dir: str, staging: str, change: Change, new: New, keep: int
) -> int | None:
    """Make the target what ``new`` says. Whoever calls holds the lock.

    :param staging: from :func:`staging_folder`.
    :param keep: how many versions are kept beside the new one.
    :return: the number of the version that is there now; None where nothing was ever applied.
    :raises TrainError: when it could not be done; the target is as it was then.
    """
    present = versions.current(state_dir)
    if not (new.staged or new.modes or change.remove) and _is_known(state_dir, new.manifest):
        return present.number if present else None
    os.makedirs(root, exist_ok=True)
    entries = _entries(root, staging, change, new)
    doing = Journal(
        staging=os.path.basename(staging),
        before=present.number if present else 0,
        version=present.number + 1 if present else 1,
        keep=keep,
        entries=entries,
        make=[
            (folder, new.folders.get(folder, journal.USUAL))
            for folder in folders_to_make(change)
            if not _is_folder(root, folder)
        ],
        empty=_with_modes(root, folders_to_empty(root, change, present.folders if present else [])),
    )
    _record(state_dir, staging, present, doing, new)
    _settle(state_dir, staging, new)
    try:
        journal.write(state_dir, doing)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # nothing has been done yet
            os.unlink(journal.path_of(state_dir))
        raise
    reason, left = transaction.run(root, state_dir, doing)
    if reason:
        if left:
            reason.hint += f" Left as it is, since it was changed meanwhile: {first_of(left)}."
        raise reason
    return doing.version


def _is_known(state_dir: str, manifest: bytes | None) -> bool:
    """Whether this manifest is the one that was applied last."""
    try:
        with open(os.path.join(state_dir, MODERN), "rb") as stream:
            return stream.read() == manifest
    except FileNotFoundError:
        return manifest is None


# -- what the journal holds --------------------------------------------------------------------


def _entries(root: str, staging: str, change: Change, new: New) -> list[Entry]:
    """What changes, with the old bytes kept: from here on they can't be lost."""
    saved = os.path.join(staging, versions.KEPT, "files")
    os.makedirs(saved)
    keeper = Keeper(root, saved)
    entries = []
    for name, path in sorted(new.staged.items()):
        found = change.write[name]
        status = os.lstat(path)
        entry = Entry(
            name,
            ADD,
            staged=os.path.basename(path),
            new=tree.stamp_of(status),
            new_mode=stat.S_IMODE(status.st_mode),
        )
        if found.kind == "different":
            entry = keeper.keep(found, entry._replace(action=REPLACE))
        entries.append(entry)
    for name, found in sorted(change.remove.items()):
        entries.append(keeper.keep(found, Entry(name, REMOVE)))
    for name, mode in sorted(new.modes.items()):
        found = change.same[name]
        entry = Entry(name, MODE, old=found.stamp, old_mode=found.mode, new_mode=mode)
        entries.append(entry._replace(sha256=keeper.sha256(found)))
    return entries


def _is_folder(root: str, name: str) -> bool:
    return os.path.isdir(os.path.join(os.fsencode(root), to_bytes(name)))


def _with_modes(root: str, folders: Iterable[str]) -> list[tuple[str, int]]:
    raw = os.fsencode(root)
    return [
        (folder, stat.S_IMODE(os.lstat(os.path.join(raw, to_bytes(folder))).st_mode))
        for folder in sorted(folders)
    ]


# -- what is written down beside it ------------------------------------------------------------


def _record(
    state_dir: str, staging: str, present: Version | None, doing: Journal, new: New
) -> None:
    """Write down the new version, what the files of the present one were, and that one if new."""
    kept = os.path.join(staging, versions.KEPT)
    before: dict[str, dict[str, Any] | None] = {}
    for entry in doing.entries:
        before[entry.name] = None
        if entry.action != ADD:
            before[entry.name] = {
                "sha256": entry.sha256,
                "mode": entry.old_mode,
                "file": entry.saved,
            }
    versions.record_before(kept, before, doing.empty)
    owned = {*(present.folders if present else []), *(folder for folder, _mode in doing.make)}
    needed = {folder for name in new.names for folder in parents(name)}
    version = replace(
        new.version,
        number=doing.version,
        made=versions.now(),
        files=len(new.names),
        folders=sorted(owned & needed),
    )
    _folder(os.path.join(staging, "next"), version, new.manifest)
    if present is None:
        applied = os.path.join(state_dir, MODERN)
        content = None
        if os.path.isfile(applied):  # by a program that kept no versions
            with open(applied, "rb") as stream:
                content = stream.read()
        _folder(os.path.join(staging, "prior"), Version(0), content)
    os.makedirs(os.path.join(state_dir, versions.FOLDER), 0o700, exist_ok=True)


def _folder(path: str, version: Version, manifest: bytes | None) -> None:
    os.mkdir(path)
    versions.record(path, version)
    if manifest is not None:
        with open(os.path.join(path, MODERN), "wb") as stream:
            stream.write(manifest)


def _settle(state_dir: str, staging: str, new: New) -> None:
    """Bring all that was staged to the disk, so that the journal never speaks of what isn't."""
    paths = list(new.staged.values())
    for at, _folders, files in os.walk(staging):
        paths.append(at)
        if os.path.basename(at) not in {"new", "files"}:
            paths += [os.path.join(at, name) for name in files]
    durable.bring([*paths, os.path.join(state_dir, versions.FOLDER), state_dir], state_dir)
