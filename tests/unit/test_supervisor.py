"""Stages that really start, run under their supervisor, end, fail and are killed."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest

from remote_train import (
    failures,
    fingerprint,
    handover,
    heartbeat,
    launch,
    live,
    processes,
    pythons,
    stage_run,
    worker_process,
)
from remote_train.errors import TrainError
from tests.unit.small_disk import fill, small_disk
from tests.unit.stage_host import BENCHMARK, FIRST, RUN, TRAIN, Host, load_yaml, put, stage_of

ADAPTER = "outputs/adapter/adapter_style"
WEIGHTS = f"{ADAPTER}/adapter_model.safetensors"
NEXT = "run_20260210T093000Z"
"""A run after the first one."""
SCRIPT = """
mkdir -p outputs/adapter/adapter_$STAGE
echo x > outputs/adapter/adapter_$STAGE/adapter_model.safetensors
"""


PROBE = pythons.probe


@pytest.fixture
def host(tmp_path, monkeypatch):
    # One look at this Python is enough for all of them; test_pythons.py looks for itself.
    monkeypatch.setattr(launch.pythons, "probe", lambda *_: this_python())
    made = Host(tmp_path / "a project")
    yield made
    made.close()


@functools.cache
def this_python() -> dict[str, Any]:
    return PROBE(sys.executable, {})


def own(script: str = SCRIPT, **changes: Any) -> dict[str, Any]:
    return {"stage_command": ["sh", "-ec", script], **changes}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


# A good end


def test_a_stage_trains_and_leaves_all_that_it_should(host):
    started = host.start()
    assert started["outcome"] == "started"
    assert started["verdict"]["reasons"] == ["it has not been trained yet"]
    assert started["status"]["token"] == FIRST
    status = host.finish()
    assert status["state"] == "done"
    assert status["error"] is None
    assert status["progress"] == {"phase": "train", "step": 1, "steps": 2, "loss": 1.5}
    assert host.log() == "begins\nends\n"
    assert status["log"].startswith("outputs/logs/train_style_")
    marker = host.marker()
    assert marker["status"] == "done"
    assert marker["run"] == RUN
    assert list(marker["outputs"]) == [WEIGHTS]
    assert marker["accelerator"] == "cpu: fake"
    assert marker["effective"] == {"threads": 1}
    assert marker["metrics"] == {"train_loss": 0.5}
    assert marker["inputs"]["packages"] == pythons.recorded(this_python()["packages"])
    assert marker["started"] <= marker["ended"]
    assert host.states() == {".stage_style_done"}
    assert host.issues() == []
    assert not live.is_held(str(host.root))
    assert host.supervisor_log() == ""


def test_the_run_keeps_its_own_record_of_the_stage(host):
    host.trained()
    path = host.root / "outputs/training_sync" / RUN / "stage_style.json"
    record = json.loads(path.read_text())
    assert record["state"] == "done"
    assert record["mode"] == "train"
    assert record["reasons"] == ["it has not been trained yet"]
    assert record["phases"] == {"train": 0.1}
    assert (host.root / record["log"]).is_file()


def test_the_second_start_skips(host):
    host.trained()
    again = host.start(mark="t2", run=NEXT)
    assert again["outcome"] == "skipped"
    assert again["verdict"]["reasons"] == ["up to date"]
    assert host.starts() == ["train"]
    assert host.states(NEXT) == {".stage_style_skipped"}


def test_force_trains_again(host):
    host.trained()
    assert host.start(mark="t2", run=NEXT, force=True)["outcome"] == "started"
    host.finish()
    assert host.starts() == ["train", "train"]


def test_what_its_own_run_has_trained_force_does_not_train_again(host):
    """The same command after its controller died follows the stage, then starts it again."""
    host.start(mark="t1", run=NEXT, force=True)
    host.finish()
    assert host.start(mark="t2", run=NEXT, force=True)["outcome"] == "skipped"
    assert host.starts() == ["train"]
    assert host.states(NEXT) == {".stage_style_done"}


@pytest.mark.parametrize(
    ("path", "content"), [(TRAIN, b"new\n"), (WEIGHTS, b"damaged")], ids=["data", "output"]
)
def test_its_own_run_trains_again_what_is_another_stage_by_now(host, path, content):
    host.start(force=True)
    host.finish()
    put(host.root, {path: content})
    assert host.start(mark="t2", force=True)["outcome"] == "started"
    host.finish()
    assert host.starts() == ["train", "train"]


def test_force_trains_what_its_own_run_has_only_scored_again(host):
    host.trained()
    put(host.root, {BENCHMARK: b"another\n"})
    host.start(mark="t2", run=NEXT)
    host.finish()
    assert host.start(mark="t3", run=NEXT, force=True)["outcome"] == "started"
    host.finish()
    assert host.starts() == ["train", "evaluate", "train"]


def test_force_trains_again_what_failed_in_its_own_run(host):
    host.start({"crash": "x"}, force=True)
    host.finish()
    assert host.start(mark="t2", force=True)["outcome"] == "started"
    host.finish()


def test_another_benchmark_is_scored_without_training(host):
    host.trained()
    weights = (host.root / WEIGHTS).stat().st_mtime_ns
    put(host.root, {BENCHMARK: b"another\n"})
    started = host.start(mark="t2")
    assert started["verdict"]["action"] == "evaluate"
    assert host.finish()["mode"] == "evaluate"
    assert host.starts() == ["train", "evaluate"]
    assert (host.root / WEIGHTS).stat().st_mtime_ns == weights
    # What training had found out stays beside what the new evaluation says.
    assert host.marker()["metrics"] == {"train_loss": 0.5, "scores": {"x": 1}}
    assert host.start(mark="t3")["outcome"] == "skipped"


def test_changed_code_trains_again(host):
    host.trained()
    put(host.engine, {"training/fit.py": b"RATE = 2\n"})
    assert host.start(mark="t2")["verdict"]["reasons"][0].startswith("code sha256:")
    host.finish()


def test_secrets_are_written_down_nowhere(host):
    secret = "hf_" + "x" * 20
    host.start({"wait": True}, environment={"HF_TOKEN": secret})
    child = host.wait(lambda status: status.get("child") and status["progress"])["child"]
    assert f"HF_TOKEN={secret}".encode() in Path(f"/proc/{child['pid']}/environ").read_bytes()
    (host.root / "go_on").touch()
    host.finish()
    for path in host.root.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()


def test_the_training_is_in_a_session_of_its_own_and_needs_nobody(host):
    host.start({"wait": True})
    status = host.wait(lambda status: status.get("child") and status["progress"])
    assert os.getsid(status["pid"]) == status["pid"]
    assert os.getsid(status["child"]["pid"]) == status["child"]["pid"]
    for number in (0, 1, 2):
        open_file = os.readlink(f"/proc/{status['pid']}/fd/{number}")
        assert open_file == "/dev/null" or open_file.endswith("supervisor.log")
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


def test_the_heartbeat_beats(host):
    host.start({"wait": True})
    first = host.wait(lambda status: status["progress"].get("step"))["heartbeat"]
    host.wait(lambda status: status["heartbeat"] > first + 0.05)
    (host.root / "go_on").touch()
    host.finish()


# Starting twice


def test_a_start_that_arrives_twice_attaches(host):
    host.start({"wait": True}, mark="t1")
    again = host.start({"wait": True}, mark="t1")
    assert again["outcome"] == "attached"
    assert again["status"]["pid"] == host.status()["pid"]
    (host.root / "go_on").touch()
    host.finish()
    assert host.starts() == ["train"]


@pytest.mark.parametrize(("fake", "state"), [({}, "done"), ({"crash": "x"}, "failed")])
def test_a_start_that_arrives_again_after_the_end_starts_nothing(host, fake, state):
    host.start(fake, mark="t1", force=True)
    host.finish()
    again = host.start(fake, mark="t1", force=True)
    assert again["outcome"] == "attached"
    assert again["status"]["state"] == state
    assert host.starts() == ["train"]


def test_another_controllers_start_finds_it_busy(host):
    host.start({"wait": True}, mark="t1")
    other = host.start({}, mark="t2", stage="writing")
    assert other["outcome"] == "busy"
    assert other["status"]["stage"] == "style"
    assert other["status"]["token"] == FIRST
    (host.root / "go_on").touch()
    host.finish()
    assert host.start({}, mark="t2", stage="writing")["outcome"] == "started"
    host.finish()


def test_two_starts_at_once_train_once(host):
    outcomes: list[str] = []

    def start(mark: str) -> None:
        outcomes.append(host.start({"wait": True}, mark=mark)["outcome"])

    controllers = [threading.Thread(target=start, args=(f"t{n}",)) for n in range(3)]
    for controller in controllers:
        controller.start()
    for controller in controllers:
        controller.join()
    assert sorted(outcomes) == ["busy", "busy", "started"]
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"
    assert host.starts() == ["train"]


def test_a_supervisor_that_is_on_its_way_out_is_waited_for(host, monkeypatch):
    """Its last status is there before the kernel lets go of its lock."""
    host.trained()
    lock = live.take(str(host.root), {})
    timer = threading.Timer(0.3, os.close, [lock])
    timer.start()
    assert host.start(mark="t2", run=NEXT, force=True)["outcome"] == "started"
    timer.join()
    host.finish()


def test_what_a_stage_leaves_running_is_named(host, monkeypatch):
    monkeypatch.setattr(live, "SETTLED_WITHIN", 0.1)
    changes = own(f"{SCRIPT} sleep 60 & echo $! > background")
    host.start(stage="style", **changes)
    host.wait(lambda status: status["state"] == "done")
    with pytest.raises(TrainError, match="The stage style has ended, and something") as caught:
        host.start(stage="writing", mark="t2", **changes)
    assert live.path(str(host.root), "lock") in caught.value.hint
    kill(int((host.root / "background").read_text()))
    host.until(lambda: not live.is_held(str(host.root)))


def test_two_supervisors_of_one_project_and_the_second_ends(host):
    host.start({"wait": True})
    second = subprocess.run(
        [sys.executable, "-m", "remote_train.supervisor", str(host.root)],
        cwd=host.engine,
        check=False,
    )
    assert second.returncode == 3
    assert host.starts() == ["train"]
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


# Ends that are not good


@pytest.mark.parametrize(
    ("fake", "category", "words"),
    [
        ({"crash": "boom"}, "training_logic", "The command ended with exit status 1"),
        ({"exit": 4}, "training_logic", "The command ended with exit status 4"),
        ({"no_result": 1}, "training_logic", "without a result that says"),
        ({"result": {"status": "half"}}, "training_logic", "without a result that says"),
        (
            {
                "exit": 1,
                "result": {
                    "status": "failed",
                    "error": {
                        "category": "oom",
                        "symptom": "No memory is left.",
                        "cause": "Too long.",
                        "action": "Lower max_length.",
                    },
                },
            },
            "oom",
            "No memory is left.",
        ),
        ({"exit": 1, "result": {"status": "failed"}}, "ops", "The training failed."),
        (
            {"exit": 1, "result": {"status": "failed", "error": {"category": "magic"}}},
            "ops",
            "The training failed.",
        ),
        ({"result": {"outputs": [f"{ADAPTER}/none.json"]}}, "infra", "none.json"),
        ({"data": {TRAIN: "sha256:0"}}, "data", f"{TRAIN} changed while the stage was starting."),
        ({"data": {"secret.jsonl": "sha256:0"}}, "data", "secret.jsonl changed"),
    ],
    ids=str,
)
def test_a_failure_is_named_and_recorded(host, fake, category, words):
    status = host.trained(**fake)
    assert status["state"] == "failed"
    assert status["error"]["category"] == category
    assert words in status["error"]["symptom"]
    assert host.marker() is None
    assert host.states() == {".stage_style_failed"}
    (issue,) = host.issues()
    assert (issue["stage"], issue["phase"], issue["severity"]) == ("style", "train", "error")
    assert issue["symptom"] == status["error"]["symptom"]


def test_what_to_do_comes_from_the_training(host):
    error = {"category": "oom", "symptom": "S.", "cause": "C.", "action": "A."}
    status = host.trained(exit=1, result={"status": "failed", "error": error})
    assert status["error"] == error


def test_a_crash_keeps_the_end_of_the_log(host):
    status = host.trained(crash="boom")
    assert status["error"]["cause"].endswith("RuntimeError: boom")
    assert status["error"]["action"] == f"Read the end of {status['log']}."


def test_data_that_changes_while_the_stage_starts_fails_it(host):
    """The bytes that were read are what counts, not those that were there a moment before."""
    host.start({"hold": True})
    host.wait(lambda status: status["progress"].get("phase") == "load")
    put(host.root, {TRAIN: b"new\n"})
    (host.root / "go_on").touch()
    status = host.finish()
    assert status["state"] == "failed"
    assert status["error"]["symptom"] == f"{TRAIN} changed while the stage was starting."
    assert status["error"]["action"] == "Start the same command again."
    assert host.marker() is None
    assert host.start(mark="t2")["outcome"] == "started"
    assert host.finish()["state"] == "done"


def test_a_failure_leaves_the_marker_of_the_last_good_training(host):
    host.trained()
    before = host.marker()
    host.start({"crash": "x"}, mark="t2", run=NEXT, force=True)
    assert host.finish()["state"] == "failed"
    assert host.marker() == before


def test_the_result_of_an_earlier_training_counts_for_nothing(host):
    host.trained()
    host.start({"no_result": True}, mark="t2", run=NEXT, force=True)
    assert host.finish()["state"] == "failed"


def test_a_stage_that_failed_runs_again(host):
    host.trained(crash="x")
    assert host.start(mark="t2")["outcome"] == "started"
    assert host.finish()["state"] == "done"
    assert host.states() == {".stage_style_done"}


def test_a_training_that_is_killed_says_so(host):
    host.start({"wait": True}, stage_retries=0)
    kill(host.wait(lambda status: status["progress"].get("step"))["child"]["pid"])
    status = host.finish()
    assert status["state"] == "failed"
    assert status["kind"] == "signal"
    assert status["error"]["symptom"] == "The training was killed by SIGKILL."
    assert status["error"]["category"] == "infra"
    assert "memory" in status["error"]["cause"]
    assert host.marker() is None


def gone(pid: int) -> bool:
    return not processes.is_process(live.identity(pid))


def test_when_the_supervisor_is_killed_another_one_follows_its_training(host):
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    assert live.is_held(str(host.root))
    answer = host.start({}, mark="t2")
    assert answer["outcome"] == "busy"
    assert answer["status"]["pid"] != status["pid"]
    assert answer["status"]["child"] == status["child"]
    (note,) = answer["notes"]
    assert f"(process {status['pid']}) was killed, and its training goes on" in note
    assert host.start({}, mark="t1")["notes"] == []
    assert host.starts() == ["train"]
    (host.root / "go_on").touch()
    ended = host.finish()
    assert (ended["state"], ended["token"], ended["started"]) == ("done", "t1", status["started"])
    assert host.marker()["status"] == "done"
    assert host.start({}, mark="t3")["outcome"] == "skipped"
    host.until(lambda: gone(status["child"]["pid"]))
    assert host.starts() == ["train"]


def test_whoever_attaches_finds_a_supervisor_that_lives(host):
    root = str(host.root)
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    answer = launch.attach(root, {})
    assert (answer["status"]["pid"], answer["notes"]) == (status["pid"], [])
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    answer = launch.attach(root, {})
    assert answer["status"]["pid"] != status["pid"]
    assert len(answer["notes"]) == 1
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"
    assert launch.attach(root, {})["status"]["state"] == "done"


def test_a_training_that_is_killed_after_its_supervisor_is_tried_again(host):
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    host.start({"wait": True}, mark="t1")
    kill(status["child"]["pid"])
    host.wait(lambda now: now["attempt"] == 2 and now["progress"].get("step"))
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"
    assert host.starts() == ["train", "train"]
    assert host.issues()[0]["symptom"].startswith("The training ended without a word")


def test_what_a_training_finished_without_its_supervisor_is_not_trained_again(host):
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    (host.root / "go_on").touch()
    # It has no more input, and so ends by itself.
    host.until(lambda: gone(status["child"]["pid"]))
    assert host.marker() is None
    answer = host.start({}, mark="t2")
    assert answer["outcome"] == "skipped"
    (note,) = answer["notes"]
    assert "its training had finished, and that is kept" in note
    assert host.marker()["metrics"] == {"train_loss": 0.5}
    assert host.starts() == ["train"]
    (issue,) = host.issues()
    assert (issue["severity"], issue["status"], issue["symptom"]) == ("warning", "handled", note)
    assert host.states() == {".stage_style_done"}
    assert host.status()["state"] == "done"
    assert host.start({}, mark="t3")["notes"] == []


def test_what_it_finished_before_the_host_was_started_anew_is_not_taken_for_whole(host):
    """Nothing of it may have reached the disk."""
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    (host.root / "go_on").touch()
    host.until(lambda: gone(status["pid"]) and gone(status["child"]["pid"]))
    path = live.path(str(host.root), "status.json")
    Path(path).write_text(json.dumps({**host.status(), "boot_id": "another"}))
    answer = host.start({}, mark="t2")
    assert answer["outcome"] == "started"
    assert "the host was started anew since; its lock is taken over" in answer["notes"][0]
    assert host.finish()["state"] == "done"
    assert host.starts() == ["train", "train"]


def test_both_killed_at_once_leave_a_lock_that_is_taken_over_and_said(host):
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    kill(status["child"]["pid"])
    host.until(lambda: not live.is_held(str(host.root)))
    (host.root / "go_on").touch()
    answer = host.start({}, mark="t2")
    assert answer["outcome"] == "started"
    (note,) = answer["notes"]
    assert f"process {status['pid']} since {status['started']}" in note
    assert "its supervisor was killed; its lock is taken over" in note
    assert host.finish()["state"] == "done"
    (issue,) = host.issues()
    assert issue["symptom"].startswith("The stage style ended without a word")
    assert note in issue["cause"]


@pytest.mark.parametrize("minds", [True, False])
def test_a_supervisor_that_is_asked_to_end_hands_it_on(host, minds):
    host.start({"wait": True, "mind_the_signal": minds})
    status = host.wait(lambda status: status["progress"].get("step"))
    os.kill(status["pid"], signal.SIGTERM)
    ended = host.finish()
    assert ended["state"] == "failed"
    assert ended["error"]["symptom"] == "The stage was stopped by SIGTERM."
    assert (host.root / "was_stopped").exists() is minds


def test_warnings_of_the_training_become_issues(host):
    warning = {"symptom": "2 chats were cut.", "cause": "C", "action": "A", "category": "data"}
    host.trained(result={"warnings": [warning]})
    (issue,) = host.issues()
    assert issue["severity"] == "warning"
    assert {key: issue[key] for key in warning} == warning
    assert host.marker()["status"] == "done"


# Commands of the user's own


def test_a_command_of_the_users(host):
    host.start(**own(f"{SCRIPT} echo 'trains '$STAGE; pwd; env > env"))
    status = host.finish()
    assert status["state"] == "done"
    assert status["progress"] == {}
    assert host.log() == f"trains style\n{host.root}\n"
    marker = host.marker()
    assert list(marker["outputs"]) == [WEIGHTS]
    assert marker["inputs"]["packages"] == {}
    assert marker["metrics"] == {}  # what can't be known is left out
    assert marker["accelerator"] is None
    assert marker["evaluation"]["scorer"] is None
    environment = dict(line.split("=", 1) for line in (host.root / "env").read_text().splitlines())
    expected = {
        "STAGE": "style",
        "PROJECT_ROOT": str(host.root),
        "LEARNING_RATE": "0.0001",
        "MAX_LENGTH": "2048",
        "USE_QLORA": "0",
        "TARGET_MODULES": "all-linear",
        "MODEL_NAME_OR_PATH": "Qwen/Qwen3-8B",
        "SEED": "42",
    }
    assert {name: environment[name] for name in expected} == expected


def test_our_own_training_gets_its_settings_from_its_job_alone(host):
    host.start({"wait": True})
    child = host.wait(lambda status: status["progress"].get("step"))["child"]
    environment = Path(f"/proc/{child['pid']}/environ").read_bytes()
    assert b"\0MAX_LENGTH=" not in environment
    (host.root / "go_on").touch()
    host.finish()


def test_its_marker_skips_it_and_its_words_run_it_again(host):
    host.start(**own())
    host.finish()
    assert host.start(mark="t2", **own())["outcome"] == "skipped"
    again = host.start(mark="t3", **own(SCRIPT + "true"))
    assert again["outcome"] == "started"
    assert again["verdict"]["reasons"][0].startswith("command ")
    host.finish()


@pytest.mark.parametrize(
    ("command", "category", "symptom", "hint"),
    [
        (["sh", "-c", "echo why; exit 7"], "training_logic", "ended with exit status 7", ""),
        (["true"], "training_logic", f"{ADAPTER} holds nothing", "must leave its adapter"),
        (["sh", "-c", f"mkdir -p {ADAPTER}"], "training_logic", "holds nothing", ""),
        (["no-such-program"], "ops", "no-such-program can't be started: No such file", "command"),
        (["data"], "ops", "data can't be started", "command"),
        (["sh", "-c", "kill -9 $$"], "infra", "killed by SIGKILL", ""),
        (
            ["sh", "-c", f"mkdir -p {ADAPTER}; ln -s nowhere {ADAPTER}/x"],
            "infra",
            "What came out can't be kept",
            "",
        ),
    ],
    ids=str,
)
def test_a_command_that_fails(host, command, category, symptom, hint):
    host.start(stage_command=command, stage_retries=0)
    status = host.finish()
    assert status["state"] == "failed"
    assert status["error"]["category"] == category
    assert symptom in status["error"]["symptom"]
    assert hint in status["error"]["action"]
    assert host.issues()[0]["symptom"] == status["error"]["symptom"]
    assert host.supervisor_log() == ""


def test_the_log_of_a_command_that_fails_is_the_cause(host):
    host.start(stage_command=["sh", "-c", "seq 100 >&2; exit 7"])
    cause = host.finish()["error"]["cause"].splitlines()
    assert cause == [str(number) for number in range(51, 101)]


def test_odd_file_names_can_come_out(host):
    odd = os.fsdecode(b"odd\xff \n")
    host.start(**own(f"{SCRIPT} printf x > {ADAPTER}/$(printf 'odd\\377 \\nx')"))
    assert host.finish()["state"] == "done"
    assert any(odd.strip() in name for name in host.marker()["outputs"])


def test_a_command_that_closes_every_descriptor_is_followed_to_its_end(host):
    close = 'for fd in /proc/$$/fd/*; do n=${fd##*/}; [ $n -gt 2 ] && eval "exec $n>&-"; done;'
    host.start(**own(f"{close} sleep 0.3; {SCRIPT} echo end"))
    assert host.finish()["state"] == "done"
    assert host.log().endswith("end\n")


def test_a_command_of_the_users_needs_no_python_and_no_training_of_ours(host, monkeypatch):
    """Nor is it another stage where another torch is installed."""
    host.start(**own(), python="")
    assert host.finish()["state"] == "done"
    shutil.rmtree(host.engine / "training")
    assert host.start(mark="t2", **own())["outcome"] == "skipped"


def test_what_a_command_of_the_users_imports_is_not_invented(host):
    wanted = host.request(**own())
    inputs, _ = fingerprint.stage_inputs(
        stage_of(wanted), str(host.root), ("", ""), {"torch": "2.13.0"}, "x"
    )
    assert inputs["packages"] == {}


# A full disk


FULL_DISK = """

