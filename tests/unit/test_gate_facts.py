"""What the gate gathers, against fake programs that are real executables, and what hangs."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from remote_train import (
    gate,
    gate_facts,
    gate_limits,
    host_facts,
    kernel_log,
    killable,
    limited,
    programs,
    pythons,
)
from remote_train.errors import TrainError
from remote_train.gate_facts import Wanted, gather
from remote_train.gate_limits import Limits
from remote_train.gate_model import Context
from remote_train.kernel_log import KernelLog
from remote_train.nvidia_smi import DEFAULT_TIMEOUT
from tests.unit import fake_smi
from tests.unit import smi_documents as docs
from tests.unit.test_gate import SETTINGS, STAGE


@pytest.fixture(autouse=True)
def quiet_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel's log without messages, whatever this machine's holds."""
    monkeypatch.setattr(kernel_log, "read", lambda: KernelLog("kmsg"))


def wanted(folder: Path, program: str, **changes: Any) -> Wanted:
    given = {"project_root": str(folder / "tutor"), "nvidia_smi": program, "timeout": 20.0}
    return Wanted(**{**given, **changes})


def found(context: Context, mode: str = "strict") -> dict[str, tuple[str, str]]:
    return {f.check: (f.result, f.seen) for f in gate.run_checks(context, mode)}


# The state, what the check says of it, and which other checks of the GPU are not ok or skipped.
STATES = [
    ("hanging", "driver", "fail", "no answer within 1 s"),
    ("no driver", "driver", "fail", "the driver isn't loaded (exit 9: NVIDIA-SMI has failed"),
    ("version mismatch", "driver", "fail", "of different versions (exit 18: Failed to init"),
    ("off the bus", "driver", "fail", "a GPU has fallen off the bus (exit 15: Unable to"),
    ("one lost", "gpu_state", "fail", "GPU 1: GPU is lost"),
    ("ECC errors", "gpu_ecc", "fail", "GPU 0: 2 uncorrected"),
    ("remap failed", "gpu_row_remap", "fail", "GPU 0: a row couldn't be remapped"),
    ("remap pending", "gpu_row_remap", "fail", "GPU 0: a row waits to be remapped"),
    ("throttled", "gpu_throttle", "fail", "heat (hw_thermal_slowdown), and nothing runs on it"),
    ("foreign processes", "gpu_processes", "fail", "pid 4242 (/usr/bin/python3, 9000 MiB)"),
    ("eight GPUs", "gpu_count", "ok", "8 usable GPUs (NVIDIA H100 80GB HBM3)"),
    ("MIG", "gpu_mig", "warn", "GPU 0: MIG is on, 2 slices"),
    ("truncated", "driver", "fail", "the XML is broken at line"),
    ("entities", "driver", "fail", "declares or uses an entity"),
]


@pytest.mark.parametrize(("state", "check", "result", "seen"), STATES, ids=[s[0] for s in STATES])
def test_fake_nvidia_smi(tmp_path: Path, state: str, check: str, result: str, seen: str) -> None:
    if state in fake_smi.BROKEN:
        program = fake_smi.broken(tmp_path, state)
    else:
        links = fake_smi.NO_LINKS if state in ("MIG", "eight GPUs", "one lost") else fake_smi.LINKS
        program = fake_smi.answers(tmp_path, fake_smi.DOCUMENTS[state], links=links)
    started = time.monotonic()
    context = gather(wanted(tmp_path, program, timeout=1.0 if state == "hanging" else 20.0))
    assert time.monotonic() - started < 10
    findings = found(context)
    assert findings[check][0] == result, findings[check]
    assert seen in findings[check][1]
    # Nothing else is wrong with the GPUs: each state is found for its own reason.
    scopes = {c.name: c.scope for c in gate.CHECKS}
    others = {
        name: (outcome, text)
        for name, (outcome, text) in findings.items()
        if scopes[name] == "gpu" and name != check and outcome not in ("ok", "skipped")
    }
    assert others == {}


def test_every_state_of_the_fakes_is_tried() -> None:
    assert {state[0] for state in STATES} == {*fake_smi.BROKEN, *fake_smi.DOCUMENTS}


