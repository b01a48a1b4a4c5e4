"""``python -m training JOB.json``: does the job, and always leaves a ``result.json``.

``python -m training --serve`` does many, see :mod:`training.worker`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from training.errors import JobError
from training.failures import Stopped, explain
from training.job import parse_job, read_job_file
from training.progress import Progress
from training.result import write_result
from training.worker import serve


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
        return serve(lambda path, kept: _do(path, progress, kept, term), progress)
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


def _do(file: Path, progress: Progress, kept: dict[str, Any] | None, term: Term) -> dict[str, Any]:
    """The job in ``file``: its result, which is written where the job says.

    :param kept: what a worker keeps between jobs; None for a process of one job.
    :param term: waits from the job's end on until its result is written, whole.
    """
    try:
        values = read_job_file(file)
        path = values.get("result")
        if not isinstance(path, str) or not path:
            raise JobError("ops", "job.result is missing.", "Give the path of the result.")
    except JobError as error:
        print(f"error: {error.symptom} {error.action}", file=sys.stderr)
        return {"status": "none", "error": error.as_dict()}
    result = _run(values, progress, kept, term)
    spent = result.pop("spent", False)
    write_result(Path(path), result)
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
        known = explain(error)
        spent = known is None or not isinstance(error, Exception)
        if known is None:
            traceback.print_exc()
            known = JobError(
                "training_logic",
                f"The training ended with {type(error).__name__}: {error}",
                "The traceback is in the stage's log.",
            )
        print(f"error: {known.symptom} {known.action}", file=sys.stderr, flush=True)
        return {"status": "failed", "error": known.as_dict(), "spent": spent}
    return result


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
