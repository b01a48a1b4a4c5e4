"""A job that trains the demo's style stage, into a folder of the measurement's own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import demo_base
from tests.benchmarks.rows import PROJECT, seconds
from tests.training_process import CALM

TUTOR = PROJECT / "examples" / "tutor"
ENVIRONMENT = {**os.environ, **CALM}


def base() -> str:
    """The folder of the demo's base model, which is made where the cache hasn't it."""
    seconds([sys.executable, PROJECT / "tools" / "demo_base.py", "--project", TUTOR])
    return str(demo_base.default_folder(demo_base.inputs_digest(demo_base.corpus(TUTOR))))


def write(path: Path, model: str, epochs: float, **changes: Any) -> dict[str, Any]:
    """Write the job; its adapter and its result come out beside it."""
    job = {
        "schema": 1,
        "stage": "style",
        "project_root": str(TUTOR),
        "train": ["data/training/processed/style_sft.jsonl"],
        "adapter_dir": os.path.relpath(path.with_suffix(".adapter"), TUTOR),
        "result": str(path.with_suffix(".result")),
        "settings": {
            "model_name_or_path": model,
            "learning_rate": 4e-3,
            "num_train_epochs": epochs,
            "gradient_accumulation_steps": 4,
            "max_length": 1024,
        },
        **changes,
    }
    path.write_text(json.dumps(job))
    return job
