"""What the second stage of a run saves: it is done by the worker that did the first.

Imports and the base model are paid for once. Both stages are the same job, a single step of the
demo's, so that the one difference is what the process has already.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks import demo_job
from tests.benchmarks.rows import PROJECT, BenchError, Row, ratio

ONE_STEP = 0.01
BEGINS, STEP = "load", "train"
"""The phases of the first two progress lines: after the imports, and after the first step."""

IMPORTS = 0.1
SHARE = 0.5


def measure(repeats: int) -> list[Row]:
    """Seconds from the order to each line, of the first stage and of the second."""
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as name:
        path = Path(name) / "job.json"
        demo_job.write(path, demo_job.base(), ONE_STEP)
        turns = [_two_stages(path) for _ in range(max(1, repeats // 3))]
    first, second = zip(*turns, strict=True)
    return [
        Row(
            "second stage of a worker / first: order to begin",
            ratio([stage[BEGINS] for stage in second], [stage[BEGINS] for stage in first]),
            IMPORTS,
        ),
        Row(
            "second stage of a worker / first: order to first step",
            ratio([stage[STEP] for stage in second], [stage[STEP] for stage in first]),
            SHARE,
        ),
        Row(
            "second stage of a worker: s from order to first step",
            statistics.median(stage[STEP] for stage in second),
        ),
    ]


def _two_stages(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The times of the same job, done twice by one worker."""
    reader, writer = os.pipe()
    started = time.perf_counter()
    worker = subprocess.Popen(
        [sys.executable, "-m", "training", "--serve"],
        cwd=PROJECT,
        env={**demo_job.ENVIRONMENT, "REMOTE_TRAIN_PROGRESS_FD": str(writer)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
    )
    os.close(writer)
    with worker, os.fdopen(reader, "rb") as lines:
        stages = []
        for _ in range(2):
            assert worker.stdin is not None
            worker.stdin.write(json.dumps({"job": str(path)}).encode() + b"\n")
            worker.stdin.flush()
            times: dict[str, float] = {}
            for line in lines:
                facts = json.loads(line)
                if "job_ended" in facts:
                    break
                times.setdefault(facts["phase"], time.perf_counter() - started)
            if not {BEGINS, STEP} <= set(times) or facts.get("status") != 0:
                raise BenchError(f"the worker did not do {path}")
            stages.append(times)
            started = time.perf_counter()
    return stages[0], stages[1]
