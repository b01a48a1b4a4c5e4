"""The command that goes on answering: what it prints, and what happens when it ends."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controller import follow, link, watch


class Place:
    """A stage's files, and a program in place of ssh that runs what it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.live = folder / "a root's" / "outputs/training_sync/live"
        self.live.mkdir(parents=True)
        self.root = str(folder / "a root's")
        self.log = Path(self.root, "the log")
        self.log.touch()
        self.say(state="running")
        (self.live / "lock").touch()
        (folder / "socket").touch()
        self.ssh = folder / "ssh"
        self.program()
        self.said: list[str] = []
        self.resets = 0

    def program(self, then: str = "") -> None:
        """Let ssh do this after it has noted how it was called and before the command."""
        self.ssh.write_text(
            f'#!/bin/sh\necho "$*" >> {self.folder}/calls\n{then}\n'
            'for last; do :; done\neval "exec $last"\n'
        )
        self.ssh.chmod(0o755)

    def say(self, **status: Any) -> None:
        """What the supervisor says."""
        new = self.live / "new"
        new.write_text(json.dumps({"token": "t1", "stage": "style", "heartbeat": 1, **status}))
        new.replace(self.live / "status.json")

    def calls(self) -> int:
        """How often ssh was called."""
        calls = self.folder / "calls"
        return calls.read_text().count("ProxyCommand=false") if calls.exists() else 0

    def connection(self) -> Any:
        """As Ansible's own, with a connection that is kept."""
        options = {"ssh_executable": str(self.ssh), "timeout": 20}
        return SimpleNamespace(
            transport="ssh",
            host="gpu",
            control_path="%(directory)s/socket",
            control_path_dir=str(self.folder),
            get_option=options.__getitem__,
            set_option=options.__setitem__,
            reset=self.reset,
        )

    def reset(self) -> None:
        self.resets += 1

    def poll(self, line: str) -> str:
        """Where the command that stays can't be had."""
        self.said.append("poll")
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
        return done.stdout.decode("utf-8", "surrogateescape")

    def polls(self, **options: Any) -> Iterator[follow.Poll]:
        """Follow it."""
        over = link.Link(self.poll, self.connection(), 60, self.said.append)
        self.watch = watch.Watch(over, self.connection())
        status = {"token": "t1", "stage": "style", "log": "the log"}
        return follow.polls(over.command, self.root, status, watch=self.watch, **options)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "POLL_SECONDS", (0.1, 0.2))
    return Place(tmp_path)


