"""The summary of a run: a table for the terminal, and a page for people."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import summary
from remote_train.text_table import width


def row(name: str = "style", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "done",
        "reasons": [],
        "metrics": {
            "train_loss": 0.51234,
            "steps": 54,
            "samples": 36,
            "scores": {"response_format": {"value": 0.636, "n": 11}},
        },
        "seconds": 83.4,
        "error": None,
        "acceptance": "passed",
        "acceptance_reasons": [],
        **changes,
    }


def record(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "run": "run_20260209T093000Z",
        "verdict": "done",
        "host": "gpu",
        "project_root": "/srv/tutor",
        "started": "2026-02-09T09:30:00Z",
        "ended": "2026-02-09T09:40:00Z",
        "stages": list(stages) or [row()],
        "environment": {"GPU": "none", "torch": "2.13.0"},
        "precheck": "It was not run.",
        "issues": [],
        "files": ["ISSUES.md", "run.json"],
        **changes,
    }


def test_the_cells_of_a_stage():
    assert summary.rows([row()]) == [
        ("style", "done", "36", "54", "0.512", "", "0.64 (n=11)", "", "1 min 23 s", "passed")
    ]
    assert len(summary.HEADER) == len(summary.rows([row()])[0])


@pytest.mark.parametrize("metrics", [{}, {"scores": {}}, {"scores": None}, {"train_loss": None}])
def test_what_is_not_known_is_left_empty(metrics):
    (cells,) = summary.rows([row(metrics=metrics, seconds=None, acceptance="")])
    assert cells == ("style", "done", *[""] * 8)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (60, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (3723, "1 h 02 min"),
        (90000, "25 h 00 min"),
        (None, ""),
    ],
)
def test_times(seconds, words):
    assert summary.rows([row(seconds=seconds)])[0][8] == words


@given(st.lists(st.sampled_from(["style", "写作", "a-long-name", "é\u0301"]), min_size=1))
def test_the_columns_of_the_table_stand_under_each_other(names):
    header, rule, *lines = summary.table([row(name) for name in names]).splitlines()
    assert set(rule) == {"-", " "}
    at = header.index("state")
    assert len(lines) == len(names)
    for line in lines:
        assert width(line[: line.index("done")]) == at


def test_a_page_has_every_part():
    page = summary.render(record(row(), row("writing", reasons=["it has not been trained yet"])))
    assert page.startswith("# run_20260209T093000Z: done\n")
    for words in (
        "| Host | gpu |",
        "| torch | 2.13.0 |",
        "| style | done | 36 | 54 |",
        "- writing: it has not been trained yet",
        "## GPU gate\n\nIt was not run.",
        "## Issues\n\nNone.",
        "- ISSUES.md\n- run.json",
        "The same command now finds nothing to do.",
    ):
        assert words in page
    assert "## Acceptance gate" not in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "finds nothing to do"),
        (
            {"stages": [row(state="failed"), row("all", state="failed")]},
            "Read the issue of style, all in ISSUES.md",
        ),
        (
            {"stages": [row(acceptance="failed", acceptance_reasons=["a is below b"])]},
            "Scores are below their thresholds",
        ),
        ({"verdict": "stopped as asked"}, "Give the same command again to go on"),
        ({"verdict": "failed"}, "Give the same command again to go on"),
    ],
    ids=str,
)
def test_what_to_do_next(changes, words):
    page = summary.render(record(**changes))
    assert words in page.partition("## What to do next")[2]


def test_the_reasons_of_the_gate_and_the_number_of_issues():
    stage = row(acceptance="failed", acceptance_reasons=["a 0.1 is below 0.5", "b is absent"])
    page = summary.render(record(stage, issues=[{}, {}]))
    assert "## Acceptance gate\n\n- style: a 0.1 is below 0.5; b is absent\n" in page
    assert "## Issues\n\n2: see ISSUES.md." in page


def test_bars_and_line_ends_do_not_break_the_table():
    page = summary.render(record(environment={"a|b": "c|d\ne"}))
    assert "| a\\|b | c\\|d e |" in page


@pytest.mark.parametrize(("attempts", "said"), [(3, True), (1, False), (None, False)])
def test_several_attempts_are_said(attempts, said):
    page = summary.render(record(row(attempts=attempts)))
    assert ("- style: it took 3 attempts; ISSUES.md says why." in page) == said
