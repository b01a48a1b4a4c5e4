"""What a person sees of a running stage."""

from __future__ import annotations

import re
import threading
from types import SimpleNamespace
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
    expected = [("say", "starts"), ("rewrite", "step 1"), ("rewrite", ""), ("say", "done")]
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


# What is counted in bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (999_949_999, "999.9 MB"),
        (999_950_000, "1.0 GB"),
        (4 * 10**9, "4.0 GB"),
        (12_345 * 10**9, "12,345.0 GB"),
        (0.4, "0 bytes"),
        (999.6, "1.0 kB"),
        (1536.0, "1.5 kB"),
    ],
)
def test_sizes(count, text):
    assert progress.size(count) == text


@given(st.floats(0, 1e15))
def test_a_size_says_how_many_bytes_it_is(count):
    number, unit = progress.size(count).split()
    scale = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert abs(float(number.replace(",", "")) * scale - count) <= 0.051 * scale or unit == "bytes"
    assert unit == "GB" or float(number) < 1000


def test_what_is_counted_is_shown_after_two_seconds(screen):
    meter = progress.Meter(screen.line(live=True), "sending project:", 4_000_000)
    for second, count in ((1.0, 1_000_000), (1.9, 900_000), (2.0, 100_000), (4.0, 2_000_000)):
        screen.now = 100.0 + second
        meter.add(count)
    assert [text for _how, text in screen.shown] == [
        "  sending project: 2.0 MB of 4.0 MB, 1.0 MB/s",
        "  sending project: 4.0 MB of 4.0 MB, 1.0 MB/s",
    ]


def test_what_was_there_already_counts_and_is_no_rate(screen):
    meter = progress.Meter(screen.line(live=True), "sending project:", 10_000_000)
    meter.skip(8_000_000)
    screen.now += 2.0
    meter.add(1_000_000)
    assert screen.shown == [("rewrite", "  sending project: 9.0 MB of 10.0 MB, 500.0 kB/s")]
    meter.reach(10_000_000)
    assert meter.rate == "1.0 MB/s"
    assert meter.seconds == 2.0


def test_a_meter_that_has_only_begun_has_a_rate(screen):
    meter = progress.Meter(screen.line(live=True), "x", 10)
    meter.add(10)
    assert meter.rate == "10.0 kB/s"
    assert screen.shown == []


def test_a_log_has_a_line_of_it_after_two_seconds_and_then_now_and_then(screen):
    line = progress.Line(screen._note("say"), None, "", 2.0)
    meter = progress.Meter(line, "sending", 30)
    for second in range(31):
        screen.now = 100.0 + second
        meter.reach(second)
    assert [text.split(",")[0] for _how, text in screen.shown] == [
        f"  sending {second} bytes of 30 bytes" for second in (2, 12, 22)
    ]


class Clock:
    """The time of a watcher: each wait passes at once, until the work is over."""

    def __init__(self, screen: Screen, monkeypatch: pytest.MonkeyPatch, waits: int) -> None:
        self.waited: list[float] = []
        self.enough = threading.Event()
        self.over = threading.Event()
        clock = self

        class Event:
            """In place of the one that a watcher waits for."""

            def wait(self, seconds: float) -> bool:
                if len(clock.waited) >= waits:
                    clock.enough.set()
                    assert clock.over.wait(10)
                    return True
                clock.waited.append(seconds)
                screen.now += seconds
                return False

            def set(self) -> None:
                clock.over.set()

        # Not in the module itself: a thread is started by an event of its own.
        own = SimpleNamespace(Event=Event, Thread=threading.Thread)
        monkeypatch.setattr(progress, "threading", own)


def test_while_the_host_says_nothing_the_time_is_shown(screen, monkeypatch):
    clock = Clock(screen, monkeypatch, 3)
    with progress.waiting(screen.line(live=True), "the host verifies"):
        assert clock.enough.wait(10)
    assert clock.waited == [2.0, 1.0, 1.0]
    texts = [f"  the host verifies, 0:0{second}" for second in (2, 3, 4)]
    # In the end the line is taken away: what comes next, from anybody, begins at its left.
    assert screen.shown == [("rewrite", text) for text in (*texts, "")]


def test_what_is_over_at_once_is_not_shown(screen):
    before = threading.active_count()
    with progress.waiting(screen.line(live=True), "the host verifies"):
        pass
    assert screen.shown == []
    assert threading.active_count() == before


@pytest.mark.parametrize("what", ["waiting", "watching"])
def test_an_error_passes_through_and_ends_the_watch(screen, what):
    before = threading.active_count()
    line = screen.line(live=True)
    watch = (
        progress.waiting(line, "x")
        if what == "waiting"
        else progress.Meter(line, "x", 1).watching(lambda: 0)
    )
    with pytest.raises(KeyboardInterrupt), watch:
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_what_can_not_be_asked_is_looked_at(screen, monkeypatch):
    """Every half second; where the look fails, as before the file is there, the next one counts."""
    clock = Clock(screen, monkeypatch, 6)
    sizes = iter([OSError(), 1000, 2000, 3000, 4000, 5000])

    def measure():
        found = next(sizes)
        if isinstance(found, OSError):
            raise found
        return found

    meter = progress.Meter(screen.line(live=True), "fetching:", 5000)
    with meter.watching(measure):
        assert clock.enough.wait(10)
    assert clock.waited == [0.5] * 6
    assert [text for _how, text in screen.shown] == [
        "  fetching: 3.0 kB of 5.0 kB, 1.5 kB/s",
        "  fetching: 4.0 kB of 5.0 kB, 1.6 kB/s",
        "  fetching: 5.0 kB of 5.0 kB, 1.7 kB/s",
    ]
