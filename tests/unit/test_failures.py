"""Kinds of failures: how they are told apart, and what is tried again."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from remote_train import (
    failures,
    gpu_watch,
    issues,
    killable,
    launch,
    live,
    stage_record,
    stage_states,
    stop,
)
from remote_train.failures import KINDS, Failure, Witness
from remote_train.kernel_log import KernelLog, Line
from remote_train.stage_run import StageRun
from tests.unit.stage_host import HOUSE, RUN, Host, put
from tests.unit.test_supervisor import SCRIPT, this_python
from training import errors, loop, model
from training.failures import Stopped, explain
from training.settings import Settings


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.pythons, "probe", lambda *_: this_python())
    made = Host(tmp_path / "a project")
    yield made
    made.close()


# The table

ALLOCATION = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"
"""How cuBLAS says that memory ran out."""


def test_every_kind_has_a_category_of_the_record_and_a_policy():
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind.category in issues.CATEGORIES
        assert kind.policy in (failures.RETRY, failures.ROOM, failures.STOP, failures.CONTINUE)


def test_the_table_is_the_one_in_the_documents():
    text = (HOUSE / "docs/architecture.md").read_text(encoding="utf-8")
    rows = [
        f"| {k.name} | {k.category} | {k.policy}{', once' if k.most == 1 else ''} | {k.meaning} |"
        for k in KINDS.values()
    ]
    assert "\n".join(rows) in text


@pytest.mark.parametrize(
    ("category", "symptom", "cause", "kind"),
    [
        ("oom", "The memory did not suffice.", "CUDA out of memory. Tried to", "oom"),
        ("oom", "The memory did not suffice.", f"{ALLOCATION} when calling it", "oom"),
        ("data", "x.jsonl line 3 is no chat.", "", "data"),
        ("model_download", "The base model x can't be had from a hub.", "", "model_download"),
        ("model_download", "The base model's folder x is not there.", "", "model"),
        ("training_logic", "The loss is nan at step 4, so training stopped.", "", "diverged"),
        ("training_logic", "The gradient is inf at step 4, so it stopped.", "", "diverged"),
        ("training_logic", "The loss of it is information.", "", "unknown"),
        ("training_logic", "The training ended with KeyError: 'x'", "", "unknown"),
        ("infra", "The disk is full at /x.", "", "disk_full"),
        ("infra", "/x may not be written or read.", "", "host"),
        ("ops", "use_qlora needs a CUDA GPU.", "", "setting"),
        ("ops", "The training ended.", "CUDA error: unspecified launch failure", "gpu"),
        ("training_logic", "It ended with AcceleratorError: CUDA error: unknown error", "", "gpu"),
        ("training_logic", "CUDA error: device-side assert triggered", "", "unknown"),
        ("training_logic", "CUDA error: out of memory", "", "unknown"),
        ("training_logic", "NVRM: GPU has fallen off the bus.", "", "gpu"),
        ("magic", "?", "", "setting"),
        ("ops", str(explain(Stopped())), "", "signal"),
    ],
)
def test_what_the_training_says_of_itself(category, symptom, cause, kind):
    error = {"category": category, "symptom": symptom, "cause": cause, "action": "A"}
    found = failures.of_error(error, ["the", "log"])
    assert found.kind == kind
    assert found.as_error()["symptom"] == symptom
    if kind == "gpu":
        assert found.as_error()["category"] == "infra"
        assert "Restart the machine" in found.action
    if kind == "unknown":
        assert found.cause == "the\nlog"


IN_A_WORD = {
    errors.MODEL_DOWNLOAD: lambda: model._not_loaded(
        Settings(model_name_or_path="some/model"), "a hub", OSError("no way")
    ),
    errors.DIVERGED: lambda: loop._not_finite("loss", float("nan"), 4, []),
    errors.DISK_FULL: lambda: explain(OSError(errno.ENOSPC, "No space left on device", "/x")),
    errors.SIGNAL: lambda: explain(Stopped()),
}
"""Each error that the training names a kind of."""


def test_the_training_and_the_table_have_the_same_names_for_kinds():
    assert set(IN_A_WORD) == set(errors.KINDS) <= set(KINDS)
    with pytest.raises(ValueError, match="no such kind of failure: magic"):
        errors.JobError("ops", "S", "A", kind="magic")


@pytest.mark.parametrize("name", errors.KINDS)
def test_a_kind_that_the_training_names_counts_whatever_its_words_are(name):
    raised = IN_A_WORD[name]()
    said = raised.as_dict()
    assert said["kind"] == name
    assert said["category"] == KINDS[name].category or name == errors.SIGNAL
    assert failures.of_error({**said, "symptom": "Ein Satz.", "cause": ""}, []).kind == name
    # A result of before kinds were named has its words alone.
    before = {key: value for key, value in said.items() if key != "kind"}
    assert failures.of_error(before, []).kind == name


@pytest.mark.parametrize(
    ("category", "symptom", "kind"),
    [
        ("model_download", "x can't be had, says its README.", "model"),
        ("training_logic", "KeyError: the loss of it is nan", "unknown"),
        ("infra", "/disk is full/x may not be written.", "host"),
        ("ops", "The setting stopped by a signal is none.", "setting"),
        ("oom", "", "oom"),
        ("data", "", "data"),
    ],
)
@pytest.mark.parametrize("named", ["", "a kind of a later training"])
def test_words_mean_nothing_where_kinds_are_named(category, symptom, kind, named):
    said = {"category": category, "symptom": symptom, "cause": "", "action": "", "kind": named}
    assert failures.of_error(said, []).kind == kind


# What the controller knows


def test_a_cut_and_a_host_that_is_gone_are_kinds_of_the_table():
    cut, gone = failures.of_cut("style", 3.5), failures.of_silence(60, "it goes on", "it attaches")
    assert (cut.kind, gone.kind) == ("link", "unreachable")
    for found in (cut, gone):
        assert KINDS[found.kind].policy == failures.CONTINUE
        assert found.as_error()["category"] == KINDS[found.kind].category
    assert "3.5 s while style was followed" in cut.symptom
    assert gone.action.startswith("It goes on: give the same command again")


def test_every_kind_is_given_to_something():
    """By its name in the code that tells failures apart: none is in the table alone."""
    folder = HOUSE / "plugins/module_utils/remote_train"
    files = ("failures.py", "stage_record.py", "stage_run.py")
    text = "\n".join((folder / file).read_text(encoding="utf-8") for file in files)
    _, _, below = text.partition("\n_GPU = ")
    assert [name for name in KINDS if f'"{name}"' not in below] == []


# What the system knows


@pytest.fixture
def kernel(monkeypatch):
    """What the kernel's log says."""
    lines: list[Line] = []

    def read(keep):
        return KernelLog("kmsg", tuple(line for line in lines if keep(line.text)))

    monkeypatch.setattr(failures.kernel_log, "read", read)
    monkeypatch.setattr(failures.processes, "has_the_kernels_numbers", lambda: True)
    return lines


