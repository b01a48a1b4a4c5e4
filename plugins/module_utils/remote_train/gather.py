"""Gather one run on the GPU host: its reports, logs, records and the digests of all of it.

Design brief, sections 4 and 9. What stands in the run's folder afterwards is complete in
itself: ``SHA256SUMS`` lists the folder, and ``outputs.sha256`` in it lists adapters, markers
and finished logs by their paths under the project root.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from typing import Any

from . import (
    acceptance,
    bundle,
    handover,
    issues,
    kept,
    live,
    markers,
    retention,
    runs,
    summary,
)
from .atomic import write_bytes, write_json, write_text
from .errors import TrainError
from .file_names import shown
from .hashing import file_digest
from .manifest import write_manifest
from .project_files import ProjectFile

OUTGOING = f"{runs.SYNC}/outgoing"
"""Where bundles wait to be fetched, under the project root."""

OUTGOING_SECONDS = 24 * 3600
"""How long a bundle may wait: no fetch takes so long, and what is older was left behind."""

COLLECTED = (".safetensors", ".json", ".jsonl", ".md", ".log")
"""What of an adapter's folder comes home, beside TensorBoard's event files."""


def gather(
    request: Mapping[str, Any],
    run: str,
    controller: Mapping[str, Any],
) -> dict[str, Any]:
    """Bring everything of ``run`` together in its folder.

    :param controller: what the controller knows of the run: ``started``, ``plan`` (the planned
        stages), ``findings`` (of the gate), ``gate`` (what else it told, for precheck.json),
        ``gate_stops``, ``issues``, ``python`` (the training's), ``gpus``, ``driver_version``,
        ``stopped`` (whether the person said no after the sample), ``failure`` (what stopped the
        run, or null: ``phase``, ``msg``, ``hint``, ``category``, ``stage``, and ``recorded``
        where the host has written it down itself), and ``failed`` (the stages that failed without
        stopping the run, with the same fields less ``phase``).
    :returns: ``files`` to bring home (``path`` under the project root, ``sha256``, ``size``),
        the ``table`` of stages, the ``verdict`` and what speaks ``against`` it.
    """
    root = request["project_root"]
    where = runs.folder(root, run)
    os.makedirs(where, exist_ok=True)
    broken = _unrecorded(request, run, controller)
    controller = {**controller, "started": _started(request, run, controller)}
    for name in broken:
        runs.mark(root, run, name, "failed")
    stages = [_stage_row(request, stage, run, controller, broken) for stage in request["stages"]]
    findings = _precheck(root, run, controller)
    outputs = _outputs(request)
    unkept = _keep(request, run, outputs)
    found = _issues(where, stages, controller, unkept)
    write_text(
        os.path.join(where, "issues.jsonl"),
        "".join(f"{issues.line(issue)}\n" for issue in found),
    )
    write_text(os.path.join(where, "ISSUES.md"), issues.render(found))
    _copy_reports(root, where, request, stages)
    against = _against(request, stages, controller, broken)
    verdict = "done" if not against else "failed"
    if controller["stopped"]:
        write_text(os.path.join(where, ".stage_manual_stop"), "")
        verdict = "stopped as asked" if not against else verdict
    write_json(
        os.path.join(where, "run.json"),
        {
            "schema": 1,
            "run": run,
            "started": controller["started"],
            "ended": issues.now(),
            "verdict": verdict,
            "host": socket.gethostname(),
            "project_root": root,
            "environment": _environment(controller),
            "acceptance_gate": request["acceptance_gate"],
            "plan": controller["plan"],
            "stages": stages,
        },
    )
    runs.mark(root, run, "collect", "done")
    files = sorted(_own_names(where) | {"TRAINING_SUMMARY.md", "outputs.sha256", "SHA256SUMS"})
    write_text(
        os.path.join(where, "TRAINING_SUMMARY.md"),
        summary.render(
            {
                "run": run,
                "verdict": verdict,
                "host": socket.gethostname(),
                "project_root": root,
                "started": controller["started"],
                "ended": issues.now(),
                "stages": stages,
                "environment": _environment(controller),
                "precheck": _gate_words(findings),
                "issues": found,
                "files": files,
            }
        ),
    )
    write_bytes(os.path.join(where, "outputs.sha256"), write_manifest(outputs))
    own = {
        name: file_digest(os.path.join(where, name), "sha256")
        for name in _own_names(where) - {"SHA256SUMS"}
    }
    write_bytes(os.path.join(where, "SHA256SUMS"), write_manifest(own))
    _let_the_worker_go(request, run, stages, controller)
    pruned = _prune(request, run)
    return {
        "files": _to_bring(root, f"{runs.SYNC}/{run}", outputs, own),
        "table": summary.table(stages),
        "verdict": verdict,
        "against": against,
        "summary": f"{runs.SYNC}/{run}/TRAINING_SUMMARY.md",
        "removed": pruned.removed,
        "not_removed": pruned.problems,
    }


def _keep(request: Mapping[str, Any], run: str, outputs: Mapping[str, str]) -> list[str]:
    """Keep adapters, markers and logs with the run; a sentence for each that can't be kept."""
    root = request["project_root"]
    return kept.fill(
        os.path.join(root, runs.SYNC),
        run,
        outputs,
        lambda name: os.path.join(root, name),
        copied_outputs(request, outputs),
    )


def copied_outputs(request: Mapping[str, Any], outputs: Iterable[str]) -> set[str]:
    """The adapters of the user's own commands, which may write over a file as it lies."""
    folders = [f"{stage['adapter_dir']}/" for stage in request["stages"] if stage["command"]]
    return {name for name in outputs if name.startswith(tuple(folders))}


def _prune(request: Mapping[str, Any], run: str) -> retention.Pruned:
    """Remove the runs that the rule doesn't keep."""
    root = request["project_root"]
    busy = {run, str((live.running(root) or {}).get("run"))}
    sync = os.path.join(root, runs.SYNC)
    return retention.prune(sync, request["keep_runs"], request["pinned_runs"], busy)


def _let_the_worker_go(
    request: Mapping[str, Any],
    run: str,
    stages: list[dict[str, Any]],
    controller: Mapping[str, Any],
) -> None:
    """End the worker of this run, so that the GPU is free, where no stage of the run is left.

    One of another run is left alone: that run's own collect ends it, or its time.
    """
    root = request["project_root"]
    reached = all(s["state"] != "not reached" for s in stages if s["name"] in request["selected"])
    facts = handover.waiting(root)
    if facts is None or facts.get("run") != run or not (reached or controller["stopped"]):
        return
    with live.starting(root):
        if not live.is_held(root):
            handover.ask_to_end(root)


def _started(request: Mapping[str, Any], run: str, controller: Mapping[str, Any]) -> str:
    """When the run started: a controller that only collects it has come later than its stages."""
    root = request["project_root"]
    records = [runs.stage_record(root, run, stage["name"]) for stage in request["stages"]]
    known = [str(record.get("started") or "") for record in records]
    return min((at for at in (*known, str(controller["started"])) if at), default="")


def _unrecorded(
    request: Mapping[str, Any], run: str, controller: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    """What the controller alone knows of stages that failed, by stage: no supervisor wrote it.

    A stage that the controller only lost sight of isn't among them: it still runs, or has
    written down itself how it ended.
    """
    root = request["project_root"]
    running = live.running(root) or {}
    found = {}
    for failure in (*(controller.get("failed") or []), controller["failure"] or {}):
        stage = failure.get("stage")
        if not stage or failure.get("recorded"):
            continue
        ended = str(runs.stage_record(root, run, stage).get("ended") or "")
        runs_still = running.get("state") == "running" and running.get("stage") == stage
        if not runs_still and not (ended and ended >= str(controller["started"])):
            found[str(stage)] = failure
    return found


def _stage_row(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    run: str,
    controller: Mapping[str, Any],
    broken: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What is said of one stage: how this run left it, with the scores that now hold."""
    root, name = request["project_root"], stage["name"]
    # A record from before the stage was started again says nothing of this failure.
    record = {} if name in broken else runs.stage_record(root, run, name)
    marker, _ = markers.read(root, name)
    planned = next((p for p in controller["plan"] if p["name"] == name), None)
    state = record.get("state") or runs.state_of(root, run, name)
    reasons = list(record.get("reasons") or (planned or {}).get("reasons") or [])
    if planned and planned["action"] == "skip" and state in (None, "skipped"):
        state = "up to date"
        runs.mark(root, run, name, "skipped")
    elif planned and planned["action"] == "leave" and state is None:
        state = "left out"
    state = state or "not reached"
    if state in ("done", "up to date", "skipped") and marker:
        metrics, seconds = marker["metrics"], marker.get("seconds")
    else:
        metrics, seconds = record.get("metrics") or {}, record.get("seconds")
    verdict = ""
    why: list[str] = []
    gate = request["acceptance_gate"]
    if state in ("done", "up to date", "skipped"):
        if metrics:
            verdict, why = acceptance.judge(metrics.get("scores") or {}, stage["thresholds"], gate)
        elif stage["thresholds"] and gate == "strict":
            # A command of the user's own says nothing of scores; the strict gate asks for them.
            verdict, why = "failed", ["its command reports no scores"]
    return {
        "name": name,
        "state": state,
        "reasons": reasons,
        "metrics": metrics,
        "seconds": seconds,
        "error": record.get("error"),
        "attempts": record.get("attempts"),
        "acceptance": verdict,
        "acceptance_reasons": why,
        "thresholds": stage["thresholds"],
        "adapter_dir": stage["adapter_dir"],
    }


def _precheck(root: str, run: str, controller: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the gate found in this run; what it has found before stays where it wasn't asked."""
    path = os.path.join(runs.folder(root, run), "precheck.json")
    findings: list[dict[str, Any]] = controller["findings"]
    stops = bool(controller["gate_stops"])
    before = live.read_json(path).get("findings")
    if before and not findings:
        return list(before)
    write_json(path, gate_record(controller))
    if findings:
        runs.mark(root, run, "precheck", "failed" if stops else "done")
    else:
        runs.mark(root, run, "precheck", "skipped")
    return findings


def gate_record(controller: Mapping[str, Any]) -> dict[str, Any]:
    """What ``precheck.json`` holds."""
    return {
        **(controller.get("gate") or {}),
        "schema": 1,
        "stops": bool(controller["gate_stops"]),
        "findings": controller["findings"],
        "gpus": controller["gpus"],
    }


def controllers_issues(controller: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every warning and error that the controller knows of."""
    stops = bool(controller["gate_stops"])
    gate = [
        issues.make(
            "precheck",
            f"{finding['check']}: {finding['seen']}",
            category="infra" if finding["scope"] != "data" else "data",
            severity="error" if finding["result"] == "fail" and stops else "warning",
            cause=f"expected: {finding['expected']}" if finding["expected"] else "",
            action=finding["action"],
        )
        for finding in controller["findings"]
        if finding["result"] in ("fail", "warn")
    ]
    planned = [
        issues.make(
            "plan",
            warning,
            category="integrity",
            severity="warning",
            stage=plan["name"],
            action="The stage runs again and writes a new marker.",
            status="handled",
        )
        for plan in controller["plan"]
        for warning in plan["warnings"]
    ]
    failure = controller["failure"]
    # The controller's word of a stage that wrote down itself how it ended is worth an issue too:
    # something broke on the way to it.
    failures = [*(controller.get("failed") or []), *([failure] if failure else [])]
    unwritten = [
        issues.make(
            failure.get("phase") or "train",
            failure["msg"],
            category=failure["category"],
            stage=failure.get("stage"),
            action=failure["hint"],
        )
        for failure in failures
        if not failure.get("recorded")
    ]
    return [*gate, *planned, *unwritten, *controller["issues"]]


def _issues(
    where: str,
    stages: list[dict[str, Any]],
    controller: Mapping[str, Any],
    unkept: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Every warning and error of both sides, each once."""
    storage = [
        issues.make(
            "collect",
            sentence,
            category="infra",
            severity="warning",
            action="It lies in outputs all the same, until its stage is trained again.",
        )
        for sentence in unkept
    ]
    judged = [
        issues.make(
            "collect",
            f"The acceptance gate fails {stage['name']}: {reason}.",
            category="training_logic",
            severity="warning",
            stage=stage["name"],
            action="Read its predictions before using this adapter.",
        )
        for stage in stages
        if stage["acceptance"] == "failed"
        for reason in stage["acceptance_reasons"]
    ]
    before = issues.read(os.path.join(where, "issues.jsonl"))
    found = issues.add(before, [*controllers_issues(controller), *judged, *storage])
    done = [one["name"] for one in stages if one["state"] in ("done", "up to date", "skipped")]
    return issues.settle(found, done)


def _outputs(request: Mapping[str, Any]) -> dict[str, str]:
    """The digests of adapters, markers and finished logs, by path under the root."""
    root = request["project_root"]
    names: list[str] = []
    for stage in request["stages"]:
        adapter = os.path.join(root, stage["adapter_dir"])
        found = [name for name in _names(adapter) if _is_collected(name)]
        names += [os.path.join(stage["adapter_dir"], name) for name in found]
        if os.path.isfile(markers.marker_path(root, stage["name"])):
            names.append(f"{markers.STAGES}/{stage['name']}.json")
    running = (live.running(root) or {}).get("log")
    logs = request["log_dir"]
    names += [
        f"{logs}/{name}"
        for name in _names(os.path.join(root, logs))
        if name.endswith(".log") and f"{logs}/{name}" != running
    ]
    return {name: file_digest(os.path.join(root, name), "sha256") for name in sorted(set(names))}


def _is_collected(name: str) -> bool:
    """Whether a file of an adapter's folder comes home: no pickle does, whatever its name."""
    return name.endswith(COLLECTED) or os.path.basename(name).startswith("events.out.tfevents.")


def _own_names(where: str) -> set[str]:
    """What of a run's folder is the host's: home may be the same folder, and has its page there.

    What is kept with a run is in another list, by the paths that it has under the root.
    """
    return {
        name
        for name in _names(where)
        if name != runs.PAGE and not name.startswith(f"{kept.FOLDER}/")
    }


def _names(folder: str) -> list[str]:
    """The regular files below a folder, by their paths in it; no link is followed."""
    return sorted(
        os.path.relpath(os.path.join(where, file), folder)
        for where, _folders, files in os.walk(folder)
        for file in files
        if not os.path.islink(os.path.join(where, file)) and not file.endswith(".tmp")
    )


def _copy_reports(
    root: str, where: str, request: Mapping[str, Any], stages: list[dict[str, Any]]
) -> None:
    """Copies of each stage's reports and of this run's logs, so that the folder stands alone."""
    run = os.path.basename(where)
    for stage, row in zip(request["stages"], stages):
        name = stage["name"]
        log = runs.stage_record(root, run, name).get("log")
        wanted = [log] if log else []
        if row["state"] in ("done", "up to date", "skipped"):
            wanted += [
                f"{stage['adapter_dir']}/eval_report_{name}.{ending}" for ending in ("json", "md")
            ]
        for path in wanted:
            source = os.path.join(root, path)
            if os.path.isfile(source):
                shutil.copyfile(source, os.path.join(where, os.path.basename(path)))


def _against(
    request: Mapping[str, Any],
    stages: list[dict[str, Any]],
    controller: Mapping[str, Any],
    broken: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Why the run as a whole is not done, a phrase each."""
    failure = controller["failure"]
    reasons = [str(failure["msg"]).rstrip(".")] if failure and not failure.get("stage") else []
    reasons += [
        f"the stage {s['name']} failed"
        + (f": {str(broken[s['name']]['msg']).rstrip('.')}" if s["name"] in broken else "")
        for s in stages
        if s["state"] == "failed"
    ]
    reasons += [
        f"the stage {s['name']} was not reached"
        for s in stages
        if s["state"] == "not reached"
        and s["name"] in request["selected"]
        and not controller["stopped"]
    ]
    if request["acceptance_gate"] == "strict":
        reasons += [
            f"the acceptance gate fails {s['name']} ({'; '.join(s['acceptance_reasons'])})"
            for s in stages
            if s["acceptance"] == "failed"
        ]
    return reasons


def _environment(controller: Mapping[str, Any]) -> dict[str, str]:
    python = controller.get("python") or {}
    found = {}
    gpus = [str(gpu.get("name")) for gpu in controller["gpus"]]
    found["GPU"] = ", ".join(gpus) or "none"
    if controller.get("driver_version"):
        found["Driver"] = str(controller["driver_version"])
    if python:
        found["Python"] = f"{python.get('python')} ({python.get('path')})"
        found.update(python.get("packages") or {})
    return found


def _gate_words(findings: list[dict[str, Any]]) -> str:
    if not findings:
        return "It was not run."
    bad = [f for f in findings if f["result"] in ("fail", "warn") or f.get("silenced")]
    if not bad:
        return "Nothing to complain of; precheck.json has every check."
    lines = [f"- {f['check']} ({f['result']}): {f['seen']}" for f in bad]
    return "\n".join(lines)


def _to_bring(
    root: str, where: str, outputs: Mapping[str, str], own: Mapping[str, str]
) -> list[dict[str, Any]]:
    files = {**outputs, **{f"{where}/{name}": digest for name, digest in own.items()}}
    sums = f"{where}/SHA256SUMS"
    files[sums] = file_digest(os.path.join(root, sums), "sha256")
    return [
        {"path": path, "sha256": digest, "size": os.path.getsize(os.path.join(root, path))}
        for path, digest in sorted(files.items())
    ]


def pack(root: str, names: list[str]) -> dict[str, Any]:
    """Pack the named files into one bundle, in the form in which projects are sent.

    :returns: ``bundle`` (its path), ``sha256`` and ``size``.
    :raises TrainError: for a file that has gone or changes, of the category integrity.
    """
    outgoing = os.path.join(root, OUTGOING)
    os.makedirs(outgoing, exist_ok=True)
    _clear(outgoing)
    # A folder of its own: two controllers may bring the same run home at once.
    folder = tempfile.mkdtemp(dir=outgoing)
    try:
        files = [ProjectFile(name, _size(root, name), executable=False) for name in names]
        source = _without_links(root, names, os.path.join(folder, "files"))
        try:
            built = bundle.build(source, files, folder, "home")
        except TrainError as error:
            if error.category != "data":
                raise
            raise TrainError(
                error.message.replace("the training project", "it"),
                "Give the same command again.",
                "integrity",
            ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(os.path.join(folder, "files"), ignore_errors=True)
    return {"bundle": built.paths[0], "sha256": built.sha256, "size": built.size}


def _clear(outgoing: str) -> None:
    """Remove the bundles of fetches that broke long ago."""
    for entry in os.scandir(outgoing):
        if entry.stat(follow_symlinks=False).st_mtime > time.time() - OUTGOING_SECONDS:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _size(root: str, name: str) -> int:
    path = os.path.join(root, name)
    if os.path.islink(path) or not os.path.isfile(path):
        raise TrainError(
            f"{shown(name)} is no longer on the host as it was collected.",
            "Give the same command again: it collects anew what there is.",
            "integrity",
        )
    return os.path.getsize(path)


def _without_links(root: str, names: list[str], folder: str) -> str:
    """A root for ``names`` without a link on the way, since a bundle is packed from no other.

    On rented machines ``outputs`` or a folder in it is often a link to a bigger disk. Then the
    files are gathered by hard links, or copied where another disk allows none.
    """
    real = os.path.realpath(root)
    where = {os.path.dirname(name) for name in names}
    if all(os.path.realpath(os.path.join(root, w)) == os.path.join(real, w) for w in where):
        return root
    for name in names:
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        source = os.path.realpath(os.path.join(root, name))
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    return folder
