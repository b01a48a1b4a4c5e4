"""Work that outlives the connection: one at a time, with a status that says how it ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote_train import detached
from remote_train.errors import TrainError
from tests.unit.small_disk import small_disk
from tests.unit.stage_host import HOUSE

START = """
import json, sys, time
sys.path.insert(0, {path!r})
from remote_train import detached
def work(reporter):
    reporter.say("begun with s3cret at https://user:pw@mirror/x")
    reporter.show("half way", done=1, of=2)
    time.sleep({seconds})
    {more}
    return {{"changed": True}}
print(json.dumps(detached.start(sys.argv[1], sys.argv[2], work, ("s3cret",))))
"""


def start(root: Path, token: str, seconds: float = 0.0, more: str = "pass") -> dict[str, Any]:
    """Start work as a module does, in a process that ends; its output is a pipe."""
    path = str(HOUSE / "plugins" / "module_utils")
    script = START.format(path=path, seconds=seconds, more=more)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script, str(root), token],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    # Whoever waits for the end of our output, as ssh does, isn't held by the work.
    assert time.monotonic() - began < max(2.0, seconds)
    return json.loads(done.stdout)


def status(root: Path) -> dict[str, Any]:
    return json.loads(Path(detached.path(str(root), "status.json")).read_text(encoding="utf-8"))


def name_of(found: dict[str, Any]) -> str:
    return str(found["token"])


def ended(root: Path) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while detached.running(str(root)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status(root)


def test_work_goes_on_after_the_one_who_started_it(tmp_path):
    assert detached.running(str(tmp_path)) is None
    assert start(tmp_path, "one", seconds=3)["state"] == "running"
    found = detached.running(str(tmp_path))
    assert found is not None
    final = ended(tmp_path)
    assert final["state"] == "done"
    assert final["result"] == {"changed": True}
    assert final["progress"] == {"text": "half way", "done": 1, "of": 2}


def test_a_second_start_finds_the_first_and_one_that_came_late_its_end(tmp_path):
    start(tmp_path, "one", seconds=3)
    assert name_of(start(tmp_path, "two", seconds=3)) == "one"
    ended(tmp_path)
    before = status(tmp_path)
    # ssh may send a command twice: the second time may be after the end.
    assert start(tmp_path, "one") == before
    start(tmp_path, "two")
    assert name_of(ended(tmp_path)) == "two"


def test_no_secret_stands_in_what_is_left(tmp_path):
    start(tmp_path, "one", more="raise ValueError('s3cret at //user:pw@mirror')")
    final = ended(tmp_path)
    assert final["state"] == "failed"
    assert final["error"]["msg"] == "Provisioning ended with ValueError: ... at //mirror"
    for path in (tmp_path / detached.FOLDER).iterdir():
        assert b"s3cret" not in path.read_bytes(), path
        assert b":pw@" not in path.read_bytes(), path
    assert "begun with ... at https://mirror/x" in (tmp_path / final["log"]).read_text()


def test_an_error_of_the_users_reaches_them_as_it_is(tmp_path):
    reporter = detached.Reporter(str(tmp_path), "t")

    def work(_reporter: detached.Reporter) -> dict[str, Any]:
        raise TrainError("This is wrong.", "Do that.", "model_download")

    assert detached.carry_out(reporter, work) == 1
    assert status(tmp_path)["error"] == {
        "msg": "This is wrong.",
        "hint": "Do that.",
        "category": "model_download",
    }


def test_there_is_a_heartbeat_while_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(detached, "HEARTBEAT", 0.05)
    reporter = detached.Reporter(str(tmp_path), "t")
    beats = set()

    def work(_reporter: detached.Reporter) -> dict[str, Any]:
        deadline = time.monotonic() + 20  # each is brought to the disk, which others use as well
        while len(beats) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
            with contextlib.suppress(FileNotFoundError):  # not one yet
                beats.add(status(tmp_path)["heartbeat"])
        return {}

    assert detached.carry_out(reporter, work) == 0
    assert len(beats) == 4


def test_work_that_was_killed_lets_go_and_is_started_again(tmp_path):
    start(tmp_path, "one", seconds=60)
    (holder,) = holders(tmp_path)
    os.kill(holder, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while detached.running(str(tmp_path)) is not None:
        assert time.monotonic() < deadline
    assert name_of(start(tmp_path, "two")) == "two"
    assert ended(tmp_path)["state"] == "done"


def holds(pid: int, file: os.stat_result) -> bool:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        return any(os.path.samestat(os.stat(f"/proc/{pid}/fd/{n}"), file) for n in names)
    except OSError:
        return False


@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_ends_no_work(tmp_path, monkeypatch, full):
    reporter = detached.Reporter(str(tmp_path), "t")

    def write_json(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    if full:
        monkeypatch.setattr(detached, "write_json", write_json)
    assert detached.carry_out(reporter, lambda r: r.show("x") or {}) == 0


# Who holds the lock


def test_a_start_beside_one_who_looks_is_a_start(tmp_path):
    (tmp_path / detached.FOLDER).mkdir(parents=True)
    old = {"token": "old", "state": "failed", "error": {"msg": "Old."}}
    Path(detached.path(str(tmp_path), "status.json")).write_text(json.dumps(old))
    with open(detached.path(str(tmp_path), "lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(stream, fcntl.LOCK_UN)).start()
        assert name_of(start(tmp_path, "new")) == "new"
    assert ended(tmp_path)["state"] == "done"


def test_the_status_of_one_before_is_not_the_holders(tmp_path, monkeypatch):
    monkeypatch.setattr(detached, "SETTLED_WITHIN", 3.0)
    (tmp_path / detached.FOLDER).mkdir(parents=True)
    lock = Path(detached.path(str(tmp_path), "lock"))
    status_file = Path(detached.path(str(tmp_path), "status.json"))
    status_file.write_text(json.dumps({"token": "old", "state": "running"}))
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write("new")
        stream.flush()
        news = json.dumps({"token": "new", "state": "running"})
        threading.Timer(0.3, lambda: status_file.write_text(news)).start()
        found = detached.running(str(tmp_path))
        assert found is not None
        assert name_of(found) == "new"
        assert name_of(detached.start(str(tmp_path), "third", lambda _: {})) == "new"


def holders(root: Path) -> list[int]:
    lock = os.stat(detached.path(str(root), "lock"))
    return [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and holds(int(pid), lock)]


def test_what_killed_work_left_running_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(detached, "SETTLED_WITHIN", 0.3)
    kid = tmp_path / "kid"
    script = f"echo $$ > {kid}.new; mv {kid}.new {kid}; exec sleep 60"
    more = f"from remote_train import programs; programs.run(['sh', '-c', {script!r}], 'x', 'y')"
    start(tmp_path, "one", more=more)
    deadline = time.monotonic() + 10
    while not kid.exists() or len(holders(tmp_path)) > 2:  # mv ends after it has moved
        assert time.monotonic() < deadline
    child = int(kid.read_text())
    (worker,) = set(holders(tmp_path)) - {child}
    os.kill(worker, signal.SIGKILL)
    try:
        time.sleep(0.1)
        with pytest.raises(TrainError, match=rf"sleep \(process {child}\)") as caught:
            detached.running(str(tmp_path))
        assert caught.value.message.startswith("Provisioning was ended")
        with pytest.raises(TrainError, match="still running"):
            detached.start(str(tmp_path), "two", lambda _: {})
    finally:
        os.kill(child, signal.SIGKILL)
    assert ended(tmp_path)["state"] == "running"
    # Nobody works under this token any more, so that it isn't taken for an end.
    start(tmp_path, "one")
    assert ended(tmp_path)["state"] == "done"


def test_the_end_of_ones_own_work_is_found_by_its_token(tmp_path):
    start(tmp_path, "one")
    ended(tmp_path)
    found = detached.ended(str(tmp_path), "one")
    assert found is not None
    assert found["state"] == "done"
    assert detached.ended(str(tmp_path), "two") is None
    assert detached.ended(str(tmp_path), "") is None


def test_work_that_is_ended_by_hand_ends_what_it_runs_and_says_so(tmp_path):
    more = "from remote_train import programs; programs.run(['sleep', '4242'], 'It failed', '')"
    start(tmp_path, "one", more=more)
    deadline = time.monotonic() + 10
    while len(holders(tmp_path)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = holders(tmp_path)
    os.kill(status(tmp_path)["pid"], signal.SIGTERM)
    final = ended(tmp_path)
    assert final["state"] == "failed"
    assert final["error"] == {
        "msg": "Provisioning was ended on the host.",
        "hint": "The same command goes on with it.",
        "category": "ops",
    }
    deadline = time.monotonic() + 10
    while holders(tmp_path):
        assert time.monotonic() < deadline, pids
        time.sleep(0.02)


HELD = """
sleeps = detached.time.sleep
def held(seconds):
    open(sys.argv[1] + "/held", "w").close()
    sleeps(seconds)
{where}
print(json.dumps(detached.start(sys.argv[1], sys.argv[2], {work}, ())))
"""


@pytest.mark.parametrize(
    ("where", "work", "state"),
    [
        # Between the fork and the work.
        (
            "beat = detached.Reporter.beat\n"
            "detached.Reporter.beat = lambda self, **news: (beat(self, **news), held(1.5))",
            "lambda reporter: sleeps(30) or {}",
            "failed",
        ),
        # When how it ended is known, and not yet written down.
        (
            "end = detached.Reporter.end\n"
            "detached.Reporter.end = lambda self, **news: (held(1.5), end(self, **news))",
            "lambda reporter: {'changed': True}",
            "done",
        ),
    ],
)
def test_work_that_is_ended_by_hand_at_any_time_leaves_its_end(tmp_path, where, work, state):
    script = START.partition("def work")[0] + HELD
    script = script.format(path=str(HOUSE / "plugins/module_utils"), where=where, work=work)
    subprocess.run([sys.executable, "-c", script, str(tmp_path), "one"], check=True, timeout=20)
    deadline = time.monotonic() + 10
    while not (tmp_path / "held").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(status(tmp_path)["pid"], signal.SIGTERM)
    final = ended(tmp_path)
    assert final["state"] == state, final
    if state == "failed":
        assert final["error"]["msg"] == "Provisioning was ended on the host."


# A full disk


FILL = """
    import os
    from remote_train import programs
    with open(sys.argv[1] + "/fill", "wb", buffering=0) as stream:
        try:
            while stream.write(b"x" * 512):
                pass
        except OSError:
            pass
    {then}
