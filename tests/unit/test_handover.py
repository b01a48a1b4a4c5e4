"""One supervisor and one worker for all the stages of a run: kept, handed over, ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from remote_train import gate_facts, gather, handover, launch, live, processes, status, stop
from remote_train.errors import TrainError
from remote_train.nvidia_smi import Answer
from remote_train.smi_xml import Gpu, Process, Snapshot
from tests.unit import fake_smi
from tests.unit import smi_documents as docs
from tests.unit.collect_host import CONTROLLER
from tests.unit.stage_host import RUN, Host, put
from tests.unit.test_supervisor import own, this_python


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(launch.pythons, "probe", lambda *_: this_python())
    made = Host(tmp_path / "a project")
    yield made
    made.close()


def facts(host):
    return handover.waiting(str(host.root))


def ends(host, seconds=10.0):
    """Wait for the end of supervisor and worker."""
    who = facts(host) or {}
    host.until(lambda: facts(host) is None, seconds)
    host.until(lambda: not processes.is_process(who.get("worker") or {}))
    assert not (host.root / live.FOLDER / handover.ORDERS).exists()


def file(host, name):
    return host.root / live.FOLDER / name


def trains(host, stage="style", mark="t1", **more):
    """Train a stage to its end; its status."""
    assert host.start(more.pop("fake", {}), stage=stage, mark=mark, **more)["outcome"] == "started"
    return host.finish()


# Kept


def test_one_supervisor_and_one_worker_for_all_stages(host):
    first = trains(host)
    waits = facts(host)
    assert (waits["state"], waits["run"], waits["stage"]) == ("waiting", RUN, "style")
    assert waits["worker"] == first["child"]
    assert time.time() + 500 < waits["until"] < time.time() + 600
    second = trains(host, "writing", "t2")
    assert second["pid"] == first["pid"]
    assert second["child"] == first["child"]
    assert second["state"] == "done"
    assert host.marker("writing")["status"] == "done"
    assert host.log() == "begins\nends\n"
    assert (host.root / first["log"]).read_text() == "begins\nends\n"
    assert live.read_json(live.path(str(host.root), "holder.json"))["stage"] == "writing"


def test_a_worker_that_waits_holds_no_lock(host):
    trains(host)
    root = str(host.root)
    assert live.running(root) is None
    taken = live.take(root, {})
    assert taken is not None
    os.close(taken)


def test_a_stage_that_fails_in_a_known_way_keeps_it(host):
    """The fake goes on after a result that says failed, as the real one does after its data."""
    error = {"category": "data", "symptom": "S.", "cause": "", "action": "A."}
    first = trains(host, fake={"result": {"status": "failed", "error": error}})
    assert first["state"] == "failed"
    assert facts(host)["state"] == "waiting"


def test_a_worker_that_a_stage_kills_takes_no_other_stage_with_it(host):
    first = trains(host, fake={"crash": "x"})
    assert first["state"] == "failed"
    ends(host)
    second = trains(host, "writing", "t2")
    assert second["state"] == "done"
    assert second["pid"] != first["pid"]


@pytest.mark.parametrize("who", ["worker", "supervisor", "both"])
def test_killed_while_it_waits_and_the_next_stage_has_others(host, who):
    first = trains(host)
    for name, victim in (("worker", first["child"]), ("supervisor", first)):
        if who in (name, "both"):
            os.kill(victim["pid"], signal.SIGKILL)
    host.until(lambda: facts(host) is None)
    second = trains(host, "writing", "t2")
    assert second["state"] == "done"
    assert second["pid"] != first["pid"]
    assert second["child"] != first["child"]
    host.until(lambda: not processes.is_process(first["child"]))


def test_another_environment_has_another_worker_under_the_same_supervisor(host):
    first = trains(host)
    second = trains(host, "writing", "t2", environment={"HF_HOME": "/x"})
    assert second["pid"] == first["pid"]
    assert second["child"] != first["child"]
    assert not processes.is_process(first["child"])


def test_another_engine_has_another_supervisor(host):
    first = trains(host)
    put(host.engine, {"remote_train/changed.py": b"\n"})
    second = trains(host, "writing", "t2")
    assert second["state"] == "done"
    assert second["pid"] != first["pid"]
    assert not processes.is_process(first["child"])


def test_a_command_of_the_users_gets_the_gpu_for_itself(host):
    first = trains(host)
    put(host.root, {"before": b""})
    script = (
        f"[ -d /proc/{first['child']['pid']} ] && echo there > before; {own()['stage_command'][2]}"
    )
    second = trains(host, "writing", "t2", **own(script))
    assert second["state"] == "done"
    assert (host.root / "before").read_bytes() == b""
    ends(host)  # nothing is kept for a command


# Secrets


def test_a_secret_is_in_no_file_and_not_in_the_supervisor(host):
    secret = "hf_" + "x" * 20
    given = {"HF_TOKEN": secret}
    trains(host, environment=given)
    host.start({"wait": True}, stage="writing", mark="t2", environment=given)
    now = host.wait(lambda status: status.get("child") and status["progress"])
    for pid, there in ((now["pid"], False), (now["child"]["pid"], True)):
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert (secret.encode() in environment) is there
        assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for path in host.root.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes()
    (host.root / "go_on").touch()
    host.finish()


def test_the_fifo_is_for_its_owner_alone(host, monkeypatch):
    trains(host)
    fifo = file(host, handover.ORDERS)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert stat.S_IMODE(fifo.stat().st_mode) == 0o600
    assert handover.give(str(host.root), {})
    fifo.chmod(0o622)
    assert not handover.give(str(host.root), {})
    fifo.chmod(0o600)
    monkeypatch.setattr(handover.os, "geteuid", lambda: 12345)
    assert not handover.give(str(host.root), {"environment": {"HF_TOKEN": "x"}})


def test_a_fifo_that_is_anothers_gets_no_order_and_the_stage_starts_all_the_same(host):
    first = trains(host)
    fifo = file(host, handover.ORDERS)
    fifo.unlink()
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    second = trains(host, "writing", "t2")
    assert second["state"] == "done"
    assert second["pid"] != first["pid"]


def test_half_an_order_and_one_for_another_job_start_nothing(host):
    first = trains(host)
    with file(host, handover.ORDERS).open("wb") as fifo:
        fifo.write(b'{"token": "t')
    assert handover.give(str(host.root), {"token": "another"})
    time.sleep(0.3)
    assert host.starts() == ["train"]
    second = trains(host, "writing", "t2")
    assert (second["state"], second["pid"]) == ("done", first["pid"])


# Ended


def test_it_waits_no_longer_than_it_may(host):
    trains(host, worker_idle_timeout=1)
    assert facts(host)["state"] == "waiting"
    ends(host)


def test_without_a_time_to_wait_it_ends_with_its_stage(host):
    trains(host, worker_idle_timeout=0)
    ends(host)


def test_a_start_at_the_last_moment_is_not_lost(host):
    """Again and again around the end of its time: each start trains, once."""
    fake = {"result": {"status": "done"}}
    for number in range(12):
        mark = f"m{number}"
        started = host.start(
            fake, mark=mark, force=True, worker_idle_timeout=1, run=f"{RUN}_{number}"
        )
        assert started["outcome"] == "started"
        assert host.finish()["state"] == "done"
        assert host.status()["token"] == mark
        until = (facts(host) or {}).get("until") or 0
        time.sleep(max(0.0, until - time.time() + (number - 6) * 0.004))
    assert host.starts() == ["train"] * 12


def test_while_somebody_starts_it_does_not_go(host):
    first = trains(host, worker_idle_timeout=1)
    with live.starting(str(host.root)):
        time.sleep(1.5)
        assert facts(host)["state"] == "waiting"
    ends(host)
    assert not processes.is_process(first["child"])


def test_it_ends_when_its_folder_has_gone(host):
    text = (host.engine / "remote_train/supervisor.py").read_text()
    put(
        host.engine,
        {"remote_train/supervisor.py": text.replace("LOOK = 5.0", "LOOK = 0.1").encode()},
    )
    first = trains(host)
    os.rename(host.root, f"{host.root} moved")
    host.until(lambda: not processes.is_process(first))
    assert not host.root.exists()
    os.rename(f"{host.root} moved", host.root)


def test_a_stop_ends_one_that_waits_and_says_so(host):
    first = trains(host)
    assert stop.stop(str(host.root), "me", "c", 1, check=True)["waited"] is None
    assert facts(host) is not None
    with subprocess.Popen(["sleep", "60"]) as other:
        answer = stop.stop(str(host.root), "me", "c", 1)
        assert other.poll() is None
        other.kill()
    assert (answer["state"], answer["waited"]) == ("nothing", first["pid"])
    assert facts(host) is None
    assert not processes.is_process(first["child"])
    assert host.status()["state"] == "done"
    assert stop.stop(str(host.root), "me", "c", 1)["waited"] is None


def test_a_stop_of_a_stage_leaves_no_worker_waiting(host):
    trains(host)
    host.start({"wait": True, "mind_the_signal": True}, stage="writing", mark="t2")
    now = host.wait(lambda status: status["progress"].get("step"))
    assert stop.stop(str(host.root), "me", "c", 5)["state"] == "stopped"
    assert facts(host) is None
    assert not processes.is_process(now["child"])


@pytest.mark.parametrize(
    ("run", "selected", "stopped", "gone"),
    [
        (RUN, ["style"], False, True),
        (RUN, ["style", "writing"], False, False),
        (RUN, ["style", "writing"], True, True),
        ("run_20260210T093000Z", ["style"], True, False),
    ],
)
def test_collect_ends_it_where_nothing_of_its_run_is_left(host, run, selected, stopped, gone):
    trains(host)
    wanted = {**host.request(), "selected": selected}
    gather.gather(wanted, run, {**CONTROLLER, "stopped": stopped})
    if gone:
        ends(host)
    else:
        time.sleep(0.3)
        assert facts(host)["state"] == "waiting"


def test_collect_does_not_end_a_stage_that_another_controller_has_started(host):
    trains(host)
    host.start({"wait": True}, stage="writing", mark="t2")
    wanted = {**host.request(), "selected": ["style"]}
    gather.gather(wanted, RUN, CONTROLLER)
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


# Seen


def test_the_gate_knows_it(host):
    first = trains(host)

    def card(pid):
        process = Process(pid, "/venv/bin/python", "C", 1000)
        return Gpu(0, memory_used_mib=1500, memory_free_mib=500, processes=(process,))

    def seen(pid):
        answer = Answer("ok", snapshot=Snapshot(gpus=(card(pid),)))
        found = gate_facts._without_own(answer, str(host.root))
        gpu = found.snapshot.gpus[0]
        return len(gpu.processes), gpu.memory_used_mib, gpu.memory_free_mib

    assert seen(first["child"]["pid"]) == (0, 500, 1500)
    assert seen(os.getpid()) == (1, 1500, 500)
    os.kill(first["pid"], signal.SIGKILL)
    host.until(lambda: facts(host) is None)
    assert seen(first["child"]["pid"]) == (1, 1500, 500)


def test_the_gate_as_a_whole_finds_no_foreign_process(host, tmp_path):
    first = trains(host)
    edits = [docs.process(pid=pid) for pid in (first["child"]["pid"], os.getpid())]
    program = fake_smi.answers(tmp_path / "smi", docs.document(*edits))
    wanted = gate_facts.Wanted(str(host.root), nvidia_smi=program)
    processes_seen = gate_facts.gather(wanted).gpus[0].processes
    assert [process.pid for process in processes_seen] == [os.getpid()]


def test_a_number_that_is_anothers_by_now_is_not_the_worker(host):
    trains(host)
    path = file(host, handover.FACTS)
    said = json.loads(path.read_text())
    assert handover.own_processes(str(host.root)) == {said["pid"], said["worker"]["pid"]}
    for change in ({"start_time": 1}, {"boot_id": "another"}):
        path.write_text(json.dumps({**said, "worker": {**said["worker"], **change}}))
        assert handover.own_processes(str(host.root)) == {said["pid"]}


def test_status_shows_it(host):
    first = trains(host)
    found = status.look(host.request(), ("", ""), {}, nvidia_smi="/nowhere")
    assert found["worker"]["pid"] == first["child"]["pid"]
    assert found["worker"]["run"] == RUN
    assert 500 < found["worker"]["seconds"] <= 600
    assert found["lock"] is None
    handover.end(str(host.root))
    assert status.look(host.request(), ("", ""), {}, nvidia_smi="/nowhere")["worker"] is None


def test_two_starts_of_two_stages_at_once_with_a_worker_that_waits(host):
    trains(host)
    outcomes = []

    def start(mark, stage):
        answer = host.start({"wait": True}, mark=mark, stage=stage, run=f"{RUN}_2", force=True)
        outcomes.append(answer["outcome"])

    controllers = [
        threading.Thread(target=start, args=("t2", "style")),
        threading.Thread(target=start, args=("t3", "writing")),
    ]
    for controller in controllers:
        controller.start()
    for controller in controllers:
        controller.join()
    assert sorted(outcomes) == ["busy", "started"]
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


# Killed at every point

DIE = """
if not os.path.exists(os.path.join({root!r}, "died")):
    open(os.path.join({root!r}, "died"), "w").close()
    os.kill(os.getpid(), 9)
