"""Runs the plain reference (``reference/``) as people run it: a process for each step."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import demo_job
from tests.benchmarks.rows import PROJECT, BenchError
from training.batches import count_steps, steps
from training.seeds import derived_seeds
from training.settings import Settings

REFERENCE = PROJECT / "tests" / "benchmarks" / "reference"


def training(
    base: str, files: list[Path], samples: int, settings: dict[str, Any], output: Path
) -> dict[str, Any]:
    """What ``reference/train.py`` is told: the same settings, and the order that ours has.

    :param samples: how many chats ``files`` hold.
    :param settings: settings of a job of ours; what isn't in there has our default.
    """
    asked = Settings(model_name_or_path=base, **settings)
    seeds = derived_seeds(asked.seed)
    return {
        "base": base,
        "train": [str(file) for file in files],
        "output": str(output),
        "order": order(samples, asked, seeds["data_order"]),
        "lora_seed": seeds["lora_init"],
        "dropout_seed": seeds["dropout"] % 2**32,  # the Trainer's seeds are NumPy's as well
        "gradient_accumulation_steps": asked.samples_per_step,
        **{
            name: getattr(asked, name)
            for name in ("learning_rate", "num_train_epochs", "lora_r", "lora_alpha")
        },
        "lora_dropout": asked.lora_dropout,
    }


def order(samples: int, settings: Settings, seed: int) -> list[list[int]]:
    """The order of the samples, epoch by epoch, whole epochs all of them.

    :param seed: of the data's order.
    """
    per_epoch = count_steps(samples, settings.samples_per_step, 1)
    total = count_steps(samples, settings.samples_per_step, settings.num_train_epochs)
    epochs = math.ceil(total / per_epoch)
    plan = list(steps(samples, settings.samples_per_step, epochs, seed))
    return [
        [i for step in plan[at : at + per_epoch] for i in step.samples]
        for at in range(0, len(plan), per_epoch)
    ]


def run(
    program: str,
    config: dict[str, Any],
    folder: Path,
    python: str | Path = sys.executable,
    where: Path = REFERENCE,
) -> dict[str, Any]:
    """Run one of the scripts; what its last line says, and ``wall``: its seconds from outside.

    :param where: the folder of the script.
    :raises BenchError: when it doesn't end well.
    """
    path = folder / f"{program}.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    start = time.perf_counter()
    done = subprocess.run(
        [str(python), str(where / f"{program}.py"), str(path)],
        cwd=folder,
        env=demo_job.ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise BenchError(f"{program}.py ended with {done.returncode}:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "wall": wall}