_write_bytes = write_bytes


def write_bytes(path, content, *more, **options):
    import errno

    if os.path.exists({flag!r}):
        raise OSError(errno.ENOSPC, "No space left on device", path)
    _write_bytes(path, content, *more, **options)
"""


@pytest.fixture
def full(host):
    """The file while which is there nothing can be written by the supervisor."""
    flag = host.root / "full"
    atomic = host.engine / "remote_train" / "atomic.py"
    atomic.write_text(atomic.read_text() + FULL_DISK.format(flag=str(flag)))
    return flag


def patient_for(host: Host, seconds: float) -> None:
    """Let the supervisor wait for room so long."""
    supervisor = host.engine / "remote_train" / "stage_run.py"
    text = supervisor.read_text()
    assert "ROOM_WITHIN = 600.0" in text
    supervisor.write_text(text.replace("ROOM_WITHIN = 600.0", f"ROOM_WITHIN = {seconds}"))


def test_a_disk_that_is_full_for_a_while_does_not_end_a_training(host, full):
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    full.touch()
    time.sleep(0.5)  # some heartbeats
    assert live.is_held(str(host.root))
    assert Path(f"/proc/{status['pid']}/cmdline").read_bytes()
    full.unlink()
    host.wait(lambda now: now["heartbeat"] > status["heartbeat"] + 0.4)
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"
    assert host.supervisor_log() == ""


def test_what_came_out_is_kept_as_soon_as_there_is_room(host, full):
    warning = {"symptom": "2 chats were cut.", "cause": "C", "action": "A", "category": "data"}
    host.start({"wait": True, "result": {"warnings": [warning]}})
    host.wait(lambda status: status["progress"].get("step"))
    full.touch()
    (host.root / "go_on").touch()
    host.until(lambda: host.log().endswith("ends\n"))
    time.sleep(0.3)
    assert host.status()["state"] == "running"
    full.unlink()
    assert host.finish()["state"] == "done"
    assert host.marker()["status"] == "done"
    assert host.states() == {".stage_style_done"}
    assert len(host.issues()) == 1


def waits_for(host, line, module="stage_record"):
    """Have the supervisor wait before a line until the file ``waited`` is there."""
    path = host.engine / f"remote_train/{module}.py"
    text = path.read_text()
    assert text.count(line) == 1
    indent = " " * (len(line) - len(line.lstrip(" ")))
    flag = host.root / "waited"
    wait = f"{indent}while not os.path.exists({str(flag)!r}):\n{indent}    time.sleep(0.01)\n"
    path.write_text(text.replace(line, wait + line))
    return flag


def test_it_beats_while_what_came_out_is_hashed(host):
    """However large that is: whoever follows gives a silent supervisor up after a minute."""
    flag = waits_for(host, "    markers.write(\n")
    host.start()
    host.until(lambda: host.log().endswith("ends\n"))
    first = host.status()["heartbeat"]
    host.wait(lambda status: status["heartbeat"] > first + 0.5)
    assert host.status()["state"] == "running"
    flag.touch()
    assert host.finish()["state"] == "done"


def test_on_a_full_disk_the_heartbeat_goes_on_and_nothing_else_changes(host, full):
    host.start({"wait": True})
    host.wait(lambda status: status["progress"].get("step"))
    full.touch()
    time.sleep(0.3)  # what was being written
    before = host.status()
    after = host.wait(lambda status: status["heartbeat"] > before["heartbeat"] + 0.5)
    assert {**after, "heartbeat": 0} == {**before, "heartbeat": 0}
    assert abs(after["heartbeat"] - time.time()) < 5
    full.unlink()
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


def test_a_disk_that_has_really_no_room(tmp_path, monkeypatch):
    """On a file system in memory: not one page is left, and the stage is followed to its end."""
    monkeypatch.setattr(launch.pythons, "probe", lambda *_: this_python())
    with small_disk("size=3m") as disk:
        host = Host(disk / "project")
        try:
            host.start({"wait": True})
            host.wait(lambda status: status["progress"].get("step"))
            fill(disk / "filler")
            before = host.status()
            host.wait(lambda status: status["heartbeat"] > before["heartbeat"] + 0.5)
            (disk / "filler").unlink()
            (host.root / "go_on").touch()
            assert host.finish()["state"] == "done"
            assert host.supervisor_log() == ""
        finally:
            host.close()


def test_a_result_that_the_disk_did_not_take_is_as_good_as_one_that_it_took(host, full):
    host.start({"wait": True, "told": True})
    host.wait(lambda status: status["progress"].get("step"))
    full.touch()
    (host.root / "go_on").touch()
    host.until(lambda: host.log().endswith("ends\n"))
    time.sleep(0.3)
    assert host.status()["state"] == "running"
    full.unlink()
    status = host.finish()
    assert (status["state"], status["attempt"]) == ("done", 1)
    assert host.marker()["metrics"] == {"train_loss": 0.5}
    assert live.read_json(live.path(str(host.root), "result.json"))["token"] == FIRST


def test_a_full_disk_that_a_training_could_only_tell_of_is_waited_for(host):
    error = {"category": "infra", "symptom": "The disk is full.", "cause": "", "action": "A."}
    fake = {"told": True, "result": {"status": "failed", "error": error}}
    host.start(fake, stage_retries=1)
    status = host.finish()
    assert (status["kind"], status["attempt"], status["error"]) == ("disk_full", 2, error)


def test_a_crash_that_a_full_disk_is_the_last_word_of_is_one(host):
    host.start({"crash": "[Errno 28] No space left on device: 'x'"}, stage_retries=1)
    status = host.finish()
    assert (status["kind"], status["attempt"]) == ("disk_full", 2)
    assert status["error"]["category"] == "infra"
    assert status["error"]["action"].startswith("Free space")


def test_a_supervisor_that_follows_what_another_left_needs_no_room_for_it(host, full, monkeypatch):
    monkeypatch.setattr(launch, "STARTED_WITHIN", 1.0)
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    full.touch()
    answer = host.start({}, mark="t2")
    assert (answer["outcome"], answer["status"]["token"]) == ("busy", FIRST)
    follower = handover.waiting(str(host.root))
    assert follower is not None
    (host.root / "go_on").touch()
    host.until(lambda: gone(status["child"]["pid"]))
    time.sleep(0.3)
    full.unlink()
    assert host.finish()["state"] == "done"
    assert host.supervisor_log() == ""
    assert host.starts() == ["train"]


def test_a_lock_that_can_not_be_noted_is_held_all_the_same(tmp_path, monkeypatch):
    root = str(tmp_path)
    os.close(live.take(root, {"stage": "before"}))
    monkeypatch.setattr(live, "write_json", no_room)
    descriptor = live.take(root, {"stage": "style"})
    assert live.is_held(root)
    os.close(descriptor)
    assert not live.is_held(root)
    assert live.read_json(live.path(root, "holder.json")) == {}  # and not who held it before


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Quiet:
    """Signals that never come; it counts how often they are waited for."""

    asked = 0

    def __init__(self) -> None:
        self.waits: list[float] = []

    def wait(self, _readers: list[int], seconds: float) -> list[int]:
        self.waits.append(seconds)
        return []


def alone(host: Host) -> stage_run.StageRun:
    """A stage without a supervisor's process."""
    job = {
        "stage": "style",
        "run": RUN,
        "token": "t1",
        "mode": "train",
        "log": "outputs/log",
        "log_path": str(host.root / "outputs/log"),
        "command": [],
        "retries": 2,
        "retry_pause": 0,
    }
    return stage_run.StageRun(str(host.root), job, {}, None, Quiet())


