"""Attention for rows that are packed one after the other, each of which sees itself alone.

Each packed row goes through attention by a call of its own, so that there is nothing to mask, and
no time is spent on what a mask would hide. transformers' own way (a mask that it makes of the
restarting position ids) computes all of it, and lets rows see each other, without a word, where a
cache or an attention mask is given.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from training.masking import Row
from training.memory import is_out_of_memory
from training.micro_batch import MicroBatch, packed

NAME = "remote_train_packed"
INSTEAD_OF = "sdpa"
"""Only models that use this attention are packed."""

PROBE = 16
"""Tokens of a row before the longest one, when it is tried whether they are kept apart."""
COLUMNS = 32
"""Places at which that is looked at."""


class _Attention:
    """transformers' SDPA, called once for each packed row."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """As transformers calls it: (1, heads, width, size) in, (1, width, heads, size) out."""
        width = sum(self.lengths)
        whole = all(tensor.shape[0] == 1 for tensor in (query, key, value)) and all(
            tensor.shape[2] == width for tensor in (query, key, value)
        )
        if not whole or attention_mask is not None or options.get("position_bias") is not None:
            raise ValueError("this attention can't be taken apart by rows")
        parts = zip(
            *(torch.split(tensor, self.lengths, 2) for tensor in (query, key, value)), strict=True
        )
        seen = [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts]
        return (seen[0] if len(seen) == 1 else torch.cat(seen, 1)), None

    def no_mask(self, *_: Any, local_size: int | None = None, **__: Any) -> None:
        """In place of a mask. A model's window within a row can't be left out."""
        if local_size is not None and local_size < max(self.lengths, default=0):
            raise ValueError("a row is longer than the window of the model's attention")


_attention = _Attention()
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _attention.no_mask)


@contextlib.contextmanager
def packing(base: Any) -> Iterator[None]:
    """The model takes packed rows within, see :func:`rows_of`."""
    before = base.config._attn_implementation
    base.set_attn_implementation(NAME)
    try:
        yield
    finally:
        base.set_attn_implementation(before)


@contextlib.contextmanager
def rows_of(batch: MicroBatch) -> Iterator[None]:
    """Within is a forward pass of this micro-batch, and its backward pass, which may repeat it."""
    # No thread's own variable: torch does the backward pass on a GPU in another thread.
    _attention.lengths = batch.lengths
    try:
        yield
    finally:
        _attention.lengths = []


def keeps_apart(base: Any, rows: list[Row], device: torch.device) -> bool:
    """Whether this model, on this device, keeps packed rows apart.

    It is tried on the longest of ``rows``. Another row is packed before it, and changed: not a bit
    of what comes out for the longest one may change. And it has to be what the model's own
    attention gives for that row alone.
    """
    parameters = inspect.signature(base.forward).parameters
    if base.config._attn_implementation != INSTEAD_OF or "logits_to_keep" not in parameters:
        return False
    longest = max(rows, key=lambda row: len(row.tokens)).tokens
    other = min(rows, key=lambda row: len(row.tokens)).tokens[:PROBE]
    tokens = base.get_input_embeddings().num_embeddings
    changed = [(token + 1) % tokens for token in other]
    try:
        alone = _logits(base, [longest], device)
        with packing(base):
            if base.config._attn_implementation != NAME:
                return False
            after = [_logits(base, [first, longest], device) for first in (other, changed)]
    except Exception as error:  # whatever a model says to what it doesn't know
        if is_out_of_memory(error):
            raise
        return False
    near = 1e-3 if alone.dtype is torch.float32 else 5e-2
    difference = (after[0] - alone).abs().max()
    return torch.equal(*after) and bool(difference <= near * alone.abs().max())


def _logits(base: Any, rows: list[list[int]], device: torch.device) -> torch.Tensor:
    """(1, COLUMNS at most, vocabulary): the logits at places of the last row."""
    batch = packed([Row(row, [False, *[True] * (len(row) - 1)]) for row in rows]).to(device)
    begin, end = len(batch.before) - len(rows[-1]) + 1, len(batch.before)
    places = torch.unique(torch.linspace(begin, end - 1, min(COLUMNS, end - begin)).long())
    columns = batch.before[places.to(device)]
    with torch.no_grad(), rows_of(batch):
        logits: torch.Tensor = base(**batch.inputs, logits_to_keep=columns).logits
    return logits