"""

POINTS = {
    "before the first status": ("stage_run", "            self.write_status()\n        else"),
    "before the old result goes": (
        "stage_run",
        "            with contextlib.suppress(FileNotFoundError, IsADirectoryError):",
    ),
    "before the training starts": ("stage_run", "                running = self._crew.start("),
    "after the training has started": ("stage_run", "            self._sign = time.mono"),
    "after the training's end": ("stage_run", "        failure = self._failure(running, code"),
    "in the marker's place": ("stage_record", "    markers.write(\n"),
    "after the marker": ("stage_record", "    remove_checkpoints(root, job"),
    "in the record": ("stage_record", "    write(lambda: runs.mark(root"),
    "before the last status": ("stage_run", '        ending = {"state"'),
    "after the last status": ("supervisor", "        self._idle = float("),
    "as it waits": ("supervisor", "            order = self._read_order()\n            if"),
}

NOT_BEGUN = ("before the first status", "before the old result goes", "before the training starts")


def dies_at(host, point):
    """Let the supervisor be killed once, before the line that is named."""
    module, line = POINTS[point]
    path = host.engine / f"remote_train/{module}.py"
    text = path.read_text()
    at = text.index(line)
    indent = " " * (len(line) - len(line.lstrip(" ")))
    code = "".join(
        f"{indent}{part}\n" for part in DIE.format(root=str(host.root)).strip().splitlines()
    )
    path.write_text(text[:at] + code + text[at:])


@pytest.mark.parametrize("point", POINTS)
def test_a_supervisor_that_is_killed_loses_nothing(host, point):
    dies_at(host, point)
    with contextlib.suppress(TrainError):
        host.start(mark="t1")
    host.until((host.root / "died").exists)
    host.until(lambda: facts(host) is None)
    host.until(lambda: not live.is_held(str(host.root)))
    trained = len(host.starts())
    had_begun = point not in NOT_BEGUN
    assert trained == had_begun
    answer = host.start(mark="t2")
    assert answer["outcome"] == ("skipped" if had_begun else "started")
    if answer["outcome"] == "started":
        assert host.finish()["state"] == "done"
    assert host.marker()["status"] == "done"
    assert host.starts() == ["train"]
    assert host.states() == {".stage_style_done"}
    assert host.start(mark="t3")["outcome"] == "skipped"
    assert host.start({}, mark="t4", stage="writing")["outcome"] == "started"
    assert host.finish()["state"] == "done"


@pytest.mark.parametrize("point", NOT_BEGUN)
def test_what_an_earlier_stage_has_left_is_never_taken_for_this_one(host, point):
    """A "done" in the result's place is another start's, with other settings."""
    trains(host, fake={"weights": "old"}, worker_idle_timeout=0)
    ends(host)
    dies_at(host, point)
    again = {"run": f"{RUN}_2", "learning_rate": 0.0005}
    with contextlib.suppress(TrainError):
        host.start(mark="t2", **again)
    host.until((host.root / "died").exists)
    host.until(lambda: facts(host) is None)
    host.until(lambda: not live.is_held(str(host.root)))
    answer = host.start({"weights": "new"}, mark="t3", **again)
    assert answer["outcome"] == "started"
    assert host.finish()["state"] == "done"
    assert host.starts() == ["train", "train"]
    assert host.marker()["inputs"]["settings"]["learning_rate"] == 0.0005
    weights = host.root / "outputs/adapter/adapter_style/adapter_model.safetensors"
    assert weights.read_text() == "new"


def test_a_result_of_another_start_is_not_believed(host):
    """Wherever it comes from: the file, or what a training says."""
    for number, fake in enumerate(({}, {"told": True})):
        fake["result"] = {"token": "another"}
        status = trains(host, fake=fake, mark=f"t{number}")
        assert status["state"] == "failed"
        assert "without a result" in status["error"]["symptom"]
    assert host.marker() is None


def test_a_stage_that_is_stopped_before_it_began_has_no_metrics(host):
    trains(host, worker_idle_timeout=0)
    ends(host)
    path = host.engine / "remote_train/stage_run.py"
    text = path.read_text()
    line = "        running: Running\n"
    assert text.count(line) == 1
    path.write_text(text.replace(line, f"{line}        self._signals.wait([], 5)\n"))
    host.start(mark="t2", stage="writing")
    os.kill(host.status()["pid"], signal.SIGTERM)
    assert host.finish()["kind"] == "stopped"
    record = json.loads((host.root / f"outputs/training_sync/{RUN}/stage_writing.json").read_text())
    assert (record["attempts"], record["metrics"], record["accelerator"]) == (0, {}, None)


# A defect


def breaks_at(host, module, line, error):
    """Let the supervisor meet an error before a line, while the file ``broken`` is there."""
    path = host.engine / f"remote_train/{module}.py"
    text = path.read_text()
    assert text.count(line) == 1
    indent = " " * (len(line) - len(line.lstrip(" ")))
    flag = host.root / "broken"
    code = (
        f"{indent}import os\n{indent}if os.path.exists({str(flag)!r}):\n{indent}    raise {error}\n"
    )
    path.write_text(text.replace(line, code + line))
    return flag


@pytest.mark.parametrize("waited", [False, True], ids=["first stage", "worker that waited"])
@pytest.mark.parametrize("command", [False, True], ids=["ours", "command"])
def test_a_defect_in_mid_training_starts_no_second_one(host, waited, command):
    """The supervisor goes; what trains keeps the lock, and another supervisor follows it."""
    flag = breaks_at(host, "gpu_watch", "        return self._found\n", "RuntimeError('boom')")
    if waited:
        trains(host, "writing", "t0")
    script = "echo train >> starts; while [ ! -e go_on ]; do sleep 0.02; done; "
    script += own()["stage_command"][2]
    changes = {**own(script), "stage_retries": 0} if command else {}
    host.start({"wait": True}, mark="t1", **changes)
    host.until(lambda: len(host.starts()) == waited + 1)
    now = host.wait(lambda status: status.get("child"))
    flag.touch()
    host.until(lambda: not processes.is_process(now))
    assert "RuntimeError: boom" in host.supervisor_log()
    assert processes.is_process(now["child"])
    assert live.is_held(str(host.root))
    flag.unlink()
    answer = host.start({"wait": True}, mark="t2", **changes)
    assert (answer["outcome"], len(answer["notes"])) == ("busy", 1)
    assert answer["status"]["child"] == now["child"]
    (host.root / "go_on").touch()
    ended = host.finish()
    assert ended["token"] == now["token"]
    assert host.starts() == ["train"] * (waited + 1)
    if not command:  # how that one ended, nobody can tell
        assert ended["state"] == "done"


def test_a_defect_after_the_training_keeps_no_lock(host):
    flag = breaks_at(host, "stage_record", "    markers.write(\n", "RuntimeError('boom')")
    flag.touch()
    host.start()
    host.until(lambda: facts(host) is None)
    host.until(lambda: not live.is_held(str(host.root)))
    flag.unlink()
    answer = host.start(mark="t2")
    assert answer["outcome"] == "skipped"
    assert "its training had finished, and that is kept" in answer["notes"][0]
    assert host.starts() == ["train"]


@pytest.mark.parametrize("minds", [False, True])
def test_a_training_that_can_not_be_followed_is_ended_before_its_stage(host, minds):
    flag = breaks_at(
        host, "stage_run", "            self._ask_to_end(running)\n", "OSError(5, 'x')"
    )
    host.start({"wait": True, "mind_the_signal": minds})
    child = host.wait(lambda status: status["progress"].get("step"))["child"]
    flag.touch()
    status = host.finish()
    assert status["error"]["symptom"] == (
        "The training could be followed no longer, and was ended: x."
    )
    assert not processes.is_process(child)
    flag.unlink()
    (host.root / "go_on").touch()
    assert trains(host, mark="t2")["state"] == "done"


def test_a_training_that_may_not_be_signalled_is_followed_to_its_end(host):
    flag = breaks_at(
        host, "worker_process", "        os.killpg(pid, number)\n", "PermissionError(1, 'x')"
    )
    host.start({"wait": True})
    now = host.wait(lambda status: status["progress"].get("step"))
    flag.touch()
    os.kill(now["pid"], signal.SIGTERM)
    later = host.wait(lambda status: status["heartbeat"] > now["heartbeat"] + 0.5)
    assert later["state"] == "running"
    assert processes.is_process(now["child"])
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


def test_the_end_of_another_job_is_not_this_ones(host):
    """All jobs lie in the same file: a worker's word for an earlier one must end none."""
    path = host.engine / "training/__main__.py"
    text = path.read_text()
    line = '    progress(phase="load")\n'
    assert line in text
    path.write_text(
        text.replace(
            line,
            f"{line}    for name in (order['job'], 't0'):\n"
            "        progress(job_ended=name, status=0)\n",
        )
    )
    host.start({"wait": True})
    host.wait(lambda status: status["progress"].get("step"))
    assert live.is_held(str(host.root))
    (host.root / "go_on").touch()
    assert host.finish()["state"] == "done"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["load", "train"])
def test_a_worker_that_is_killed_at_work_is_replaced(host, number, phase):
    trains(host)
    host.start({"hold" if phase == "load" else "wait": True}, stage="writing", mark="t2")
    now = host.wait(lambda status: status["progress"].get("phase") == phase)
    os.kill(now["child"]["pid"], number)
    host.wait(lambda status: status["attempt"] == 2 and status["progress"].get("phase") == phase)
    (host.root / "go_on").touch()
    ended = host.finish()
    assert (ended["state"], ended["pid"]) == ("done", now["pid"])
    assert ended["child"] != now["child"]
    assert host.starts() == ["train"] * 3
