"""All that can be said of a project on its host, in one look that changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from . import (
    git_interrupted,
    gpu_usage,
    handover,
    live,
    log_tail,
    markers,
    plan,
    pythons,
    recovery,
    stage_states,
)

LAST_LINES = 3
"""How many of the last log lines of the stage that runs come along."""

LINE_BYTES = 64 * 1024
"""The most that is read of the log for them."""


def look(
    request: Mapping[str, Any],
    code: tuple[str, str],
    requirements: dict[str, str],
    python: str = "",
    nvidia_smi: str = "nvidia-smi",
) -> dict[str, Any]:
    """What there is: stages, the log's last lines, GPUs, the lock, interrupted syncs.

    :param code: the digests of the training's code, as the controller has it.
    :param requirements: what the training's Python must have.
    :param python: the Python that the user named, if one.
    :returns: ``stages`` (see :func:`stage_states.of`), ``log_lines``, ``gpus`` and ``gpus_note``
        (see :func:`gpu_usage.ask`), ``lock`` (``pid``, ``host``, ``since``, ``stage``, ``run``,
        ``left``; None where nobody holds it), ``interrupted`` (folders whose sync is at work or was
        interrupted), ``worker`` (``pid``, ``run``, and for how many ``seconds`` it waits for the
        next stage; None where none does) and ``time``, the host's, in UTC.
    """
    root = request["project_root"]
    held = live.running(root)
    running = held if held and held.get("state") == "running" else None
    found = pythons.find(root, requirements, python)["found"] if _trained(root) else None
    packages = pythons.recorded(found["packages"]) if found else None
    gpus, note = gpu_usage.ask(nvidia_smi)
    return {
        "stages": stage_states.of(request, code, packages, running),
        "log_lines": _log_lines(root, str((running or {}).get("log") or "")),
        "gpus": gpus,
        "gpus_note": note,
        "lock": _lock(held),
        "interrupted": _interrupted(root),
        "worker": _worker(root),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _trained(root: str) -> bool:
    """Whether there is any marker; without one, no Python has to be asked for its packages."""
    return os.path.isdir(os.path.join(root, markers.STAGES))


def _log_lines(root: str, log: str) -> list[str]:
    if not log or not log_tail.is_file(root, log):
        return []
    tail = log_tail.last_lines(os.path.join(root, log), LAST_LINES, LINE_BYTES)
    return str(tail["text"]).splitlines()[-LAST_LINES:]


def _lock(held: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if held is None:
        return None
    names = ("pid", "host", "since", "stage", "run")
    return {**{name: held.get(name) for name in names}, "left": list(held.get("left") or [])}


def _worker(root: str) -> dict[str, Any] | None:
    facts = handover.waiting(root) or {}
    if facts.get("state") != "waiting":
        return None
    until = facts.get("until")
    left = round(max(0.0, until - time.time())) if isinstance(until, (int, float)) else None
    pid = (facts.get("worker") or {}).get("pid")
    return {"pid": pid, "run": facts.get("run"), "seconds": left}


def _interrupted(root: str) -> list[str]:
    """The folders that a sync is changing, or was when it was interrupted."""
    engine = os.path.join(root, plan.ENGINE)
    states = [(root, os.path.join(root, folder)) for folder in plan.STATES]
    found = [
        place for place, state in (*states, (engine, f"{engine}/.state")) if recovery.pending(state)
    ]
    if os.path.exists(os.path.join(root, ".git", git_interrupted.NOTE)):
        found.append(root)
    return sorted(set(found))