def test_healthy_machine_in_a_moment(tmp_path: Path) -> None:
    program = fake_smi.answers(tmp_path)
    started = time.monotonic()
    context = gather(wanted(tmp_path, program, stages=(STAGE,), controller_time=time.time() - 5))
    assert time.monotonic() - started < 5
    assert context.capabilities == {0: (9, 0)}
    assert context.links.active == {0: 18}
    assert [place.name for place in context.host.places] == [
        "project_root",
        "outputs",
        "models",
        "temporary files",
    ]
    assert context.host.clock_ahead == pytest.approx(5, abs=4)
    assert context.need is not None
    assert context.need.stage == "style"
    assert context.download == 16 * 10**9
    assert set(found(context)) == {check.name for check in gate.CHECKS}
    assert found(context)["gpu_memory"][0] == "ok"


def test_off_asks_nothing_of_the_driver(tmp_path: Path) -> None:
    program = fake_smi.script(tmp_path, f"touch {tmp_path}/asked")
    context = gather(wanted(tmp_path, program, mode="off"))
    assert context.smi is None
    assert not (tmp_path / "asked").exists()
    gpu = {c.name for c in gate.CHECKS if c.scope == "gpu"}
    assert {found(context, "off")[name] for name in gpu} == {("skipped", "gpu_gate is off")}


def test_processes_have_users(tmp_path: Path) -> None:
    """The user is that of the process here, where the name is the same."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        edits = [
            docs.process(name="/usr/bin/sleep", pid=sleeper.pid),
            docs.process(name="/opt/trainer", pid=os.getppid()),  # a container's: another one here
            docs.process(name="python", pid=2**22 + 1),
        ]
        program = fake_smi.answers(tmp_path, docs.document(*edits))
        context = gather(wanted(tmp_path, program))
        sleeper.kill()
    processes = context.gpus[0].processes
    assert processes is not None
    me = pwd.getpwuid(os.geteuid()).pw_name
    assert [process.user for process in processes] == [me, None, None]
    assert f"pid {sleeper.pid} of {me} (/usr/bin/sleep" in found(context)["gpu_processes"][1]


def test_dead_mount_is_a_finding_and_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def dead(path: str) -> os.statvfs_result:
        if str(path).startswith(str(tmp_path / "tutor")):
            time.sleep(300)
        return real(path)

    (tmp_path / "tutor").mkdir()
    monkeypatch.setattr(os, "statvfs", dead)
    monkeypatch.setattr(gate_facts, "LOOK_SECONDS", 2.0)
    started = time.monotonic()
    findings = found(gather(wanted(tmp_path, fake_smi.answers(tmp_path / "bin"))))
    assert time.monotonic() - started < 8
    assert findings["disk_writable"] == (
        "fail",
        f"{tmp_path}/tutor (project_root) gives no answer in 2 s: a dead mount?, "
        f"{tmp_path}/tutor/outputs (outputs) gives no answer in 2 s: a dead mount?",
    )
    assert findings["disk_free"][0] == "unknown"


def test_everything_hangs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slowest part is what it takes, and each says what it waited for."""

    def hang(*_arguments: object) -> None:
        time.sleep(300)

    for name in ("LOOK_SECONDS", "MODEL_SECONDS", "KERNEL_SECONDS", "DATA_SECONDS"):
        monkeypatch.setattr(gate_facts, name, 1.0)
    monkeypatch.setattr(host_facts, "look", hang)
    monkeypatch.setattr(kernel_log, "read", hang)
    monkeypatch.setattr(gate_facts, "_check_data", hang)
    monkeypatch.setattr(gate_facts, "_find_models", hang)
    program = fake_smi.broken(tmp_path, "hanging")
    started = time.monotonic()
    context = gather(wanted(tmp_path, program, timeout=1.0, stages=(STAGE,)))
    assert time.monotonic() - started < 8
    findings = found(context)
    assert findings["driver"] == ("fail", "nvidia-smi gave no answer within 1 s")
    assert findings["data_files"] == ("unknown", "the data files were not read in 1 s")
    assert findings["shared_memory"][0] == "fail"
    assert context.kernel.reason == "no answer in 1 s"
    assert context.unsized == "Qwen/Qwen3-8B"


ROOT = Path(__file__).parents[2]
STARTS = 2.0
"""Seconds for Ansible to start a module, or itself, at the most that is reckoned with."""


