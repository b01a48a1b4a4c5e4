"""Where the stages stand, for a person: a table and what stands around it, in 100 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote_train.text_table import text_table, width

from .log_lines import plain
from .progress import duration
from .text import fitting, printable

COLUMNS = 100
"""How wide all of it is at the most."""

HEADER = ("stage", "state", "step", "loss", "time", "left", "what")
_LIMITS = (20, 11, 13, 9, 9, 9)
_LEAST = 20  # columns of the last cell
_GAP = "  "
_PHASES = {"load": "loads the model", "train": "trains", "evaluate": "answers", "save": "saves"}
SILENT_AFTER = 60
"""Seconds without a sign of life from which on that is said."""


def lines(host: str, root: str, found: Mapping[str, Any]) -> list[str]:
    """What the module ``status`` has found, for a person."""
    rows = [_row(stage) for stage in found["stages"]]
    shown = [f"  {host}:{root} at {found['time']}", *_table(rows)]
    for stage in found["stages"]:
        if stage["log"] and stage["state"] in ("runs", "failed", "stopped"):
            shown.append(f"  log of {stage['name']}: {stage['log']}")
    shown += [f"  | {plain(line)}" for line in found["log_lines"]]
    shown += [_gpu(gpu) for gpu in found["gpus"]]
    if found["gpus_note"]:
        shown.append(f"  GPU: {found['gpus_note']}")
    shown += _lock(found["lock"])
    if found.get("worker"):
        worker = found["worker"]
        left = duration(worker["seconds"]) if worker["seconds"] is not None else "some time"
        shown.append(f"  process {worker['pid']} waits {left} more for the next stage")
    shown += [
        f"  a sync of {folder} is at work, or was interrupted (the next run ends it)"
        for folder in found["interrupted"]
    ]
    return [fitting(printable(line), COLUMNS) for line in shown]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """The table; a column that says nothing of any stage is left out."""
    kept = [
        at
        for at in range(len(HEADER))
        if at < 2 or at == len(HEADER) - 1 or any(row[at] for row in rows)
    ]
    limits = {
        at: min(_LIMITS[at], max(width(row[at]) for row in (HEADER, *rows))) for at in kept[:-1]
    }
    used = sum(limits.values()) + len(_GAP) * (len(kept))
    cells = [tuple(row[at] for at in kept) for row in rows]
    header = tuple(HEADER[at] for at in kept)
    last = max(_LEAST, COLUMNS - used)
    text = text_table(header, cells, [*limits.values(), last], _GAP)
    return [f"{_GAP}{line}" for line in text.splitlines()]


def _row(stage: Mapping[str, Any]) -> tuple[str, ...]:
    step, steps, loss = stage["step"], stage["steps"], stage["loss"]
    runs = stage["state"] == "runs"
    counted = "" if step is None else f"{step} of {steps}" if runs and steps else str(step)
    return (
        str(stage["name"]),
        str(stage["state"]),
        counted,
        "" if loss is None else f"{loss:.3f}",
        "" if stage["seconds"] is None else duration(stage["seconds"]),
        "" if stage["eta"] is None else duration(stage["eta"]),
        printable(_what(stage)).replace("\n", " "),
    )


def _what(stage: Mapping[str, Any]) -> str:
    if stage["state"] == "runs":
        does = _PHASES.get(str(stage["phase"]), str(stage["phase"] or "is at work"))
        if (stage["silent"] or 0) > SILENT_AFTER:
            silent = duration(stage["silent"])
            return f"{does}; no sign of life for {silent}: give the same command again"
        if stage.get("retry_in") is not None:
            return f"failed ({stage['kind']}); begins again in {duration(stage['retry_in'])}"
        if stage.get("silent_for"):
            return f"{does}; no sign of its training for {duration(stage['silent_for'])}"
        again = f", attempt {stage['attempt']}" if (stage.get("attempt") or 1) > 1 else ""
        return f"{does} since {stage['started']}{again}"
    if stage["reason"]:
        return str(stage["reason"])
    return f"at {stage['ended']}" if stage["ended"] else ""


def _gpu(gpu: Mapping[str, Any]) -> str:
    parts = [f"  GPU {gpu['index']} {gpu['name']}:"]
    if gpu["utilization"] is not None:
        parts.append(f"{gpu['utilization']} % busy,")
    used, total = gpu["memory_used_mib"], gpu["memory_total_mib"]
    if used is not None and total is not None:
        parts.append(f"{used / 1024:.1f} of {total / 1024:.1f} GiB")
    return " ".join(parts).rstrip(",:")


def _lock(lock: Mapping[str, Any] | None) -> list[str]:
    if lock is None:
        return []
    if lock["left"]:
        return [f"  the lock is held by {', '.join(lock['left'])}, and no stage says that it runs"]
    if not lock["pid"]:
        return ["  the lock is held by a process of another user"]
    return [
        f"  the lock is held by process {lock['pid']} on {lock['host']} since {lock['since']} "
        f"({lock['run']})"
    ]