@pytest.fixture
def held(place):
    """The lock as a supervisor holds it."""
    with (place.live / "lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


@pytest.mark.parametrize("tools", ["all", "no flock", "no waiting flock"])
def test_one_session_brings_every_status_and_every_byte(place, held, monkeypatch, tools):
    if tools != "all":
        found = place.folder / "bin"
        found.mkdir()
        for name in ("cat", "wc", "tail", "head", "sh", "true", "sleep"):
            (found / name).symlink_to(str(shutil.which(name)))
        if tools == "no waiting flock":
            (found / "flock").write_text("#!/bin/sh\nexit 1\n")
            (found / "flock").chmod(0o755)
        monkeypatch.setenv("PATH", str(found))
    content = b"\x1d{}\x1e0\x1e9\x1e\xff\x00 and more\n" * 3
    seen, beats = b"", []
    for number, poll in enumerate(place.polls()):
        seen += poll.fresh
        beats.append(poll.status["heartbeat"])
        if number < 5:
            with place.log.open("ab") as stream:
                stream.write(content)
            place.say(state="running", heartbeat=number + 2)
        else:
            place.say(state="done", heartbeat=99)
    assert seen == content * 5
    assert beats == [1, 2, 3, 4, 5, 6, 99]
    assert place.calls() == 1
    assert place.said == []


def test_its_end_is_seen_before_the_wait_is_over(place, held, monkeypatch):
    monkeypatch.setattr(follow, "POLL_SECONDS", (30.0, 30.0))
    polls = place.polls()
    assert next(polls).status["state"] == "running"
    place.say(state="done")
    fcntl.flock(held, fcntl.LOCK_UN)
    began = time.monotonic()
    assert next(polls).status["state"] == "done"
    assert time.monotonic() - began < 15
    assert list(polls) == []


@pytest.mark.parametrize("newest", [True, False])
def test_a_large_log_comes_in_chunks_or_by_its_end(place, held, monkeypatch, newest):
    monkeypatch.setattr(follow, "LOG_CHUNK", 1000)
    monkeypatch.setattr(follow, "NEWEST", 500)
    content = os.urandom(5500)
    place.log.write_bytes(content)
    place.say(state="done")
    found = list(place.polls(newest=newest))
    assert b"".join(poll.fresh for poll in found) == (content[-500:] if newest else content)
    assert found[-1].end == len(content)
    assert place.calls() == 1


def test_a_free_lock_and_a_stage_that_says_it_runs_is_not_asked_without_pause(place, monkeypatch):
    """Its supervisor was killed: the command ends each time, and is paused for."""
    pauses: list[float] = []
    monkeypatch.setattr(follow.time, "sleep", pauses.append)
    polls = place.polls()
    for _ in range(9):
        next(polls)
    polls.close()
    assert len([pause for pause in pauses if pause > 0]) >= 3


def ended(process: Any) -> bool:
    return process.poll() is not None


def test_who_stops_looking_leaves_no_command_behind(place, held):
    polls = place.polls()
    next(polls)
    process = place.watch._process
    polls.close()
    assert ended(process)
    assert not place.watch.open


def test_a_reader_that_is_gone_ends_what_runs_on_the_host(place, held):
    """As sshd closes the pipe of a session whose connection is lost."""
    command = follow.watch_command(
        str(place.live / "status.json"), str(place.log), 0, False, str(place.live / "lock"), [0.1]
    )
    process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"\x1d"
    process.stdout.close()
    assert process.wait(timeout=20) in (1, -signal.SIGPIPE)


# What may end it


def test_an_end_with_the_status_of_ssh_is_a_cut(place, held, monkeypatch):
    monkeypatch.setattr(link.time, "sleep", lambda _: None)
    polls = place.polls()
    next(polls)
    kill(place, "exit 255", times=2)
    assert next(polls).status["state"] == "running"
    assert place.said[0].startswith("  The connection broke; the training goes on there.")
    assert place.resets == 1
    polls.close()


def kill(place: Place, then: str, times: int) -> None:
    """Let the next calls of ssh do this, and end the one that is there as ssh ends."""
    count = place.folder / "count"
    count.write_text("")
    place.program(f"echo >> {count}; [ $(wc -l < {count}) -ge {times} ] || {then}")
    process = place.watch._process
    assert process is not None
    process.kill()
    process.wait()
    process.returncode = 255


def test_a_command_that_ends_without_an_answer_is_left_to_polls(place, held):
    place.program("exit 255")
    polls = place.polls()
    for _ in range(6):
        assert next(polls).status["state"] == "running"
    assert place.calls() == watch.TRIES
    assert place.said == ["poll"] * 6
    polls.close()


def test_one_that_says_nothing_any_more_is_a_cut(place, held, monkeypatch):
    monkeypatch.setattr(watch, "SILENT_AFTER", 1.0)
    monkeypatch.setattr(link.time, "sleep", lambda _: None)
    polls = place.polls()
    next(polls)
    process = place.watch._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    while place.resets == 0:
        next(polls)
    assert place.said[0].startswith("  The connection broke;")
    assert ended(process)
    polls.close()


def test_a_banner_before_the_first_answer_is_passed_over(place, held):
    place.program("echo 'Welcome! {}'")
    polls = place.polls()
    assert next(polls).status["stage"] == "style"
    polls.close()


def test_it_never_makes_a_connection_of_its_own(tmp_path):
    """With a real ssh: no socket, no way."""
    connection = Place(tmp_path).connection()
    connection.get_option = {"ssh_executable": "ssh"}.__getitem__
    connection.host = "127.0.0.1"
    words = watch.over_shared(connection)
    assert words is not None
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 255


@pytest.mark.parametrize(
    "changes",
    [
        {"transport": "local"},
        {"control_path": None},
        {"control_path_dir": None},
        {"control_path": "%(directory)s/%%h-%%p"},
        {"control_path": "%(directory)s/none"},
        {"control_path": "%(directory)s/%h"},
        {"get_option": {}.__getitem__},
    ],
)
def test_without_a_kept_connection_there_is_none(tmp_path, changes):
    connection = Place(tmp_path).connection()
    assert watch.over_shared(connection) is not None
    vars(connection).update(changes)
    assert watch.over_shared(connection) is None


def test_a_break_before_any_answer_is_none_of_this_ones(place, held):
    """An ordinary poll says what it is."""
    place.program("exit 255")
    over = link.Link(lambda _: "", place.connection(), 60, place.said.append)
    with watch.Watch(over, place.connection()) as watching:
        assert watching.answer("echo") is None
    assert place.said == []
