"""Following a stage: what a poll brings, and what happens when the connection breaks."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller import follow
from remote_train.atomic import write_json
from remote_train.errors import TrainError

# Polls


def poll(status: str, log: str, offset: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run the command as sshd has the user's shell run it."""
    command = follow.poll_command(status, log, offset)
    return subprocess.run(
        ["sh", "-c", command.encode("utf-8", "surrogateescape")],
        capture_output=True,
        check=False,
        cwd="/",
    )


def answer(status: str, log: str, offset: int = 0) -> tuple[dict[str, Any], bytes]:
    """The parsed answer, decoded as Ansible decodes it for the action."""
    done = poll(status, log, offset)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return follow.parse_answer(done.stdout.decode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "with blank",
        "quote's",
        'double"quote',
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned #",
        "&& touch pwned",
        "| touch pwned",
        "new\nline",
        "back\\slash",
        "-n",
        "*",
        "~root",
        "${HOME}",
        "!!",
        "结论",
        "sep\x1earator",
        os.fsdecode(b"\xff\xfe"),
        "trailing ",
        "{a,b}",
    ],
)
def test_hostile_names_are_names_and_nothing_else(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    status, log = str(folder / "status.json"), str(folder / f"{name}.log")
    Path(status).write_text('{"state": "running"}')
    Path(log).write_bytes(b"line\n")
    assert answer(status, log) == ({"state": "running"}, b"line\n")
    assert sorted(os.listdir(tmp_path)) == [name]
    assert not Path("/pwned").exists()


file_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=file_names, content=st.binary(max_size=40), offset=st.integers(0, 50))
def test_any_name_and_any_bytes(tmp_path_factory, name, content, offset):
    folder = tmp_path_factory.mktemp("poll")
    (folder / "status.json").write_text("{}")
    log = os.path.join(os.fsencode(folder), name + b"_")
    with open(log, "wb") as stream:
        stream.write(content)
    found = answer(str(folder / "status.json"), os.fsdecode(log), offset)
    assert found == ({}, content[offset:])


def test_a_log_comes_in_pieces_and_none_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LOG_CHUNK", 7)
    status, log = tmp_path / "status.json", tmp_path / "log"
    write_json(str(status), {"state": "running"})
    content = "第一行\nsecond\x1eline\r\n".encode() + b"\xff\x00end"
    log.write_bytes(content)
    seen = b""
    while True:
        _, fresh = answer(str(status), str(log), len(seen))
        assert len(fresh) <= 7
        seen += fresh
        if len(fresh) < 7:
            break
    assert seen == content
    with log.open("ab") as stream:
        stream.write(b"more")
    assert answer(str(status), str(log), len(seen))[1] == b"more"


def test_a_log_that_is_not_there_yet_or_is_none(tmp_path):
    status = tmp_path / "status.json"
    status.write_text("{}")
    assert answer(str(status), str(tmp_path / "none.log")) == ({}, b"")
    assert answer(str(status), str(tmp_path)) == ({}, b"")


def test_a_status_that_is_not_there_is_an_error_of_the_command(tmp_path):
    assert poll(str(tmp_path / "none"), str(tmp_path / "log")).returncode != 0


statuses = st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)


@given(statuses, st.binary(max_size=30))
def test_what_was_printed_is_taken_apart_again(status, log):
    printed = json.dumps(status, ensure_ascii=False).encode("utf-8", "surrogatepass")
    text = (printed + b"\x1e" + log).decode("utf-8", "surrogateescape")
    if text.encode("utf-8", "surrogateescape") == printed + b"\x1e" + log:
        found, fresh = follow.parse_answer(text)
        assert fresh == log
        assert found == status


@given(st.text())
def test_what_is_no_answer_is_a_value_error_and_nothing_else(text):
    try:
        status, _ = follow.parse_answer(text)
    except ValueError:
        return
    assert isinstance(status, dict)
    assert follow.SEPARATOR in text


