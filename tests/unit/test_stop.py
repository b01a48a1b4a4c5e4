"""Stages that are stopped: well, deaf, by the dead, and never the wrong process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from remote_train import handover, launch, live, processes, stage_record, stop, stop_request
from remote_train.errors import TrainError
from tests.unit.stage_host import RUN, Host, put
from tests.unit.test_supervisor import this_python

ME = "me@laptop"


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.pythons, "probe", lambda *_: this_python())
    made = Host(tmp_path / "a project")
    yield made
    made.close()


SCRIPT = """
mkdir -p outputs/adapter/adapter_$STAGE
echo x > outputs/adapter/adapter_$STAGE/adapter_model.safetensors
echo ready
while [ ! -e go_on ]; do sleep 0.05; done
"""


def started(host, script=SCRIPT):
    """Start a stage of the user's own, and wait until it is in its middle."""
    host.start(stage_command=["sh", "-c", script])
    host.until(lambda: "ready" in host.log())
    return host.wait(lambda status: status.get("child"))


def stopped(host, grace=10, call="c1", check=False):
    return stop.stop(str(host.root), ME, call, grace, check)


def record(host):
    path = host.root / "outputs/training_sync" / RUN / "stage_style.json"
    return json.loads(path.read_text())


def alive(pid):
    return live.start_time(pid) is not None and b"Z" not in _stat(pid)


def _stat(pid):
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return stream.read().rpartition(b")")[2].split()[0]


def assert_recorded(host, killed):
    """Status, record, issue, state file and marker of a stage that was stopped."""
    status = host.status()
    assert status["state"] == "failed"
    assert status["stopped"] == {"by": ME, "killed": killed}
    assert status["error"]["symptom"] == f"The stage was stopped by {ME}."
    assert record(host)["state"] == "failed"
    assert record(host)["stopped"] == {"by": ME, "killed": killed}
    (issue,) = host.issues()
    assert (issue["category"], issue["symptom"]) == ("ops", f"The stage was stopped by {ME}.")
    assert host.states() == {".stage_style_failed"}
    assert host.marker() is None
    assert not live.is_held(str(host.root))


def test_a_stage_is_stopped_and_nothing_else(host):
    status = started(host)
    with subprocess.Popen(["sleep", "60"]) as other:
        answer = stopped(host)
        assert other.poll() is None
        other.kill()
    assert (answer["state"], answer["stage"], answer["run"]) == ("stopped", "style", RUN)
    assert answer["pid"] == status["pid"]
    assert not answer["killed"]
    assert answer["left"] == []
    assert not alive(status["child"]["pid"])
    assert_recorded(host, killed=False)
    # The same call again, whose answer was lost, says the same; another one finds nothing.
    again = stopped(host)
    assert (again["state"], again["stage"]) == ("stopped", "style")
    assert stopped(host, call="c2")["state"] == "nothing"
    # It isn't done: it trains again, and the note of the last time means nothing to it.
    (host.root / "go_on").touch()
    script = ["sh", "-c", SCRIPT]
    assert host.start(mark="t2", stage_command=script)["outcome"] == "started"
    assert host.finish()["state"] == "done"


def test_our_own_training(host):
    host.start({"wait": True, "mind_the_signal": True})
    host.wait(lambda status: status["progress"].get("step"))
    assert stopped(host)["state"] == "stopped"
    assert (host.root / "was_stopped").exists()
    assert_recorded(host, killed=False)


def test_one_that_comes_to_its_good_end_at_that_moment_is_done(host):
    """What is finished is not thrown away."""
    own = "__main__.py"
    path = host.engine / "training" / own
    text = path.read_text().replace('(root / "was_stopped").touch()\n    sys.exit(3)', "pass")
    path.write_text(text.replace('print("begins"', 'signal.signal(15, stop); print("begins"'))
    host.start({"wait": True})
    host.wait(lambda status: status["progress"].get("step"))
    waits = subprocess.Popen(["sh", "-c", f"sleep 0.5; touch '{host.root}/go_on'"])
    answer = stopped(host)
    waits.wait()
    assert answer["state"] == "done"
    assert host.marker()["status"] == "done"
    assert host.issues() == []


