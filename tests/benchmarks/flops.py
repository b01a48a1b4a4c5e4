"""The floating-point operations that a LoRA training step needs; recomputation is not counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Work:
    """Floating-point operations, by what they are for."""

    base: int
    """Products with the frozen weights."""
    attention: int
    """Queries by keys, and weights by values, of the half that a causal model looks at."""
    adapters: int
    """Products with the adapter's weights."""

    @property
    def all(self) -> int:
        """The sum."""
        return self.base + self.attention + self.adapters


def training(
    lengths: Iterable[int],
    trained: int,
    *,
    inner: int,
    output: int,
    adapters: int,
    layers: int,
    attention_width: int,
) -> Work:
    """What it takes to train on rows of these lengths once.

    A product with a weight takes 2 operations forward, 2 for the gradient of its input, and 2 for
    the weight's own gradient, which a frozen one doesn't need: 4 for each base weight and token, 6
    for each adapter weight and token. Looking up an embedding is no product.

    Attention over a row of n tokens takes 2 products of n x n by width forward, half of which a
    causal mask leaves out, and twice as many backward: 2 n^2 + 4 n^2 for each width and layer.

    :param lengths: tokens of each row, without padding.
    :param trained: tokens that are learned: only for these does the output layer have to work.
    :param inner: weights of all linear layers but the output layer.
    :param output: weights of the output layer.
    :param adapters: weights of the adapter.
    :param attention_width: heads times the width of each.
    """
    lengths = list(lengths)
    tokens = sum(lengths)
    return Work(
        base=4 * inner * tokens + 4 * output * trained,
        attention=6 * sum(length**2 for length in lengths) * attention_width * layers,
        adapters=6 * adapters * tokens,
    )