def test_the_patience_for_room_begins_anew_after_each_success(host, monkeypatch):
    monkeypatch.setattr(stage_run, "HEARTBEAT", 0.02)
    monkeypatch.setattr(stage_run, "ROOM_WITHIN", 0.3)
    stage = alone(host)
    for _ in range(2):
        left = [1, 1]

        def write(left: list[int] = left) -> None:
            if left:
                left.pop()
                no_room()

        stage._with_room(write)
        assert left == []
        time.sleep(0.4)
    with pytest.raises(OSError, match="No space left"):
        stage._with_room(no_room)


@pytest.mark.parametrize(("pause", "waits"), [(0, {2.0}), (1, {1.0, 2.0})])
def test_waiting_for_room_is_no_busy_loop(host, monkeypatch, pause, waits):
    stage = alone(host)
    stage.job["retry_pause"] = pause
    stage.status["attempt"] = 1
    looks = iter([0.0] * 9)
    monkeypatch.setattr(stage, "_free", lambda: next(looks, stage_run.ROOM))
    clock = Clock(stage._signals)
    monkeypatch.setattr(stage_run.time, "monotonic", clock)
    assert stage._pause(failures.Failure("disk_full", "x"))
    assert {round(seconds, 1) for seconds in stage._signals.waits} == waits
    assert len(stage._signals.waits) == 9


