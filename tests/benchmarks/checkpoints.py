"""What a checkpoint costs: of the demo model, as a share of the training that it is part of.

Two rules: the default one, by which a training of this length writes one, after its last step; and
one after every step, which says what a single one costs, held against the default's five minutes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import demo_base
from tests.benchmarks.rows import PROJECT, Row, seconds
from training.job import CheckpointRule

SHARE = 0.05
"""The most of a training's time that its checkpoints may take."""


def measure(repeats: int) -> list[Row]:
    """Medians of the shares; both parts of each are of the same process."""
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as name:
        folder = Path(name)
        base = _base()
        ours = [_train(folder, base, {}) for _ in range(min(repeats, 3))]
        each = [_train(folder, base, {"steps": 1}) for _ in range(min(repeats, 3))]
        one = statistics.median(r["seconds"]["checkpoints"] / r["metrics"]["steps"] for r in each)
        return [
            Row(
                "checkpoints at the default interval: share of a demo stage's training",
                statistics.median(_share(result) for result in ours),
                SHARE,
            ),
            Row(
                "one checkpoint: share of the default interval",
                one / (CheckpointRule.minutes * 60),
                SHARE,
            ),
            Row("one checkpoint of the demo model: seconds", one),
        ]


def _share(result: dict[str, Any]) -> float:
    share: float = result["seconds"]["checkpoints"] / result["seconds"]["train"]
    return share


def _base() -> str:
    """The demo's base model, from the cache if it is there."""
    tutor = PROJECT / "examples" / "tutor"
    seconds([sys.executable, PROJECT / "tools" / "demo_base.py", "--project", tutor])
    return str(demo_base.default_folder(demo_base.inputs_digest(demo_base.corpus(tutor))))


def _train(folder: Path, base: str, rule: dict[str, Any]) -> dict[str, Any]:
    """The result of a training of the demo's style stage, as the demo sets it."""
    job = {
        "schema": 1,
        "stage": "style",
        "project_root": str(PROJECT / "examples" / "tutor"),
        "train": ["data/training/processed/style_sft.jsonl"],
        "adapter_dir": os.path.relpath(folder / "adapter", PROJECT / "examples" / "tutor"),
        "result": str(folder / "result.json"),
        "settings": {
            "model_name_or_path": base,
            "learning_rate": 4e-3,
            "num_train_epochs": 4,
            "gradient_accumulation_steps": 4,
            "max_length": 1024,
        },
        "checkpoints": {"folder": str(folder / "checkpoints"), **rule, "fresh": True},
        "run": os.urandom(8).hex(),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    seconds([sys.executable, "-m", "training", path], must_say="checkpoint of step")
    result: dict[str, Any] = json.loads((folder / "result.json").read_bytes())
    return result
