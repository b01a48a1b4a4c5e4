"""Start a stage on the GPU host: take its fingerprint, write its job, let go of it.

Idempotent by a token that the controller draws: ssh may send a command twice, and a start that
finds its own token running attaches instead of starting a second training. A supervisor that waits
with its worker is given the stage; what the dead have left is brought to its end first.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from . import fingerprint, handover, live, markers, plan, processes, pythons, runs, stage_record
from .atomic import write_json
from .errors import TrainError

NAMES_FOR_COMMAND = (
    "model_name_or_path",
    "use_modelscope",
    "max_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "learning_rate",
    "target_modules",
    "use_qlora",
    "seed",
)
"""The settings that a stage's own command finds in its environment, in capital letters."""

STARTED_WITHIN = 30.0
"""Seconds in which a supervisor must have written its first status."""


def start(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    run: str,
    token: str,
    python: str,
    environment: Mapping[str, str],
    requirements: dict[str, str],
) -> dict[str, Any]:
    """Start ``stage``, or find that it is running already, or that it is up to date.

    :param python: the training's Python, as provision found it.
    :param environment: what the training gets beside its own environment; never written down.
    :returns: ``started``, ``attached``, ``busy`` or ``skipped`` as ``outcome``, the ``verdict`` of
        the marker, unless skipped the ``status``, and ``notes``, sentences on what the dead left.
    """
    try:
        return _start(request, stage, run, token, python, environment, requirements)
    except OSError as error:
        raise TrainError(
            f"The stage {stage['name']} can't be started on the host: {error}.",
            f"Look at {os.path.join(request['project_root'], live.FOLDER)} and its disk.",
            "infra",
        ) from error


def _start(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    run: str,
    token: str,
    python: str,
    environment: Mapping[str, str],
    requirements: dict[str, str],
) -> dict[str, Any]:
    root = request["project_root"]
    with live.starting(root):
        handover.settle(root)
        status = live.read_json(live.path(root, "status.json"))
        if status.get("token") == token and status.get("state") in live.ENDED:
            return {"outcome": "attached", "verdict": {}, "status": status, "notes": []}
        running = live.running(root)
        if running:
            live.require_running(root, running)
            outcome = "attached" if running.get("token") == token else "busy"
            status, notes = _followed(root, running, environment)
            return {"outcome": outcome, "verdict": {}, "status": status, "notes": notes}
        notes = stage_record.take_over(root)
        job, verdict = _job(request, stage, run, token, python, requirements)
        if verdict["action"] == "skip":
            if not _trained_in(root, run, stage["name"], job["fingerprint"]):
                runs.mark(root, run, stage["name"], "skipped")
            return {"outcome": "skipped", "verdict": verdict, "status": {}, "notes": notes}
        # What another stage has left there is not taken for this one's, whoever is killed when.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(job["result"])
        # The words of a command of the user's own are nobody else's to read.
        write_json(live.path(root, "training.json"), job["training"], 0o600)
        write_json(live.path(root, "job.json"), job, 0o600)
        write_json(live.path(root, "status.json"), {})
        order = {"token": token, "environment": {**environment, **_names_for_command(job)}}
        status = _hand_over(root, job["engine"], order) or _begin(root, job["engine"], order)
        return {"outcome": "started", "verdict": verdict, "status": status, "notes": notes}