class Clock:
    """Stands still but for what was waited."""

    def __init__(self, signals: Quiet) -> None:
        self._signals = signals

    def __call__(self) -> float:
        return sum(self._signals.waits)


def test_only_news_is_waited_for_until_the_disk_has_it(host, monkeypatch):
    stage = alone(host)
    said = []
    monkeypatch.setattr(
        stage_run, "write_json", lambda _path, _status, durable: said.append(durable)
    )
    stage.beat()
    stage.beat(progress={"phase": "train", "step": 1})
    stage.beat(silent_for=3)
    stage.beat(retry_at=1.0)
    stage.beat(progress={"phase": "train", "step": 2})
    stage.beat(state="done")
    assert said == [True, False, False, True, False, True]


def test_news_that_could_not_be_written_is_still_news(host, monkeypatch):
    stage = alone(host)
    stage.beat()
    monkeypatch.setattr(stage_run, "write_json", no_room)
    stage.beat(state="done")
    said = []
    monkeypatch.setattr(
        stage_run, "write_json", lambda _path, _status, durable: said.append(durable)
    )
    stage.beat()
    stage.beat()
    assert said == [True, False]


@pytest.mark.parametrize("beat", [1764004147.0, 1764004147.25, 1764004147.1234567])
def test_a_heartbeat_moves_on_in_its_own_bytes(tmp_path, beat):
    file = tmp_path / "status.json"
    status = {"text": '"heartbeat": 1111111111.5', "heartbeat": beat, "state": "running"}
    file.write_text(json.dumps(status))
    inode, size = file.stat().st_ino, file.stat().st_size
    heartbeat.move_on(str(file))
    found = json.loads(file.read_text())
    assert abs(found.pop("heartbeat") - time.time()) < 5
    assert found == {"text": status["text"], "state": "running"}
    assert (file.stat().st_ino, file.stat().st_size) == (inode, size)


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{"heartbeat": null}', b'{"heartbeat": 12}'])
def test_a_file_without_a_heartbeat_is_left_as_it_is(tmp_path, content):
    file = tmp_path / "status.json"
    file.write_bytes(content)
    heartbeat.move_on(str(file))
    assert file.read_bytes() == content
    heartbeat.move_on(str(tmp_path / "none"))
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


