"""Memory that runs out: the step is done again with less, and learns the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.conftest import chat, write_chats
from training import activations
from training import generate as generate_module
from training.errors import JobError
from training.evaluate import evaluate, read_benchmarks
from training.failures import explain
from training.fit import Fitted, Loaded, fit, load, read_training
from training.job import Evaluation
from training.loop import Loop
from training.masking import Row
from training.memory import Memory, is_out_of_memory
from training.settings import Settings, read_settings
from training.state import random_state, set_random_state

pytestmark = pytest.mark.training

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


def settings_of(base: Path, **changes: Any) -> Settings:
    return read_settings(
        {
            "model_name_or_path": str(base),
            "learning_rate": 1e-2,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "lora_dropout": 0.0,
            "max_length": 128,
            **changes,
        }
    )


def train(
    project: Path, base: Path, low_memory: bool = False, **changes: Any
) -> tuple[list[dict[str, Any]], Fitted, Loaded]:
    settings = settings_of(base, **changes)
    loaded = load(settings, project)
    files = read_training(project, ["data/train.jsonl"])
    records: list[dict[str, Any]] = []
    fitted = fit(loaded, settings, files, lambda r, _: records.append(r), None, low_memory)
    return records, fitted, loaded


class Hook:
    """Says that memory ran out, where it should."""

    def __init__(self, runs_out: Callable[[Hook, int], bool]) -> None:
        self.calls = 0
        self.rows: list[int] = []
        """In each micro-batch."""
        self.seen: list[weakref.ref[torch.Tensor]] = []
        self.error: Exception = ERRORS[0]
        self._runs_out = runs_out

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Hook:
        real = Loop._backward

        def backward(loop: Loop, part: list[Row], *arguments: Any) -> torch.Tensor:
            self.calls += 1
            self.rows.append(len(part))
            value = real(loop, part, *arguments)
            if self._runs_out(self, len(part)):
                self.seen.append(weakref.ref(value))
                raise type(self.error)(*self.error.args)
            return value

        monkeypatch.setattr(Loop, "_backward", backward)
        return self


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_step_is_done_again_in_smaller_parts(
    project: Path,
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """In the second part of the first step, after the first part has left gradients."""
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    records, _, _ = train(project, base_folder, **changes)
    hook = Hook(lambda h, _: h.calls == 2)
    hook.error = error
    hook.install(monkeypatch)
    again, fitted, _ = train(project, base_folder, **changes)
    assert hook.rows[2] < hook.rows[0] < 8
    assert losses(again) == pytest.approx(losses(records), abs=1e-5)
    assert [r["samples"] for r in again] == [r["samples"] for r in records]
    assert [r["grad_norm"] for r in again] == pytest.approx(
        [r["grad_norm"] for r in records], rel=1e-3
    )
    assert fitted.effective["micro_batch_tokens"] == 64  # of 128
    assert fitted.effective["activation_checkpointing"] is False
    (note,) = fitted.notes
    assert note["category"] == "oom"
    assert "at most 64 tokens since (128 before)" in note["symptom"]
    assert note["symptom"] in capsys.readouterr().out


def test_what_was_held_is_let_go_before_it_is_tried_again(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.disable()  # no cycle may be needed to find it
    alive: list[bool] = []
    real = Memory.reduce

    def reduce(memory: Memory, *arguments: Any) -> None:
        alive.append(hook.seen[-1]() is not None)
        real(memory, *arguments)

    monkeypatch.setattr(Memory, "reduce", reduce)
    hook = Hook(lambda h, _: h.calls == 2).install(monkeypatch)
    try:
        train(project, base_folder, num_train_epochs=1)
    finally:
        gc.enable()
    assert alive == [False]


def test_down_to_one_sample_and_then_activation_checkpointing(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, _, _ = train(project, base_folder)
    base: list[Any] = []

    def runs_out(_: Hook, rows: int) -> bool:
        return rows > 1 or not base[-1].is_activation_checkpointing

    real = Memory.__init__

    def init(memory: Memory, model: Any, *arguments: Any) -> None:
        base.append(model)
        real(memory, model, *arguments)

    monkeypatch.setattr(Memory, "__init__", init)
    hook = Hook(runs_out).install(monkeypatch)
    again, fitted, loaded = train(project, base_folder)
    assert losses(again) == pytest.approx(losses(records), abs=1e-5)
    assert fitted.effective["activation_checkpointing"] is True
    assert fitted.effective["micro_batch_tokens"] < 128
    assert hook.rows[-8:] == [1] * 8
    assert [note["category"] for note in fitted.notes] == ["oom"] * len(fitted.notes)
    assert "activation checkpointing is on since" in fitted.notes[-1]["symptom"]
    assert not loaded.model.is_activation_checkpointing  # as it was before


def test_when_nothing_is_left_it_ends_with_what_to_try(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hook(lambda *_: True).install(monkeypatch)
    with pytest.raises(
        JobError, match=r"not suffice for a chat of \d+ tokens, even with"
    ) as caught:
        train(project, base_folder)
    assert caught.value.category == "oom"
    assert "max_length" in caught.value.action
    assert "use_qlora" in caught.value.action


def test_low_memory_starts_with_the_least(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records, _, _ = train(project, base_folder)
    hook = Hook(lambda *_: False).install(monkeypatch)
    again, fitted, loaded = train(project, base_folder, low_memory=True)
    assert losses(again) == pytest.approx(losses(records), abs=1e-5)
    assert set(hook.rows) == {1}
    assert fitted.effective["micro_batch_tokens"] == 1
    assert fitted.effective["activation_checkpointing"] is True
    assert fitted.notes == []
    assert not loaded.model.is_activation_checkpointing


def test_activation_checkpointing_drops_out_the_same(project: Path, base_folder: Path) -> None:
    """With dropout, gradients are those of what the forward pass has dropped out."""
    chats = [chat(1)]
    write_chats(project / "data/train.jsonl", chats)
    plain, _, _ = train(project, base_folder, lora_dropout=0.5)
    less, _, _ = train(project, base_folder, low_memory=True, lora_dropout=0.5)
    assert losses(less) == pytest.approx(losses(plain), abs=1e-5)
    norms = [[r["grad_norm"] for r in records] for records in (plain, less)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_the_random_state_is_the_steps_own_again(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout: what ran out in the middle of a step has drawn nothing."""
    changes = {"lora_dropout": 0.5, "num_train_epochs": 1}
    # From the start in the parts that the other one comes to.
    smaller = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    records, _, _ = train(project, base_folder, **changes, **smaller)
    Hook(lambda h, _: h.calls == 1).install(monkeypatch)
    again, fitted, _ = train(project, base_folder, **changes)
    assert fitted.effective["micro_batch_tokens"] == 256
    assert losses(again) == losses(records)