@pytest.fixture
def group(monkeypatch):
    """How many processes the control group counts as killed for memory."""
    count = [3]
    monkeypatch.setattr(failures, "_killed_for_memory", lambda: count[0])
    return count


XID = "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus."
KILLED = "Out of memory: Killed process 77 (python3) total-vm:1kB"


@pytest.mark.parametrize(
    ("text", "age", "number", "kind"),
    [
        (None, 0, signal.SIGKILL, "signal"),
        (None, 0, signal.SIGSEGV, "signal"),
        (KILLED, 0.0, signal.SIGKILL, "killed_for_memory"),
        (KILLED.replace("python3", "other"), 0.0, signal.SIGKILL, "killed_for_memory"),
        (KILLED.replace("77 (python3)", "9 (other)"), 0.0, signal.SIGKILL, "signal"),
        (KILLED.replace("77 (python3)", "9 (python3)"), 0.0, signal.SIGKILL, "signal"),
        (KILLED, 1e6, signal.SIGKILL, "signal"),
        (KILLED, 0.0, signal.SIGSEGV, "signal"),
        (XID, 0.0, signal.SIGABRT, "gpu"),
        (XID, 1e6, signal.SIGABRT, "signal"),
        (XID.replace(": 79,", ": 13,"), 0.0, signal.SIGABRT, "signal"),
        ("a line about Xid that is none", None, signal.SIGABRT, "signal"),
    ],
)
def test_killed_by_a_signal(kernel, group, text, age, number, kind):
    witness = Witness()
    time.sleep(0.01)
    if text:
        kernel.append(Line(age, text))
    found = witness.of_signal(number, 77)
    assert found.kind == kind
    assert found.symptom == f"The training was killed by {number.name}."
    if kind == "killed_for_memory":
        assert KILLED.split(" (", maxsplit=1)[0] in found.cause


