"""Which adapter to use on each benchmark, and whether its lead is more than chance.

Adapters are compared on the samples that both have answered. The tests are in :mod:`.paired`:
McNemar's for a yes-or-no score, the paired permutation test for a mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from .facts import Facts
from .paired import permutation_test, sign_test
from .read import Stage

SCORES = (
    "key_point_coverage",
    "response_format",
    "refusal_accuracy",
    "citation_accuracy",
    "tool_call_accuracy",
    "chrf",
)
"""The scores of an answer, in the order in which they are shown; 1 is the best."""

MEANS = ("key_point_coverage", "chrf")
"""Those that are more than yes or no."""

CHANCE = 0.05
"""A difference with a p below it counts as more than chance."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A score: its value, the samples behind it, and its 95 % interval where it is known."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one adapter does than another one in one score, on shared samples."""

    score: str
    value: float
    n: int
    better: int
    worse: int
    p: float
    """The probability of a difference at least as large, if neither were better."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An adapter on one benchmark."""

    stage: Stage
    scores: dict[str, Value]
    empty: int
    mean: float | None
    """The mean of the scores that all candidates have."""
    differences: list[Difference] = dataclasses.field(default_factory=list)
    """Of the best candidate to this one; none for the best itself."""

    @property
    def fails(self) -> bool:
        """Whether its acceptance gate or an empty answer speaks against it."""
        return self.empty > 0 or self.stage.row.text("acceptance") == "failed"

    @property
    def is_apart(self) -> bool:
        """Whether the best one is better than it by more than chance, in any score.

        The p of each score counts as many times as there are scores (Bonferroni).
        """
        several = len(self.differences)
        return any(one.value > 0 and one.p * several < CHANCE for one in self.differences)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark and the adapters that have answered it, the best one first."""

    name: str
    digest: str
    candidates: list[Candidate]

    @property
    def best(self) -> Candidate:
        """The best one."""
        return self.candidates[0]


def values_of(scores: Facts) -> dict[str, Value]:
    """The scores in a report, those that are there."""
    found = {}
    for name in SCORES:
        value, n = scores.number(name, "value"), scores.number(name, "n")
        if value is not None and n:
            low, high = scores.number(name, "low"), scores.number(name, "high")
            found[name] = Value(value, int(n), low, high)
    return found


def benchmarks(stages: Iterable[Stage]) -> list[Benchmark]:
    """Every benchmark, with the adapters to choose from.

    What is scored on its own training data only was a trial, and is no choice.
    """
    usable = [stage for stage in stages if stage.scores and stage.adapter and not stage.is_trial]
    files = {name: digest for stage in usable for name, digest in stage.benchmarks.items()}
    return [
        Benchmark(name, digest, _ranked(name, [s for s in usable if name in s.benchmarks]))
        for name, digest in files.items()
    ]


def _ranked(name: str, stages: list[Stage]) -> list[Candidate]:
    """The candidates on one benchmark, the best one first."""
    found = []
    for stage in stages:
        scores = _on(stage, name)
        verdicts = [one for one in stage.predictions if _is_on(one, name, stage)]
        empty = sum(one.flag("verdict", "empty") is True for one in verdicts)
        found.append(Candidate(stage, scores, empty, None))
    shared = [score for score in SCORES if all(score in one.scores for one in found)]
    with_means = [
        dataclasses.replace(
            one,
            mean=math.fsum(one.scores[score].value for score in shared) / len(shared),
        )
        if shared
        else one
        for one in found
    ]
    ordered = sorted(with_means, key=lambda one: (one.fails, -(one.mean or 0.0)))
    best = ordered[0]
    return [
        best,
        *(
            dataclasses.replace(one, differences=differences(best.stage, one.stage, name))
            for one in ordered[1:]
        ),
    ]


def _is_on(prediction: Facts, name: str, stage: Stage) -> bool:
    return prediction.text("file") == name or len(stage.benchmarks) == 1


def _on(stage: Stage, name: str) -> dict[str, Value]:
    """A stage's scores on one benchmark: as its report has them, else from its answers."""
    if len(stage.benchmarks) == 1:
        return values_of(stage.scores)
    reported = values_of(stage.evaluation.at("by_file", name, "scores"))
    if reported:
        return reported
    found = {}
    for score in SCORES:
        values = [
            value
            for one in stage.predictions
            if _is_on(one, name, stage)
            for value in [score_of(one, score)]
            if value is not None
        ]
        if values:
            found[score] = Value(math.fsum(values) / len(values), len(values))
    return found


def score_of(prediction: Facts, score: str) -> float | None:
    """How an answer did in one score, from 0 to 1; None where it isn't scored."""
    flag = prediction.flag("verdict", score)
    return prediction.number("verdict", score) if flag is None else float(flag)


def differences(one: Stage, other: Stage, name: str) -> list[Difference]:
    """How ``one`` does against ``other`` on the samples of a benchmark that both answered."""
    theirs = {_key(p): p for p in other.predictions if _is_on(p, name, other)}
    pairs = [
        (p, theirs[_key(p)]) for p in one.predictions if _is_on(p, name, one) and _key(p) in theirs
    ]
    found = []
    for score in SCORES:
        values = [(score_of(a, score), score_of(b, score)) for a, b in pairs]
        steps = [a - b for a, b in values if a is not None and b is not None]
        if steps:
            better, worse = sum(step > 0 for step in steps), sum(step < 0 for step in steps)
            mean = math.fsum(steps) / len(steps)
            p = permutation_test(steps) if score in MEANS else sign_test(better, worse)
            found.append(Difference(score, mean, len(steps), better, worse, p))
    return found


def _key(prediction: Facts) -> tuple[str, str, str]:
    return (prediction.text("file"), prediction.text("line"), prediction.text("id"))
