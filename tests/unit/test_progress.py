"""What a person sees of a running stage."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (-5, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (123, "2:03"),
        (3599.6, "1:00:00"),
        (3723, "1:02:03"),
        (90000, "25:00:00"),
    ],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


@given(st.floats(0, 1e7))
def test_a_duration_says_how_many_seconds_it_is(seconds):
    text = progress.duration(seconds)
    assert re.fullmatch(r"(\d+:\d\d:\d\d|\d{1,2}:\d\d)", text)
    total = 0
    for part in text.split(":"):
        total = total * 60 + int(part)
    assert abs(total - seconds) <= 0.5


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({}, "  style  running  1:05 elapsed"),
        ({"phase": "load"}, "  style  loading the model  1:05 elapsed"),
        ({"phase": "save"}, "  style  saving  1:05 elapsed"),
        ({"phase": "polish"}, "  style  polish  1:05 elapsed"),
        (
            {
                "phase": "train",
                "step": 3,
                "steps": 40,
                "loss": 1.2345,
                "tokens_per_second": 12345.6,
            },
            "  style  step 3 of 40  loss 1.234  12,346 tokens/s  1:05 elapsed",
        ),
        ({"phase": "train", "step": 3, "steps": 40}, "  style  step 3 of 40  1:05 elapsed"),
        (
            {"phase": "train", "step": 0, "steps": 40, "loss": None},
            "  style  step 0 of 40  1:05 elapsed",
        ),
        ({"phase": "train"}, "  style  train  1:05 elapsed"),
        ({"phase": "evaluate", "done": 3, "of": 11}, "  style  answers 3 of 11  1:05 elapsed"),
        ({"phase": "evaluate"}, "  style  answering  1:05 elapsed"),
    ],
    ids=str,
)
def test_a_line_says_what_is_known_and_no_more(said, line):
    assert progress.describe("style", said, 65) == line


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)


@given(
    st.sampled_from(["train", "evaluate", "load"]) | anything,
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("step", "steps", "loss", "tokens_per_second", "done", "of"), anything
        ),
    ),
)
def test_no_progress_that_a_program_reports_ends_the_run(phase, rest):
    line = progress.describe("style", {"phase": phase, **rest}, 1)
    assert line.startswith("  style")
    assert line.endswith("0:01 elapsed")


class Screen:
    """Notes what is shown, at a time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.shown: list[tuple[str, str]] = []
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def line(self, live: bool, prefix: str = "") -> progress.Line:
        return progress.Line(self._note("say"), self._note("rewrite") if live else None, prefix)

    def _note(self, how: str) -> Any:
        return lambda text: self.shown.append((how, text))


@pytest.fixture
def screen(monkeypatch):
    return Screen(monkeypatch)


def test_on_a_terminal_one_line_is_rewritten(screen):
    line = screen.line(live=True)
    for text in ("step 1", "step 1", "step 2"):
        line.update(text)
    assert screen.shown == [("rewrite", "step 1"), ("rewrite", "step 2")]


def test_what_stays_takes_the_place_of_the_live_line(screen):
    line = screen.line(live=True)
    line.keep("starts")
    line.update("step 1")
    line.keep("done")
    line.keep("next")
    # The line that is rewritten ends with a line end, so that nothing is written over it.
    expected = [("say", "starts"), ("rewrite", "step 1"), ("rewrite", "done"), ("say", "")]
    assert screen.shown == [*expected, ("say", "next")]


def test_in_a_log_a_plain_line_comes_now_and_then(screen):
    line = screen.line(live=False)
    for second in range(0, 31):
        screen.now = 100.0 + second
        line.update(f"second {second}")
    assert screen.shown == [("say", f"second {second}") for second in (10, 20, 30)]


def test_in_a_log_what_stays_comes_at_once(screen):
    line = screen.line(live=False)
    line.update("step 1")
    line.keep("done")
    assert screen.shown == [("say", "done")]


def test_several_hosts_write_plain_lines_with_their_names(screen):
    line = screen.line(live=True, prefix="gpu1")
    line.update("  step 1")
    line.keep("  done")
    screen.now += progress.PLAIN_EVERY
    line.update("  step 2")
    assert screen.shown == [("say", "[gpu1]  done"), ("say", "[gpu1]  step 2")]


def test_the_same_words_again_after_a_line_that_stays(screen):
    line = screen.line(live=True)
    line.update("step 1")
    line.keep("done")
    line.update("step 1")
    assert screen.shown[-1] == ("rewrite", "step 1")
