"""How micro-batches are made: rows packed one after the other, or padded to one length.

It is a rule for each kind of accelerator, and never tried out by time: what was chosen changes the
last digits of an adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

from training import micro_batch, packing
from training.batches import packed_parts, padded_parts
from training.device import Device
from training.log import say
from training.masking import Row
from training.micro_batch import MicroBatch

RULE = {"cpu": "packed", "cuda": "packed"}
"""For each kind of accelerator; docs/training.md has the reasons and the figures."""


class HasModel(Protocol):
    """A base model and what it runs on, such as :class:`training.fit.Loaded`."""

    @property
    def model(self) -> Any:
        """Without an adapter."""

    @property
    def tokenizer(self) -> Any:
        """With a padding token."""

    @property
    def device(self) -> Device:
        """Where the model is."""


class Batching:
    """One of the two ways."""

    def __init__(self, name: str, pad: int) -> None:
        """:param name: ``packed`` or ``padded``.

        :param pad: the token that short rows are filled up with.
        """
        self.name = name
        self._packed = name == "packed"
        self._pad = pad

    def parts(self, rows: list[Row], budget: int) -> list[list[Row]]:
        """The rows of a step, cut into micro-batches of at most ``budget`` tokens."""
        return (packed_parts if self._packed else padded_parts)(rows, budget)

    def tokens(self, part: list[Row]) -> int:
        """Tokens of a micro-batch, padding too."""
        lengths = [len(row.tokens) for row in part]
        return sum(lengths) if self._packed else max(lengths) * len(lengths)

    def batch(self, part: list[Row]) -> MicroBatch:
        """A micro-batch as tensors."""
        return micro_batch.packed(part) if self._packed else micro_batch.padded(part, self._pad)

    @contextlib.contextmanager
    def in_use(self, base: Any) -> Iterator[None]:
        """The model takes such micro-batches within."""
        with packing.packing(base) if self._packed else contextlib.nullcontext():
            yield

    def rows_of(self, batch: MicroBatch) -> contextlib.AbstractContextManager[None]:
        """Within is a forward and backward pass of this micro-batch."""
        return packing.rows_of(batch)


def choose(loaded: HasModel, rows: list[Row]) -> Batching:
    """The rule's way; padded where this model does not keep packed rows apart.

    :param rows: all that is trained on.
    """
    kind = loaded.device.where.type
    name = RULE[kind]
    if name == "packed" and not packing.keeps_apart(loaded.model, rows, loaded.device.where):
        say("This model does not keep packed chats apart, so micro-batches are padded.")
        name = "padded"
    return Batching(name, loaded.tokenizer.pad_token_id)
