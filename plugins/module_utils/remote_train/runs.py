"""The folder of one run: its name, its state files, its records of stages.

Design brief, section 4: ``outputs/training_sync/run_<UTC timestamp>/`` with one
``.stage_<name>_{done,failed,skipped}`` for precheck, each stage and collect.
"""

from __future__ import annotations

import datetime
import os
import re
from typing import Any

from .atomic import write_json, write_text
from .errors import TrainError
from .file_names import IllegalNameError, to_name
from .live import read_json
from .manifest_lines import split_line

SYNC = "outputs/training_sync"
PAGE = "report.html"
"""The page of a run: drawn at home, and so in no list of the host's."""
STATES = ("done", "failed", "skipped")
_NAME = re.compile(r"run_\d{8}T\d{6}Z(_\d+)?")


def new_name(at: datetime.datetime | None = None) -> str:
    """The name of a run that starts now.

    Runs are told apart, and put in order, by their names alone. Two that are planned in one and
    the same second share a folder, as two controllers that follow one training do: that is
    harmless, since one lock lets one stage run at a time. The clock is the controller's.
    """
    at = at or datetime.datetime.now(datetime.timezone.utc)
    return at.strftime("run_%Y%m%dT%H%M%SZ")


def is_name(run: object) -> bool:
    """Whether ``run``, which another machine may have said, is the name of a run."""
    return isinstance(run, str) and bool(_NAME.fullmatch(run))


def named(setting: str, run: object) -> str:
    """``run`` as a setting names it. :raises TrainError: where that is the name of no run."""
    if not is_name(run):
        raise TrainError(
            f"{setting} names {run!r}, which is not the name of a run.",
            "A run is named run_<timestamp>, as its folder in training_sync is.",
        )
    return str(run)


def folder(root: str, run: str) -> str:
    """Where a run lies under the project's ``root``.

    :raises TrainError: for a name that is none, and so could lead elsewhere.
    """
    if not is_name(run):
        raise TrainError(f"{run!r} is not the name of a run.", "A run is named run_<timestamp>.")
    return os.path.join(root, SYNC, run)


def latest(root: str) -> str | None:
    """The newest run in a project by its name, or None."""
    runs = newest_first(root)
    return runs[0] if runs else None


def newest_first(root: str) -> list[str]:
    """All runs in a project by their names."""
    return found(os.path.join(root, SYNC))


def found(sync: str) -> list[str]:
    """All runs in the folder that they lie in, on the host or at home, the newest first."""
    try:
        names = os.listdir(sync)
    except (FileNotFoundError, NotADirectoryError):  # what is in the way is for the gate to say
        return []
    return sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)


def listed(path: str) -> dict[str, str] | None:
    """The digests in a list that gather wrote, by name; None where it isn't there whole."""
    try:
        with open(path, "rb") as stream:
            *lines, rest = stream.read().split(b"\n")
        digests = [split_line(line) for line in lines]
    except (OSError, IllegalNameError):
        return None
    return None if rest else {to_name(name): digest for digest, _, name in digests}


def mark(root: str, run: str, name: str, state: str) -> None:
    """Say in the run's folder how a step or stage ended, in place of what was said before."""
    if state not in STATES:
        raise ValueError(state)
    where = folder(root, run)
    write_text(os.path.join(where, f".stage_{name}_{state}"), "")
    for other in STATES:
        if other != state and os.path.exists(os.path.join(where, f".stage_{name}_{other}")):
            os.unlink(os.path.join(where, f".stage_{name}_{other}"))


def state_of(root: str, run: str, name: str) -> str | None:
    """How a step or stage of a run ended; None where it didn't take part."""
    where = folder(root, run)
    found = [s for s in STATES if os.path.exists(os.path.join(where, f".stage_{name}_{s}"))]
    return found[0] if found else None


def record_stage(root: str, run: str, stage: str, record: dict[str, Any]) -> None:
    """Keep what a stage did in this run; the marker holds the last good one of any run."""
    write_json(os.path.join(folder(root, run), f"stage_{stage}.json"), record)


def stage_record(root: str, run: str, stage: str) -> dict[str, Any]:
    """What :func:`record_stage` kept; empty where the stage didn't run."""
    return read_json(os.path.join(folder(root, run), f"stage_{stage}.json"))


def stage_records(root: str, run: str) -> list[str]:
    """The names of the files that :func:`record_stage` has written for a run."""
    names = os.listdir(folder(root, run))
    return sorted(name for name in names if name.startswith("stage_") and name.endswith(".json"))
