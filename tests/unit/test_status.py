"""Where the stages stand: on the host, and in the table that a person sees."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from controller import status_table
from remote_train import gpu_usage, live, runs, stage_states, status
from remote_train.text_table import width
from tests.unit import fake_smi
from tests.unit.stage_host import CODE, PACKAGES, RUN, build, done_marker, project, put

LATER = "run_20260210T093000Z"


@pytest.fixture
def root(tmp_path):
    return project(tmp_path / "project")


@pytest.fixture
def wanted(root):
    return build(project_root=str(root))


def states(wanted, running=None, **changes: Any):
    found = stage_states.of({**wanted, **changes}, CODE, PACKAGES, running)
    return {stage["name"]: stage for stage in found}


def failed(root, run=LATER, ended="2026-02-10T10:00:00Z", **fields: Any):
    record = {"state": "failed", "ended": ended, "error": {"symptom": "Out of luck."}, **fields}
    runs.record_stage(str(root), run, "style", record)


def test_a_stage_that_was_never_trained(wanted):
    found = states(wanted)
    assert [stage["state"] for stage in found.values()] == ["not yet"] * 4
    assert list(found) == ["sample", "style", "writing", "all"]


def test_a_stage_that_is_done(root, wanted):
    done_marker(root, wanted)
    style = states(wanted)["style"]
    assert (style["state"], style["reason"], style["run"]) == ("done", "", RUN)
    assert (style["steps"], style["loss"], style["seconds"]) == (8, 0.5, 60.0)


WEIGHTS = "outputs/adapter/adapter_style/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data/training/processed/style_sft.jsonl": b"new\n"}, "inputs.data"),
        ({"data/training/eval/style_benchmark.jsonl": b"new\n"}, "its evaluation; "),
        ({WEIGHTS: b"cut"}, f"{WEIGHTS} has another size"),
    ],
    ids=["data", "benchmark", "output"],
)
def test_a_stage_that_is_out_of_date(root, wanted, change, reason):
    done_marker(root, wanted)
    put(root, change)
    style = states(wanted)["style"]
    assert style["state"] == "out of date"
    assert reason.removeprefix("inputs.") in style["reason"]


def test_large_files_are_not_read(root, wanted, monkeypatch):
    model = root / "model"
    put(model, {"config.json": b"{}"})
    wanted = build(project_root=str(root), model_name_or_path="model")
    done_marker(root, wanted)
    monkeypatch.setattr(stage_states.fingerprint, "base_model", None)
    monkeypatch.setattr(stage_states.markers, "file_digest", None)
    assert states(wanted)["style"]["state"] == "done"


def test_force_makes_nothing_out_of_date(root):
    wanted = build(project_root=str(root), force=True)
    done_marker(root, wanted)
    assert states(wanted)["style"]["state"] == "done"


@pytest.mark.parametrize(
    ("fields", "state"), [({}, "failed"), ({"stopped": {"by": "me"}}, "stopped")]
)
def test_a_stage_that_failed_or_was_stopped(root, wanted, fields, state):
    failed(root, **fields)
    style = states(wanted)["style"]
    assert (style["state"], style["reason"], style["run"]) == (state, "Out of luck.", LATER)


def test_a_failure_counts_where_the_marker_is_older_and_not_valid(root, wanted):
    done_marker(root, wanted)
    failed(root)
    style = states(wanted)["style"]
    said = "the adapter is whole; a newer attempt {}: Out of luck."
    assert (style["state"], style["reason"]) == ("done", said.format("failed"))
    failed(root, stopped={"by": "me"})
    assert states(wanted)["style"]["reason"] == said.format("was stopped")
    failed(root)
    put(root, {WEIGHTS: b"cut"})
    assert states(wanted)["style"]["state"] == "failed"
    failed(root, ended="2026-01-01T00:00:00Z")
    assert states(wanted)["style"]["state"] == "out of date"


def test_the_newest_run_that_a_stage_took_part_in_counts(root, wanted):
    failed(root, RUN, error={"symptom": "Old."})
    runs.record_stage(str(root), LATER, "all", {"state": "done"})
    assert states(wanted)["style"]["reason"] == "Old."
    failed(root, LATER, error={"symptom": "New."})
    assert states(wanted)["style"]["reason"] == "New."


def running(root, **changes: Any):
    """The status of a stage that runs, as its supervisor writes it."""
    now = time.time()
    made = {
        "state": "running",
        "stage": "style",
        "run": RUN,
        "token": "t",
        "log": "outputs/logs/train_style_20260209T093000Z.log",
        "started": "2026-02-09T09:30:00Z",
        "started_at": now - 100,
        "heartbeat": now,
        "progress": {"phase": "train", "step": 10, "steps": 40, "loss": 1.25},
        "paced_from": {"step": 1, "at": now - 90},
        "boot_id": live.boot_id(),
        **changes,
    }
    put(root, {f"{live.FOLDER}/status.json": json.dumps(made).encode()})
    return made


def test_a_stage_that_runs(root, wanted):
    done_marker(root, wanted)
    found = states(wanted, running(root))
    style = found["style"]
    assert (style["state"], style["step"], style["steps"], style["loss"]) == ("runs", 10, 40, 1.25)
    assert (style["seconds"], style["eta"], style["silent"]) == (100, 300, 0)
    assert found["all"]["state"] == "not yet"


@pytest.mark.parametrize(
    ("step", "paced_from", "eta"),
    [
        pytest.param(910, {"step": 901, "at": -90}, 900, id="resumed, after an hour of others"),
        pytest.param(500, {"step": 1, "at": -499}, 500, id="from the beginning"),
        pytest.param(901, {"step": 901, "at": -5}, None, id="one step"),
        pytest.param(910, {"step": 901, "at": 60}, None, id="the clock was set back"),
        pytest.param(1000, {"step": 901, "at": -90}, 0, id="the last step"),
        pytest.param(910, None, None, id="a supervisor that doesn't say"),
        pytest.param(910, {"step": "x", "at": True}, None, id="no numbers"),
    ],
)
def test_what_is_left_is_reckoned_from_this_attempts_own_steps(root, wanted, step, paced_from, eta):
    """Its 900 steps of before, loading, pauses and failed attempts have no part in it."""
    now = time.time()
    if paced_from and paced_from["at"] is not True:
        paced_from = {**paced_from, "at": now + paced_from["at"]}
    progress = {"phase": "train", "step": step, "steps": 1000, "resumed_from": 900}
    status = running(
        root, started_at=now - 3600, heartbeat=now, progress=progress, paced_from=paced_from
    )
    assert states(wanted, status)["style"]["eta"] == eta


def test_nothing_is_left_to_say_while_a_stage_waits_for_its_next_attempt(root, wanted):
    assert states(wanted, running(root, retry_at=time.time() + 60))["style"]["eta"] is None


@pytest.mark.parametrize(
    ("progress", "step", "steps"),
    [
        ({}, None, None),
        ({"phase": "load"}, None, None),
        ({"phase": "evaluate", "done": 3, "of": 11}, 3, 11),
        ({"phase": "train", "step": 0, "steps": 40}, 0, 40),
        ({"phase": "train", "step": "x", "steps": None, "loss": True}, None, None),
    ],
)
def test_what_is_not_known_is_left_out(root, wanted, progress, step, steps):
    style = states(wanted, running(root, progress=progress))["style"]
    assert (style["step"], style["steps"], style["eta"], style["loss"]) == (step, steps, None, None)


@pytest.mark.parametrize(
    ("boot", "why"),
    [(None, "Its supervisor was killed"), ("another", "The host was started anew")],
)
def test_a_stage_that_went_without_a_word(root, wanted, boot, why):
    failed(root, RUN, error={"symptom": "Old."})
    running(root, **({"boot_id": boot} if boot else {}))
    style = states(wanted)["style"]
    assert (style["state"], style["reason"]) == ("failed", f"{why} while style was running.")


# The whole


def test_nothing_is_made_to_find_out_that_there_is_nothing(tmp_path):
    root = tmp_path / "none"
    found = status.look(build(project_root=str(root)), CODE, {}, "", str(tmp_path / "no-smi"))
    assert list(tmp_path.iterdir()) == []
    assert (found["lock"], found["gpus"], found["gpus_note"]) == (None, [], "")
    assert (found["log_lines"], found["interrupted"]) == ([], [])


def test_the_lock_the_log_and_what_was_interrupted(root, wanted, tmp_path):
    made = running(root)
    state = "outputs/training_sync"
    put(root, {made["log"]: b"a\nb\nc\nd\n", f"{state}/journal.json": b"{}"})
    lock = live.take(str(root), {"pid": 12, "host": "gpu", "since": "then", "stage": "style"})
    before = sorted(root.rglob("*"))
    found = status.look(wanted, CODE, {}, "", str(tmp_path / "no-smi"))
    assert sorted(root.rglob("*")) == before
    assert found["lock"]["pid"] == 12
    assert found["log_lines"] == ["b", "c", "d"]
    assert found["interrupted"] == [str(root)]
    assert {stage["state"] for stage in found["stages"]} == {"runs", "not yet"}
    os.close(lock)


# GPUs


def asked(tmp_path, text, timeout=5.0):
    return gpu_usage.ask(fake_smi.script(tmp_path, text), timeout)


def test_gpus(tmp_path):
    words = "--query-gpu=index,name,utilization.gpu,memory.used,memory.total"
    gpus, note = asked(
        tmp_path,
        f'[ "$1" = {words} ] && [ "$2" = --format=csv,noheader,nounits ] || exit 2\n'
        "echo '0, NVIDIA H100, 80GB, 97, 71000, 81559'; echo '1, L4, [N/A], [N/A], 23034'",
    )
    assert note == ""
    assert gpus[0] == {
        "index": 0,
        "name": "NVIDIA H100, 80GB",
        "utilization": 97,
        "memory_used_mib": 71000,
        "memory_total_mib": 81559,
    }
    assert (gpus[1]["utilization"], gpus[1]["memory_used_mib"]) == (None, None)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (fake_smi.BROKEN["no driver"], "nvidia-smi failed: NVIDIA-SMI has failed"),
        (fake_smi.BROKEN["hanging"], "nvidia-smi gave no answer in 0.3 s"),
        ("exit 3", "nvidia-smi failed: it gave no reason"),
    ],
)
def test_gpus_that_nobody_can_ask(tmp_path, text, note):
    began = time.monotonic()
    gpus, said = asked(tmp_path, text, 0.3)
    assert gpus == []
    assert said.startswith(note)
    assert time.monotonic() - began < 4


# The table


def shown(**changes: Any) -> list[str]:
    found = {
        "stages": [stage_states._nothing("style")],
        "log_lines": [],
        "gpus": [],
        "gpus_note": "",
        "lock": None,
        "interrupted": [],
        "time": "2026-02-09T09:30:00Z",
        **changes,
    }
    return status_table.lines("gpu", "/srv/tutor", found)


def stage(**changes: Any) -> dict[str, Any]:
    return {**stage_states._nothing("style"), **changes}


LONG = "settings.learning_rate 0.0001 -> 0.0002; " * 5


def test_it_fits_100_columns():
    lines = shown(
        stages=[
            stage(name="a" * 50, state="runs", phase="train", step=123456, steps=999999, loss=1e9),
            stage(state="out of date", reason=LONG, seconds=360000, loss=1.0),
            stage(state="failed", reason="结论" * 60, log="outputs/logs/" + "x" * 100),
            stage(name="all", state="runs", eta=360000, started="2026-02-09T09:30:00Z", silent=90),
        ],
        log_lines=["x" * 300, "结" * 100],
        gpus=[
            {
                "index": 0,
                "name": "NVIDIA " * 20,
                "utilization": 97,
                "memory_used_mib": 1,
                "memory_total_mib": 2,
            }
        ],
        gpus_note="y" * 200,
        lock={"pid": 1, "host": "h" * 90, "since": "then", "run": RUN, "left": []},
        interrupted=["/srv/" + "z" * 100],
    )
    assert max(width(line) for line in lines) <= 100
    assert "0.0002" in " ".join(lines)
    assert "no sign" in " ".join(lines)


def test_a_silent_stage_has_a_hint():
    lines = shown(stages=[stage(state="runs", silent=89)])
    assert "is at work; no sign of life for 1:29: give the same command again" in "\n".join(lines)


def test_what_no_stage_has_has_no_column():
    assert shown()[1].split() == ["stage", "state", "what"]
    assert "step" in shown(stages=[stage(step=1, steps=2, state="runs")])[1]


def test_what_a_host_says_is_made_harmless():
    lines = shown(
        stages=[stage(state="failed", reason="a\x1b[2Jb\nFAILED: all")],
        log_lines=["c\x1b[31md\x07"],
        lock={"pid": None, "left": ["sl\x1beep (process 1)"]},
    )
    assert all(character.isprintable() for line in lines for character in line)
    assert not any(line.startswith("FAILED") for line in lines)
    assert any(line.startswith("  the lock is held by sl") for line in lines)


def test_who_holds_the_lock():
    lock = {"pid": 12, "host": "gpu", "since": "then", "run": RUN, "left": []}
    assert shown(lock=lock)[-1] == f"  the lock is held by process 12 on gpu since then ({RUN})"
    assert shown(lock={**lock, "pid": None})[-1].endswith("a process of another user")
