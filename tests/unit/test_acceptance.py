"""The acceptance gate: scores against thresholds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import acceptance, request
from tests.unit.stage_host import load_yaml


def score(value: float, n: int = 10) -> dict[str, float]:
    return {"value": value, "n": n}


@pytest.mark.parametrize("mode", ["strict", "warn"])
@pytest.mark.parametrize(
    ("scores", "thresholds", "verdict", "reasons"),
    [
        ({"response_format": score(0.9)}, {"response_format": 0.9}, "passed", []),
        (
            {"response_format": score(0.89)},
            {"response_format": 0.9},
            "failed",
            ["response_format 0.89 is below 0.90"],
        ),
        (
            {"a": score(0.1), "b": score(0.2), "c": score(1)},
            {"b": 0.5, "a": 0.5, "c": 0.5},
            "failed",
            ["a 0.10 is below 0.50", "b 0.20 is below 0.50"],
        ),
        ({}, {}, "no thresholds", []),
        ({"response_format": score(0.0)}, {}, "no thresholds", []),
        (
            {},
            {"citation_accuracy": 0.5},
            "failed",
            ["citation_accuracy is absent: the benchmark has no sample with citations"],
        ),
        ({"response_format": score(0.0)}, {"response_format": 0.0}, "passed", []),
        (
            {"response_format": score(1), "empty_responses": {"count": 1, "n": 11}},
            {"response_format": 0.9},
            "failed",
            ["1 of 11 answers are empty"],
        ),
        (
            {"response_format": score(1), "empty_responses": {"count": 0, "n": 11}},
            {"response_format": 0.9},
            "passed",
            [],
        ),
        ({"empty_responses": {"count": 3, "n": 3}}, {}, "no thresholds", []),
    ],
    ids=str,
)
def test_verdicts(scores, thresholds, mode, verdict, reasons):
    assert acceptance.judge(scores, thresholds, mode) == (verdict, reasons)


def test_off_judges_nothing():
    assert acceptance.judge({}, {"response_format": 1}, "off") == ("off", [])


@pytest.mark.parametrize("name", request.SCORES)
def test_an_absent_score_fails_and_says_what_the_benchmark_lacks(name):
    verdict, (reason,) = acceptance.judge({}, {name: 0.1}, "strict")
    assert verdict == "failed"
    assert reason == f"{name} is absent: the benchmark has {acceptance.LACKS[name]}"


def test_every_score_that_a_threshold_can_name_is_known():
    assert set(acceptance.LACKS) == set(request.SCORES)
    for stage in load_yaml("roles", "settings", "defaults", "main.yml")["stages"]:
        assert set(stage.get("thresholds", {})) <= set(request.SCORES)


rates = st.floats(0, 1)


@given(rates, rates)
def test_a_score_passes_exactly_from_its_threshold_on(value, wanted):
    verdict, reasons = acceptance.judge({"a": score(value)}, {"a": wanted}, "warn")
    assert verdict == ("passed" if value >= wanted else "failed")
    assert bool(reasons) is (verdict == "failed")