@pytest.mark.parametrize(
    "text", ["", "{}", "\x1e", "{\x1elog", "[]\x1e", "null\x1elog", '"x"\x1e', "welcome {}\x1e"]
)
def test_answers_that_are_cut_off_or_somebody_elses(text):
    with pytest.raises(ValueError):  # noqa: PT011
        follow.parse_answer(text)


# The connection


class Clock:
    """Time that passes only where somebody sleeps, or a command takes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        self.pauses: list[float] = []
        monkeypatch.setattr(follow.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(follow.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Wire:
    """A connection that is cut for some commands."""

    def __init__(self, clock: Clock, patience: float = 600, takes: float = 0) -> None:
        self.clock = clock
        self.takes = takes
        self.plan: list[bool] = []
        self.ran: list[str] = []
        self.resets = 0
        self.said: list[str] = []
        self.link = follow.Link(self.run, self.reset, patience, self.said.append)

    def run(self, line: str) -> str:
        self.ran.append(line)
        self.clock.now += self.takes
        if self.plan and not self.plan.pop(0):
            raise AnsibleConnectionFailure("cut")
        return f"answer to {line}"

    def reset(self) -> None:
        self.resets += 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_without_a_cut_nothing_is_said(clock):
    wire = Wire(clock)
    assert wire.link.command("a") == "answer to a"
    assert (wire.said, wire.resets, clock.pauses, wire.link.cuts) == ([], 0, [], [])


@pytest.mark.parametrize("cuts", [1, 2, 5])
def test_over_a_cut_the_command_is_tried_again_on_a_new_connection(clock, cuts):
    wire = Wire(clock)
    wire.plan = [False] * cuts
    assert wire.link.command("a") == "answer to a"
    assert wire.ran == ["a"] * (cuts + 1)
    assert wire.resets == cuts
    assert len(wire.said) == 2
    assert "The connection broke; the training goes on there." in wire.said[0]
    away = sum(clock.pauses)
    assert wire.said[1] == f"  Connected again after {away:.0f} s."
    assert wire.link.cuts == [{"seconds": round(away, 1)}]


def test_it_waits_longer_each_time_and_not_for_ever(clock):
    wire = Wire(clock, patience=10_000)
    wire.plan = [False] * 20
    wire.link.command("a")
    assert clock.pauses[0] == 1.0
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == 30.0


@pytest.mark.parametrize("patience", [0, 5, 600])
def test_patience_ends_with_what_to_do(clock, patience):
    wire = Wire(clock, patience=patience, takes=2)
    wire.plan = [False] * 10_000
    began = clock.now
    with pytest.raises(TrainError) as caught:
        wire.link.command("a")
    assert caught.value.message == f"The host could not be reached again in {patience:.0f} s."
    assert "attaches" in caught.value.hint
    assert caught.value.category == "infra"
    assert patience < clock.now - began <= patience + 40
    assert wire.link.cuts == []


def test_every_cut_is_counted_and_patience_begins_anew(clock):
    wire = Wire(clock, patience=2)
    wire.plan = [False, True, False, True, True, False, False, True]
    for line in "abcde":
        wire.link.command(line)
    assert len(wire.link.cuts) == 3
    assert len(wire.said) == 6


def test_what_is_no_cut_is_not_tried_again(clock):
    wire = Wire(clock)

    def attempt() -> None:
        wire.ran.append("x")
        raise TrainError("The module failed.")

    with pytest.raises(TrainError, match="The module failed"):
        wire.link(attempt)
    assert wire.ran == ["x"]
    assert wire.resets == 0


def test_modules_go_over_cuts_as_commands_do(clock):
    wire = Wire(clock)
    wire.plan = [False, False]
    assert wire.link(lambda: {"outcome": wire.run("start")}) == {"outcome": "answer to start"}
    assert wire.ran == ["start"] * 3
