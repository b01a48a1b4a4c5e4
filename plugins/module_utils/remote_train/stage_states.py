"""Where each stage stands on a host: what a person wants to know without starting anything.

It is what the plan would say, by a cheaper look: outputs are known by their sizes, and a base
model's folder is taken for what it was, since both can be many gigabytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from . import fingerprint, live, markers, runs

RUNS, DONE, FAILED, STOPPED = "runs", "done", "failed", "stopped"
OUT_OF_DATE, NOT_YET = "out of date", "not yet"
STATES = (RUNS, DONE, FAILED, STOPPED, OUT_OF_DATE, NOT_YET)


def of(
    request: Mapping[str, Any],
    code: tuple[str, str],
    packages: Mapping[str, str] | None,
    running: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Each stage of the request.

    :param code: the digests of the training's code, as the controller has it.
    :param packages: as for ``fingerprint.stage_inputs``.
    :param running: the status of the stage that runs; None where none does.
    :returns: ``name``, ``state`` (one of :data:`STATES`), ``reason``, ``phase``, ``step``,
        ``steps``, ``loss``, ``started``, ``ended``, ``run``, ``log``, and in seconds ``seconds``
        (how long it took or has run), ``eta`` (an estimate) and ``silent`` (since the last sign of
        life), ``silent_for`` (since the last one of the training itself, where that is long),
        ``attempt``, ``kind`` (of the failure before it) and ``retry_in`` (seconds to the next
        attempt, while it waits for that); what isn't known is None.
    """
    root = request["project_root"]
    records = _last_records(root, [stage["name"] for stage in request["stages"]])
    dead = _died(root, running)
    found = []
    for stage in request["stages"]:
        name = stage["name"]
        if running is not None and running.get("stage") == name:
            found.append({**_nothing(name), **_running(running, time.time())})
            continue
        # A run that died without a record is newer than any record.
        record = dead if dead.get("stage") == name else records.get(name, {})
        found.append({**_nothing(name), **_resting(request, stage, code, packages, record)})
    return found


def _nothing(name: str) -> dict[str, Any]:
    known = ("phase", "step", "steps", "loss", "started", "ended", "run", "log")
    times = ("seconds", "eta", "silent", "silent_for", "attempt", "kind", "retry_in")
    return {"name": name, "state": NOT_YET, "reason": "", **dict.fromkeys((*known, *times))}


def _running(status: Mapping[str, Any], now: float) -> dict[str, Any]:
    """What the supervisor's status says of a stage that runs."""
    progress = status.get("progress") or {}
    phase = progress.get("phase")
    names = ("done", "of") if phase == "evaluate" else ("step", "steps")
    step, steps = (_number(progress.get(name)) for name in names)
    beat = _number(status.get("heartbeat")) or now
    seconds = max(0.0, beat - (_number(status.get("started_at")) or beat))
    retry_at = _number(status.get("retry_at"))
    eta = None
    if phase == "train" and step and steps and steps >= step and retry_at is None:
        eta = _remaining(status.get("paced_from"), beat, step, steps)
    return {
        "state": RUNS,
        "reason": "",
        "phase": phase,
        "step": step,
        "steps": steps,
        "loss": _number(progress.get("loss")),
        "started": status.get("started"),
        "run": status.get("run"),
        "log": status.get("log"),
        "seconds": round(seconds),
        "eta": eta,
        "silent": round(max(0.0, now - beat)),
        "silent_for": _number(status.get("silent_for")),
        "attempt": _number(status.get("attempt")),
        "kind": status.get("kind"),
        "retry_in": None if retry_at is None else round(max(0.0, retry_at - now)),
    }