def test_a_deaf_one_is_killed_by_its_supervisor_after_the_grace_time(host):
    status = started(host, f"trap '' TERM\n{SCRIPT}")
    began = time.monotonic()
    answer = stopped(host, grace=1)
    assert 1 <= time.monotonic() - began < 1 + stop.KILLED_WITHIN
    assert (answer["state"], answer["killed"]) == ("stopped", True)
    assert not alive(status["child"]["pid"])
    assert_recorded(host, killed=True)
    assert "didn't within 1 s" in host.status()["error"]["cause"]


def test_a_supervisor_kills_by_itself_when_whoever_asked_is_gone(host):
    """The connection broke after TERM."""
    status = started(host, f"trap '' TERM\n{SCRIPT}")
    stop_request.leave(str(host.root), status["token"], ME, "c1", 0.5)
    os.kill(status["pid"], signal.SIGTERM)
    host.finish()
    assert_recorded(host, killed=True)


def test_a_supervisor_of_before_that_does_not_kill(host, monkeypatch):
    monkeypatch.setattr(stop, "KILLED_WITHIN", 0.2)
    path = host.engine / "remote_train" / "stage_run.py"
    path.write_text(path.read_text().replace("time.monotonic() > self._kill_at", "False"))
    started(host, f"trap '' TERM\n{SCRIPT}")
    assert stopped(host, grace=1)["killed"]
    assert_recorded(host, killed=True)


@pytest.mark.parametrize("deaf", [False, True])
def test_the_training_of_a_dead_supervisor(host, deaf):
    """Nobody else leaves the record then."""
    status = started(host, ("trap '' TERM\n" if deaf else "") + SCRIPT)
    os.kill(status["pid"], signal.SIGKILL)
    host.until(lambda: not alive(status["pid"]))
    answer = stopped(host, grace=1)
    assert (answer["state"], answer["killed"]) == ("stopped", deaf)
    assert not alive(status["child"]["pid"])
    assert_recorded(host, killed=deaf)
    assert host.status()["started"] == status["started"]


@pytest.mark.parametrize("change", [{"start_time": 1}, {"boot_id": "another"}, {"pid": None}])
def test_a_number_that_is_anothers_by_now_is_not_hit(host, change):
    """Both processes on record are others; the lock is held all the same."""
    status = started(host)
    with subprocess.Popen(["sleep", "60"]) as other:
        foreign = {**live.identity(other.pid), **change}
        false = {**status, **foreign, "child": foreign}
        os.kill(status["pid"], signal.SIGSTOP)  # it would write the truth again
        path = live.path(str(host.root), "status.json")
        try:
            with open(path, "w", encoding="utf-8") as stream:
                json.dump(false, stream)
            with pytest.raises(TrainError, match="Nothing was stopped"):
                stopped(host)
            assert other.poll() is None
            assert alive(status["child"]["pid"])
        finally:
            os.kill(status["pid"], signal.SIGCONT)
            (host.root / "go_on").touch()
            other.kill()
    assert host.finish()["state"] == "done"


@pytest.mark.parametrize("sender", [stop.send, stop.send_group])
@pytest.mark.parametrize("pidfd", [True, False])
def test_a_signal_goes_to_the_process_on_record_alone(monkeypatch, sender, pidfd):
    if not pidfd:

        def refuse(_pid):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(processes.os, "pidfd_open", refuse)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        who = live.identity(process.pid)
        for change in ({"start_time": 1}, {"boot_id": "x"}, {"pid": 1}, {"pid": 0}, {"pid": "2"}):
            assert not sender({**who, **change}, signal.SIGKILL)
        assert not sender({}, signal.SIGKILL)
        assert process.poll() is None
        assert sender(who, signal.SIGTERM)
        assert process.wait(5) == -signal.SIGTERM
    assert not sender(who, signal.SIGTERM)


def test_a_group_is_that_of_its_leader_alone():
    with subprocess.Popen(["sleep", "60"]) as process:  # in the group of these tests
        assert not stop.send_group(live.identity(process.pid), signal.SIGKILL)
        assert process.poll() is None
        process.kill()


