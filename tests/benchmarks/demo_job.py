"""A job that trains the demo's style stage, into a folder of the measurement's own."""

from __future__ import annotations

import json
import os
import shutil
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


def without_end(model: str, folder: Path) -> str:
    """A copy of the base model that ends no answer by itself, so that all reach the limit.

    Its end token is its padding token, which no text that it was trained on holds. Whoever loads
    it, with whatever program, gets the same stop rule, and no setting is needed for it.
    """
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        values = json.loads(path.read_bytes())
        if "eos_token" in values:
            values["eos_token"] = values["pad_token"]
        if "eos_token_id" in values:
            values["eos_token_id"] = values["pad_token_id"]
        path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
    return str(folder)
