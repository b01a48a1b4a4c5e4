"""Trains a stage's adapter: the loop, with its log, its progress, its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from training.chats import ChatFile
from training.errors import JobError
from training.events import Steps
from training.fit import Fitted, Loaded, fit
from training.job import Job
from training.keeper import Checkpoints
from training.log import say
from training.metrics import Metrics
from training.progress import Progress
from training.stopping import stop_between_steps


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came of it."""

    model: Any
    metrics: dict[str, Any]
    effective: dict[str, Any]
    log: Metrics
    notes: list[dict[str, str]]
    """Warnings about chats and memory, which belong into the report as well."""
    checkpoint_notes: list[dict[str, str]]
    """Warnings about checkpoints."""
    checkpoint_seconds: float


def train(
    job: Job, loaded: Loaded, files: list[ChatFile], folder: Path, progress: Progress
) -> Trained:
    """Train, from the last checkpoint where there is one; ``metrics.jsonl`` goes to ``folder``.

    :raises JobError: see :func:`training.fit.fit`.
    """
    log = Steps(folder / "metrics.jsonl")
    with _checkpoints(job, loaded, files, log) as checkpoints:
        resumed = checkpoints.resumed_from if checkpoints else []

        def on_step(record: dict[str, Any], steps: int) -> None:
            log.add(record)
            _tell(progress, record, steps, resumed, loaded)

        fitted = fit(loaded, job.settings, files, on_step, checkpoints, job.low_memory)
    notes = _warnings(fitted, job)
    if fitted.effective["chat_template"] == "default":
        notes.append(_no_template(job))
    for note in notes:
        say(f"warning: {note['symptom']} {note['action']}")
    return Trained(
        model=fitted.model,
        metrics={**fitted.metrics},
        effective={**fitted.effective, "resumed_from": [*resumed]},
        log=log,
        notes=notes + fitted.notes,
        checkpoint_notes=checkpoints.notes if checkpoints else [],
        checkpoint_seconds=checkpoints.seconds if checkpoints else 0.0,
    )


def _tell(
    progress: Progress, record: dict[str, Any], steps: int, resumed: list[int], loaded: Loaded
) -> None:
    """Say that a step is done."""
    names = ("step", "epoch", "loss", "learning_rate", "tokens_per_second")
    told = {name: record[name] for name in names}
    if loaded.device.where.type == "cuda":
        told["memory_bytes"] = record["peak_memory_bytes"]
    progress("train", steps=steps, resumed_from=resumed[-1] if resumed else 0, **told)
    say(
        f"step {record['step']}/{steps}  epoch {record['epoch']:.2f}"
        f"  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}"
        f"  {record['tokens_per_second']:.0f} tokens/s"
    )


@contextlib.contextmanager
def _checkpoints(
    job: Job, loaded: Loaded, files: list[ChatFile], log: Metrics
) -> Iterator[Checkpoints | None]:
    """The job's checkpoints, if it asks for any; TERM then waits for one."""
    if not job.checkpoints.folder:
        yield None
        return
    folder = job.project_root / job.checkpoints.folder
    with stop_between_steps() as stop:
        checkpoints = Checkpoints(job.checkpoints, folder, _facts(job, loaded, files), log, stop)
        try:
            yield checkpoints
        except JobError as error:
            if error.category == "training_logic" and checkpoints.newest:
                error.action += (
                    f" The last good checkpoint is kept in {checkpoints.newest}; with other"
                    " settings training starts anew, and removes it when it writes its first."
                )
            raise


def _facts(job: Job, loaded: Loaded, files: list[ChatFile]) -> dict[str, Any]:
    """Whose a checkpoint is, and what it was computed on; see :mod:`training.keeper`."""
    data = {file.path: file.digest for file in files}
    settings = json.dumps([job.train, dataclasses.asdict(job.settings)], sort_keys=True)
    asked = f"sha256:{hashlib.sha256(settings.encode()).hexdigest()}"
    return {
        "stage": job.stage,
        "run": job.run,
        "fingerprint": job.provenance.get("fingerprint") or asked,
        "data": data,
        "device": loaded.device.accelerator,
        "dtype": loaded.device.dtype_name,
        "threads": loaded.effective["torch_threads"],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }


def _no_template(job: Job) -> dict[str, str]:
    return {
        "symptom": f"The tokenizer of {job.settings.model_name_or_path} has no chat template:"
        " a default one is used, which the adapter's README.md shows.",
        "cause": "",
        "action": "Ask the adapter with that one, or train on the model's instruct variant.",
        "category": "ops",
    }


def _warnings(fitted: Fitted, job: Job) -> list[dict[str, str]]:
    limit = job.settings.max_length
    found = (
        (fitted.cut, f"were cut at max_length {limit}", "Their last turns were not learned."),
        (fitted.dropped, "were left out", f"No answer in them begins within max_length {limit}."),
    )
    return [
        {
            "symptom": f"{len(places)} chats {what}: {', '.join(places[:5])}"
            + (" and more." if len(places) > 5 else "."),
            "cause": why,
            "action": "Raise max_length, or shorten these chats.",
            "category": "data",
        }
        for places, what, why in found
        if places
    ]