def test_a_signal_without_a_name_is_told_by_its_number(kernel, group):
    number = signal.SIGRTMIN + 1
    found = Witness().of_signal(number, 77)
    assert (found.kind, found.symptom) == ("signal", f"The training was killed by signal {number}.")


def test_the_control_group_knows_of_it_where_the_log_is_not_ours_to_read(kernel, group):
    witness = Witness()
    group[0] += 1
    assert witness.of_signal(signal.SIGKILL, 77).kind == "killed_for_memory"
    assert Witness().of_signal(signal.SIGKILL, 77).kind == "signal"


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize(("name", "pid"), [("python3", 9), ("python3", 77), ("other", 77)])
def test_in_a_container_the_kernels_numbers_say_nothing(
    kernel, group, monkeypatch, counts, name, pid
):
    """What the control group says counts; and the name alone, where that says nothing."""
    monkeypatch.setattr(failures.processes, "has_the_kernels_numbers", lambda: False)
    group[0] = 3 if counts else None
    witness = Witness()
    time.sleep(0.01)
    kernel.append(Line(0.0, KILLED.replace("77 (python3)", f"{pid} ({name})")))
    found = witness.of_signal(signal.SIGKILL, 77).kind
    by_name = not counts and name == "python3"
    assert found == ("killed_for_memory" if by_name else "signal")
    if counts:
        group[0] += 1
        assert witness.of_signal(signal.SIGKILL, 77).kind == "killed_for_memory"


def test_what_is_tried_again_once_is_counted_by_itself(tmp_path):
    """Two that were killed otherwise before are none of its."""
    job = dict.fromkeys(("stage", "run", "token", "mode", "log"), "x") | {"retries": 9}
    crew = SimpleNamespace(take=lambda _: True)
    run = StageRun(str(tmp_path), job, {}, crew, SimpleNamespace(asked=0))
    again = []
    for kind in ("signal", "signal", "killed_for_memory", "signal", "killed_for_memory"):
        run.status["attempt"] += 1
        again.append(run._is_tried_again(Failure(kind, "S")))
    assert again == [True, True, True, True, False]


def test_an_end_without_a_word(kernel, group):
    said = ["Traceback", "RuntimeError: CUDA error: unspecified launch failure"]
    assert Witness().of_end("S", ["x"], "A").kind == "unknown"
    assert Witness().of_end("S", ["x"], "A").cause == "x"
    assert Witness().of_end("S", said, "A").kind == "gpu"
    witness = Witness()
    time.sleep(0.01)
    kernel.append(Line(0.0, XID))
    found = witness.of_end("S", ["x"], "A")
    assert found.kind == "gpu"
    assert "Xid 79 of 0000:3b:00" in found.cause


def test_a_kernel_log_that_hangs_is_given_up(monkeypatch, group):
    monkeypatch.setattr(failures.kernel_log, "read", lambda **_: time.sleep(60))
    monkeypatch.setattr(killable, "PATIENCE", 0.1)
    monkeypatch.setattr(failures, "KERNEL_SECONDS", 0.2)
    began = time.monotonic()
    assert Witness().of_signal(signal.SIGKILL, 1).kind == "signal"
    assert time.monotonic() - began < 3


# Tried again


def waiting(host):
    return host.wait(lambda status: status["progress"].get("step"))


def test_a_stage_that_is_killed_is_tried_again_by_itself(host):
    host.start({"wait": True})
    first = waiting(host)
    os.kill(first["child"]["pid"], signal.SIGKILL)
    again = host.wait(lambda now: now["attempt"] == 2 and now["progress"].get("step"))
    assert again["pid"] == first["pid"]
    assert again["token"] == first["token"]
    assert again["kind"] == "signal"
    # Its pace is that of this attempt alone.
    assert first["paced_from"]["step"] == again["paced_from"]["step"] == 1
    assert again["paced_from"]["at"] > first["paced_from"]["at"]
    (host.root / "go_on").touch()
    ended = host.finish()
    assert (ended["state"], ended["attempt"]) == ("done", 2)
    assert "kind" not in ended
    assert host.marker()["status"] == "done"
    (issue,) = host.issues()
    assert (issue["severity"], issue["status"]) == ("warning", "handled")
    assert issue["action"].startswith("Attempt 2 of 3 begins in 0 s.")