def _remaining(paced_from: Any, beat: float, step: float, steps: float) -> float | None:
    """Seconds that the steps still take, at the pace of those that this attempt has made.

    Loading the model, pauses, attempts that failed and what a resumed training had done before
    have no part in it.

    :param paced_from: the ``step`` that this attempt was seen to end first, and when (``at``).
    """
    known = paced_from if isinstance(paced_from, Mapping) else {}
    first, at = _number(known.get("step")), _number(known.get("at"))
    if first is None or at is None or step <= first or beat < at:
        return None
    left: float = (beat - at) * (steps - step) / (step - first)
    return round(left)


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _resting(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    code: tuple[str, str],
    packages: Mapping[str, str] | None,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Where a stage stands that doesn't run: its marker, and how its last passage ended."""
    root, name = request["project_root"], stage["name"]
    marker, _ = markers.read(root, name)
    verdict = _verdict(request, stage, code, packages, marker)
    attempt = _attempt(record)
    newer = marker is None or str(record.get("ended")) >= str(marker.get("ended"))
    if attempt and newer and verdict["action"] != "skip":
        return attempt
    if marker is None:
        why = "; ".join(verdict["warnings"])
        return {"state": NOT_YET, "reason": why}
    reasons = list(verdict["reasons"])
    state = OUT_OF_DATE
    if verdict["action"] == "skip":
        state, reasons = DONE, reasons[1:]
        if attempt and newer:
            how = "was stopped" if attempt["state"] == STOPPED else "failed"
            reasons.append(f"the adapter is whole; a newer attempt {how}: {attempt['reason']}")
    elif verdict["action"] == "evaluate":
        reasons.insert(0, "its evaluation")
    metrics = marker["metrics"]
    return {
        "state": state,
        "reason": "; ".join(reasons),
        "step": _number(metrics.get("steps")),
        "steps": _number(metrics.get("steps")),
        "loss": _number(metrics.get("train_loss")),
        "started": marker.get("started"),
        "ended": marker.get("ended"),
        "run": marker.get("run"),
        "seconds": _number(marker.get("seconds")),
        "log": record.get("log") if record.get("run") == marker.get("run") else None,
    }


def _attempt(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """A last passage that didn't end well; None where there was none."""
    if record.get("state") != "failed":
        return None
    error = record.get("error") or {}
    return {
        "state": STOPPED if record.get("stopped") else FAILED,
        "reason": str(error.get("symptom") or ""),
        **{key: record.get(key) for key in ("started", "ended", "seconds", "log", "run")},
    }


def _verdict(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    code: tuple[str, str],
    packages: Mapping[str, str] | None,
    marker: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What the plan would say, without reading what may be large."""
    root, ignored = request["project_root"], list(request["fingerprint_ignore"])
    then = (marker or {}).get("inputs") or {}
    if fingerprint.model_folder(str(stage["model"]["model_name_or_path"]), root):
        base = str(then.get("base_model"))
    else:
        base = fingerprint.base_model(stage["model"], root)
    inputs, evaluation = fingerprint.stage_inputs(stage, root, code, packages, base)
    return markers.judge(
        root, stage["name"], inputs, evaluation, ignored, False, markers.missing_outputs
    )


def _last_records(root: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """What each stage left in the newest run that it took part in."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs.newest_first(root):
        for name in names:
            record = {} if name in found else runs.stage_record(root, run, name)
            if record:
                found[name] = {"run": run, **record}
        if len(found) == len(names):
            break
    return found


def _died(root: str, running: Mapping[str, Any] | None) -> dict[str, Any]:
    """The record that a stage would have left which went without a word; empty for none."""
    status = live.read_json(live.path(root, "status.json"))
    if running is not None or status.get("state") != "running" or live.is_held(root):
        return {}
    again = status.get("boot_id") != live.boot_id()
    why = "The host was started anew" if again else "Its supervisor was killed"
    beat = _number(status.get("heartbeat"))
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(beat)) if beat else None
    kept = {key: status.get(key) for key in ("stage", "run", "log", "started")}
    symptom = f"{why} while {status.get('stage')} was running."
    return {**kept, "state": "failed", "ended": ended, "error": {"symptom": symptom}}
