"""`make bench-gpu`: LoRA in bfloat16 and evaluation on one GPU, in ten minutes, offline.

    python tests/benchmarks/gpu.py [--shape 8b|tiny] [--json FILE] [--minutes N]

Random weights of the shape of Qwen3-8B, and a tokenizer of as many words, since nothing can be
downloaded; so losses and answers mean nothing here, and speed is all that is looked at. How long
chats are is drawn from examples/tutor. ``--shape tiny`` runs on a CPU too: it shows that the script
works, and its numbers are of no use.

Standard output is a table in Markdown, with date, chip and versions, and then JSON in one line.
Exit status: 0, 1 where a claim doesn't hold, 2 where there is no CUDA GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT)]

import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from tests.benchmarks import flops, gpu_model  # noqa: E402
from tests.benchmarks.gpu_model import SHAPES, Shape  # noqa: E402
from tests.benchmarks.reference import train as reference  # noqa: E402
from training.device import set_up  # noqa: E402
from training.fit import Loaded, fit, read_training  # noqa: E402
from training.generate import generate  # noqa: E402
from training.settings import Settings, read_settings  # noqa: E402

UTILISATION = 45.0
EVALUATION = 20.0
WARM = 1
"""Steps at the start that aren't counted: kernels are chosen, memory is asked for."""


def main(arguments: list[str]) -> int:
    """Exit status: see above."""
    parser = argparse.ArgumentParser(description="Measure training and evaluation on one GPU.")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--json", type=Path, help="write the JSON there as well")
    parser.add_argument("--minutes", type=float, default=9.0, help="leave out what begins later")
    options = parser.parse_args(arguments)
    shape = SHAPES[options.shape]
    if shape.needs_cuda and not torch.cuda.is_available():
        print(
            "bench-gpu: this needs a CUDA GPU with 80 GB, and torch finds none here."
            " With --shape tiny the script itself can be tried on a CPU.",
            file=sys.stderr,
        )
        return 2
    with (
        tempfile.TemporaryDirectory(prefix="remote-train-bench-") as folder,
        contextlib.redirect_stdout(sys.stderr),  # what the trainings say on their way
    ):
        result = Bench(shape, Path(folder), options.minutes).run()
    print(table(result), flush=True)
    text = json.dumps(result)
    print(text, flush=True)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    return int(any(row["holds"] is False for row in result["rows"]))