# A Python without pidfd_open


@pytest.mark.parametrize("missing", [(os, "pidfd_open"), (signal, "pidfd_send_signal")])
def test_a_python_that_was_built_on_an_old_system_signals_all_the_same(monkeypatch, missing):
    monkeypatch.delattr(*missing)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        who = live.identity(sleeper.pid)
        assert not processes.send({**who, "start_time": 1}, signal.SIGTERM)
        orphan = worker_process.Orphan(who)
        assert (orphan.alarm is None) is (missing[0] is os)
        assert orphan.ended() is None
        assert processes.send(who, signal.SIGTERM)
        assert sleeper.wait(10) == -signal.SIGTERM
        assert orphan.ended() == 0
        orphan.close()
    assert not processes.send(who, signal.SIGTERM)


def test_and_its_supervisor_follows_what_another_left(host):
    path = host.engine / "remote_train/processes.py"
    path.write_text(f"{path.read_text()}\ndel os.pidfd_open, signal.pidfd_send_signal\n")
    host.start({"wait": True})
    status = host.wait(lambda status: status["progress"].get("step"))
    kill(status["pid"])
    host.until(lambda: gone(status["pid"]))
    assert launch.attach(str(host.root), {})["status"]["pid"] != status["pid"]
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


# A log that can't be written


