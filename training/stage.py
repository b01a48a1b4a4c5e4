"""Runs one job from its data to the adapter in its place."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers

from training.base_answers import of_job
from training.card import write_card
from training.chats import ChatFile
from training.errors import JobError
from training.evaluate import Evaluated, evaluate, read_benchmarks
from training.fit import Loaded, check_chats, load, read_training
from training.folder import open_partial, put_back, swap_in
from training.generate import METHOD
from training.job import Job
from training.log import say
from training.model import load_adapter, save_adapter
from training.progress import Progress
from training.report import write_reports
from training.scores import Expected
from training.settings import Settings
from training.train import train


def run(
    job: Job,
    progress: Progress,
    load_base: Callable[[Settings, Path, Callable[[Any], None]], Loaded] = load,
) -> dict[str, Any]:
    """Train, evaluate and save; returns what ``result.json`` says of it.

    :param load_base: gives the base model; a worker has it still.
    :raises JobError: for all that the user can do something about.
    """
    transformers.utils.logging.disable_progress_bar()  # standard output is a log
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)  # libraries among themselves
    seconds: dict[str, float] = {}
    progress("load")
    with _timed("load", seconds):
        put_back(job)
        if job.mode == "evaluate" and not job.adapter.is_dir():
            raise JobError(
                "data", f"There is no adapter at {job.adapter}.", "Train the stage first."
            )
        training = read_training(job.project_root, job.train) if job.mode == "train" else []
        benchmarks = read_benchmarks(job.project_root, job.evaluate)

        def first(tokenizer: Any) -> None:
            if training:
                check_chats(tokenizer, job.settings, training)

        loaded = load_base(job.settings, job.project_root, first)
    folder = open_partial(job)
    trained = None
    metrics: dict[str, Any]
    with _timed("train", seconds):
        if job.mode == "train":
            trained = train(job, loaded, training, folder, progress)
            model, effective, metrics = trained.model, trained.effective, trained.metrics
        else:
            model, effective = load_adapter(loaded.model, job.adapter), loaded.effective
            metrics = _metrics_of(folder)
    notes = trained.notes if trained else []
    scored = None
    with _timed("evaluate", seconds):
        if benchmarks[0]:
            scored = _evaluate(job, model, loaded, benchmarks, progress)
            metrics["scores"] = scored.scores
            notes += scored.notes
            effective = {**effective, "generation": METHOD}
    progress("save")
    data = {file.path: file.digest for file in (*training, *benchmarks[0])}
    with _timed("save", seconds):
        if trained:
            trained.log.finish()
            save_adapter(model, folder)
        if scored:
            facts = {
                "trained_on": {file.path: file.digest for file in training},
                "effective": effective,
            }
            write_reports(folder, job, scored, facts, notes)
        write_card(folder, job, metrics, data, effective)
        outputs = swap_in(job)
    return {
        "status": "done",
        "metrics": metrics,
        "effective": effective,
        "resumed_from": effective["resumed_from"][-1] if effective.get("resumed_from") else 0,
        "data": data,
        "outputs": outputs,
        "accelerator": loaded.device.accelerator,
        "seconds": {
            **{name: round(value, 3) for name, value in seconds.items()},
            "checkpoints": round(trained.checkpoint_seconds, 3) if trained else 0.0,
        },
        "warnings": notes + (trained.checkpoint_notes if trained else []),
    }


def _evaluate(
    job: Job,
    model: Any,
    loaded: Loaded,
    benchmarks: tuple[list[ChatFile], list[Expected]],
    progress: Progress,
) -> Evaluated:
    def on_answers(done: int, of: int) -> None:
        progress("evaluate", done=done, of=of)
        say(f"answers {done}/{of}")

    kept = of_job(job, loaded) if job.evaluation.score_base else None
    result = evaluate(model, loaded.tokenizer, benchmarks, job.evaluation, on_answers, kept)
    for name, score in result.scores.items():
        value = f"{score['count']}" if "count" in score else f"{score['value']:.3f}"
        base = (result.base.scores if result.base else {}).get(name, {}).get("value")
        beside = "" if base is None else f", base model {base:.3f}"
        say(f"{name} {value} (n = {score['n']}){beside}")
    return result


def _metrics_of(folder: Path) -> dict[str, Any]:
    """What the adapter's ``metrics.jsonl`` says of its training; nothing, if it has none."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        tokens = sum(step["trained_tokens"] for step in steps)
        loss = sum(step["loss"] * step["trained_tokens"] for step in steps) / tokens
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        return {}
    samples = sum(step["samples"] for step in steps if step["epoch"] <= 1)
    return {"train_loss": loss, "steps": len(steps), "samples": samples, "train_tokens": tokens}


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
    say(f"{name}: {seconds[name]:.1f} s")
