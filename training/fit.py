"""Trains the adapter: the loop over optimizer steps.

All code that can change the weights is imported from here, and nothing else is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from training.batches import Step, count_steps, micro_batches, padded, steps
from training.chats import ChatFile, read_chats
from training.device import THREADS, Device, set_up
from training.errors import DIVERGED, JobError
from training.masking import Masker, Row, Sample
from training.memory import Memory, cause_of, free, is_out_of_memory
from training.model import add_adapter, load_base, load_tokenizer, locate, revision
from training.schedule import learning_rate
from training.seeds import derived_seeds
from training.settings import Settings
from training.state import (
    Keeper,
    State,
    copied,
    optimizer_tensors,
    random_state,
    set_optimizer_tensors,
    set_random_state,
)
from training.template import ChatTemplate


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The base model, ready to use."""

    model: Any
    tokenizer: Any
    device: Device
    effective: dict[str, Any]
    """What is in force, for the record."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The trained adapter, still on its base model."""

    model: Any
    metrics: dict[str, float]
    """``train_loss`` (mean over all trained tokens), ``steps``, ``samples``, ``train_tokens``."""
    effective: dict[str, Any]
    cut: list[str]
    """File and line of the chats that were cut."""
    dropped: list[str]
    """File and line of the chats of which nothing that is learned was left."""
    notes: list[dict[str, str]]
    """What was done about memory that ran out, as warnings."""


def micro_batch_tokens(settings: Settings) -> int:
    """Padded tokens in a micro-batch at most: what the user said that memory can take."""
    return settings.per_device_train_batch_size * settings.max_length


def load(settings: Settings, root: Path) -> Loaded:
    """Load the base model and its tokenizer.

    :raises JobError: see :mod:`training.model`.
    """
    device = set_up(settings.dtype)
    source = locate(settings, root)
    tokenizer = load_tokenizer(source, settings)
    base = load_base(source, settings, device)
    effective = {
        "dtype": device.dtype_name,
        "torch_threads": THREADS,
        "base_model_revision": revision(base),
        "attention": getattr(base.config, "_attn_implementation", None) or "unknown",
    }
    return Loaded(base, tokenizer, device, effective)


def read_training(root: Path, paths: list[str]) -> list[ChatFile]:
    """The files of chats to train on.

    :raises JobError: category ``data``; names file, line and reason.
    """
    return [read_chats(root, path) for path in paths]


def fit(
    loaded: Loaded,
    settings: Settings,
    files: list[ChatFile],
    on_step: Callable[[dict[str, Any], int], None],
    keeper: Keeper | None = None,
    low_memory: bool = False,
) -> Fitted:
    """Train a new adapter on the chats in ``files``, and on nothing else.

    :param on_step: called after each step with its record (a line of ``metrics.jsonl``) and the
        number of all steps.
    :param keeper: has the state to go on from, if there is one, and is shown each new one.
    :param low_memory: train one sample at a time, with activation checkpointing, from the start.
    :raises JobError: ``data`` for chats that can't be used, ``training_logic`` for a loss that is
        not finite, ``oom`` where even one sample is too much.
    """
    masker = Masker(ChatTemplate(loaded.tokenizer), settings.max_length)
    encoded = [masker.encode(chat) for file in files for chat in file.chats]
    samples = [sample for sample in encoded if sample.rows]
    if not samples:
        raise JobError(
            "data",
            f"No token of {', '.join(file.path for file in files)} is left to learn"
            f" within max_length {settings.max_length}.",
            "Raise max_length, or shorten what stands before the answers.",
        )
    seeds = derived_seeds(settings.seed)
    model = add_adapter(loaded.model, settings, seeds["lora_init"])
    memory = Memory(model.get_base_model(), micro_batch_tokens(settings), low_memory)
    loop = Loop(model, loaded.device, loaded.tokenizer.pad_token_id, settings, memory)
    try:
        metrics = loop.run(samples, seeds, on_step, keeper)
    finally:
        memory.close()
    return Fitted(
        model=model,
        metrics=metrics,
        effective={
            **loaded.effective,
            "samples_per_step": settings.samples_per_step,
            "micro_batch_tokens": memory.budget,
            "activation_checkpointing": memory.activation_checkpointing,
            "longest_row": max(len(row.tokens) for s in samples for row in s.rows),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seeds": seeds,
        },
        cut=[sample.chat.where for sample in encoded if sample.cut and sample.rows],
        dropped=[sample.chat.where for sample in encoded if not sample.rows],
        notes=memory.notes,
    )


