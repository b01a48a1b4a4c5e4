"""``python -m training JOB.json``: does the job, and always leaves a ``result.json``."""

from __future__ import annotations

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


def main(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 failed (the result says why), 2 no job."""
    if len(arguments) != 1:
        print("usage: python -m training JOB.json", file=sys.stderr)
        return 2
    try:
        values = read_job_file(Path(arguments[0]))
        path = values.get("result")
        if not isinstance(path, str) or not path:
            raise JobError("ops", "job.result is missing.", "Give the path of the result.")
    except JobError as error:
        print(f"error: {error.symptom} {error.action}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _stop)
    result = _run(values)
    write_result(Path(path), result)
    return 0 if result["status"] == "done" else 1


def _run(values: dict[str, Any]) -> dict[str, Any]:
    try:
        job = parse_job(values)
        # Only now, and here: a package that is missing on the host is a sentence, too.
        from training.stage import run  # noqa: PLC0415

        return run(job, Progress.from_environment())
    except BaseException as error:  # whatever it is, the result must say so
        known = explain(error)
        if known is None:
            traceback.print_exc()
            known = JobError(
                "training_logic",
                f"The training ended with {type(error).__name__}: {error}",
                "The traceback is in the stage's log.",
            )
        print(f"error: {known.symptom} {known.action}", file=sys.stderr, flush=True)
        return {"status": "failed", "error": known.as_dict()}


def _stop(*_: object) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