def test_other_errors_are_not_taken_for_it(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = Hook(lambda *_: True)
    hook.error = RuntimeError("a shape doesn't fit")
    hook.install(monkeypatch)
    with pytest.raises(RuntimeError, match="a shape"):
        train(project, base_folder)
    assert hook.calls == 1
    assert not is_out_of_memory(hook.error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_elsewhere_it_is_a_sentence(error: Exception) -> None:
    known = explain(error)
    assert known is not None
    assert known.category == "oom"


@pytest.mark.parametrize("most", [2, 1, 0])
def test_while_evaluating_batches_are_halved(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    settings = settings_of(base_folder)
    loaded = load(settings, project)
    benchmarks = read_benchmarks(project, ["data/bench.jsonl"])
    evaluation = Evaluation(max_new_tokens=6, eval_batch_size=8)

    def ask() -> Any:
        done: list[int] = []
        tell = lambda number, _: done.append(number)  # noqa: E731
        result = evaluate(loaded.model, loaded.tokenizer, benchmarks, evaluation, tell)
        return result, done

    whole, _ = ask()
    real = generate_module._write

    def write(model: Any, prompts: list[list[int]], config: Any) -> Any:
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(model, prompts, config)

    monkeypatch.setattr(generate_module, "_write", write)
    if most == 0:
        with pytest.raises(JobError, match="answer to a single prompt") as caught:
            ask()
        assert caught.value.category == "oom"
        return
    result, done = ask()
    assert [a.text for a in result.answers] == [a.text for a in whole.answers]
    assert done == [0, *range(most, 5, most)]
    assert [note["category"] for note in result.notes] == ["oom"] * (3 - most)
    assert f"{most} answers are written together" in result.notes[-1]["symptom"]


def test_random_states_are_put_back() -> None:
    before = random_state()
    drawn = torch.rand(3)
    set_random_state(before)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_activation_checkpointing_by_both_of_its_names(name: str) -> None:
    calls: list[str] = []
    methods = {
        "supports_gradient_checkpointing": True,
        f"{name}_enable": lambda _, options: calls.append(f"on {options}"),
        f"{name}_disable": lambda _: calls.append("off"),
        f"is_{name}": property(lambda _: bool(calls)),
    }
    model = type("Model", (), methods)()
    activations.keep(model)  # nothing to end
    assert calls == []
    assert activations.compute_again(model)
    activations.keep(model)
    assert calls == ["on {'use_reentrant': False}", "off"]
    assert not activations.compute_again(object())