@pytest.mark.parametrize("force", [True, False])
def test_a_new_attempt_goes_on_from_the_last_checkpoint(host, force):
    host.start({"wait": True}, force=force)
    path = Path(live.path(str(host.root), "training.json"))
    first = json.loads(path.read_text())["checkpoints"]
    assert first["fresh"] is force
    assert first["folder"] == "outputs/training_sync/checkpoints/style"
    assert (first["steps"], first["minutes"], first["keep"]) == (0, 5, 2)
    os.kill(waiting(host)["child"]["pid"], signal.SIGKILL)
    host.wait(lambda now: now["attempt"] == 2 and now["progress"].get("step"))
    # It goes on from its own run's, and still from no other's.
    assert json.loads(path.read_text())["checkpoints"] == first
    (host.root / "go_on").touch()
    host.finish()


def test_after_all_attempts_it_fails_and_each_is_an_issue(host):
    script = ["sh", "-c", "echo x >> tries; kill -9 $$"]
    host.start(stage_command=script, stage_retries=2)
    status = host.finish()
    assert (status["state"], status["attempt"], status["kind"]) == ("failed", 3, "signal")
    assert (host.root / "tries").read_text() == "x\n" * 3
    assert [issue["severity"] for issue in host.issues()] == ["warning", "warning", "error"]


@pytest.mark.parametrize(
    ("category", "symptom", "tries"),
    [
        ("data", "Bad.", 1),
        ("oom", "No memory.", 1),
        ("ops", "Bad.", 1),
        ("training_logic", "The loss is nan at step 4, so it stopped.", 1),
        ("training_logic", "CUDA error: unspecified launch failure", 1),
        ("training_logic", "What?", 1),
        ("model_download", "The base model x can't be had from a hub.", 3),
        ("model_download", "The base model's folder x is not there.", 1),
        ("infra", "The disk is full.", 3),
    ],
)
def test_what_would_be_so_again_is_not_tried_again(host, category, symptom, tries):
    error = {"category": category, "symptom": symptom, "cause": "", "action": ""}
    status = host.trained(result={"status": "failed", "error": error})
    assert status["state"] == "failed"
    assert host.starts() == ["train"] * tries


def test_the_pauses_grow_and_are_said(host):
    host.start(stage_command=["sh", "-c", "kill -9 $$"], stage_retry_pause=1, stage_retries=2)
    first = host.wait(lambda status: "retry_at" in status)
    assert first["attempt"] == 1
    assert 0 < first["retry_at"] - time.time() <= 1.01
    wanted = host.request()
    rows = stage_states.of(wanted, ("", ""), {}, live.running(str(host.root)))
    row = next(row for row in rows if row["name"] == "style")
    assert (row["attempt"], row["kind"]) == (1, "signal")
    assert row["retry_in"] in (0, 1)
    second = host.wait(lambda status: "retry_at" in status and status["attempt"] == 2)
    assert 1.5 < second["retry_at"] - time.time() <= 2.01
    assert "retry_at" not in host.finish()


def test_a_stop_ends_a_pause(host):
    host.start(stage_command=["sh", "-c", "kill -9 $$"], stage_retry_pause=60)
    host.wait(lambda status: "retry_at" in status)
    began = time.monotonic()
    assert stop.stop(str(host.root), "me", "c", 5)["state"] == "stopped"
    assert time.monotonic() - began < 5
    assert host.status()["error"]["symptom"] == "The stage was stopped by me."


def test_room_is_waited_for_before_a_new_attempt(host):
    put(
        host.engine,
        {
            "remote_train/stage_run.py": (host.engine / "remote_train/stage_run.py")
            .read_text()
            .replace(
                "found = os.statvfs(self.root)",
                "if not os.path.exists(os.path.join(self.root, 'room')): return 0\n"
                "        found = os.statvfs(self.root)",
            )
            .encode()
        },
    )
    error = {"category": "infra", "symptom": "The disk is full.", "cause": "", "action": ""}
    host.start({"result": {"status": "failed", "error": error}}, stage_retries=1)
    host.wait(lambda status: "retry_at" in status)
    time.sleep(0.4)
    assert host.starts() == ["train"]
    (host.root / "room").touch()
    host.finish()
    assert host.starts() == ["train", "train"]