def attach(root: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """See to it that the stage that runs in ``root`` has a living supervisor to be followed by.

    :returns: as :func:`start`; the ``status`` is the last one where nothing runs any more.
    """
    with live.starting(root):
        handover.settle(root)
        running = live.running(root)
        if running is None:
            notes: list[str] = []
            status = live.read_json(live.path(root, "status.json"))
        else:
            live.require_running(root, running)
            status, notes = _followed(root, running, environment)
        return {"outcome": "attached", "verdict": {}, "status": status, "notes": notes}


def _hand_over(root: str, engine: str, order: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give the stage to the supervisor that waits; its status, or None where none takes it."""
    facts = handover.waiting(root)
    if facts is None:
        return None
    same = facts.get("engine") == handover.engine_digest(engine)
    if same and facts.get("state") == "waiting" and handover.give(root, order):
        deadline = time.monotonic() + STARTED_WITHIN
        while time.monotonic() < deadline:
            lives = handover.waiting(root) is not None
            status = live.read_json(live.path(root, "status.json"))
            if status.get("token") == order["token"]:
                return status
            if not lives:
                return None
            time.sleep(0.02)
    if not handover.end(root):
        raise TrainError(
            f"The supervisor that waits in {root} (process {facts.get('pid')}) doesn't take the "
            "stage, and doesn't end.",
            f"End it on the host: it holds {live.path(root, handover.LOCK)}.",
            "infra",
        )
    return None


def _begin(root: str, engine: str, order: Mapping[str, Any]) -> dict[str, Any]:
    """Start a supervisor with its first order; its status."""
    log = os.open(live.path(root, "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "remote_train.supervisor", root, handover.engine_digest(engine)],
            cwd=engine,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    finally:
        os.close(log)
    # Not in its environment or a file: what the training is given may be a secret.
    if supervisor.stdin is not None:
        with contextlib.suppress(BrokenPipeError), supervisor.stdin:
            supervisor.stdin.write(handover.as_line(order))
    return _wait_for_status(root, order["token"], supervisor)


def _followed(
    root: str, running: dict[str, Any], environment: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """The status of a stage that runs; where its supervisor is dead, another one follows it."""
    child = running.get("child") or {}
    if (
        processes.is_process(running)
        or not processes.is_process(child)
        or handover.waiting(root) is not None
    ):
        return running, []
    job = live.read_json(live.path(root, "job.json"))
    if not job or job.get("token") != running.get("token"):
        return running, []
    order = {
        "token": job["token"],
        "adopt": True,
        "environment": {**environment, **_names_for_command(job)},
    }
    before = running.get("pid")
    status = _begin(root, job["engine"], order)
    text = (
        f"The supervisor of {job['stage']} (process {before}) was killed, and its training goes on "
        f"as process {child.get('pid')}: another one (process {status.get('pid')}) follows it."
    )
    return status, [text]


def _names_for_command(job: Mapping[str, Any]) -> dict[str, str]:
    """The settings under the names that users' own scripts know; none for our own training."""
    if not job["command"]:
        return {}
    settings = {name.upper(): job["training"]["settings"][name] for name in NAMES_FOR_COMMAND}
    names = {"STAGE": job["stage"], "PROJECT_ROOT": job["training"]["project_root"], **settings}
    return {name: _as_text(value) for name, value in names.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    return ",".join(value) if isinstance(value, list) else str(value)


def _wait_for_status(root: str, token: str, supervisor: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + STARTED_WITHIN
    ended = False  # a stage that fails at once has ended, and has written its status before
    while time.monotonic() < deadline:
        status = live.read_json(live.path(root, "status.json"))
        own = status.get("pid") in (supervisor.pid, None)  # and not what a dead one said
        if status.get("token") == token and own:
            return status
        if ended:
            break
        ended = supervisor.poll() is not None
        time.sleep(0.02)
    if status.get("token") == token and not ended:
        return status  # of one that follows what runs on, and has no room to say so
    with open(live.path(root, "supervisor.log"), "rb") as stream:
        said = stream.read().decode("utf-8", "replace").strip().splitlines()
    raise TrainError(
        f"The stage's supervisor did not start on the host: {said[-1] if said else 'no word'}.",
        f"Its log is {live.path(root, 'supervisor.log')}.",
        "infra",
    )


def _model(root: str, stage: Mapping[str, Any]) -> str:
    """A model folder by its absolute path, a name on a hub as it is."""
    name = str(stage["model"]["model_name_or_path"])
    return fingerprint.model_folder(name, root) or name


def _trained_in(root: str, run: str, stage: str, inputs: str) -> bool:
    """Whether this very run has trained the stage, from inputs with this fingerprint."""
    record = runs.stage_record(root, run, stage)
    return (record.get("state"), record.get("mode"), record.get("fingerprint")) == (
        "done",
        "train",
        inputs,
    )


def _job(
    request: Mapping[str, Any],
    stage: Mapping[str, Any],
    run: str,
    token: str,
    python: str,
    requirements: dict[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stage's job file, with the fingerprint as of now, and what the marker makes of it."""
    root, name = request["project_root"], stage["name"]
    engine = os.path.join(root, plan.ENGINE)
    own = list(stage["command"])
    packages: dict[str, str] = {}
    code = ("", "")
    if not own:
        if not python:
            raise TrainError(
                f"No Python is known on the host that can train {name}.",
                "Run it with the step provision, or name one with provision_python.",
            )
        packages = pythons.recorded(pythons.probe(python, requirements)["packages"])
        code = fingerprint.code_digests(os.path.join(engine, "training"))
    base = fingerprint.base_model(stage["model"], root)
    inputs, evaluation = fingerprint.stage_inputs(stage, root, code, packages, base)
    for path, digest in {**inputs["data"], **evaluation["data"]}.items():
        if digest is None:
            raise TrainError(
                f"The stage {name} needs {path}, and it is not in {root}.",
                "Sync it, or put it there.",
                "data",
            )
    # The same command after its controller died goes on with its run: what that has trained by
    # force has been trained by force.
    force = request["force"] and not _trained_in(root, run, name, fingerprint.digest(inputs))
    verdict = markers.judge(root, name, inputs, evaluation, request["fingerprint_ignore"], force)
    mode = verdict["action"] if verdict["action"] != "skip" else "train"
    result = live.path(root, "result.json")
    survival = request["survival"]
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    training = {
        "schema": 1,
        "stage": name,
        "run": run,
        "token": token,
        "project_root": root,
        "mode": mode,
        "train": list(stage["train"]),
        "evaluate": list(stage["evaluate"]),
        "adapter_dir": stage["adapter_dir"],
        "result": result,
        "settings": {
            **stage["settings"],
            **stage["model"],
            "model_name_or_path": _model(root, stage),
        },
        "evaluation": {**stage["evaluation"], **stage["evaluation_speed"]},
        "provenance": {
            "fingerprint": fingerprint.digest(inputs),
            "base_model": base,
            "data": inputs["data"],
            "packages": packages,
        },
        "checkpoints": {
            "folder": f"{stage_record.CHECKPOINTS}/{name}",
            "steps": survival["checkpoint_steps"],
            "minutes": survival["checkpoint_minutes"],
            "keep": survival["checkpoint_keep"],
            "fresh": force,
        },
        "low_memory": survival["low_memory"],
    }
    job = {
        "schema": 1,
        "stage": name,
        "run": run,
        "token": token,
        "mode": mode,
        "reasons": verdict["reasons"],
        "engine": engine,
        "argv": own or [python, "-m", "training", "--serve"],
        "cwd": root if own else engine,
        "command": own,
        "adapter_dir": stage["adapter_dir"],
        "log": f"{request['log_dir']}/train_{name}_{stamp}.log",
        "result": result,
        "inputs": inputs,
        "evaluation_inputs": evaluation,
        "fingerprint": fingerprint.digest(inputs),
        "evaluation_fingerprint": fingerprint.digest(evaluation),
        "training": training,
        "retries": survival["stage_retries"],
        "retry_pause": survival["stage_retry_pause"],
        "idle_timeout": survival["worker_idle_timeout"],
    }
    return job, verdict