def test_times_add_up_to_less_than_a_minute() -> None:
    """Whatever hangs: the plan, the passive and the active part, alone and one after the other."""
    passive = max(
        gate_facts.LOOK_SECONDS,
        gate_facts.MODEL_SECONDS,
        gate_facts.KERNEL_SECONDS,
        gate_facts.DATA_SECONDS,
        gate_limits.MOST_TIMEOUT + gate_facts._AFTER_TIMEOUT,
    )
    # All parts are asked at once; only the users' names come after them. Each of the two calls
    # of killable takes a second over its limit where a child can't be killed.
    after = gate_facts.USERS_SECONDS + 2 * killable.PATIENCE
    assert passive <= gate_facts.MOST_SECONDS
    assert STARTS + gate_facts.MOST_SECONDS + after <= 57
    # A program can be killed, and said to hang, before its child is given up.
    assert programs.KILLED_WITHIN + programs._AFTERWARDS < gate_facts._AFTER_TIMEOUT
    # The kernel's log: two programs, one after the other.
    each = kernel_log.PROGRAM_TIMEOUT + programs.KILLED_WITHIN
    assert 2 * each < gate_facts.KERNEL_SECONDS

    active = gate_limits.MOST_ACTIVE + programs.KILLED_WITHIN
    assert STARTS + active <= 57

    # The plan comes before. Where a folder hangs, it ends there; Pythons that hang are passed over.
    folder = limited.LOOK_SECONDS + limited.NAMING_SECONDS + 2 * killable.PATIENCE
    pythons_ = pythons.FIRST_SECONDS + pythons.OTHERS_SECONDS + 2 * (1 + killable.PATIENCE)
    assert 2 * STARTS + limited.LOOK_SECONDS + folder <= 57

    # precheck.yml: what is over is taken off, so that the whole stays within the minute.
    play = yaml.safe_load((ROOT / "playbooks" / "precheck.yml").read_text())[1]
    left, least_passive = re.findall(r"\d+", play["vars"]["__gpu_gate_most"])
    before = 2 * STARTS + pythons_
    rest = max(float(left) - before, float(least_passive))
    assert before + STARTS + rest + after <= 60
    facts = [task["ansible.builtin.set_fact"] for task in play["tasks"] if "set_fact" in str(task)]
    (most,) = (fact["__active_gate_most"] for fact in facts if "__active_gate_most" in fact)
    assert re.findall(r"\d+", most) == [left]
    assert float(left) + STARTS + programs.KILLED_WITHIN <= 57
    assert play["vars"]["__precheck_least"] >= 10

    # train_all.yml: both parts, with the default of what nvidia-smi is given.
    first = max(gate_facts.DATA_SECONDS, DEFAULT_TIMEOUT + gate_facts._AFTER_TIMEOUT) + after
    roles = yaml.safe_load((ROOT / "roles" / "active_gate" / "vars" / "main.yml").read_text())
    whole, least_active = re.findall(r"\d+", roles["__active_gate_most"].replace("default(0)", ""))
    second = min(max(float(whole) - first, float(least_active)), gate_limits.ActiveLimits().timeout)
    assert 2 * STARTS + first + second + programs.KILLED_WITHIN <= 60


def test_less_time_is_less_time_for_each_part(tmp_path: Path) -> None:
    """What is left of a minute, where the plan has waited for something before."""
    started = time.monotonic()
    context = gather(wanted(tmp_path, fake_smi.broken(tmp_path, "hanging"), seconds=4.5))
    assert time.monotonic() - started < 5
    assert found(context)["driver"] == ("fail", "nvidia-smi gave no answer within 0.5 s")


def test_no_gpu_is_asked_for_none(tmp_path: Path) -> None:
    program = fake_smi.script(tmp_path, f"touch {tmp_path}/asked")
    context = gather(wanted(tmp_path, program, limits=Limits(gpus=0)))
    assert context.smi is None
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize("timeout", [0.0, -1.0, 46.0, float("inf"), float("nan")])
def test_timeout_that_a_minute_does_not_allow(tmp_path: Path, timeout: float) -> None:
    with pytest.raises(TrainError, match="gpu_gate_timeout is"):
        gather(wanted(tmp_path, "nvidia-smi", timeout=timeout))


