"""Whether one model does better than another on the same samples. Standard library only.

A score that is yes or no is tested by the exact sign test on the samples on which the two differ,
which is McNemar's exact test; a score between 0 and 1 by the paired permutation test of its mean:
if neither is better, each difference could as well have had the other sign.

Sources: Q. McNemar, Psychometrika 12 (1947); R. A. Fisher, "The Design of Experiments" (1935),
section 21; B. Phipson, G. K. Smyth, "Permutation P-values Should Never Be Zero", SAGMB 9 (2010).

The training has the same two functions for its own reports (``training/paired.py``); a test holds
them against each other.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Sequence

EXACT = 12
"""Differences up to which all signs are tried; above, some are drawn."""
MANY = 200
"""Differences from which their signed sum is taken as normal (central limit theorem)."""
DRAWS = 9999
SEED = 20240229


def sign_test(better: int, worse: int) -> float:
    """The two-sided p of the exact sign test; ties count for nothing."""
    n, fewer = better + worse, min(better, worse)
    if not n or fewer * 2 == n:
        return 1.0
    # Integers all the way: 0.5**n is 0 for a large benchmark.
    tail: int = 2 * sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, tail / (1 << n))


def permutation_test(differences: Sequence[float]) -> float:
    """The two-sided p of the paired permutation test; the order makes no difference.

    Exact for few differences; for more, with a fixed seed, never 0.
    """
    sizes: list[float] = sorted(abs(one) for one in differences if one)
    if not sizes:
        return 1.0
    seen = abs(math.fsum(differences)) * (1 - 1e-12)  # sums of equal terms, in another order
    if len(sizes) <= EXACT:
        signs = itertools.product((1, -1), repeat=len(sizes) - 1)
        # The first sign is +: the other half of all cases is its mirror image.
        sums: list[float] = [
            abs(sizes[0] + sum(map(operator.mul, rest, sizes[1:]))) for rest in signs
        ]
        return sum(one >= seen for one in sums) / len(sums)
    if len(sizes) > MANY:
        deviation = math.sqrt(math.fsum(one * one for one in sizes))
        return max(math.ulp(0.0), math.erfc(seen / deviation / math.sqrt(2)))
    draw = random.Random(SEED)  # noqa: S311 # statistics, not a secret
    total = math.fsum(sizes)
    hits = 0
    for _ in range(DRAWS):
        chosen = f"{draw.getrandbits(len(sizes)):0{len(sizes)}b}"
        plus = sum(itertools.compress(sizes, map(int, chosen)))
        hits += abs(2 * plus - total) >= seen
    return (hits + 1) / (DRAWS + 1)
