"""The loop over optimizer steps."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch

from training.batches import Step, count_steps, steps
from training.batching import Batching
from training.clock import Clock
from training.device import Device, Exact
from training.errors import DIVERGED, JobError
from training.masking import Row, Sample
from training.memory import Memory, cause_of, free, is_out_of_memory
from training.output_layer import Loss
from training.schedule import learning_rate
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


class Loop:
    """The optimizer, and how one step is done."""

    def __init__(
        self,
        model: Any,
        device: Device,
        settings: Settings,
        memory: Memory,
        batching: Batching,
        chunked: bool,
        exact: Exact,
    ) -> None:
        """:param chunked: see :class:`training.output_layer.Loss`."""
        self._model = model
        self._device = device
        self._settings = settings
        self._memory = memory
        self._batching = batching
        self._exact = exact
        self._loss = Loss(model, chunked, self._autocast)
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
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
        clock = Clock(self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        total = self._gradients(number, samples, clock)
        with clock("optimizer"):
            limit = self._settings.max_grad_norm or math.inf
            norm_of_all = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
            # The one place in a step where a GPU is waited for.
            loss, norm = torch.stack([total, norm_of_all]).tolist()
            for what, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise _not_finite(what, value, number, samples)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        seconds, whole = clock.seconds()
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
            "tokens_per_second": round(all_tokens / max(1e-9, whole), 1),
            "seconds": {name: round(value, 6) for name, value in seconds.items()},
            "peak_memory_bytes": self._device.peak_memory(),
        }

    def _gradients(self, number: int, samples: list[Sample], clock: Clock) -> torch.Tensor:
        """The loss of a step, whose gradients are in place then.

        Where memory runs out, what was done of it is undone, and it is done again with less.
        """
        rows = [row for sample in samples for row in sample.rows]
        learned = sum(sample.learned for sample in samples)
        random = random_state()
        while True:
            part: list[Row] = []
            try:
                losses = []
                for part in self._batching.parts(rows, self._memory.budget):
                    losses.append(self._backward(part, learned, clock))
                return torch.stack(losses).sum()
            except (RuntimeError, MemoryError) as error:
                out_of_memory = is_out_of_memory(error)
                if not (out_of_memory or self._exact.is_refused(error)):
                    raise
                cause = cause_of(error)
            # Here the error is gone, and with it its traceback, which held the step's tensors.
            self._optimizer.zero_grad(set_to_none=True)
            free()
            if out_of_memory:
                size = self._batching.tokens(part)
                longest = max(len(row.tokens) for row in part)
                self._memory.reduce(number, len(part), size, longest, cause)
            else:
                self._exact.give_up(cause)
            set_random_state(random)

    def _backward(self, part: list[Row], learned: int, clock: Clock) -> torch.Tensor:
        """Forward and backward of a micro-batch; its share of the step's loss."""
        with clock("data"):
            batch = self._batching.batch(part).to(self._device.where)
        with self._batching.rows_of(batch):
            return self._loss.backward(batch, learned, clock)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        # The adapter is held in float32; its products are computed in the base model's format.
        if self._device.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.where.type, dtype=self._device.dtype)


def _not_finite(what: str, value: float, step: int, samples: list[Sample]) -> JobError:
    return JobError(
        "training_logic",
        f"The {what} is {value} at step {step}, so training stopped there.",
        "Lower learning_rate, or set dtype to float32; and look at the chats of that step.",
        "The step trained on " + ", ".join(sample.chat.where for sample in samples) + ".",
        DIVERGED,
    )
