"""The journal of an apply: what is to be done to the target, written down before it is begun.

It is one file, which is there as a whole or not at all. As long as it is there, the target may be
anything between old and new, and :mod:`transaction` brings it to one of the two. Everything in it
is said by what the file system shows, so that no step has to be recorded when it is done: a
staged file that isn't there any longer has been moved into its place.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .atomic import sync_folder
from .errors import TrainError
from .file_names import IllegalNameError, clean, to_bytes
from .tree import Stamp

NAME = "journal.json"
STAGING = "staging-"
"""What the names of the folders begin with that only an apply at work needs."""

FORWARD, BACK = "forward", "back"
ADD, REPLACE, REMOVE, MODE = "add", "replace", "remove", "mode"
USUAL = -1
"""In place of a folder's mode: the one that it gets when it is made."""

SCHEMA = 1


class Entry(NamedTuple):
    """One file of the target that changes.

    :param action: ``add``, ``replace``, ``remove``, or ``mode`` for its mode alone.
    :param staged: the file's name in the staging folder's ``new``.
    :param saved: the name of its old bytes in ``kept/files``.
    :param new: the stamp of the staged file.
    :param old: the stamp of what is on the target before.
    :param copy: the stamp of the old bytes that were kept: another one only where they are a copy.
    :param sha256: of the old bytes.
    """

    name: str
    action: str
    staged: str = ""
    saved: str = ""
    new: Stamp = Stamp(0, 0, 0)
    old: Stamp = Stamp(0, 0, 0)
    copy: Stamp = Stamp(0, 0, 0)
    old_mode: int = 0
    new_mode: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Journal:
    """An apply that has been decided on.

    :param staging: the name of its folder in the state folder.
    :param version: the number of the version that it makes; that of the one before is ``before``.
    :param keep: how many versions are kept beside the one that is made.
    :param make: folders that are missing, outermost first, each with its mode or :data:`USUAL`.
    :param empty: folders that may be left empty, and then go, each with its mode.
    :param direction: ``forward``, or ``back`` once it could not be finished.
    """

    staging: str
    before: int
    version: int
    keep: int
    entries: list[Entry] = field(default_factory=list)
    make: list[tuple[str, int]] = field(default_factory=list)
    empty: list[tuple[str, int]] = field(default_factory=list)
    direction: str = FORWARD

    def turned(self) -> Journal:
        """The same, to be undone."""
        return replace(self, direction=BACK)


def path_of(state_dir: str) -> str:
    """Where the journal is while there is one."""
    return os.path.join(state_dir, NAME)


def pending(state_dir: str) -> bool:
    """Whether an apply was begun and not ended: it runs, or it was interrupted."""
    return os.path.lexists(path_of(state_dir))


def write(state_dir: str, journal: Journal) -> None:
    """Put the journal into place; from here on the apply is finished or undone.

    It is written in the staging folder, so that a killed one leaves nothing elsewhere.
    """
    written = os.path.join(state_dir, journal.staging, NAME)
    with open(written, "w", encoding="ascii") as stream:
        json.dump({"schema": SCHEMA, **vars(journal)}, stream, separators=(",", ":"))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(written, path_of(state_dir))
    sync_folder(state_dir)


def remove(state_dir: str) -> None:
    """The apply has ended."""
    os.unlink(path_of(state_dir))
    sync_folder(state_dir)


def read(state_dir: str) -> Journal:
    """The journal of the apply that was begun. :raises TrainError: when it makes no sense."""
    path = path_of(state_dir)
    try:
        with open(path, "rb") as stream:
            return _journal(json.loads(stream.read()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise TrainError(
            f"The journal {path} of a sync that was interrupted can't be read ({why}).",
            f"See what is in {state_dir}/{STAGING}*, remove the journal, and sync again.",
            "integrity",
        ) from error


def _journal(found: dict[str, Any]) -> Journal:
    if found.pop("schema") != SCHEMA:
        raise ValueError("another version of this program wrote it")
    entries = [_entry(*fields) for fields in found.pop("entries")]
    make = [(_name(name), int(mode)) for name, mode in found.pop("make")]
    empty = [(_name(name), int(mode)) for name, mode in found.pop("empty")]
    staging = _plain(found.pop("staging"))
    if not staging.startswith(STAGING) or found["direction"] not in {FORWARD, BACK}:
        raise ValueError("it names no staging folder, or no direction")
    return Journal(staging, entries=entries, make=make, empty=empty, **found)


def _entry(name: str, action: str, staged: str, saved: str, *numbers: Any) -> Entry:
    new, old, copy, *rest = numbers
    stamps = Stamp(*new), Stamp(*old), Stamp(*copy)
    return Entry(_name(name), action, _plain(staged), _plain(saved), *stamps, *rest)


def _name(name: str) -> str:
    """A name as it was written, which is never one that leads out."""
    try:
        plain = clean(to_bytes(name))
    except IllegalNameError as error:
        raise ValueError(f"{name!r} {error.reason}") from None
    if plain != name:
        raise ValueError(f"{name!r} is not in its plain form")
    return name


def _plain(name: str) -> str:
    if "/" in name or name in {".", ".."}:
        raise ValueError(f"{name!r} is no file's own name")
    return name
