"""The loss of a micro-batch and its gradients, without ever holding the logits of all its tokens.

A vocabulary of 150,000 makes 600 kB of logits for each token, several times over. So the model's
hidden states are computed for all, and then, for a chunk of the learned tokens at a time, the
output layer's logits, their loss, and its gradient with respect to the hidden states. The gradient
is taken at once, so that nothing is computed twice.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from training.clock import Clock
from training.memory import is_out_of_memory
from training.micro_batch import MicroBatch

CHUNK = 2**26
"""Logits in a chunk at most: a quarter of a GiB in float32."""

PROBE = 8
"""Tokens on which it is tried whether a model's logits are what its output layer gives."""

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Loss:
    """Forward and backward pass of micro-batches."""

    def __init__(self, model: Any, chunked: bool, autocast: Autocast) -> None:
        """:param model: with its adapter.

        :param chunked: what :func:`can_be_chunked` says of its base model.
        :param autocast: makes the context in which the model computes.
        """
        self._model = model
        self._base = model.get_base_model()
        self._chunked = chunked
        self._autocast = autocast
        self._keeps = "logits_to_keep" in inspect.signature(self._base.forward).parameters

    def backward(self, batch: MicroBatch, learned: int, clock: Clock) -> torch.Tensor:
        """The sum of the losses of its learned tokens, divided by ``learned``.

        Its gradients are added to those of the weights that are trained.
        """
        return (self._in_chunks if self._chunked else self._whole)(batch, learned, clock)

    def _in_chunks(self, batch: MicroBatch, learned: int, clock: Clock) -> torch.Tensor:
        output = self._base.get_output_embeddings()
        with clock("forward"), self._autocast():
            hidden = self._base.get_decoder()(**batch.inputs).last_hidden_state
            hidden = hidden.flatten(0, 1).index_select(0, batch.before)
        size = max(1, CHUNK // output.weight.shape[0])
        losses: list[torch.Tensor] = []
        gradients: list[Any] = []
        for part, goals in zip(
            torch.split(hidden, size), torch.split(batch.goals, size), strict=True
        ):
            chunk = part.detach().requires_grad_()
            with clock("forward"), self._autocast():
                loss = _sum_of_losses(output(chunk), goals) / learned
            with clock("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            gradients.append(chunk.grad)
        if hidden.requires_grad:  # not where the output layer alone has an adapter
            with clock("backward"):
                hidden.backward(torch.cat(gradients))
        return torch.stack(losses).sum()

    def _whole(self, batch: MicroBatch, learned: int, clock: Clock) -> torch.Tensor:
        """For models that do more with their logits than the output layer does."""
        with clock("forward"), self._autocast():
            keep = {"logits_to_keep": batch.columns} if self._keeps else {}
            logits = self._model(**batch.inputs, **keep).logits
            places = batch.among_columns if self._keeps else batch.before
            loss = _sum_of_losses(logits.flatten(0, 1)[places], batch.goals) / learned
        with clock("backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _sum_of_losses(logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), goals, reduction="sum")


def can_be_chunked(base: Any, tokens: list[int], device: torch.device) -> bool:
    """Whether a base model's logits are what its output layer makes of its hidden states.

    Some models scale or soft-cap their logits. It is tried on ``tokens``, bit by bit, and a second
    time with logits of which the largest is 1000, where a soft cap shows.
    """
    ids = torch.tensor([tokens[:PROBE]], device=device)
    output = base.get_output_embeddings()
    if not isinstance(getattr(output, "weight", None), torch.Tensor):
        return False
    try:
        scale = 1.0
        for _ in range(2):
            hook = output.register_forward_hook(lambda *a, scale=scale: a[2] * scale)
            try:
                with torch.no_grad():
                    theirs = base(input_ids=ids, use_cache=False).logits
                    hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
                    ours = output(hidden)
            finally:
                hook.remove()
            largest = ours.abs().max().item()
            if not torch.equal(ours.float(), theirs.float()) or not largest > 0:
                return False
            scale = 1000 / largest
    except Exception as error:  # whatever a model says to what it doesn't know
        if is_out_of_memory(error):
            raise
        return False
    return True