def test_a_check_says_what_would_be_stopped(host):
    status = started(host)
    answer = stopped(host, check=True)
    assert (answer["state"], answer["stage"]) == ("running", "style")
    assert host.status()["state"] == "running"
    assert not os.path.exists(live.path(str(host.root), stop_request.NAME))
    assert alive(status["child"]["pid"])


def test_nothing_runs_and_nothing_is_made(tmp_path):
    assert stop.stop(str(tmp_path), ME, "c", 1)["state"] == "nothing"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slow_start(host, monkeypatch):
    """A start that is held in its fingerprint, as the hashing of a base model may hold it."""
    held, go_on = threading.Event(), threading.Event()
    real = launch.fingerprint.base_model

    def slow(*given):
        held.set()
        assert go_on.wait(30)
        return real(*given)

    monkeypatch.setattr(launch.fingerprint, "base_model", slow)
    script = {"stage_command": ["sh", "-c", SCRIPT]}
    starts = threading.Thread(target=host.start, kwargs=script)
    starts.start()
    assert held.wait(30)
    yield go_on
    go_on.set()
    starts.join()


def test_a_check_says_that_a_start_is_under_way(host, slow_start):
    assert stopped(host, check=True)["state"] == "starting"


def test_a_stop_during_a_start_waits_for_it_and_stops_its_stage(host, slow_start):
    answers = []
    stops = threading.Thread(target=lambda: answers.append(stopped(host)))
    stops.start()
    stops.join(1.0)
    assert answers == []
    slow_start.set()
    stops.join(30)
    assert (answers[0]["state"], answers[0]["stage"]) == ("stopped", "style")
    assert_recorded(host, killed=False)


def test_a_start_that_never_ends_is_no_end_of_a_stage(host, monkeypatch, slow_start):
    monkeypatch.setattr(stop, "START_WITHIN", 0.3)
    with pytest.raises(TrainError, match=r"A start is under way .* nothing was stopped"):
        stopped(host)


def test_a_start_of_another_user_is_said(tmp_path, monkeypatch):
    put(tmp_path, {f"{live.FOLDER}/start.lock": b""})

    def refuse(_root, wait=True):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(live, "starting", refuse)
    with pytest.raises(TrainError, match=r"start.lock is another user's"):
        stop.stop(str(tmp_path), ME, "c", 1)


def test_a_supervisor_that_waits_and_does_not_end_is_no_success(host, monkeypatch):
    """A worker with the GPU is not the same as none."""
    monkeypatch.setattr(handover, "ENDED_WITHIN", 0.3)
    host.trained()
    facts = handover.waiting(str(host.root))
    os.kill(facts["pid"], signal.SIGSTOP)
    try:
        with pytest.raises(
            TrainError, match=rf"process {facts['pid']}\) .* holds the GPU"
        ) as error:
            stopped(host)
        assert error.value.category == "infra"
    finally:
        os.kill(facts["pid"], signal.SIGCONT)
    host.until(lambda: handover.waiting(str(host.root)) is None)


def test_what_it_leaves_running_is_named(host, monkeypatch):
    monkeypatch.setattr(live, "SETTLED_WITHIN", 0.3)
    started(host, f"setsid sleep 60 & echo $! > left\n{SCRIPT}")
    pid = int((host.root / "left").read_text())
    try:
        assert stopped(host)["left"] == [f"sleep (process {pid})"]
        # No stage runs: the lock's holder is not ended, but named.
        nothing = stopped(host, call="c2")
        assert (nothing["state"], nothing["left"]) == ("nothing", [f"sleep (process {pid})"])
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_record_is_not_left_for_another_start(host):
    host.trained()
    before = host.status()
    assert stage_record.close(str(host.root), "another", {}, False)
    assert host.status() == before


def test_a_signal_without_a_note_is_named(host):
    status = started(host)
    stop_request.leave(str(host.root), "another token", ME, "c1", 0)
    os.kill(status["pid"], signal.SIGTERM)
    assert host.finish()["stopped"] == {"by": "SIGTERM", "killed": False}
