"""Asking programs that answer, hang, print without end, or aren't any."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from remote_train import programs
from remote_train.programs import ENDED, HANGS, UNUSABLE, ask, ask_all


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_what_it_prints_comes_back() -> None:
    ended = ask(sh("echo said; echo complained >&2; exit 7"), 10)
    assert (ended.state, ended.status) == (ENDED, 7)
    assert (ended.text, ended.complaints) == ("said", "complained")
    assert ask(sh("kill -9 $$"), 10).status == -9
    assert ask(sh("echo $LC_ALL"), 10, {"LC_ALL": "C"}).text == "C"


def test_what_a_hanging_one_had_said_is_there() -> None:
    started = time.monotonic()
    ended = ask(sh("echo begun; sleep 300"), 0.5)
    assert time.monotonic() - started < 5
    assert (ended.state, ended.text) == (HANGS, "begun")


def test_one_that_closes_its_output_and_stays_hangs_as_well() -> None:
    ended = ask(sh("exec >&- 2>&-; exec sleep 300"), 0.5)
    assert ended.state == HANGS


def test_all_are_asked_at_once_and_each_reads_its_own(tmp_path: Path) -> None:
    started = time.monotonic()
    commands = {name: sh("sleep 1; cat; pwd") for name in "abcd"}
    ended = ask_all(commands, 20, {name: name * 100_000 for name in "abcd"}, str(tmp_path))
    assert time.monotonic() - started < 3.5
    for name, one in ended.items():
        assert one.text == f"{name * 100_000}{tmp_path}"


def test_one_that_prints_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has filled the memory, long before its time is over."""
    monkeypatch.setattr(programs, "MOST_OUTPUT", 1 << 20)
    started = time.monotonic()
    ended = ask(sh("while :; do echo more and more and more; done"), 60)
    assert time.monotonic() - started < 20
    assert (ended.state, ended.reason) == (UNUSABLE, "it prints more than 1 MiB")


@pytest.mark.parametrize("name", ["/nowhere", "/dev"])
def test_no_program(name: str) -> None:
    ended = ask([name], 10)
    assert ended.state == UNUSABLE
    assert ended.reason


def test_what_can_not_be_killed_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the kernel didn't let go of it: the limit and the patience are all that it takes."""
    kill = programs._kill
    left: list[int] = []
    monkeypatch.setattr(programs, "_kill", left.append)
    monkeypatch.setattr(programs, "KILLED_WITHIN", 0.2)
    started = time.monotonic()
    ended = ask([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert time.monotonic() - started < 3
    assert ended.state == HANGS
    for group in left:
        kill(group)
    assert left
