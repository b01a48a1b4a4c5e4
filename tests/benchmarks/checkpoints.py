"""What a checkpoint costs: of the demo model, as a share of the training that it is part of.

Two rules: the default one, by which a training of this length writes one, after its last step; and
one after every step, which says what a single one costs, held against the default's five minutes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import demo_job
from tests.benchmarks.rows import Row, seconds
from training.job import CheckpointRule

PERCENT = 5.0
"""The most of a training's time that its checkpoints may take."""

EPOCHS = 4  # as the demo
FEW = 1


def measure(repeats: int) -> list[Row]:
    """Both sides of each share are of the same process; once, since the limits are far away."""
    del repeats
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as name:
        folder = Path(name)
        base = demo_job.base()
        whole = _train(folder, base, EPOCHS, {})
        size = sum(file.stat().st_size for file in _newest(folder).iterdir())
        each = _train(folder, base, FEW, {"steps": 1})
    one = each["seconds"]["checkpoints"] / each["metrics"]["steps"]
    return [
        Row(
            "checkpoints at the default interval: percent of a demo stage's training",
            100 * whole["seconds"]["checkpoints"] / whole["seconds"]["train"],
            PERCENT,
        ),
        Row(
            "one checkpoint: percent of the default interval",
            100 * one / (CheckpointRule.minutes * 60),
            PERCENT,
        ),
        Row("one checkpoint of the demo model: ms", 1000 * one),
        Row("one checkpoint of the demo model: KiB", size / 1024),
    ]


def _newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step_*"))


def _train(folder: Path, base: str, epochs: float, rule: dict[str, Any]) -> dict[str, Any]:
    """The result of a training that begins anew."""
    checkpoints = {"folder": str(folder / "checkpoints"), **rule, "fresh": True}
    path = folder / "job.json"
    job = demo_job.write(path, base, epochs, checkpoints=checkpoints, run=os.urandom(8).hex())
    seconds(
        [sys.executable, "-m", "training", path],
        env=demo_job.ENVIRONMENT,
        must_say="checkpoint of step",
    )
    result: dict[str, Any] = json.loads(Path(job["result"]).read_bytes())
    return result