# The status


def test_news_is_in_the_status_before_the_next_heartbeat(host):
    path = host.engine / "remote_train/stage_run.py"
    path.write_text(path.read_text().replace("HEARTBEAT = 0.1", "HEARTBEAT = 8.0"))
    host.start({"wait": True})
    began = time.monotonic()
    host.wait(lambda status: status["progress"].get("step"))
    assert time.monotonic() - began < 6
    (host.root / "go_on").touch()
    host.finish()


# Silence


def test_a_training_that_hangs_is_said_and_not_killed(host):
    path = host.engine / "remote_train/stage_run.py"
    path.write_text(path.read_text().replace("SILENT_AFTER = 300.0", "SILENT_AFTER = 0.5"))
    host.start({"wait": True})
    child = waiting(host)["child"]
    os.kill(child["pid"], signal.SIGSTOP)
    silent = host.wait(lambda status: status.get("silent_for", 0) >= 1)
    assert silent["state"] == "running"
    rows = stage_states.of(host.request(), ("", ""), {}, live.running(str(host.root)))
    assert next(row for row in rows if row["name"] == "style")["silent_for"] >= 1
    (issue,) = host.issues()
    assert (issue["severity"], issue["category"]) == ("warning", "infra")
    assert "has given no sign" in issue["symptom"]
    os.kill(child["pid"], signal.SIGCONT)
    (host.root / "go_on").touch()
    ended = host.finish()
    assert ended["state"] == "done"


def test_a_command_that_writes_its_log_is_not_silent(host):
    path = host.engine / "remote_train/stage_run.py"
    path.write_text(path.read_text().replace("SILENT_AFTER = 300.0", "SILENT_AFTER = 0.5"))
    script = f"for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.2; done; {SCRIPT}"
    host.start(stage_command=["sh", "-c", script])
    seen = []
    while host.status().get("state") == "running":
        seen.append("silent_for" in host.status())
        time.sleep(0.05)
    assert True not in seen
    assert host.finish()["state"] == "done"


# What others on the host may read


def test_the_words_of_a_users_command_are_for_its_user_alone(host):
    """A token may stand among them; status and log are read over a login of its own."""
    host.start(stage_command=["sh", "-c", SCRIPT, "a secret"])
    host.finish()
    readable = [
        path.name
        for path in (host.root / live.FOLDER).iterdir()
        if path.is_file() and b"a secret" in path.read_bytes() and path.stat().st_mode & 0o077
    ]
    assert readable == []
    assert "a secret" in Path(live.path(str(host.root), "job.json")).read_text()


# Checkpoints


def checkpoints(host, run=RUN):
    put(
        host.root / "outputs/training_sync/checkpoints",
        {
            "style/step_00000004/state.json": json.dumps({"run": run}).encode(),
            "writing/step_00000004/state.json": b"{}",
        },
    )
    return host.root / "outputs/training_sync/checkpoints"


def test_the_checkpoints_of_a_stage_go_when_it_is_done_and_no_others(host):
    folder = checkpoints(host)
    assert host.trained(crash="x")["state"] == "failed"
    assert (folder / "style/step_00000004/state.json").exists()
    host.start({}, mark="t2")
    assert host.finish()["state"] == "done"
    assert not (folder / "style").exists()
    assert (folder / "writing/step_00000004/state.json").exists()


def test_a_checkpoint_folder_that_is_a_link_is_left_alone(host):
    folder = checkpoints(host)
    elsewhere = host.root / "elsewhere"
    os.rename(folder / "style", elsewhere)
    (folder / "style").symlink_to(elsewhere)
    host.trained()
    assert (elsewhere / "step_00000004/state.json").exists()


def test_a_name_that_leads_elsewhere_removes_nothing(host):
    folder = checkpoints(host)
    put(host.root, {"outputs/training_sync/stages/x": b""})
    for name in ("..", "../stages", ".", "", "style/../../stages"):
        stage_record.remove_checkpoints(str(host.root), name)
    assert (folder / "style").exists()
    assert (folder.parent / "stages/x").exists()
    stage_record.remove_checkpoints(str(host.root), "style")
    assert not (folder / "style").exists()


