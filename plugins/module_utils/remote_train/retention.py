"""Which old runs go: the rule ``keep_runs``, the same on the host and at home.

The newest runs are kept as they are, and so are those that are pinned. Of an older one that a
marker names, be it the marker of today or one that is kept with a run, its record is kept, and the
adapters and markers of the stages that it trained itself. So no marker names a run that has gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from typing import NamedTuple

from . import kept, markers, runs
from .live import read_json

_REMOVED = ".removed-"
"""Before the name of a run that goes. It is renamed first, so that none is ever half there."""


class Pruned(NamedTuple):
    """What has gone.

    :param removed: the runs that are gone.
    :param problems: a sentence for each that could not be removed.
    """

    removed: list[str]
    problems: list[str]


def prune(sync: str, keep: int, pinned: Collection[str] = (), busy: Collection[str] = ()) -> Pruned:
    """Remove what the rule doesn't keep; what was interrupted is brought to its end first.

    :param sync: the folder that the runs and the markers lie in.
    :param keep: how many runs are kept; 0 keeps all.
    :param pinned: the names of runs that are never removed.
    :param busy: those that are being collected or trained, in the same way.
    """
    pruned = Pruned([], [])
    for name in _names(sync):
        if name.startswith(_REMOVED) and runs.is_name(name[len(_REMOVED) :].partition(".")[0]):
            _delete(os.path.join(sync, name), pruned)
    if keep == 0:
        return pruned
    found = [run for run in runs.found(sync) if is_run(os.path.join(sync, run))]
    whole = {*found[:keep], *pinned, *busy} & set(found)
    named = _named_in(os.path.join(sync, os.path.basename(markers.STAGES)))
    for run in whole:
        named |= _named_in(_kept_markers(sync, run))
    old = [run for run in found if run not in whole]
    # A marker goes before the run that it names: that is an older one, or its own.
    for run in sorted(old, key=lambda run: run not in named):
        try:
            if run in named:
                _thin(sync, run)
            else:
                _remove(sync, run, pruned)
        except OSError as error:
            pruned.problems.append(f"The old run {run} was not removed: {error.strerror}.")
    return pruned


def is_run(folder: str) -> bool:
    """Whether a folder holds what a run leaves; one that only has the name is somebody else's."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return False
    return any(
        name in ("run.json", "SHA256SUMS", "issues.jsonl", "precheck.json")
        or name.startswith((".stage_", "stage_"))
        for name in _names(folder)
    )


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _kept_markers(sync: str, run: str) -> str:
    return os.path.join(sync, run, kept.FOLDER, markers.STAGES)


def _named_in(folder: str) -> set[str]:
    """The runs that the markers in a folder name."""
    markers_there = [name for name in _names(folder) if name.endswith(".json")]
    found = (read_json(os.path.join(folder, name)).get("run") for name in markers_there)
    return {str(run) for run in found if runs.is_name(run)}


def _remove(sync: str, run: str, pruned: Pruned) -> None:
    away = os.path.join(sync, _REMOVED + run)
    if os.path.lexists(away):
        away += f".{os.getpid()}"
    try:
        os.rename(os.path.join(sync, run), away)
    except FileNotFoundError:
        return  # another command was faster
    pruned.removed.append(run)
    _delete(away, pruned)


def _delete(folder: str, pruned: Pruned) -> None:
    """Delete a folder that was renamed; links in it go, and what they lead to stays."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        pruned.problems.append(
            f"What is left of an old run in {folder} was not removed: {error.strerror}."
        )


def _thin(sync: str, run: str) -> None:
    """Keep of a run what its own trainings left, its logs and its record."""
    folder = os.path.join(sync, run, kept.FOLDER)
    stages = _kept_markers(sync, run)
    own: set[str] = set()
    for name in _names(stages):
        path = os.path.join(stages, name)
        marker = read_json(path)
        if marker.get("run") == run and isinstance(marker.get("outputs"), dict):
            own.update(os.path.dirname(output) for output in marker["outputs"])
        else:
            os.unlink(path)  # before the files that it lists
    for where, folders, files in os.walk(folder, topdown=False):
        below = os.path.relpath(where, folder)
        if below != markers.STAGES and not any(f"{below}/".startswith(f"{o}/") for o in own):
            for name in files:
                if not name.endswith(".log"):
                    os.unlink(os.path.join(where, name))
        for name in folders:
            with contextlib.suppress(OSError):  # it is not empty, or a link
                os.rmdir(os.path.join(where, name))
