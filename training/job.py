"""Reads a job: which chats, which settings, where the adapter and the result go."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from training.errors import JobError
from training.fields import build
from training.settings import Settings, read_settings

MODES = ("train", "evaluate")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Settings of the evaluation: they change scores, and no weights."""

    max_new_tokens: int = 512
    """The longest answer, in tokens."""
    eval_batch_size: int = 0
    """Answers that are generated together; 0 for as many as 32768 tokens hold."""
    score_base: bool = True
    """Score the base model without the adapter as well."""


@dataclasses.dataclass(frozen=True)
class CheckpointRule:
    """When checkpoints are written, and which are kept."""

    folder: str = ""
    """Where they are, relative to ``project_root``; empty for none."""
    steps: int = 0
    """One after each so many optimizer steps; 0 for none by steps."""
    minutes: float = 5
    """One at the first step after so many minutes without one; 0 for none by time."""
    keep: int = 2
    """How many of the newest are kept."""
    fresh: bool = False
    """Go on from none but those that this run has written."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage to train and evaluate, or to evaluate again."""

    stage: str
    """Name of the stage; it is part of the reports' file names."""
    project_root: Path
    """Folder that the paths of the data and the adapter are relative to."""
    mode: str
    """``train``, or ``evaluate``: the adapter is there, only its scores are made anew."""
    train: list[str]
    """Files of chats to train on, relative to ``project_root``."""
    evaluate: list[str]
    """Files of chats to score on, relative to ``project_root``."""
    adapter_dir: str
    """Folder of the adapter, relative to ``project_root``."""
    settings: Settings
    evaluation: Evaluation
    run: str
    """Name of the run that the job is part of, for the model card."""
    provenance: dict[str, Any]
    """What the controller knows of the inputs: for the model card, and, with its
    ``fingerprint``, to tell whose a checkpoint is."""
    checkpoints: CheckpointRule
    low_memory: bool
    """Train one sample at a time, with activation checkpointing, from the start."""

    @property
    def adapter(self) -> Path:
        """The adapter's folder as a full path."""
        return self.project_root / self.adapter_dir

    @property
    def partial(self) -> Path:
        """Where the adapter's folder is filled before it is moved into place."""
        return self.adapter.with_name(self.adapter.name + ".partial")


@dataclasses.dataclass(frozen=True)
class _Raw:
    """The fields of a job file as they stand there."""

    schema: int
    stage: str
    project_root: str
    adapter_dir: str
    result: str
    settings: dict[str, Any]
    train: list[str] = dataclasses.field(default_factory=list)
    evaluate: list[str] = dataclasses.field(default_factory=list)
    run: str = ""
    token: str = ""
    mode: str = "train"
    evaluation: dict[str, Any] = dataclasses.field(default_factory=dict)
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: dict[str, Any] = dataclasses.field(default_factory=dict)
    low_memory: bool = False


def read_job_file(path: Path) -> dict[str, Any]:
    """The JSON object in a job file.

    :raises JobError: category ``ops``, if there is none.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise JobError(
            "ops", f"The job {path} can't be read: {error.strerror}.", "Check the path."
        ) from None
    except ValueError as error:
        raise JobError("ops", f"The job {path} is not JSON: {error}.", "Write it anew.") from None
    if not isinstance(values, dict):
        raise JobError("ops", f"The job {path} is not a JSON object.", "Write it anew.")
    return values


def parse_job(values: dict[str, Any]) -> Job:
    """The job that the JSON object ``values`` asks for.

    :raises JobError: category ``ops``; names the field.
    """
    raw = build(_Raw, values, "job")
    if raw.schema != 1:
        raise JobError(
            "ops",
            f"job.schema is {raw.schema}; this program reads 1.",
            "Use engine and controller of one version.",
        )
    if raw.mode not in MODES:
        raise JobError("ops", f"job.mode is {raw.mode!r}.", f"Use one of {', '.join(MODES)}.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", raw.stage):
        raise JobError(
            "ops",
            f"job.stage is {raw.stage!r}.",
            "Use letters, digits, '_', '-' and '.': it becomes part of file names.",
        )
    if raw.mode == "train" and not raw.train:
        raise JobError("ops", "job.train names no file.", "Name the chats to train on.")
    evaluation = build(Evaluation, raw.evaluation, "evaluation")
    for name, least in (("max_new_tokens", 1), ("eval_batch_size", 0)):
        if getattr(evaluation, name) < least:
            raise JobError("ops", f"evaluation.{name} must be {least} or more.", f"Correct {name}.")
    checkpoints = build(CheckpointRule, raw.checkpoints, "checkpoints")
    for name, least in (("steps", 0), ("minutes", 0), ("keep", 1)):
        if not getattr(checkpoints, name) >= least:
            raise JobError(
                "ops", f"checkpoints.{name} must be {least} or more.", f"Correct {name}."
            )
    return Job(
        stage=raw.stage,
        project_root=Path(raw.project_root),
        mode=raw.mode,
        train=raw.train,
        evaluate=raw.evaluate,
        adapter_dir=raw.adapter_dir,
        settings=read_settings(raw.settings),
        evaluation=evaluation,
        run=raw.run,
        provenance=raw.provenance,
        checkpoints=checkpoints,
        low_memory=raw.low_memory,
    )