@pytest.mark.parametrize("changes", [{}, own()], ids=["ours", "command"])
@pytest.mark.parametrize(
    ("place", "symptom"),
    [
        ("outputs/logs", "The log {log} can't be written: {root}/outputs/logs is no folder."),
        ("outputs/logs/x", "The log {log} can't be written: Is a directory."),
    ],
)
def test_a_log_that_can_not_be_opened_is_named(host, changes, place, symptom):
    if place == "outputs/logs":
        put(host.root, {place: b"a file"})
    else:
        line = "                running = self._crew.start("
        path = host.engine / "remote_train/stage_run.py"
        text = path.read_text()
        assert text.count(line) == 1
        path.write_text(
            text.replace(line, f"                os.makedirs(self.job['log_path'])\n{line}")
        )
    host.start(**changes)
    status = host.finish()
    error = status["error"]
    assert error["symptom"] == symptom.format(log=status["log"], root=host.root)
    assert (status["kind"], error["category"]) == ("host", "infra")
    assert "log_dir" in error["action"]
    assert host.starts() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_log_that_the_disk_has_no_room_for_is_waited_for(host, number):
    path = host.engine / "remote_train/stage_run.py"
    line = "                running = self._crew.start("
    text = path.read_text()
    assert text.count(line) == 1
    code = (
        f"                if self.status['attempt'] == 1: "
        f"raise OSError({number}, os.strerror({number}), self.job['log_path'])\n"
    )
    path.write_text(text.replace(line, code + line))
    host.start(stage_retries=1)
    assert host.finish()["state"] == "done"
    assert host.starts() == ["train"]
    (issue,) = host.issues()
    assert issue["symptom"] == "The training of style can't be started: the disk is full."