class Bench:
    """One run of all measurements; each leaves rows."""

    def __init__(self, shape: Shape, folder: Path, minutes: float) -> None:
        self.shape = shape
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self._until = time.monotonic() + 60 * minutes
        self._random = random.Random(20261124)  # noqa: S311 # lengths and words, no secret
        self.device = set_up("auto")
        self.cuda = self.device.where.type == "cuda"

    def run(self) -> dict[str, Any]:
        """Measure all there is time for."""
        started = time.monotonic()
        rate = matrix_rate(self.device.where, self.device.dtype, self.shape.matrix)
        self._row("matrix rate of the chip", rate / 1e12, "TFLOP/s")
        tokenizer = gpu_model.tokenizer(self.shape)
        model = gpu_model.model(self.shape, self.device)
        loaded = Loaded(model, tokenizer, self.device, {})
        self._row("seconds to make the model", time.monotonic() - started, "s")
        gpu_model.write_chats(self.folder / "chats.jsonl", self.shape, self._random)
        rates = {}
        for name, deterministic in (("deterministic", True), ("not deterministic", False)):
            if self._late(f"LoRA, {name}"):
                continue
            torch.use_deterministic_algorithms(deterministic, warn_only=True)
            rates[name], model = self._ours(loaded, rate, name)
            loaded = Loaded(model, tokenizer, self.device, {})
        torch.use_deterministic_algorithms(True, warn_only=True)
        if not self._late("plain reference"):
            plain, model = self._plain(loaded)
            for name, ours in rates.items():
                self._row(f"LoRA, {name}: tokens/s, ours / plain reference", ours / plain, "x")
        if not self._late("evaluation"):
            self._evaluation(Loaded(model, tokenizer, self.device, {}))
        return {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "chip": self.device.accelerator,
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory if self.cuda else None,
            "shape": self.shape.name,
            "dtype": self.device.dtype_name,
            "versions": {
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "seconds": round(time.monotonic() - started, 1),
            "rows": self.rows,
        }

    def _late(self, what: str) -> bool:
        if time.monotonic() < self._until:
            return False
        self._row(f"{what}: left out, no time was left", None, "")
        return True

    def _row(
        self, what: str, value: float | None, unit: str, at_least: float | None = None
    ) -> None:
        holds = None if at_least is None or value is None else value >= at_least
        if not self.shape.needs_cuda:
            holds = None  # a tiny shape claims nothing
        self.rows.append(
            {"what": what, "value": value, "unit": unit, "at_least": at_least, "holds": holds}
        )
        print(f"bench-gpu: {what}: {value} {unit}", file=sys.stderr, flush=True)

    def _settings(self) -> Settings:
        return read_settings(
            {
                "model_name_or_path": "random",
                "num_train_epochs": 1,
                "per_device_train_batch_size": self.shape.batch,
                "gradient_accumulation_steps": self.shape.per_step // self.shape.batch,
                "max_length": self.shape.max_length,
            }
        )

    def _ours(self, loaded: Loaded, rate: float, name: str) -> tuple[float, Any]:
        """Our own loop on the drawn chats: tokens per second, and the base model again."""
        records: list[dict[str, Any]] = []
        with self._memory(f"LoRA, {name}"):
            fitted = fit(
                loaded,
                self._settings(),
                read_training(self.folder, ["chats.jsonl"]),
                lambda record, _steps: records.append(record),
            )
        counted = records[WARM:]
        tokens = sum(record["tokens"] for record in counted)
        took = sum(sum(record["seconds"].values()) for record in counted)
        config = fitted.model.config
        inner, output, adapters = gpu_model.weights(fitted.model)
        # The lengths of the steps that count are not on record: all of them, in proportion.
        lengths = gpu_model.lengths(self.folder / "chats.jsonl")
        work = flops.training(
            lengths,
            sum(record["trained_tokens"] for record in records),
            inner=inner,
            output=output,
            adapters=adapters,
            layers=config.num_hidden_layers,
            attention_width=config.num_attention_heads * config.head_dim,
        )
        done = work.all * tokens / sum(record["tokens"] for record in records)
        self._row(f"LoRA, {name}: real tokens per second", tokens / took, "tokens/s")
        self._row(
            f"LoRA, {name}: model FLOPs utilisation, of the matrix rate",
            100 * done / took / rate,
            "%",
            UTILISATION,
        )
        self._row(f"LoRA, {name}: steps counted", len(counted), "")
        for part in ("forward", "backward", "optimizer"):
            share = sum(record["seconds"].get(part, 0.0) for record in counted) / took
            self._row(f"LoRA, {name}: {part}", 100 * share, "% of the time")
        for fact in ("micro_batch_tokens", "activation_checkpointing"):
            value = fitted.effective.get(fact)
            self._row(f"LoRA, {name}: {fact}", None if value is None else float(value), "")
        return tokens / took, fitted.model.unload()

    def _plain(self, loaded: Loaded) -> tuple[float, Any]:
        """The plain reference on the same tokens: batch 1, activation checkpointing."""
        samples = gpu_model.encoded(self.folder / "chats.jsonl", loaded.tokenizer)
        samples = samples[: self.shape.per_step * self.shape.plain_steps]
        config = self._plain_config(len(samples))
        with self._memory("plain reference"):
            model = reference.add_adapter(loaded.model, config)
            trainer, took = reference.fit(model, samples, config)
        tokens = sum(len(sample["input_ids"]) for sample in samples)
        self._row("plain reference: real tokens per second", tokens / took, "tokens/s")
        base = trainer.model.unload()
        base.activation_checkpointing_disable()
        return tokens / took, base

    def _plain_config(self, samples: int) -> dict[str, Any]:
        settings = self._settings()
        return {
            "order": [list(range(samples))],
            "output": str(self.folder / "plain"),
            "lora_seed": 1,
            "dropout_seed": 1,
            "learning_rate": settings.learning_rate,
            "num_train_epochs": 1,
            "gradient_accumulation_steps": self.shape.per_step,
            "lora_r": settings.lora_r,
            "lora_alpha": settings.lora_alpha,
            "lora_dropout": settings.lora_dropout,
        }

    def _evaluation(self, loaded: Loaded) -> None:
        """Answers of forced length, many prompts at once against one at a time."""
        shape = self.shape
        prompts = gpu_model.prompts(shape, self._random)
        model = reference.add_adapter(loaded.model, self._plain_config(0)).eval()
        few = prompts[: shape.alone]
        took = {}
        answers = {}
        for name, asked, size in (("one", few, 1), ("many", prompts, shape.eval_batch)):
            generate(model, loaded.tokenizer, asked[:size], 2, size)  # warm
            with self._memory(f"evaluation, {name}"):
                start = time.perf_counter()
                answers[name] = generate(model, loaded.tokenizer, asked, shape.max_new_tokens, size)
                took[name] = time.perf_counter() - start
        rates = {n: sum(a.tokens for a in answers[n]) / took[n] for n in took}
        self._row("evaluation, one at a time: tokens per second", rates["one"], "tokens/s")
        self._row(
            f"evaluation, {len(prompts)} prompts: tokens per second", rates["many"], "tokens/s"
        )
        self._row(
            f"evaluation: {len(prompts)} prompts / one at a time",
            rates["many"] / rates["one"],
            "x",
            EVALUATION,
        )

    @contextlib.contextmanager
    def _memory(self, what: str) -> Iterator[None]:
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.cuda:
            peak = torch.cuda.max_memory_allocated() / 2**30
            self._row(f"{what}: peak memory", peak, "GiB")


def matrix_rate(where: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations per second of square matrix products, the median of some."""
    one, other = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if where.type == "cuda" else lambda: None
    times = []
    for turn in range(8):
        wait()
        start = time.perf_counter()
        for _ in range(4):
            one @ other
        wait()
        if turn > 1:
            times.append((time.perf_counter() - start) / 4)
    return 2 * size**3 / statistics.median(times)


def table(result: dict[str, Any]) -> str:
    """The result for docs/benchmarks.md."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{result['date']}, {result['chip']}, {result['dtype']}, shape {result['shape']};"
        f" {versions}; {result['seconds']} s in all.",
        "",
        "| what | measured | asked |",
        "| --- | ---: | ---: |",
    ]
    for row in result["rows"]:
        value = "" if row["value"] is None else f"{row['value']:,.2f} {row['unit']}".strip()
        asked = "" if row["at_least"] is None else f">= {row['at_least']:g}"
        if row["holds"] is False:
            asked += ", not met"
        lines.append(f"| {row['what']} | {value} | {asked} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
