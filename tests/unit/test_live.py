"""The lock of a project and who holds it, with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from remote_train import live
from remote_train.errors import TrainError
from tests.unit.stage_host import HOUSE

HOLDER = """
import os, subprocess, sys, time
from remote_train import live
root, child = sys.argv[1:]
lock = live.take(root, {**live.identity(os.getpid()), "stage": "style", "token": "t1"})
if lock is None:
    sys.exit(3)
if child == "child":
    print(subprocess.Popen(["sleep", "60"], pass_fds=(lock,)).pid, flush=True)
else:
    print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock; gives it, and what it said first."""
    started = []

    def start(child: str = "") -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), child],
            env={"PYTHONPATH": str(HOUSE / "plugins" / "module_utils")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_nothing_is_made_to_find_out_that_nothing_runs(tmp_path):
    assert live.is_held(str(tmp_path)) is False
    assert live.running(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path, hold):
    process, said = hold()
    assert said == "held"
    assert live.is_held(str(tmp_path))
    assert live.take(str(tmp_path), {}) is None
    process.kill()
    process.wait()
    assert not live.is_held(str(tmp_path))
    assert live.running(str(tmp_path)) is None


def test_a_child_keeps_the_lock_when_its_parent_is_killed(tmp_path, hold):
    process, child = hold("child")
    process.kill()
    process.wait()
    assert live.is_held(str(tmp_path))
    os.kill(int(child), 9)
    deadline = time.monotonic() + 5
    while live.is_held(str(tmp_path)):
        assert time.monotonic() < deadline


def test_who_holds_it_is_said_and_a_second_one_does_not_say_otherwise(tmp_path, hold, monkeypatch):
    monkeypatch.setattr(live, "SETTLED_WITHIN", 0.1)
    process, _ = hold()
    live.take(str(tmp_path), {"stage": "other"})
    holder = live.running(str(tmp_path))
    assert holder["pid"] == process.pid
    assert holder["stage"] == "style"
    assert holder["boot_id"] == live.boot_id()
    assert holder["start_time"] == live.start_time(process.pid)


def test_the_status_stands_above_the_holder(tmp_path):
    lock = live.take(str(tmp_path), {"stage": "style", "since": "then"})
    Path(live.path(str(tmp_path), "status.json")).write_text('{"state": "running", "stage": "all"}')
    assert live.running(str(tmp_path)) == {"stage": "all", "since": "then", "state": "running"}
    os.close(lock)
    assert live.running(str(tmp_path)) is None


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ("{}", '{"state": "running"}', "running"),
        ("", '{"state": "running"}', "running"),
        ('{"state": "done"}', None, None),
        ('{"state": "failed"}', None, None),
        ("{}", None, None),
    ],
)
def test_a_start_and_an_end_are_waited_for(tmp_path, first, then, expected):
    """The lock is held a little before the first status, and a little after the last one."""
    lock = live.take(str(tmp_path), {})
    status = Path(live.path(str(tmp_path), "status.json"))
    status.write_text(first)

    def change() -> None:
        if then is None:
            os.close(lock)
        else:
            status.write_text(then)

    timer = threading.Timer(0.2, change)
    timer.start()
    found = live.running(str(tmp_path))
    timer.join()
    assert (found or {}).get("state") == expected
    if then:
        os.close(lock)


@pytest.mark.parametrize("status", ["{}", '{"state": "done"}', '{"state": "failed"}'])
def test_a_lock_that_stays_held_without_a_stage_names_its_holders(
    tmp_path, hold, monkeypatch, status
):
    monkeypatch.setattr(live, "SETTLED_WITHIN", 0.2)
    process, child = hold("child")
    Path(live.path(str(tmp_path), "status.json")).write_text(status)
    process.kill()
    process.wait()
    try:
        found = live.running(str(tmp_path))
        assert found["left"] == [f"sleep (process {child})"]
        with pytest.raises(TrainError, match=rf"sleep \(process {child}\)"):
            live.require_running(str(tmp_path), found)
    finally:
        os.kill(int(child), 9)


def test_looking_never_keeps_a_stage_from_starting(tmp_path):
    """Another controller's plan looks at the lock in the very moment in which it is taken."""
    root = str(tmp_path)
    os.close(live.take(root, {}))
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            live.is_held(root)

    watchers = [threading.Thread(target=look) for _ in range(3)]
    for watcher in watchers:
        watcher.start()
    try:
        for _ in range(60):
            assert not live.is_held(root)  # those who look don't see each other
            lock = live.take(root, {})
            assert lock is not None
            os.close(lock)
    finally:
        over.set()
        for watcher in watchers:
            watcher.join()


def test_an_identity_tells_a_number_that_is_used_again(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        identity = live.identity(process.pid)
        process.kill()
    assert isinstance(identity["start_time"], int)
    assert identity["start_time"] > live.start_time(1)
    assert live.identity(process.pid)["start_time"] is None


def test_a_program_whose_name_looks_like_the_kernels_fields(tmp_path):
    program = tmp_path / "a) S 1 2 (b"
    program.write_text("#!/bin/sh\nsleep 60 & wait\n")
    program.chmod(0o755)
    with subprocess.Popen([str(program)], start_new_session=True) as process:
        before = live.start_time(os.getpid())
        after = live.start_time(process.pid)
        os.killpg(process.pid, 9)
    assert after >= before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'"x"', b"\xff\xfe", b"null", b"[" * 100_000]
)
def test_a_file_that_is_no_json_object_is_empty(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert live.read_json(str(tmp_path / "x")) == {}


def test_a_file_that_is_one(tmp_path):
    (tmp_path / "x").write_text(json.dumps({"a": "é"}))
    assert live.read_json(str(tmp_path / "x")) == {"a": "é"}
    assert live.read_json(str(tmp_path / "none")) == {}
    assert live.read_json(str(tmp_path)) == {}
