"""How sure a score is: 95 % intervals. Standard library only."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

Z_95 = 1.959963984540054
"""The 97.5 % point of the normal distribution."""

RESAMPLES = 2000
SEED = 20240229


def wilson(hits: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of the rate ``hits / n``, 95 %.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
    JASA 22 (1927).

    :param hits: may be a fraction: the sum of values between 0 and 1.
    :raises ValueError: if ``n`` is 0: no rate has no interval.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ValueError(f"no rate: {hits} of {n}")
    rate, square = hits / n, Z_95**2
    middle = (rate + square / (2 * n)) / (1 + square / n)
    half = Z_95 / (1 + square / n) * math.sqrt(rate * (1 - rate) / n + square / (4 * n * n))
    low = 0.0 if hits == 0 else max(0.0, middle - half)
    high = 1.0 if hits == n else min(1.0, middle + half)
    return low, high


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of values between 0 and 1, 95 %: percentile bootstrap, with a fixed seed.

    Values that are all equal say nothing of their spread: drawn anew they give that value again,
    as if the mean were certain. The interval is Wilson's then. It is the wider one: of all
    values between 0 and 1 with a given mean, those that are 0 or 1 only vary most.

    The order of the values makes no difference.

    :raises ValueError: if there are none.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    n = len(ordered)
    if ordered[0] == ordered[-1]:
        low, high = wilson(ordered[0] * n, n)
        return min(low, ordered[0]), max(high, ordered[0])  # n times a fraction is rounded
    draw = random.Random(SEED)  # noqa: S311 # statistics, not a secret
    means = sorted(math.fsum(draw.choices(ordered, k=n)) / n for _ in range(RESAMPLES))
    return means[round(0.025 * (RESAMPLES - 1))], means[round(0.975 * (RESAMPLES - 1))]
