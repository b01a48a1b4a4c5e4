"""How like a reference an answer is: chrF, as sacrebleu computes it, where that is installed.

Source: M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015; here
with sacrebleu's defaults (n-grams of 1 to 6 characters, beta 2), sentence by sentence.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

from training.matching import fold


def load_chrf() -> Callable[[str, str], float] | None:
    """A function of answer and reference that gives 0 to 1; None where there is no sacrebleu."""
    try:
        metric: Any = importlib.import_module("sacrebleu.metrics").CHRF()
    except ImportError:
        return None

    def chrf(answer: str, reference: str) -> float:
        score: float = metric.sentence_score(fold(answer), [fold(reference)]).score / 100
        return min(1.0, max(0.0, score))

    return chrf


def version() -> str | None:
    """Of sacrebleu; None where it isn't installed."""
    try:
        return importlib.metadata.version("sacrebleu")
    except importlib.metadata.PackageNotFoundError:
        return None
