"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup_ratio: float, kind: str) -> float:
    """The learning rate of optimizer step ``step`` (from 0) of ``steps``.

    It rises in equal parts over the first ``ceil(steps * warmup_ratio)`` steps, the first of which
    is above 0, and then follows ``kind`` (``cosine``, ``linear``, ``constant``); the two falling
    ones would reach 0 one step after the last.
    """
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if kind == "constant":
        return peak
    passed = (step - warmup) / max(1, steps - warmup)
    return peak * (1 - passed if kind == "linear" else 0.5 * (1 + math.cos(math.pi * passed)))