def test_a_disk_that_stays_full_ends_in_a_sentence(host, full):
    patient_for(host, 0.3)
    host.start({"wait": True})
    host.wait(lambda status: status["progress"].get("step"))
    full.touch()
    (host.root / "go_on").touch()
    host.until(lambda: not live.is_held(str(host.root)))
    (line,) = host.supervisor_log().splitlines()
    assert line.startswith("The stage style has failed, and its status can't be kept: [Errno 28]")
    assert host.marker() is None


def test_a_run_folder_that_takes_nothing_fails_the_stage_after_its_end(host):
    folder = host.root / "outputs/training_sync" / RUN
    host.start({"wait": True})
    host.wait(lambda status: status["progress"].get("step"))
    folder.write_text("in the way")
    (host.root / "go_on").touch()
    status = host.finish()
    assert status["state"] == "failed"
    assert status["error"]["symptom"].startswith("The run's record can't be kept: ")
    assert host.starts() == ["train"]
    assert host.supervisor_log() == ""


def test_a_disk_that_is_full_from_the_start_starts_nothing(host, full):
    full.touch()
    with pytest.raises(TrainError, match=r"can't write what it has to: .*No space left"):
        host.start()
    assert host.starts() == []


# What doesn't start


def test_a_stage_of_ours_without_a_python_is_named(host):
    with pytest.raises(TrainError, match="No Python is known on the host that can train style"):
        host.start(python="")
    assert host.starts() == []


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"provision_found": {"path": "/venv/python"}}, "/venv/python"),
        ({"plan_result": {"python": {"path": "/opt/python"}}}, "/opt/python"),
        ({"provision_found": None, "plan_result": {"python": {"path": "/p"}}}, "/p"),
        ({"plan_result": {"python": None}}, ""),
    ],
)
def test_without_the_step_provision_the_python_is_that_of_the_plan(facts, expected):
    task = load_yaml("roles", "train_stage", "tasks", "main.yml")[0]
    template = jinja2.Environment(autoescape=True).from_string(task["stage"]["python"])
    assert template.render({"plan_result": {"python": None}, **facts}) == expected


def test_data_that_is_missing_is_named(host):
    (host.root / TRAIN).unlink()
    with pytest.raises(TrainError, match=f"The stage style needs {TRAIN}") as caught:
        host.start()
    assert caught.value.category == "data"
    assert host.starts() == []


def test_a_supervisor_that_does_not_start_says_its_last_word(host):
    put(host.engine, {"remote_train/supervisor.py": b"import no_such_module\n"})
    with pytest.raises(TrainError) as caught:
        host.start()
    assert "No module named 'no_such_module'" in caught.value.message
    assert "supervisor.log" in caught.value.hint
    assert caught.value.category == "infra"


def test_a_stage_that_fails_at_once_is_no_supervisor_that_did_not_start(tmp_path):
    """It may write its status and end between two looks of the one that started it."""
    status = Path(live.path(str(tmp_path), "status.json"))
    put(tmp_path, {f"{live.FOLDER}/supervisor.log": b""})

    class QuickEnd:
        pid = 1

        def poll(self) -> int:
            status.write_text('{"token": "t1", "state": "failed"}')
            return 1

    found = launch._wait_for_status(str(tmp_path), "t1", QuickEnd())
    assert found["state"] == "failed"
