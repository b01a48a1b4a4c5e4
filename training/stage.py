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

from training.card import write_card
from training.chats import ChatFile
from training.errors import JobError
from training.evaluate import Evaluated, evaluate, read_benchmarks
from training.fit import Fitted, Loaded, fit, load, read_training
from training.folder import open_partial, swap_in
from training.job import Job
from training.model import load_adapter, save_adapter
from training.progress import Progress
from training.report import write_reports
from training.scores import Expected
from training.settings import Settings


def run(
    job: Job, progress: Progress, load_base: Callable[[Settings, Path], Loaded] = load
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
        if job.mode == "evaluate" and not job.adapter.is_dir():
            raise JobError(
                "data", f"There is no adapter at {job.adapter}.", "Train the stage first."
            )
        training = read_training(job.project_root, job.train) if job.mode == "train" else []
        benchmarks = read_benchmarks(job.project_root, job.evaluate)
        loaded = load_base(job.settings, job.project_root)
    folder = open_partial(job)
    notes: list[dict[str, str]] = []
    metrics: dict[str, Any]
    with _timed("train", seconds):
        if job.mode == "train":
            fitted = _train(job, loaded, training, folder, progress)
            model, effective, metrics = fitted.model, fitted.effective, {**fitted.metrics}
            notes = _warnings(fitted, job)
            for warning in notes:
                print(f"warning: {warning['symptom']} {warning['action']}", flush=True)
        else:
            model, effective = load_adapter(loaded.model, job.adapter), loaded.effective
            metrics = _metrics_of(folder)
    scored = None
    with _timed("evaluate", seconds):
        if benchmarks[0]:
            scored = _evaluate(job, model, loaded, benchmarks, progress)
            metrics["scores"] = scored.scores
    progress("save")
    data = {file.path: file.digest for file in (*training, *benchmarks[0])}
    with _timed("save", seconds):
        if job.mode == "train":
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
        "data": data,
        "outputs": outputs,
        "accelerator": loaded.device.accelerator,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "warnings": notes,
    }


def _train(
    job: Job, loaded: Loaded, files: list[ChatFile], folder: Path, progress: Progress
) -> Fitted:
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:

        def on_step(record: dict[str, Any], steps: int) -> None:
            log.write(json.dumps(record) + "\n")
            log.flush()
            names = ("step", "epoch", "loss", "learning_rate", "tokens_per_second")
            progress("train", steps=steps, **{name: record[name] for name in names})
            print(
                f"step {record['step']}/{steps}  epoch {record['epoch']:.2f}"
                f"  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}"
                f"  {record['tokens_per_second']:.0f} tokens/s",
                flush=True,
            )

        return fit(loaded, job.settings, files, on_step)


def _evaluate(
    job: Job,
    model: Any,
    loaded: Loaded,
    benchmarks: tuple[list[ChatFile], list[Expected]],
    progress: Progress,
) -> Evaluated:
    def on_answers(done: int, of: int) -> None:
        progress("evaluate", done=done, of=of)
        print(f"answers {done}/{of}", flush=True)

    on_answers(0, len(benchmarks[1]))
    result = evaluate(model, loaded.tokenizer, benchmarks, job.evaluation, on_answers)
    for name, score in result.scores.items():
        value = f"{score['count']}" if "count" in score else f"{score['value']:.3f}"
        print(f"{name} {value} (n = {score['n']})", flush=True)
    return result


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
    print(f"{name}: {seconds[name]:.1f} s", flush=True)