def test_outputs_may_be_a_link_to_another_disk(host, tmp_path):
    checkpoints(host)
    os.rename(host.root / "outputs/training_sync/checkpoints", tmp_path / "checkpoints")
    (host.root / "outputs/training_sync/checkpoints").symlink_to(tmp_path / "checkpoints")
    host.trained()
    assert not (tmp_path / "checkpoints/style").exists()


@pytest.mark.parametrize(
    ("force", "run", "fresh"),
    [
        (False, "run_20260101T000000Z", False),
        (True, "run_20260101T000000Z", True),
        (True, RUN, True),
    ],
)
def test_force_goes_on_from_checkpoints_of_its_own_run_alone(host, force, run, fresh):
    folder = checkpoints(host, run)
    host.start({"hold": True}, force=force)
    training = live.read_json(live.path(str(host.root), "training.json"))
    assert training["checkpoints"]["fresh"] is fresh
    assert (folder / "style").exists()  # the training itself tells whose they are
    assert (folder / "writing").exists()
    assert training["low_memory"] is False
    (host.root / "go_on").touch()
    host.finish()


# The GPU


def smi(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


TWO = 'echo "0, NVIDIA H100, 17, 1000, 81559"; echo "1, NVIDIA H100, 93, 2000, 81559"'


@pytest.mark.parametrize(
    ("visible", "used"), [("", 1000), ("1", 2000), ("1,0", 2000), ("GPU-x", 1000)]
)
def test_the_gpu_that_a_training_sees_first(tmp_path, visible, used):
    watch = gpu_watch.Watch({"CUDA_VISIBLE_DEVICES": visible}, smi(tmp_path, TWO))
    watch.look()
    watch._thread.join(20)
    found = watch.look()
    assert found["memory_bytes"] == used * gpu_watch.MIB
    assert found["memory_total_bytes"] == 81559 * gpu_watch.MIB
    assert found["utilisation"] == (93 if used == 2000 else 17)


def test_a_question_that_hangs_holds_up_nothing_and_is_not_asked_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_watch, "EVERY", 0.0)
    count = tmp_path / "count"
    watch = gpu_watch.Watch({}, smi(tmp_path / "bin", f"echo x >> {count}; exec sleep 3"))
    began = time.monotonic()
    for _ in range(20):
        assert watch.look() is None
        time.sleep(0.02)
    assert time.monotonic() - began < 1.5
    assert count.read_text() == "x\n"


def test_a_host_that_has_no_more_threads_is_asked_later(tmp_path, monkeypatch):
    watch = gpu_watch.Watch({}, smi(tmp_path, TWO))
    with monkeypatch.context() as patch:
        patch.setattr(gpu_watch.threading.Thread, "start", no_thread)
        assert watch.look() is None
    monkeypatch.setattr(gpu_watch, "EVERY", 0.0)
    watch.look()
    watch._thread.join(20)
    assert watch.look()["utilisation"] == 17


def no_thread(_thread):
    raise RuntimeError("can't start new thread")


def test_without_a_gpu_nothing_is_said_and_nothing_asked(tmp_path):
    watch = gpu_watch.Watch({}, str(tmp_path / "none"))
    assert watch.look() is None
    assert watch._thread is None


def test_the_status_has_it(host, monkeypatch):
    smi(host.root / "bin", TWO)
    monkeypatch.setenv("PATH", f"{host.root / 'bin'}:{os.environ['PATH']}")
    host.start({"wait": True})
    gpu = host.wait(lambda status: status.get("gpu"))["gpu"]
    assert gpu["utilisation"] == 17
    (host.root / "go_on").touch()
    host.finish()


# Odd file systems


def test_a_folder_that_knows_no_fifo_trains_all_the_same(host):
    path = host.engine / "remote_train/handover.py"
    text = path.read_text()
    assert "os.mkfifo(" in text
    path.write_text(text.replace("os.mkfifo(", "_none("))
    with path.open("a") as stream:
        stream.write(f"\n\ndef _none(*_):\n    raise OSError({errno.EPERM}, 'no')\n")
    assert host.trained()["state"] == "done"
    host.start({}, stage="writing", mark="t2")
    assert host.finish()["state"] == "done"
