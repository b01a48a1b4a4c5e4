"""``python -m training JOB.json``: does the job, and leaves a ``result.json``, or tells it.

``python -m training --serve`` does many, see :mod:`training.worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from training.errors import JobError
from training.failures import FULL, Stopped, explain
from training.job import parse_job, read_job_file
from training.progress import Progress
from training.result import reserve, write_result
from training.worker import serve

ROOM_WITHIN = 600.0
"""Seconds for which the result is tried again on a full disk, where nobody hears it."""

_ROOM_EVERY = 2.0


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 failed (the result says why), 2 no job."""
    if len(arguments) != 1:
        print("usage: python -m training JOB.json | --serve", file=sys.stderr)
        return 2
    # Where processors are shared, threads that wait by spinning starve those that work: a step took
    # six times as long at a load of 19 on two processors. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    term = Term()
    signal.signal(signal.SIGTERM, term)
    progress = Progress.from_environment()
    if arguments == ["--serve"]:
        return serve(lambda path, kept, error: _do(path, progress, kept, term, error), progress)
    result = _do(Path(arguments[0]), progress, None, term)
    return {"done": 0, "failed": 1}.get(result["status"], 2)


class Term:
    """What TERM does: it ends the job, but not while what came of it is written down."""

    def __init__(self) -> None:
        """It hasn't come."""
        self.waits = False
        self.came = False

    def __call__(self, *_: object) -> None:
        """Take the signal.

        :raises Stopped: unless it has to wait.
        """
        if not self.waits:
            raise Stopped
        self.came = True


def _do(
    file: Path,
    progress: Progress,
    kept: dict[str, Any] | None,
    term: Term,
    refused: BaseException | None = None,
) -> dict[str, Any]:
    """The job in ``file``: its result, which is written where the job says.

    :param kept: what a worker keeps between jobs; None for a process of one job.
    :param term: waits from the job's end on until its result is written, whole.
    :param refused: why the job can't be done; None where it can.
    """
    try:
        values = read_job_file(file)
        path = values.get("result")
        if not isinstance(path, str) or not path:
            raise JobError("ops", "job.result is missing.", "Give the path of the result.")
    except JobError as error:
        print(f"error: {error.symptom} {error.action}", file=sys.stderr)
        return {"status": "none", "error": error.as_dict()}
    reserve(Path(path))
    if refused is None:
        result = _run(values, progress, kept, term)
    else:
        term.waits = True
        result = _failed(refused)
    spent = result.pop("spent", False)
    if "token" in values:
        result["token"] = values["token"]  # whose result it is: the file outlives its stage
    if not _keep(Path(path), result, progress, term):
        result["status"] = "failed"
    term.waits = False
    if term.came and kept is not None:
        raise Stopped  # a worker ends, and has no next job
    return {**result, "spent": spent}


def _run(
    values: dict[str, Any], progress: Progress, kept: dict[str, Any] | None, term: Term
) -> dict[str, Any]:
    """The job's result; from here on TERM waits."""
    try:
        result = _result(values, progress, kept)
        term.waits = True
    except BaseException as error:  # whatever it is, the result must say so
        term.waits = True
        return _failed(error)
    return result


def _failed(error: BaseException) -> dict[str, Any]:
    """What the result says of an error; the log says it too, where it can be written."""
    known = explain(error)
    spent = known is None or not isinstance(error, Exception)
    with contextlib.suppress(OSError):
        if known is None:
            traceback.print_exception(type(error), error, error.__traceback__)
    known = known or JobError(
        "training_logic",
        f"The training ended with {type(error).__name__}: {error}",
        "The traceback is in the stage's log.",
    )
    _complain(f"error: {known.symptom} {known.action}")
    return {"status": "failed", "error": known.as_dict(), "spent": spent}


def _keep(path: Path, result: dict[str, Any], progress: Progress, term: Term) -> bool:
    """Write the result. One that the disk doesn't take is told instead.

    Where nobody hears it, it is tried again for a while, unless a signal has come meanwhile.

    :returns: whether it is written or told.
    """
    deadline = time.monotonic() + ROOM_WITHIN
    while True:
        try:
            write_result(path, result)
            return True
        except OSError as error:
            if progress.tell({"result": result}):
                return True
            if error.errno not in FULL or term.came or time.monotonic() > deadline:
                _complain(f"error: The result {path} can't be written: {error.strerror}.")
                return False
        time.sleep(_ROOM_EVERY)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _result(
    values: dict[str, Any], progress: Progress, kept: dict[str, Any] | None
) -> dict[str, Any]:
    job = parse_job(values)
    # Only now, and here: a package that is missing on the host is a sentence, too.
    from training.stage import run  # noqa: PLC0415

    if kept is None:
        return run(job, progress)
    from training.base_model import BaseModel  # noqa: PLC0415

    base: BaseModel = kept.setdefault("base", BaseModel())
    try:
        return run(job, progress, base.load)
    finally:
        base.take_off()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    if sys.argv[1:] == ["--serve"]:
        os._exit(code)  # torch takes seconds to tidy up, and the next stage waits for the GPU
    sys.exit(code)