"""


@pytest.mark.parametrize(
    ("then", "words", "hint"),
    [
        (
            "programs.run(['sh', '-c', 'echo [Errno 28] No space left on device; exit 1'],"
            " 'Installing torch failed', 'A hint.', on_line=reporter.say)",
            "Installing torch failed: ",
            "A hint.",
        ),
        (
            "open(sys.argv[1] + '/more', 'w').write('x' * 10**6)",
            "Provisioning ended: there is no room on the target's disk.",
            "Free some space",
        ),
        (
            "raise OSError(30, 'Read-only file system', '/srv/x')",
            "/srv/x can't be written: Read-only file system.",
            "Mount it for writing",
        ),
    ],
)
def test_work_that_fills_the_disk_says_so(then, words, hint):
    with small_disk("size=96k") as root:
        start(root, "one", more=FILL.format(then=then).strip())
        final = ended(root)
        assert final["state"] == "failed", final
        assert final["error"]["msg"].startswith(words)
        assert final["error"]["hint"].startswith(hint)
        # Without room to begin with nothing is begun, and that is said as well.
        with contextlib.suppress(OSError), (root / "rest").open("wb", buffering=0) as stream:
            while stream.write(b"x" * 512):
                pass
        assert detached.running(str(root)) is None
        with pytest.raises(TrainError, match="no room"):
            detached.start(str(root), "two", lambda _: {})


def test_no_password_stands_in_a_result_and_in_what_is_shown(tmp_path):
    url = "https://me:pw@mirror"
    start(tmp_path, "one", more=f"return {{'done': [{url!r}], 'at': {{'x': {url!r}, 'n': 1}}}}")
    final = ended(tmp_path)
    assert final["result"] == {"done": ["https://mirror"], "at": {"x": "https://mirror", "n": 1}}
    assert (
        detached.scrubbed("in https://me:p@ss@host/simple", ("p@ss",)) == "in https://host/simple"
    )


def test_nothing_is_begun_on_a_disk_that_can_only_be_read():
    with small_disk("ro") as root:
        assert detached.running(str(root)) is None
        with pytest.raises(TrainError, match=r"can't be written: Read-only") as caught:
            detached.start(str(root), "one", lambda _: {})
        assert caught.value.hint == "Mount it for writing, or choose another project_root."
        assert caught.value.category == "infra"
