"""What is left of a stage when it has ended: its marker, its record, its issues, its status.

It is written by the supervisor; where that is dead, by whoever comes next.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import failures, issues, live, log_tail, markers, runs, stop_request
from .atomic import write_json
from .errors import TrainError
from .failures import Failure

TAIL_LINES = 50
"""How many of the log's last lines are kept with an issue whose cause isn't known."""

CHECKPOINTS = f"{runs.SYNC}/checkpoints"
"""Where trainings leave their checkpoints, a folder for each stage, under the project root."""

Write = Callable[[Callable[[], None]], None]
"""Does a write; the supervisor's waits while the disk is full."""


def _at_once(write: Callable[[], None]) -> None:
    write()


def result_of(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the stage's own training says came of it; empty where it says nothing.

    The file is the same for all stages: what another start has left in it counts for nothing.
    """
    return own_result(job, live.read_json(job["result"]))


def own_result(job: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """``result``, if it is that of the start which the job is of; else nothing."""
    token = result.get("token")
    own = token == (job.get("training") or {}).get("token")
    # A command of the user's own knows of no token; what lay there before was removed.
    return result if own or (job["command"] and token is None) else {}


def of_disk(what: str, error: OSError) -> Failure:
    """The failure of what can't be written.

    :param what: the beginning of a sentence, such as ``What came out can't be kept``.
    """
    if error.errno in failures.FULL:
        return Failure("disk_full", f"{what}: the disk is full.", str(error), failures.ROOM_HINT)
    return Failure("host", f"{what}: {error}", str(error))


def unstarted(job: Mapping[str, Any], error: OSError) -> Failure:
    """The failure of a training that can't be started: most often, its log can't be written."""
    log, place = job["log_path"], str(error.filename or "")
    if error.errno in failures.FULL or not f"{log}/".startswith(f"{place or log}/"):
        return of_disk(f"The training of {job['stage']} can't be started", error)
    why = error.strerror
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        folder = os.path.dirname(log) if place == log else place
        why = f"{folder} is no folder"
    return Failure(
        "host",
        f"The log {job['log']} can't be written: {why}.",
        str(error),
        "Let its folder be one that this user may write to, or choose another log_dir.",
    )


def tail(root: str, job: Mapping[str, Any]) -> list[str]:
    """The log's last lines."""
    try:
        found = log_tail.last_lines(os.path.join(root, job["log"]), TAIL_LINES, 65536)
    except OSError:
        return []
    return str(found["text"]).splitlines()[-TAIL_LINES:]


def changed_data(job: Mapping[str, Any], result: Mapping[str, Any]) -> Failure | None:
    """The failure of a stage that read other bytes than its fingerprint was taken of."""
    expected = {**job["inputs"]["data"], **job["evaluation_inputs"]["data"]}
    found = dict(result.get("data") or {})
    changed = [name for name, digest in found.items() if expected.get(name) != digest]
    if not changed:
        return None
    return Failure(
        "data",
        f"{', '.join(changed)} changed while the stage was starting.",
        "The bytes that were trained on are not those of the fingerprint.",
        "Start the same command again.",
    )


def stopped(note: Mapping[str, Any], number: int, killed: bool) -> tuple[dict[str, Any], Failure]:
    """What the status says of a stage that somebody has stopped, and its failure.

    :param note: what ``stop_request`` holds of it; empty where somebody sent a signal.
    :param number: the signal.
    """
    by = str(note.get("by") or signal.Signals(number).name)
    cause = "It was asked to end."
    if killed:
        grace = stop_request.grace_of(dict(note))
        cause += f" It didn't{'' if grace is None else f' within {grace:g} s'}, and was killed."
    hint = "Give the same command again: it trains what is not done."
    return {"by": by, "killed": killed}, Failure(
        "stopped", f"The stage was stopped by {by}.", cause, hint
    )


def _outputs(root: str, job: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """What came out, by path under the root: as the training says, else what is there."""
    if result.get("outputs"):
        return [str(name) for name in result["outputs"]]
    folder = os.path.join(root, job["adapter_dir"])
    found = [
        os.path.relpath(os.path.join(where, file), root)
        for where, _folders, files in os.walk(folder)
        for file in files
    ]
    if not found:
        raise TrainError(
            f"{job['adapter_dir']} holds nothing.",
            "The stage's command must leave its adapter there.",
            "training_logic",
        )
    return found


def write_marker(root: str, job: Mapping[str, Any], started: str, seconds: float) -> None:
    """Say that the stage is done, and with what; then its checkpoints are of no use any more."""
    result = result_of(job)
    before, _ = markers.read(root, job["stage"])
    effective, metrics = (dict(result.get(key) or {}) for key in ("effective", "metrics"))
    if job["mode"] == "evaluate" and before:
        effective = {**before["effective"], **effective}
        metrics = {**before["metrics"], **metrics}
    markers.write(
        root,
        job["stage"],
        {
            "status": "done",
            "run": job["run"],
            "fingerprint": job["fingerprint"],
            "evaluation_fingerprint": job["evaluation_fingerprint"],
            "inputs": job["inputs"],
            "evaluation": job["evaluation_inputs"],
            "effective": effective,
            "outputs": markers.outputs_of(root, _outputs(root, job, result)),
            "metrics": metrics,
            "started": started,
            "ended": issues.now(),
            "seconds": round(seconds, 3),
            "host": live.identity(os.getpid())["host"],
            "accelerator": result.get("accelerator"),
        },
    )
    remove_checkpoints(root, job["stage"])


def remove_checkpoints(root: str, stage: str) -> None:
    """Remove a stage's checkpoints: this one folder, if it is one, and lies where it should."""
    above = os.path.join(root, CHECKPOINTS)
    folder = os.path.join(above, stage)
    # The folders above it may be links to a bigger disk; it itself is none, and nowhere else.
    if os.path.realpath(folder) == os.path.join(os.path.realpath(above), stage):
        shutil.rmtree(folder, ignore_errors=True)


def leave(
    root: str,
    job: Mapping[str, Any],
    status: Mapping[str, Any],
    failure: Failure | None,
    seconds: float,
    write: Write = _at_once,
) -> None:
    """The issues, the record and the state file in the run's folder."""
    result = result_of(job)
    stage, run = job["stage"], job["run"]
    state = "failed" if failure else "done"
    found = [
        issues.make(
            "train",
            warning.get("symptom", ""),
            category=_category(warning),
            severity="warning",
            stage=stage,
            cause=warning.get("cause", ""),
            action=warning.get("action", ""),
        )
        for warning in result.get("warnings") or []
    ]
    if failure:
        found.append(issues.make("train", stage=stage, **failure.as_error()))
    for issue in found:
        write(functools.partial(add_issue, root, run, issue))
    record = {
        "state": state,
        "mode": job["mode"],
        "reasons": job["reasons"],
        "fingerprint": job["fingerprint"],
        "started": status.get("started"),
        "ended": issues.now(),
        "seconds": round(seconds, 3),
        "log": job["log"],
        "attempts": status.get("attempt"),
        "metrics": result.get("metrics") or {},
        "phases": result.get("seconds") or {},
        "accelerator": result.get("accelerator"),
        "effective": result.get("effective") or {},
        "error": failure.as_error() if failure else None,
        "kind": failure.kind if failure else None,
        "stopped": status.get("stopped"),
    }
    write(lambda: runs.record_stage(root, run, stage, record))
    write(lambda: runs.mark(root, run, stage, state))


def _category(warning: Mapping[str, Any]) -> str:
    category = str(warning.get("category"))
    return category if category in issues.CATEGORIES else "data"


def add_issue(root: str, run: str, issue: Mapping[str, Any]) -> None:
    """Add an issue to the record of a run."""
    issues.append(os.path.join(runs.folder(root, run), "issues.jsonl"), issue)


def close(root: str, token: str, note: dict[str, Any], killed: bool) -> bool:
    """Leave the record of a stage that was stopped, in place of its supervisor, which is dead.

    :param token: the start that is meant; where another one has begun since, nothing is done.
    :param note: what ``stop_request`` holds of it.
    :param killed: whether the training had to be killed.
    :returns: whether the lock was free, and so this could be done.
    """
    status = live.read_json(live.path(root, "status.json"))
    job = live.read_json(live.path(root, "job.json"))
    if {status.get("token"), job.get("token")} != {token}:
        return True
    lock = live.take(root, live.read_json(live.path(root, "holder.json")))
    if lock is None:
        return False
    try:
        status["stopped"], failure = stopped(note, signal.SIGTERM, killed)
        _end(root, job, status, failure)
    finally:
        os.close(lock)
    return True


def take_over(root: str) -> list[str]:
    """End the record of a stage whose processes are all dead, if there is one.

    What its training had finished within this boot is kept: then it isn't trained again. After a
    restart of the machine, only what was written to the disk for good counts: the checkpoints.

    :returns: what was found and done, in sentences; nothing for a stage that has ended well.
    """
    status = live.read_json(live.path(root, "status.json"))
    job = live.read_json(live.path(root, "job.json"))
    if status.get("state") != "running" or status.get("token") != job.get("token"):
        return []
    lock = live.take(root, live.read_json(live.path(root, "holder.json")))
    if lock is None:
        return []
    try:
        return [_bury(root, job, status)]
    finally:
        os.close(lock)


def _bury(root: str, job: dict[str, Any], status: dict[str, Any]) -> str:
    stage = job["stage"]
    again = status.get("boot_id") != live.boot_id()
    who = f"{stage} of {job['run']}, process {status.get('pid')} since {status.get('started')}"
    why = "the host was started anew since" if again else "its supervisor was killed"
    result = {} if again or job["command"] else result_of(job)
    failure: Failure | None
    if result.get("status") == "done":
        failure = changed_data(job, result)
        if failure is None:
            try:
                write_marker(root, job, str(status.get("started")), _seconds(status))
            except TrainError as error:
                failure = Failure("host", f"What came out can't be kept: {error}", str(error))
            except OSError as error:
                failure = of_disk("What came out can't be kept", error)
    elif result.get("status") == "failed":
        failure = failures.of_error(result.get("error") or {}, tail(root, job))
    else:
        failure = Failure(
            "signal",
            f"The stage {stage} ended without a word: {why}.",
            "",
            "Nothing to do: the same command takes its lock over, and goes on with it.",
        )
    what = "its lock is taken over" if failure else "its training had finished, and that is kept"
    text = f"A stage was left without its supervisor ({who}): {why}; {what}."
    if failure is None:
        issue = issues.make(
            "train", text, category="infra", severity="warning", stage=stage, status="handled"
        )
        add_issue(root, job["run"], issue)
    else:
        failure = dataclasses.replace(failure, cause="\n".join(filter(None, (failure.cause, text))))
    _end(root, job, status, failure)
    return text


def _seconds(status: Mapping[str, Any]) -> float:
    began, beat = status.get("started_at"), status.get("heartbeat")
    now = time.time() if not isinstance(beat, (int, float)) else beat
    return max(0.0, now - began) if isinstance(began, (int, float)) else 0.0


def _end(
    root: str, job: Mapping[str, Any], status: dict[str, Any], failure: Failure | None
) -> None:
    """Leave the record, then the status, in place of a supervisor."""
    leave(root, job, status, failure, _seconds(status))
    status.update(
        state="failed" if failure else "done",
        error=failure.as_error() if failure else None,
        ended=issues.now(),
        heartbeat=time.time(),
    )
    write_json(live.path(root, "status.json"), status)
