"""Training alone, tokens per second on the CPU: ours, the plain reference, TRL with packing.

All sides train on the chats of the style stage, with the same tokens, labels, adapter and samples
per optimizer step (TRL packs, so there it is about as many tokens a step). Only real tokens count,
no padding. Ours is timed from the chats to the trained adapter, by the record of the job; the
others by ``trainer.train()`` alone, so what is compared is not in our favour.

Two models: the demo's, and one of 60 million random weights. Where the settings can switch how a
step is cut (``CUTS``), each way is measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks import demo_job, plain
from tests.benchmarks.rows import WORK, Row, in_turns, ratio, say, seconds
from training.settings import Settings

FILE = "data/training/processed/style_sft.jsonl"
SETTINGS: dict[str, Any] = {
    "learning_rate": 4e-3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 1024,
    "lora_dropout": 0.0,
    "dtype": "float32",
}
PLAIN, TRL = 1.5, 1.0
CUTS: dict[str, dict[str, Any]] = {}
"""Settings for each way to cut a step into micro-batches, by its name; two, to be compared."""

LARGER = {
    "hidden_size": 768,
    "intermediate_size": 2304,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
}


def measure(repeats: int) -> list[Row]:
    """Both models."""
    WORK.mkdir(parents=True, exist_ok=True)
    base = demo_job.base()
    turns = max(1, repeats // 2)
    rows = _compare("demo base", base, 1.0, turns)
    larger, millions = _larger(base, WORK / "larger")
    rows += _compare(f"{millions} M random", larger, 0.4, max(1, repeats // 7))
    return rows + packed_against_padded(base, turns)


def _compare(name: str, base: str, epochs: float, turns: int) -> list[Row]:
    settings = {**SETTINGS, "num_train_epochs": epochs}
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: _ours(base, settings),
        "plain": lambda: _plain(base, settings),
    }
    if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets"):
        sides["trl"] = lambda: _trl(base, settings)
    else:
        say("training_alone: TRL is not installed (sh tools/setup.sh bench): not compared with it")
    rates = in_turns(sides, turns)
    medians = ", ".join(f"{side} {statistics.median(rate):.0f}" for side, rate in rates.items())
    say(f"training_alone, {name}: tokens/s, medians of {turns}: {medians}")
    claims = {"plain": ("the plain reference", PLAIN), "trl": ("TRL with packing", TRL)}
    return [
        Row(
            f"training alone, {name}: tokens/s, ours / {claims[side][0]}",
            ratio(rates["ours"], rates[side]),
            claims[side][1],
            at_least=True,
        )
        for side in claims
        if side in rates
    ]


def packed_against_padded(base: str, turns: int) -> list[Row]:
    """Ours in each of the ways of ``CUTS``: why a CPU has the one that it has."""
    known = {field.name for field in dataclasses.fields(Settings)}
    unknown = {setting for changes in CUTS.values() for setting in changes} - known
    if len(CUTS) < 2 or unknown:
        say("training_alone: packed against padded is left out: no setting here switches it")
        return []
    first, second = list(CUTS)[:2]
    settings = {**SETTINGS, "num_train_epochs": 1.0}
    rates = in_turns(
        {
            first: lambda: _ours(base, {**settings, **CUTS[first]}),
            second: lambda: _ours(base, {**settings, **CUTS[second]}),
        },
        turns,
    )
    return [
        Row(
            f"training alone, demo base: tokens/s, {first} / {second}",
            ratio(rates[first], rates[second]),
        )
    ]


def _ours(base: str, settings: dict[str, Any]) -> float:
    """Tokens per second of a job that trains and evaluates nothing."""
    path = WORK / "training_alone.json"
    job = demo_job.write(path, base, settings["num_train_epochs"], settings={})
    job["settings"] = {"model_name_or_path": base, **settings}
    path.write_text(json.dumps(job), encoding="utf-8")
    seconds([sys.executable, "-m", "training", path], env=demo_job.ENVIRONMENT)
    result = json.loads(Path(job["result"]).read_bytes())
    adapter = demo_job.TUTOR / job["adapter_dir"]
    lines = (adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    tokens: int = sum(json.loads(line)["tokens"] for line in lines)
    return tokens / float(result["seconds"]["train"])


def _plain(base: str, settings: dict[str, Any]) -> float:
    output = WORK / "plain"
    output.mkdir(exist_ok=True)
    result = plain.run("train", _config(base, settings, output), output)
    return float(result["tokens"] / result["fit_seconds"])


def _trl(base: str, settings: dict[str, Any]) -> float:
    output = WORK / "trl"
    output.mkdir(exist_ok=True)
    config = _config(base, settings, output)
    config |= {
        "samples_per_step": config["gradient_accumulation_steps"],
        "max_length": settings["max_length"],
    }
    result = plain.run("trl_sft", config, output)
    return float(result["tokens"] / result["seconds"]["train"])


def _config(base: str, settings: dict[str, Any], output: Path) -> dict[str, Any]:
    file = demo_job.TUTOR / FILE
    return plain.training(base, [file], len(file.read_text("utf-8").splitlines()), settings, output)


def _larger(base: str, folder: Path) -> tuple[str, int]:
    """A model of random weights with the demo's tokenizer; its millions of parameters."""
    program = (
        "import sys, json, torch, transformers\n"
        "base, folder, shape = sys.argv[1:]\n"
        "config = transformers.AutoConfig.from_pretrained(base)\n"
        "shape = json.loads(shape)\n"
        "shape['layer_types'] = ['full_attention'] * shape['num_hidden_layers']\n"
        "config.update(shape)\n"
        "torch.manual_seed(0)\n"
        "model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)\n"
        "model.save_pretrained(folder)\n"
        "transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)\n"
        "open(folder + '/parameters', 'w').write(str(model.num_parameters()))\n"
    )
    seconds([sys.executable, "-c", program, base, folder, json.dumps(LARGER)])
    parameters = int((folder / "parameters").read_text(encoding="utf-8"))
    return str(folder), round(parameters / 1e6)