class Loop:
    """The optimizer, and how one step is done."""

    def __init__(
        self, model: Any, device: Device, pad: int, settings: Settings, memory: Memory
    ) -> None:
        """:param pad: the token that short rows are filled up with."""
        self._model = model
        self._device = device
        self._pad = pad
        self._settings = settings
        self._memory = memory
        self._keeps_logits = (
            "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
        )
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self._done = 0
        self._loss_sum, self._token_sum = 0.0, 0

    def run(
        self,
        samples: list[Sample],
        seeds: dict[str, int],
        on_step: Callable[[dict[str, Any], int], None],
        keeper: Keeper | None,
    ) -> dict[str, float]:
        """Do all steps that a kept state hasn't behind it; returns the metrics of the whole."""
        settings = self._settings
        total = count_steps(len(samples), settings.samples_per_step, settings.num_train_epochs)
        torch.manual_seed(seeds["dropout"])
        self._model.train()
        plan = steps(
            len(samples), settings.samples_per_step, settings.num_train_epochs, seeds["data_order"]
        )
        if keeper:
            self._resume(keeper.resume(total, {n: [*p.shape] for n, p in self._named.items()}))
        for step in itertools.islice(plan, self._done, None):
            rate = learning_rate(
                self._done,
                total,
                settings.learning_rate,
                settings.warmup_ratio,
                settings.lr_scheduler_type,
            )
            record = self._step(self._done + 1, step, [samples[i] for i in step.samples], rate)
            self._done += 1
            self._loss_sum += record["loss"] * record["trained_tokens"]
            self._token_sum += record["trained_tokens"]
            on_step(record, total)
            if keeper:
                keeper.after_step(self._done, total, self._state)
        self._model.eval()
        return {
            "train_loss": self._loss_sum / self._token_sum,
            "steps": total,
            "samples": len(samples),
            "train_tokens": self._token_sum,
        }

    def _state(self) -> State:
        return State(
            step=self._done,
            loss_sum=self._loss_sum,
            token_sum=self._token_sum,
            memory=self._memory.as_dict(),
            adapter={name: copied(p) for name, p in self._named.items()},
            optimizer=optimizer_tensors(self._optimizer),
            random=random_state(),
        )

    def _resume(self, state: State | None) -> None:
        if state is None:
            return
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(state.adapter[name])
        set_optimizer_tensors(self._optimizer, state.optimizer)
        set_random_state(state.random)
        self._memory.take(state.memory)
        self._done = state.step
        self._loss_sum, self._token_sum = state.loss_sum, state.token_sum

    def _step(self, number: int, step: Step, samples: list[Sample], rate: float) -> dict[str, Any]:
        """One optimizer step: its loss is the mean over all trained tokens of all its chats."""
        clock = _Clock(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss = self._gradients(number, samples, clock)
        with clock("optimizer"):
            limit = self._settings.max_grad_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit).item()
            if not math.isfinite(norm):
                raise _not_finite("gradient", norm, number, samples)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        seconds = clock.seconds
        all_tokens = sum(sample.tokens for sample in samples)
        return {
            "step": number,
            "epoch": round(step.epoch, 4),
            "samples": len(samples),
            "tokens": all_tokens,
            "trained_tokens": sum(sample.learned for sample in samples),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens_per_second": round(all_tokens / max(1e-9, sum(seconds.values())), 1),
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
            "peak_memory_bytes": self._device.peak_memory(),
        }

    def _gradients(self, number: int, samples: list[Sample], clock: _Clock) -> float:
        """The loss of a step, whose gradients are in place then.

        Where memory runs out, what was done of it is undone, and it is done again with less.
        """
        rows = [row for sample in samples for row in sample.rows]
        trained = sum(sample.learned for sample in samples)
        random = random_state()
        while True:
            loss = 0.0
            part: list[Row] = []
            try:
                for part in micro_batches(rows, self._memory.budget):
                    value = self._backward(part, trained, clock)
                    if not math.isfinite(value):
                        raise _not_finite("loss", value, number, samples)
                    loss += value
                return loss
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                cause = cause_of(error)
            # Here the error is gone, and with it its traceback, which held the step's tensors.
            self._optimizer.zero_grad(set_to_none=True)
            free()
            self._memory.reduce(number, len(part), max(len(row.tokens) for row in part), cause)
            set_random_state(random)

    def _backward(self, part: list[Row], trained: int, clock: _Clock) -> float:
        """Forward and backward of a micro-batch; its share of the step's loss."""
        with clock("data"):
            tokens, labels = padded(part, self._pad)
            tokens, labels = tokens.to(self._device.where), labels.to(self._device.where)
        with clock("forward"):
            loss = self._loss(tokens, labels) / trained
        value = loss.item()
        if math.isfinite(value):
            with clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
        return value

    def _loss(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of all trained tokens.

        There is no attention mask: padding stands on the right, where a causal model doesn't look.
        Logits are computed only for positions at which some row is trained.
        """
        goals = labels[:, 1:]
        positions = (goals != -100).any(dim=0).nonzero().squeeze(1)
        options = {"logits_to_keep": positions} if self._keeps_logits else {}
        with self._autocast():
            logits = self._model(input_ids=tokens, use_cache=False, **options).logits
        if not self._keeps_logits:
            logits = logits[:, positions]
        return functional.cross_entropy(
            logits.flatten(0, 1).float(),
            goals[:, positions].flatten(),
            ignore_index=-100,
            reduction="sum",
        )

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # The adapter is held in float32; its products are computed in the base model's format.
        if self._device.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.where.type, dtype=self._device.dtype)


class _Clock:
    """Seconds spent in each part of a step."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._device.synchronize()
        self.seconds[name] += time.perf_counter() - started


def _not_finite(what: str, value: float, step: int, samples: list[Sample]) -> JobError:
    return JobError(
        "training_logic",
        f"The {what} is {value} at step {step}, so training stopped there.",
        "Lower learning_rate, or set dtype to float32; and look at the chats of that step.",
        "The step trained on " + ", ".join(sample.chat.where for sample in samples) + ".",
        DIVERGED,
    )