def test_data_of_both_sides(tmp_path: Path) -> None:
    root = tmp_path / "tutor"
    root.mkdir()
    chat = {
        "id": "a",
        "messages": [
            {"role": "user", "content": "Warum?"},
            {"role": "assistant", "content": "Därum."},
        ],
    }
    (root / "style.jsonl").write_text(json.dumps(chat, ensure_ascii=False) + "\n")
    checked = {"file": "w.jsonl", "chats": 7, "problem_count": 0, "problems": [], "longest": 9000}
    context = gather(
        wanted(
            tmp_path,
            "no-such-smi",
            stages=({**STAGE, "train": ["style.jsonl"]}, {**STAGE, "name": "w", "train": []}),
            data_files=(
                {"name": "style.jsonl", "role": "train", "stage": "style"},
                {"name": "style.jsonl", "role": "evaluate", "stage": "style"},
            ),
            data_checked=({**checked, "longest_line": 3, "stages": ["w"]},),
        )
    )
    here, there = context.data.files
    assert (here["where"], here["stages"], here["longest"]) == ("host", ["style"], 13)
    assert (there["where"], there["stages"]) == ("controller", ["w"])
    findings = found(context)
    assert findings["data_files"] == ("ok", "8 chats in 2 files, on the controller, host")
    assert findings["data_length"] == (
        "ok",
        "w.jsonl, line 3: 9000 bytes of text, likely within 2048 tokens",
    )
    assert "1 x 6 tokens, the longest chat" not in str(context.need)  # stage w may have longer ones
    assert "2048 tokens, max_length" in str(context.need)


def test_model_in_the_cache_needs_no_download(tmp_path: Path) -> None:
    """Where the settings move the cache, it is looked for there, and written to there."""
    commit = tmp_path / "hf/hub/models--Qwen--Qwen3-8B"
    folder = commit / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (commit / "refs").mkdir()
    (commit / "refs" / "main").write_text("abc")
    program = fake_smi.answers(tmp_path / "bin")
    given = {"stages": (STAGE,), "storage": {"hf_home": str(tmp_path / "hf")}}
    before = gather(wanted(tmp_path, program, **given))
    models = before.host.place("models")
    assert models is not None
    assert models.path == str(tmp_path / "hf/hub")
    assert before.download == 16 * 10**9
    shape = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 2000)
    after = gather(wanted(tmp_path, program, **given))
    assert (after.download, after.host.place("models")) == (0, None)
    assert after.model is not None
    assert after.model.parameters == 1000


def test_stage_of_a_users_own_command_has_no_estimate(tmp_path: Path) -> None:
    stage = {**STAGE, "command": ["sh", "-c", "true"]}
    context = gather(wanted(tmp_path, fake_smi.answers(tmp_path), stages=(stage,)))
    assert (context.need, context.download, context.unsized) == (None, 0, "")
    assert found(context)["gpu_memory"] == ("ok", "79.6 GiB")


def test_old_card_is_estimated_in_float32(tmp_path: Path) -> None:
    small = {**STAGE, "model": {"model_name_or_path": "Qwen3-0.6B"}}
    program = fake_smi.answers(tmp_path, docs.document(docs.turing), "0, 7.5\n", fake_smi.NO_LINKS)
    context = gather(wanted(tmp_path, program, stages=(small,)))
    assert "0.6 billion parameters in float32" in str(context.need)
    assert SETTINGS["dtype"] == "auto"


def test_thresholds_are_heeded(tmp_path: Path) -> None:
    limits = Limits(gpus=2, min_disk_gib=10**6, warn_load=0, max_load=0)
    context = gather(wanted(tmp_path, fake_smi.answers(tmp_path), limits=limits))
    findings = found(context)
    assert findings["gpu_count"][0] == "fail"
    assert findings["disk_free"][0] == "fail"


def test_nothing_is_left_open_and_no_child_stays(tmp_path: Path) -> None:
    before, others = sorted(os.listdir("/proc/self/fd")), children()
    gather(wanted(tmp_path, fake_smi.answers(tmp_path)))
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert children() <= others


def children() -> set[str]:
    """This process's children, those of other tests among them."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    return set(listed.split())


def test_what_provisioning_will_do_reaches_the_checks(tmp_path: Path) -> None:
    program = fake_smi.answers(tmp_path / "smi")
    bare = {"install": ["torch", "peft"], "msg": "", "hint": ""}
    context = gather(wanted(tmp_path, program, bare=bare, requirements={"torch": ">=2.6"}))
    assert context.disk is not None
    assert [part.what for part in context.disk.parts if part.size > 6 * 1024**3] == ["venv"]
    assert found(context)["packages"][0] == "unknown"
    bare = {"install": [], "msg": "The torch is too old.", "hint": "Take another."}
    context = gather(wanted(tmp_path, program, bare=bare, requirements={"torch": ">=2.6"}))
    assert context.disk is None
    assert found(context)["packages"] == ("fail", "The torch is too old.")
