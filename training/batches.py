"""Which chats make up each optimizer step, and how a step is cut into micro-batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from training.masking import Row


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer step."""

    epoch: float
    """Epochs that are done when the step is."""
    samples: list[int]
    """Indices of its chats."""


def count_steps(samples: int, per_step: int, epochs: float) -> int:
    """Optimizer steps in all; the last step of an epoch may be a smaller one."""
    return max(1, math.ceil(math.ceil(samples / per_step) * epochs))


def steps(samples: int, per_step: int, epochs: float, seed: int) -> Iterator[Step]:
    """The optimizer steps: each epoch goes through all chats once, in an order of its own.

    The order comes from ``seed`` and the epoch's number alone.
    """
    per_epoch = math.ceil(samples / per_step)
    for number in range(count_steps(samples, per_step, epochs)):
        epoch, place = divmod(number, per_epoch)
        if place == 0:
            generator = torch.Generator().manual_seed((seed + epoch) % 2**63)
            order = torch.randperm(samples, generator=generator).tolist()
        yield Step((number + 1) / per_epoch, order[place * per_step : (place + 1) * per_step])


def padded_parts(rows: list[Row], budget: int) -> list[list[Row]]:
    """Cut the rows of a step so that each part, padded, has at most ``budget`` tokens.

    Longest first, so that rows of like length share a part. A row that is longer than the budget
    is a part of its own.
    """
    parts: list[list[Row]] = []
    for row in _longest_first(rows):
        if parts and len(parts[-1][0].tokens) * (len(parts[-1]) + 1) <= budget:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def packed_parts(rows: list[Row], budget: int) -> list[list[Row]]:
    """Cut the rows of a step so that each part has at most ``budget`` tokens, without padding.

    Best fit, the longest first. A row that is longer than the budget is a part of its own.
    """
    parts: list[list[Row]] = []
    room: list[int] = []
    for row in _longest_first(rows):
        length = len(row.tokens)
        fitting = [i for i, left in enumerate(room) if left >= length]
        if fitting:
            best = min(fitting, key=lambda i: room[i])
            parts[best].append(row)
            room[best] -= length
        else:
            parts.append([row])
            room.append(budget - length)
    return parts


def _longest_first(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row.tokens))
