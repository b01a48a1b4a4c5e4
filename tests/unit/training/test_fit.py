"""The loop: what is learned depends on the inputs and on nothing else."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.conftest import chat, write_chats
from training import fit as fit_module
from training.batches import count_steps, packed_parts, padded_parts, steps
from training.errors import JobError
from training.fit import fit, load, read_training
from training.masking import Row
from training.model import save_adapter
from training.schedule import learning_rate
from training.seeds import derived_seeds
from training.settings import read_settings


def train(project: Path, base: Path, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    """Train on the project's chats; returns the records of the steps, and all of it."""
    settings = read_settings(
        {
            "model_name_or_path": str(base),
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "lora_dropout": 0.0,
            "max_length": 128,
            **changes,
        }
    )
    records: list[dict[str, Any]] = []
    files = read_training(project, ["data/train.jsonl"])
    return records, fit(load(settings, project), settings, files, lambda r, _: records.append(r))


def test_micro_batches_change_nothing_that_is_learned(project: Path, base_folder: Path) -> None:
    whole, fitted = train(
        project, base_folder, per_device_train_batch_size=8, gradient_accumulation_steps=1
    )
    parts, other = train(project, base_folder)
    assert fitted.effective["micro_batch_tokens"] == 8 * 128
    assert other.effective["micro_batch_tokens"] == 128
    assert [r["samples"] for r in whole] == [8, 2, 8, 2]
    assert [r["loss"] for r in parts] == pytest.approx([r["loss"] for r in whole], abs=1e-5)
    assert [r["trained_tokens"] for r in parts] == [r["trained_tokens"] for r in whole]
    assert whole[-1]["loss"] < whole[0]["loss"] - 0.1  # it learns at all


