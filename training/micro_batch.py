"""A micro-batch as tensors: rows padded to one length, or packed one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from training.masking import Row


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What the model is given, and what it is to learn of it.

    There is no attention mask: padding stands on the right, where a causal model doesn't look, and
    packed rows are kept apart by :mod:`training.packing`.
    """

    tokens: torch.Tensor
    """(rows, width)"""
    position_ids: torch.Tensor | None
    """(1, width): from 0 in each packed row. None where rows are padded."""
    lengths: list[int]
    """Of the packed rows; empty where rows are padded."""
    before: torch.Tensor
    """(learned,): places in the flattened tokens, after which a learned token comes."""
    goals: torch.Tensor
    """(learned,): those tokens."""
    columns: torch.Tensor
    """Columns of ``tokens`` that hold at least one of ``before``, in order."""
    among_columns: torch.Tensor
    """(learned,): places of ``before`` where there are those columns alone."""

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments for a model's forward pass."""
        positions = {} if self.position_ids is None else {"position_ids": self.position_ids}
        # With a cache, transformers' masks would let packed rows see each other.
        return {"input_ids": self.tokens, "use_cache": False, **positions}

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **moved)


def padded(rows: list[Row], pad: int) -> MicroBatch:
    """One row each, filled up on the right with ``pad``."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), width), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
    starts = [i * width for i in range(len(rows))]
    return _batch(tokens, rows, starts, None, [])


def packed(rows: list[Row]) -> MicroBatch:
    """All in one row, without padding."""
    lengths = [len(row.tokens) for row in rows]
    tokens = torch.tensor([[token for row in rows for token in row.tokens]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return _batch(tokens, rows, starts, positions, lengths)


def _batch(
    tokens: torch.Tensor,
    rows: list[Row],
    starts: list[int],
    positions: torch.Tensor | None,
    lengths: list[int],
) -> MicroBatch:
    before = torch.tensor(
        [
            start + place - 1
            for start, row in zip(starts, rows, strict=True)
            for place, learned in enumerate(row.learned)
            if learned and place  # a first token has nothing to be learned from
        ]
    )
    width = tokens.shape[1]
    columns, which = torch.unique(before % width, return_inverse=True)
    return MicroBatch(
        tokens=tokens,
        position_ids=positions,
        lengths=lengths,
        before=before,
        goals=tokens.flatten()[before + 1],
        columns=columns,
        among_columns=before // width * len(columns) + which,
    )
