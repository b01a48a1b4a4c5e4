"""Trainings that start at once: a process that has imported everything forks one for each job.

    python zygote.py        a JSON line per job on standard input: with {"job", "log",
    "progress", "faults"}

What runs in the fork is ``python -m training JOB`` from its main function on. It answers
``{"pid": ...}``, and ``{"status": ...}`` when that has ended (negative: the signal).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

sys.path.insert(1, str(Path(__file__).resolve().parent / "hooks"))

import trainer_faults

import training.stage
from training.__main__ import main


def train(order: dict[str, str]) -> None:
    """Be the training of a job; doesn't return."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    progress = os.open(order["progress"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.environ["REMOTE_TRAIN_PROGRESS_FD"] = str(progress)
    trainer_faults.install(Path(order["faults"]))
    status = main([order["job"]])
    sys.stdout.flush()
    os._exit(status)


def say(text: str) -> None:
    """Answer."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def serve() -> None:
    """Train what is asked for, one after the other, until nobody asks."""
    assert training.stage
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            train(json.loads(line))
        say(json.dumps({"pid": pid}))
        _, status = os.waitpid(pid, 0)
        say(json.dumps({"status": os.waitstatus_to_exitcode(status)}))


if __name__ == "__main__":
    serve()
