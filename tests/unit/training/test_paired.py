"""Paired tests, against cases worked by hand and against each other."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.report import paired as page_paired
from training import paired
from training.paired import compare, permutation_test, sign_test


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (8, 1, 2 * (1 + 9) / 512),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_sign_test(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == pytest.approx(p)
    assert sign_test(worse, better) == pytest.approx(p)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([], 1.0),
        ([0.0, 0.0], 1.0),
        ([0.5], 1.0),  # both signs are as far out
        ([0.25] * 4, 2 / 16),
        ([0.1] * 3, 2 / 8),  # sums of tenths, rounded in any order
        ([3, 1], 2 / 4),
        ([1, 2, 3], 2 / 8),
        ([1, 2, -3], 1.0),
        ([4, 3, -1], 4 / 8),  # |6| or more: +++ (8), ++- (6), and their mirror images
    ],
)
def test_permutation_test(differences: list[float], p: float) -> None:
    assert permutation_test(differences) == pytest.approx(p)


@given(st.lists(st.sampled_from([-1.0, -0.25, 0.0, 1 / 3, 0.5]), max_size=260))
def test_the_page_has_the_same_tests(steps: list[float]) -> None:
    assert page_paired.permutation_test(steps) == permutation_test(steps)
    split = (sum(step > 0 for step in steps), sum(step < 0 for step in steps))
    assert page_paired.sign_test(*split) == sign_test(*split)


@given(st.lists(st.integers(-8, 8), max_size=10), st.randoms(use_true_random=False))
def test_all_signs_are_tried(steps: list[int], shuffle: random.Random) -> None:
    values = [one / 8 for one in steps]
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    wanted = sum(one >= abs(sum(values)) for one in sums) / len(sums)
    p = permutation_test(values)
    assert p == pytest.approx(wanted)
    assert permutation_test([-one for one in values]) == p
    assert permutation_test(shuffle.sample(values, len(values))) == p
    assert permutation_test([*values, 0.0]) == p  # a tie is no evidence


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.12])
def test_drawn_and_normal_agree_with_exact(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    dice = random.Random(3)  # noqa: S311
    values = [dice.gauss(shift, 0.3) for _ in range(16)]
    drawn = permutation_test(values)
    monkeypatch.setattr(paired, "EXACT", 16)
    exact = permutation_test(values)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / paired.DRAWS))
    monkeypatch.setattr(paired, "EXACT", 0)
    monkeypatch.setattr(paired, "MANY", 1)
    assert permutation_test(values) == pytest.approx(exact, abs=0.05)


def test_what_is_certain_is_still_no_zero() -> None:
    assert permutation_test([0.5] * 50) == pytest.approx(1 / 10000)
    assert 0 < permutation_test([0.5] * 5000) < 1e-300


def test_compare() -> None:
    pairs = [(True, False), (True, True), (False, False), (True, False)]
    assert compare(pairs, True) == {
        "difference": 0.5,
        "p": 0.5,  # two of two: 2/4
        "n": 4,
        "better": 2,
        "worse": 0,
        "test": "McNemar, exact",
    }
    means = compare([(0.5, 0.25), (0.0, 0.5)], False)
    assert means["difference"] == -0.125
    assert means["p"] == 1.0
    assert (means["better"], means["worse"]) == (1, 1)
