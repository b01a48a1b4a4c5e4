"""The versions of a target: what it is now, and what it was before each of the last applies.

``versions/<number>/`` holds the manifest that was applied (``SYNC_MANIFEST.sha256``) and
``version.json``; once another version has taken its place, ``kept/`` as well: ``before.json`` says
what each file was that this next one changed, and ``files/`` has the old bytes. So a version is
found again by going back through all that came after it. Number 0 is what was there before the
first apply, and has no manifest.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .errors import TrainError
from .journal import STAGING
from .manifest import MODERN

FOLDER = "versions"
RECORD = "version.json"
KEPT = "kept"
BEFORE = "before.json"
_NUMBER = re.compile(r"0|[1-9][0-9]*")

KEEP = 5
"""How many versions are kept beside the present one."""


@dataclass
class Version:
    """One version.

    :param made: when it was applied, as ``2026-02-09T09:30:00Z``; empty for number 0.
    :param by: ``apply``, ``rollback``, or empty for number 0.
    :param of: the bundle's name, or the number of the version that was gone back to.
    :param sha256: of the bundle; empty where there was none.
    :param files: the number of files that its manifest lists.
    :param folders: those that applies have made and that its files lie in.
    :param put: the digests of files that going back has put there, and that the manifest doesn't
        list, or lists with another one: the user's own, as they were when a sync replaced them.
    :param current: whether it is the present one.
    """

    number: int
    made: str = ""
    by: str = ""
    of: str = ""
    sha256: str = ""
    files: int = 0
    folders: list[str] = field(default_factory=list)
    put: dict[str, str] = field(default_factory=dict)
    current: bool = False

    @property
    def line(self) -> str:
        """One line for a person."""
        if not self.by:
            what = "before the first sync"
        else:
            what = f"rollback to {self.of}" if self.by == "rollback" else self.of
        digest = f" ({self.sha256[:12]})" if self.sha256 else ""
        now = "  <- now" if self.current else ""
        return (
            f"{self.number:>4}  {self.made or '-':<20}  {self.files:>6} files  {what}{digest}{now}"
        )


class Before(NamedTuple):
    """What a file was before a version was replaced.

    :param path: of its old bytes; empty where the bytes stayed and only the mode changed.
    """

    sha256: str
    mode: int
    path: str


class Past(NamedTuple):
    """What has to be true again of a target that goes back.

    :param files: each file that changed since, by name; None for one that wasn't there.
    :param folders: the mode of each folder that went since.
    """

    files: dict[str, Before | None]
    folders: dict[str, int]


def now() -> str:
    """The time as records have it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def folder_of(state_dir: str, number: int) -> str:
    """Where a version is kept."""
    return os.path.join(state_dir, FOLDER, str(number))


def manifest_of(state_dir: str, number: int) -> str:
    """The path of a version's manifest, which is there unless the version is number 0."""
    return os.path.join(folder_of(state_dir, number), MODERN)


def current(state_dir: str) -> Version | None:
    """The present version; None where nothing was ever applied.

    :raises TrainError: when its record can't be read.
    """
    numbers = _numbers(state_dir)
    return _read(state_dir, numbers[-1], current=True) if numbers else None


def versions(state_dir: str) -> list[Version]:
    """The versions that can be gone back to, and the present one as the last, oldest first.

    :raises TrainError: when a record can't be read.
    """
    numbers = _numbers(state_dir)
    found: list[Version] = []
    for number in reversed(numbers):
        newest = not found
        # One that something is missing between it and the present can't be reached.
        whole = newest or os.path.isfile(os.path.join(folder_of(state_dir, number), KEPT, BEFORE))
        if not whole or (found and found[-1].number != number + 1):
            break
        found.append(_read(state_dir, number, current=newest))
    return found[::-1]


def past(state_dir: str, number: int, newest: int) -> Past:
    """What has to be true again, that a target is as in version ``number``.

    :param newest: the present version.
    :raises TrainError: when a record can't be read.
    """
    files: dict[str, Before | None] = {}
    folders: dict[str, int] = {}
    for step in range(number, newest):
        kept = os.path.join(folder_of(state_dir, step), KEPT)
        content = _load(os.path.join(kept, BEFORE))
        folders = {**dict(content["folders"]), **folders}
        for name, old in content["files"].items():
            found = None
            if old:
                path = os.path.join(kept, "files", old["file"]) if old["file"] else ""
                found = Before(old["sha256"], old["mode"], path)
            first = files.setdefault(name, found)
            if first and found and not first.path and found.sha256 == first.sha256:
                files[name] = first._replace(path=found.path)  # until here, its mode had changed
    return Past(files, folders)


def record(folder: str, version: Version) -> None:
    """Write a version's record into its folder, which is not in its place yet."""
    with open(os.path.join(folder, RECORD), "w", encoding="ascii") as stream:
        content = asdict(version)
        del content["current"]
        json.dump({"schema": 1, **content}, stream, indent=2)


def record_before(
    folder: str, files: dict[str, dict[str, Any] | None], folders: list[tuple[str, int]]
) -> None:
    """Write what the changed files and folders were into a folder that isn't in its place yet."""
    with open(os.path.join(folder, BEFORE), "w", encoding="ascii") as stream:
        json.dump({"schema": 1, "files": files, "folders": folders}, stream)


def prune(state_dir: str, keep: int) -> None:
    """Let go of the oldest versions, so that ``keep`` are left beside the present one."""
    for number in _numbers(state_dir)[:-1][: -keep or None]:
        # A rename first, so that a version is there as a whole or not at all.
        gone = os.path.join(state_dir, f"{STAGING}gone-{number}")
        os.rename(folder_of(state_dir, number), gone)
        shutil.rmtree(gone)


def _numbers(state_dir: str) -> list[int]:
    try:
        names = os.listdir(os.path.join(state_dir, FOLDER))
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def _read(state_dir: str, number: int, *, current: bool) -> Version:
    path = os.path.join(folder_of(state_dir, number), RECORD)
    content = _load(path)
    del content["schema"]
    try:
        return Version(**{**content, "number": number}, current=current)
    except TypeError as error:
        raise _damaged(path, error) from error


def _load(path: str) -> Any:
    try:
        with open(path, "rb") as stream:
            content = json.loads(stream.read())
        if content["schema"] != 1:
            raise ValueError("another version of this program wrote it")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: str, error: Exception) -> TrainError:
    return TrainError(
        f"The record {path} of a version can't be read ({error}).",
        "Choose a newer version; or remove the folder versions beside it, and sync again.",
        "integrity",
    )
