"""One process for all the stages of a run: imports and the base model are paid for once.

``python -m training --serve`` reads a line of JSON a job, ``{"job": PATH, "log": PATH, "token":
NAME}``, and does it as ``python -m training PATH`` would. At its end it says ``{"job_ended": NAME,
"status": 0}`` (or 1) among the progress lines; ``ends`` is true there if it ends itself. Without a
name, a job is called by its path. The end of standard input is the worker's own end.

It goes on after an end that is understood. After one that may have left something behind (no
memory, an error of the GPU, a defect, a signal) it ends too: whoever started it starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.errors import JobError
from training.failures import FULL, Stopped
from training.progress import Progress

LASTING = ("data", "model_download", "training_logic", "ops")
"""The categories of errors after which the process is as good as before."""

Run = Callable[[Path, dict[str, Any], "BaseException | None"], dict[str, Any]]
"""Does the job of a file with what is kept between jobs, or fails it for the error that is given;
returns what its result says."""


def serve(run: Run, progress: Progress) -> int:
    """Do the jobs that standard input names, one after the other.

    :returns: the exit status: 0.
    """
    kept: dict[str, Any] = {}
    # Not through the buffer of sys.stdin: a job that forks would have a copy of it.
    with contextlib.suppress(Stopped), os.fdopen(os.dup(0), "rb", buffering=0) as orders:
        for line in iter(orders.readline, b""):
            order = _order(line)
            if order is None:
                print("error: a line on standard input is no job.", file=sys.stderr, flush=True)
                continue
            goes_on = _serve_one(order, run, kept, progress)
            if not goes_on:
                break
    return 0


def _order(line: bytes) -> dict[str, Any] | None:
    try:
        order = json.loads(line)
    except ValueError:
        return None
    return order if isinstance(order, dict) and isinstance(order.get("job"), str) else None


def _serve_one(order: dict[str, Any], run: Run, kept: dict[str, Any], progress: Progress) -> bool:
    """One job; whether another may follow in this process."""
    path, log = Path(order["job"]), order.get("log")
    refused = None
    if log:
        try:
            _write_to(log)
        except OSError as error:  # nobody would see what it does
            refused = _no_log(log, error)
    result = run(path, kept, refused)
    if log:
        with contextlib.suppress(OSError):
            _write_to(os.devnull)  # the log is that stage's alone, and its digest is taken
    done = result.get("status") == "done"
    known = (result.get("error") or {}).get("category") in LASTING
    ends = not done and (not known or bool(result.get("spent")))
    name = order.get("token") or str(path)
    progress.tell({"job_ended": name, "status": 0 if done else 1, "ends": ends})
    return not ends


def _no_log(log: str, error: OSError) -> BaseException:
    if error.errno in FULL:
        return error
    return JobError(
        "infra",
        f"The log {log} can't be written: {error.strerror}.",
        "Let its folder be one that this user may write to, or choose another log_dir.",
    )


def _write_to(path: str) -> None:
    """Let this process, and what it starts from now on, write to ``path``.

    :raises OSError: where it can't be opened; nothing has changed then.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
