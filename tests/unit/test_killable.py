"""Jobs in children: what they give, and that nothing which hangs holds anybody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote_train.killable import BROKE, DONE, HANGS, Job, run

ROOT = Path(__file__).parents[2]


def alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


def test_values_come_back_however_large() -> None:
    ended = run(
        {
            "small": Job(lambda: {"a": (1, None)}, 10),
            "large": Job(lambda: b"x" * 5_000_000, 10),
            "nothing": Job(lambda: None, 10),
        }
    )
    assert [ended[name].state for name in ("small", "large", "nothing")] == [DONE] * 3
    assert ended["small"].value == {"a": (1, None)}
    assert ended["large"].value == b"x" * 5_000_000
    assert list(ended) == ["small", "large", "nothing"]
    assert run({}) == {}


def refuse() -> Any:
    raise OSError(116, "Stale file handle")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (refuse, "OSError: [Errno 116] Stale file handle"),
        (lambda: os._exit(0), "ended without a word"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended without a word"),
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: lambda: 0, "pickle"),
    ],
    ids=["raises", "leaves", "killed", "exits", "can't be told"],
)
def test_what_breaks_is_an_outcome(function: Callable[[], Any], reason: str) -> None:
    ended = run({"it": Job(function, 10)})["it"]
    assert ended.state == BROKE
    assert reason in ended.reason


def test_what_hangs_is_killed_with_its_children_and_the_others_are_heard(tmp_path: Path) -> None:
    def hang() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "300"])
        (tmp_path / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(300)

    started = time.monotonic()
    ended = run(
        {"hangs": Job(hang, 0.7), "fast": Job(lambda: 1, 20), "slow": Job(_slow, 20)},
    )
    taken = time.monotonic() - started
    assert 1.0 < taken < 4
    assert (ended["hangs"].state, ended["hangs"].seconds) == (HANGS, 0.7)
    assert (ended["fast"].value, ended["slow"].value) == (1, 2)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert soon(lambda: not any(alive(pid) for pid in pids))


def _slow() -> int:
    time.sleep(1)
    return 2


def test_all_run_at_once() -> None:
    started = time.monotonic()
    run({str(number): Job(lambda: time.sleep(0.5), 10) for number in range(8)})
    assert time.monotonic() - started < 2


def test_child_that_can_not_be_killed_does_not_hold_the_output(
    tmp_path: Path,
) -> None:
    """ssh ends when the last holder of its output is gone: a child must not be one."""
    program = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT / "plugins/module_utils")!r})
from remote_train import killable
killable.PATIENCE = 0.1
killable.os.killpg = lambda *_: None  # as if the kernel didn't let go of it
killable.os.kill = lambda *_: None
def stuck():
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(20)
print(killable.run({{"it": killable.Job(stuck, 0.5)}})["it"].state)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    taken = time.monotonic() - started
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert done.stdout == "hangs\n"
    assert taken < 10
