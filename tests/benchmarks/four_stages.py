"""The four stages of examples/tutor, evaluated, through the playbook, beside the plain reference.

Ours goes over SSH by the real ``train_all.yml``; the reference is eight processes, a training and
an evaluation a stage. Same base model, chats, masks, order of the samples, first adapter weights,
schedule and stop rule. Dropout is 0: with it, two programs that cut a step in different parts draw
different masks, and no answers could be compared.

Once with answers that end by themselves, and once with a base model that never ends one.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import sshd_host
from tests.benchmarks import demo_job, plain
from tests.benchmarks.rows import WORK, BenchError, Row, say
from tests.integration.conftest import GpuHost
from tests.integration.sites import Playbooks, Site
from tests.training_process import CALM

SETTINGS: dict[str, Any] = {
    "learning_rate": 4e-3,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "max_length": 1024,
    "lora_dropout": 0.0,
    "dtype": "float32",
}
MAX_NEW_TOKENS = 512
PROCESSED, EVAL = "data/training/processed", "data/training/eval"
STAGES = {
    "sample": ([f"{PROCESSED}/style_sft_sample.jsonl"], [f"{PROCESSED}/style_sft_sample.jsonl"]),
    "style": ([f"{PROCESSED}/style_sft.jsonl"], [f"{EVAL}/style_benchmark.jsonl"]),
    "writing": ([f"{PROCESSED}/writing_sft.jsonl"], [f"{EVAL}/writing_benchmark.jsonl"]),
    "all": (
        [f"{PROCESSED}/style_sft.jsonl", f"{PROCESSED}/writing_sft.jsonl"],
        [f"{EVAL}/style_benchmark.jsonl", f"{EVAL}/writing_benchmark.jsonl"],
    ),
}
PHASES = ("imports", "load", "train", "generate", "rest")
FREE, FORCED = 2.5, 4.0
NO_WORSE = 1.01
"""Last losses may differ by what the order of additions makes of them over the steps."""


def measure(repeats: int) -> list[Row]:
    """Both cases; each takes minutes, so there is a turn for seven of the others'."""
    base = demo_job.base()
    rows = []
    for turn in range(max(1, repeats // 7)):
        for case, limit in (("ending", FREE), ("forced length", FORCED)):
            folder = WORK / f"four_stages_{turn}_{case.replace(' ', '_')}"
            folder.mkdir(parents=True)
            model = base if limit == FREE else demo_job.without_end(base, folder / "base")
            # Ours in the middle of theirs, so that both meet the same minutes.
            theirs = _reference(model, folder / "plain", ("sample", "style", "writing"))
            ours = _ours(model, folder)
            last = _reference(model, folder / "plain", ("all",))
            theirs = _added(theirs, last)
            rows += _compare(case, ours, theirs, limit, model, folder)
    return rows


def _reference(base: str, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Two processes a stage: seconds by phase, and for each stage its losses and answers."""
    start = time.perf_counter()
    phases = dict.fromkeys(PHASES, 0.0)
    stages = {}
    for stage in names:
        train, evaluate = STAGES[stage]
        output = folder / stage
        output.mkdir(parents=True)
        files = [demo_job.TUTOR / name for name in train]
        samples = sum(len(file.read_text("utf-8").splitlines()) for file in files)
        trained = plain.run("train", plain.training(base, files, samples, SETTINGS, output), output)
        asked = asking(base, output, evaluate, output / "answers.jsonl")
        answered = plain.run("evaluate", asked, output)
        for result in (trained, answered):
            phases["rest"] += result["wall"] - sum(result["seconds"].values())
            for name, seconds in result["seconds"].items():
                phases["rest" if name == "save" else name] += seconds
        stages[stage] = {
            "losses": trained["losses"],
            "tokens": trained["tokens"],
            "trained_tokens": trained["trained_tokens"],
            "answers": _lines(output / "answers.jsonl"),
        }
    return {
        "wall": time.perf_counter() - start,
        "phases": phases,
        "stages": stages,
        "load": [os.getloadavg()[0]],
    }


def _added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of the reference as one."""
    return {
        "wall": one["wall"] + other["wall"],
        "phases": {name: one["phases"][name] + other["phases"][name] for name in PHASES},
        "stages": {**one["stages"], **other["stages"]},
        "load": one["load"] + other["load"],
    }


def asking(
    base: str, adapter: Path, evaluate: list[str], answers: Path, only: list[int] | None = None
) -> dict[str, Any]:
    """What ``reference/evaluate.py`` is told."""
    return {
        "base": base,
        "adapter": str(adapter),
        "evaluate": [str(demo_job.TUTOR / name) for name in evaluate],
        "answers": str(answers),
        "max_new_tokens": MAX_NEW_TOKENS,
        "only": only,
    }


def _ours(base: str, folder: Path) -> dict[str, Any]:
    """One run of the playbook over SSH, from nothing to adapters and reports at home."""
    for part in ("ansible", "site"):
        (folder / part).mkdir()
    settings = {
        **SETTINGS,
        "model_name_or_path": base,
        "max_new_tokens": MAX_NEW_TOKENS,
        "stage_command": [],
        "assume_yes": True,
        # Its checks are part of what a run takes. There is no GPU here: it says so and goes on.
        "gpu_gate": "warn",
        # The plain script doesn't ask the base model either.
        "score_base": False,
    }
    with tempfile.TemporaryDirectory(prefix="rt-") as control:
        server = sshd_host.start(folder / "ssh")
        try:
            playbooks = Playbooks(folder / "ansible", Path(control))
            site = Site(playbooks, GpuHost(server, folder).inventory, folder / "site", settings)
            site.make()
            start = time.perf_counter()
            process = site.start(env=CALM)
            shown, _ = process.communicate(timeout=1800)
            wall = time.perf_counter() - start
        finally:
            sshd_host.stop(folder / "ssh")
    if process.returncode:
        raise BenchError(f"the run did not end well:\n{shown[-3000:]}")
    return {"wall": wall, "load": [os.getloadavg()[0]], **_of_run(site, wall)}


def _of_run(site: Site, wall: float) -> dict[str, Any]:
    """The phases and the stages of a run, from its record and the adapters' folders."""
    (run,) = site.runs()
    phases = dict.fromkeys(PHASES, 0.0)
    stages = {}
    for stage in STAGES:
        record = json.loads((run / f"stage_{stage}.json").read_bytes())
        took = record["phases"]
        parts = {
            "load": took["load"],
            "train": took["train"],
            "generate": took["evaluate"],
            "rest": took["save"],
        }
        for name, seconds in parts.items():
            phases[name] += seconds
        phases["imports"] += record["seconds"] - sum(parts.values())
        adapter = site.adapter(stage).parent
        metrics = _lines(adapter / "metrics.jsonl")
        stages[stage] = {
            "losses": [step["loss"] for step in metrics],
            "tokens": sum(step["tokens"] for step in metrics),
            "trained_tokens": sum(step["trained_tokens"] for step in metrics),
            "adapter": adapter,
            "answers": [
                {**one, "tokens": one["answer_tokens"]}
                for one in _lines(adapter / f"predictions_{stage}.jsonl")
            ],
        }
    phases["rest"] += wall - sum(phases.values())
    return {"phases": phases, "stages": stages}


def _compare(
    case: str,
    ours: dict[str, Any],
    theirs: dict[str, Any],
    limit: float,
    base: str,
    folder: Path,
) -> list[Row]:
    for side, name in ((theirs, "plain"), (ours, "ours")):
        say(f"four_stages, {case}: {name:<5} {_breakdown(side)}")
    _same_work(ours, theirs)
    equal, same_adapter, count = _equal_answers(ours, theirs, base, folder)
    say(
        f"four_stages, {case}: {equal} of {count} answers are equal on both sides; "
        f"{same_adapter} of {count} are what the plain evaluation answers with our adapter"
    )
    losses = [
        mine["losses"][-1] / other["losses"][-1]
        for mine, other in zip(ours["stages"].values(), theirs["stages"].values(), strict=True)
    ]
    apart = max(
        abs(one - other)
        for mine, their in zip(ours["stages"].values(), theirs["stages"].values(), strict=True)
        for one, other in zip(mine["losses"], their["losses"], strict=True)
    )
    say(f"four_stages, {case}: losses of the same step differ by at most {apart:.2g}")
    name = f"four stages over SSH, answers {case}"
    return [
        Row(f"{name}: plain reference / ours", theirs["wall"] / ours["wall"], limit, at_least=True),
        Row(f"{name}: last loss / reference's, worst stage", max(losses), NO_WORSE),
        Row(
            f"{name}: % of answers as one at a time",
            100 * same_adapter / count,
            100,
            at_least=True,
        ),
        Row(f"{name}: % of answers as the reference's", 100 * equal / count),
    ]


def _breakdown(side: dict[str, Any]) -> str:
    phases = ", ".join(f"{name} {side['phases'][name]:.1f}" for name in PHASES)
    stages = side["stages"].values()
    answers = [one for stage in stages for one in stage["answers"]]
    return (
        f"{side['wall']:.1f} s ({phases}); {sum(len(stage['losses']) for stage in stages)} steps, "
        f"{sum(stage['tokens'] for stage in stages)} tokens trained on "
        f"({sum(stage['trained_tokens'] for stage in stages)} learned), {len(answers)} answers of "
        f"{sum(one['tokens'] for one in answers)} tokens, "
        f"{sum(one['ended'] for one in answers)} ended by themselves; load average at the end "
        + ", ".join(f"{load:.1f}" for load in side["load"])
    )


def _same_work(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """:raises BenchError: where the two sides did not train on the same."""
    for stage, mine in ours["stages"].items():
        other = theirs["stages"][stage]
        facts = [
            (len(side["losses"]), side["tokens"], side["trained_tokens"], len(side["answers"]))
            for side in (mine, other)
        ]
        if facts[0] != facts[1]:
            raise BenchError(f"{stage}: steps, tokens, learned, answers differ: {facts}")
        if not all(math.isfinite(loss) for loss in (*mine["losses"], *other["losses"])):
            raise BenchError(f"{stage}: a loss is not finite")


def _equal_answers(
    ours: dict[str, Any], theirs: dict[str, Any], base: str, folder: Path
) -> tuple[int, int, int]:
    """How many texts are equal; how many are with the same adapter; how many there are.

    Two trainings that add up in different orders end in adapters that differ in their last digits,
    and a near tie between two words may fall otherwise. So the answers that differ are asked for
    once more, one at a time, with the adapter that ours has trained.
    """
    equal = same = count = 0
    for stage, mine in ours["stages"].items():
        pairs = list(zip(mine["answers"], theirs["stages"][stage]["answers"], strict=True))
        count += len(pairs)
        other = [i for i, (one, their) in enumerate(pairs) if one["answer"] != their["answer"]]
        equal += len(pairs) - len(other)
        same += len(pairs) - len(other)
        if other:
            again = folder / "again"
            again.mkdir(exist_ok=True)
            path = again / f"{stage}.jsonl"
            plain.run(
                "evaluate", asking(base, mine["adapter"], STAGES[stage][1], path, other), again
            )
            alone = _lines(path)
            same += sum(
                mine["answers"][i]["answer"] == one["answer"]
                for i, one in zip(other, alone, strict=True)
            )
    return equal, same, count


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