def test_the_loss_is_the_mean_over_trained_tokens(project: Path, base_folder: Path) -> None:
    """Against transformers' own loss, of the untrained model, one chat at a time."""
    chats = [chat(1), chat(2, "短"), chat(3)]
    write_chats(project / "data/train.jsonl", chats)
    records, _ = train(project, base_folder, num_train_epochs=1)
    settings = read_settings({"model_name_or_path": str(base_folder)})
    loaded = load(settings, project)
    total, count = 0.0, 0
    for one in chats:
        encoded = loaded.tokenizer.apply_chat_template(
            one["messages"],
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors="pt",
        )
        labels = torch.where(
            torch.as_tensor(encoded["assistant_masks"]).bool(), encoded["input_ids"], -100
        )
        n = int((labels != -100).sum())
        loss = loaded.model(input_ids=encoded["input_ids"], labels=labels).loss.item()
        total, count = total + loss * n, count + n
    assert records[0]["trained_tokens"] == count
    assert records[0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_what_is_recorded_of_each_step(project: Path, base_folder: Path) -> None:
    records, fitted = train(project, base_folder)
    assert len(records) == fitted.metrics["steps"] == 4
    for record in records:
        seconds = record.pop("seconds")
        assert set(seconds) == {"data", "forward", "backward", "optimizer"}
        assert all(value > 0 for value in seconds.values())
        # All tokens over the step's whole time, which its parts are within.
        assert record["tokens"] / record["tokens_per_second"] >= 0.99 * sum(seconds.values())
        assert record["tokens"] > record["trained_tokens"] > 0
        assert record["peak_memory_bytes"] > 2**20
        assert 0 < record["grad_norm"] < float("inf")
        assert set(record) == {
            *("step", "epoch", "samples", "tokens", "trained_tokens", "loss", "learning_rate"),
            *("grad_norm", "tokens_per_second", "peak_memory_bytes"),
        }


def adapter_digest(project: Path, base: Path, folder: Path, **changes: Any) -> str:
    _, fitted = train(project, base, lora_dropout=0.1, **changes)
    save_adapter(fitted.model, folder)
    assert not list(folder.glob("*.bin"))
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # a set in peft, in another order in each process
    data = (folder / "adapter_model.safetensors").read_bytes()
    return hashlib.sha256(data + (folder / "adapter_config.json").read_bytes()).hexdigest()


def test_same_inputs_same_bytes(project: Path, base_folder: Path, tmp_path: Path) -> None:
    first = adapter_digest(project, base_folder, tmp_path / "a")
    torch.rand(3)  # what was drawn before makes no difference
    assert adapter_digest(project, base_folder, tmp_path / "b") == first
    assert adapter_digest(project, base_folder, tmp_path / "c", seed=43) != first


@pytest.mark.parametrize("purpose", ["data_order", "lora_init", "dropout"])
def test_each_seed_is_used(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, purpose: str
) -> None:
    changes = {"lora_dropout": 0.5, "num_train_epochs": 0.5, "learning_rate": 1e-3}
    before, _ = train(project, base_folder, **changes)
    monkeypatch.setattr(
        fit_module, "derived_seeds", lambda seed: {**derived_seeds(seed), purpose: 1}
    )
    after, _ = train(project, base_folder, **changes)
    assert before[0]["loss"] != after[0]["loss"] or before[0]["grad_norm"] != after[0]["grad_norm"]


def test_a_loss_that_is_not_finite_stops_at_once(project: Path, base_folder: Path) -> None:
    with pytest.raises(JobError, match=r"The \w+ is (nan|inf) at step \d") as caught:
        train(project, base_folder, learning_rate=1e30, max_grad_norm=0, num_train_epochs=9)
    assert caught.value.category == "training_logic"
    assert "data/train.jsonl line" in caught.value.cause


@pytest.mark.parametrize(
    ("changes", "category", "sentence"),
    [
        ({"target_modules": ["q_proj", "w_qkv"]}, "ops", "target_modules names w_qkv"),
        ({"max_length": 8}, "data", "No token of data/train.jsonl is left to learn"),
        ({"model_name_or_path": "/nowhere"}, "model_download", "folder /nowhere is not there"),
        ({"use_qlora": True}, "ops", "use_qlora needs"),
    ],
)
def test_what_can_not_be_trained(
    project: Path, base_folder: Path, changes: dict[str, Any], category: str, sentence: str
) -> None:
    with pytest.raises(JobError, match=sentence) as caught:
        train(project, base_folder, **changes)
    assert caught.value.category == category


def test_pickled_weights_are_not_loaded(project: Path, base_folder: Path) -> None:
    folder = project / "models/pickled"
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((base_folder / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(JobError, match="only pickled weights"):
        train(project, base_folder, model_name_or_path="models/pickled")


def test_a_name_on_the_hub_without_a_way_there(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(JobError, match="base model some/model can't be had from the Hugging") as e:
        train(project, base_folder, model_name_or_path="some/model")
    assert e.value.category == "model_download"
    assert "\n" not in e.value.symptom


def test_target_modules(project: Path, base_folder: Path) -> None:
    _, some = train(project, base_folder, target_modules=["q_proj"], num_train_epochs=0.5)
    _, all_linear = train(project, base_folder, num_train_epochs=0.5)
    assert some.metrics["steps"] == 1
    # q_proj is 32 x 32 in each of two layers: two matrices of rank 16.
    assert some.effective["trainable_parameters"] == 2 * 2 * 32 * 16
    assert all_linear.effective["trainable_parameters"] > some.effective["trainable_parameters"]
    names = {n for n, p in all_linear.model.named_parameters() if p.requires_grad}
    assert not any("lm_head" in name or "embed" in name for name in names)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**62))
def test_each_epoch_sees_each_chat_once(n: int, per_step: int, epochs: int, seed: int) -> None:
    plan = list(steps(n, per_step, epochs, seed))
    assert len(plan) == count_steps(n, per_step, epochs)
    assert plan[-1].epoch == epochs
    per_epoch = len(plan) // epochs
    for epoch in range(epochs):
        part = plan[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(i for step in part for i in step.samples) == list(range(n))
        assert all(len(step.samples) == per_step for step in part[:-1])


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 120))
def test_micro_batches_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    rows = [Row([0] * n, [True] * n) for n in lengths]
    for cut, size in ((padded_parts, lambda part: len(part) * max(part)), (packed_parts, sum)):
        parts = [[len(row.tokens) for row in part] for part in cut(rows, budget)]
        assert sorted(itertools.chain(*parts)) == sorted(lengths)
        assert all(len(part) == 1 or size(part) <= budget for part in parts)
    # Best fit: no two packs would go into one.
    sizes = sorted(sum(part) for part in parts)
    assert len(sizes) == 1 or sizes[0] + sizes[1] > budget


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_learning_rate(kind: str) -> None:
    rates = [learning_rate(step, 40, 1.0, 0.1, kind) for step in range(40)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] > 0
    assert rates[22] == pytest.approx(1.0 if kind == "constant" else 0.5)  # half way


def test_seeds_differ_by_purpose() -> None:
    assert len(set(derived_seeds(1).values()) | set(derived_seeds(2).values())) == 6
    assert derived_seeds(42)["data_order"] == 5306866356390944295  # recorded: must not move


def test_what_changes_weights_knows_nothing_of_scores() -> None:
    """The modules that fit.py reaches are the ones that a stage's fingerprint holds."""
    root = Path(fit_module.__file__).parent
    reached, todo = set(), ["training.fit"]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        tree = ast.parse((root / f"{name.partition('.')[2]}.py").read_text())
        todo += [
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("training.")
        ]
    assert {"training.masking", "training.model", "training.batches"} <= reached
    evaluation = {"scores", "matching", "report", "card", "evaluate", "generate", "progress", "job"}
    assert not {f"training.{name}" for name in evaluation} & reached
    keeping = {"checkpoint", "keeper", "metrics", "stopping", "train", "stage"}  # of states
    assert not {f"training.{name}" for name in keeping} & reached
