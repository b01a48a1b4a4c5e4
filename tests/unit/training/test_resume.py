"""A training that is killed and started again ends as one that was left alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.training_process import Run, Trainings, alone
from tests.unit.training.conftest import chat, write_chats
from training.checkpoint import DamagedError, read

pytestmark = pytest.mark.training

FOLDER = "outputs/training_sync/checkpoints/style"
STEPS = 15
NEW = 3
"""Calls of fsync before those of the first one: for the folders above it, which are new."""
CALLS = 9
"""Calls of fsync and replace that a checkpoint makes: its files, its folder, two for the move."""
FILES = (
    "adapter.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "state.json",
    "metrics.jsonl",
    "SHA256SUMS",
)


@pytest.fixture(scope="module")
def trainings() -> Iterator[Trainings]:
    with Trainings() as server:
        yield server


@pytest.fixture
def job(make_job: Any) -> dict[str, Any]:
    return with_checkpoints(make_job(num_train_epochs=5, lora_dropout=0.1))


def with_checkpoints(job: dict[str, Any], **changes: Any) -> dict[str, Any]:
    rule = {"folder": FOLDER, "steps": 2, "minutes": 0, "keep": 2, **changes}
    return {**job, "checkpoints": rule}


@pytest.fixture(scope="module")
def kept_runs() -> dict[str, Run]:
    return {}


@pytest.fixture
def undisturbed(
    trainings: Trainings,
    job: dict[str, Any],
    kept_runs: dict[str, Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """The same training in a project of its own, left alone: once for all tests."""
    if "undisturbed" not in kept_runs:
        kept_runs["undisturbed"] = left_alone(trainings, job, tmp_path_factory.mktemp("alone"))
    return kept_runs["undisturbed"]


def left_alone(
    trainings: Trainings, job: dict[str, Any], folder: Path, fault: dict[str, Any] | None = None
) -> Run:
    """The job from its start to its end, in a copy of its project."""
    root = folder / "project"
    shutil.copytree(job["project_root"], root)
    other = {**job, "project_root": str(root), "result": str(folder / "result.json")}
    run = trainings.finish(other, folder / "run", fault)
    assert run.status == 0, run.log
    assert run.result["resumed_from"] == 0
    assert run.result["effective"]["resumed_from"] == []
    return run


def same(run: Run, other: Run) -> None:
    assert run.status == 0, run.log
    assert run.adapter == other.adapter
    assert run.metrics == other.metrics
    assert [line["step"] for line in run.metrics] == list(range(1, STEPS + 1))
    ours, theirs = run.result["metrics"], other.result["metrics"]
    assert ours == theirs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_killed_twice(
    trainings: Trainings,
    job: dict[str, Any],
    undisturbed: Run,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    # Signals of one kind come to a process as the supervisor starts it.
    start = alone if number == signal.SIGTERM else trainings.start
    first = start(job, tmp_path / "run")
    first.wait_for_step(4)
    first.kill(number)
    assert first.status == (1 if number == signal.SIGTERM else -number)
    second = trainings.start(job, tmp_path / "run")
    second.wait_for_step(9)
    second.kill(number)
    third = trainings.finish(job, tmp_path / "run")
    same(third, undisturbed)
    steps = third.result["effective"]["resumed_from"]
    assert len(steps) == 2
    assert 2 <= steps[0] < steps[1] < STEPS
    assert third.result["resumed_from"] == steps[1]
    assert third.result["warnings"] == []
    told = [line for line in third.progress if line["phase"] == "train"]
    assert (told[0]["step"], told[0]["resumed_from"]) == (steps[1] + 1, steps[1])
    assert f"resumed at step {steps[1]} of {STEPS} from checkpoint " in third.log


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_step(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)  # noqa: S311
    run = trainings.start(job, tmp_path / "run")
    run.wait_for_step(draw.randint(1, STEPS - 1))
    run.kill(draw.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV]))
    same(trainings.finish(job, tmp_path / "run"), undisturbed)


def test_what_memory_suffices_for_is_known_afterwards(
    trainings: Trainings, job: dict[str, Any], tmp_path: Path
) -> None:
    """A training that has come down to smaller parts goes on with them."""
    whole = left_alone(trainings, job, tmp_path / "alone", {"oom_at": [1, 2]})
    trainings.finish(job, tmp_path / "run", {"oom_at": [1, 2], "kill_at": NEW + 1 + 2 * CALLS})
    again = trainings.finish(job, tmp_path / "run")
    same(again, whole)
    assert again.result["resumed_from"] == 4
    assert [note["category"] for note in again.result["warnings"]] == ["oom", "oom"]
    for name in ("micro_batch_tokens", "activation_checkpointing"):
        assert again.result["effective"][name] == whole.result["effective"][name]
    assert whole.result["effective"]["micro_batch_tokens"] < 256


def test_killed_in_the_evaluation_it_trains_nothing_again(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    job["evaluation"] = {"max_new_tokens": 60, "eval_batch_size": 1}
    run = trainings.start(job, tmp_path / "run")
    run.wait_for_phase("evaluate")
    run.kill(signal.SIGKILL)
    job["evaluation"] = undisturbed.job["evaluation"]
    again = trainings.finish(job, tmp_path / "run")
    same(again, undisturbed)
    assert again.result["resumed_from"] == STEPS
    assert not [line for line in again.progress if line["phase"] == "train"]


def test_a_base_of_its_own_is_the_same_as_a_process_of_its_own(
    job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    """What is forked here gives the bytes that ``python -m training`` gives."""
    run = alone(job, tmp_path / "run")
    run.wait()
    same(run, undisturbed)


@pytest.mark.parametrize(
    ("call", "half"),
    [*((call, False) for call in range(1, CALLS + 1)), *((n + 1, True) for n in range(len(FILES)))],
)
def test_killed_while_a_checkpoint_is_written(
    trainings: Trainings,
    job: dict[str, Any],
    undisturbed: Run,
    tmp_path: Path,
    call: int,
    half: bool,
) -> None:
    """In the second one; of which there is nothing until it is moved into place."""
    run = trainings.finish(job, tmp_path / "run", {"kill_at": NEW + CALLS + call, "half": half})
    assert run.status == -signal.SIGKILL
    whole = [name for name in run.checkpoints if not name.startswith(".")]
    assert whole == ["step_00000002", "step_00000004"][: 2 if call == CALLS else 1]
    again = trainings.finish(job, tmp_path / "run")
    same(again, undisturbed)
    assert again.result["resumed_from"] == (4 if call == CALLS else 2)
    assert again.result["warnings"] == []
    assert again.checkpoints == ["step_00000014", "step_00000015"]


def test_term_ends_between_steps_and_a_second_one_at_once(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    job = with_checkpoints(job, steps=0)
    run = trainings.start(job, tmp_path / "run")
    run.wait_for_step(3)
    assert run.kill(signal.SIGTERM) == 1
    assert run.result["error"]["category"] == "ops"
    assert "stopped by a signal" in run.result["error"]["symptom"]
    (name,) = run.checkpoints
    assert int(name.removeprefix("step_")) >= 3
    # Not in the middle of a step: its line is the last one that there is.
    steps = [line["step"] for line in run.progress if line["phase"] == "train"]
    assert steps[-1] == int(name.removeprefix("step_"))
    again = trainings.finish(job, tmp_path / "run")
    same(again, undisturbed)


def test_a_second_term_ends_at_once(
    trainings: Trainings, job: dict[str, Any], tmp_path: Path
) -> None:
    run = trainings.start(with_checkpoints(job, steps=0), tmp_path / "run", {"wait_at": 8})
    run.wait_for_step(7)
    time.sleep(0.2)  # in the eighth, which doesn't end
    os.kill(run.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert run.alive()
    assert run.kill(signal.SIGTERM) == 1
    assert run.result["error"]["category"] == "ops"
    assert run.checkpoints == []


def test_term_without_checkpoints_ends_at_once(
    trainings: Trainings, job: dict[str, Any], tmp_path: Path
) -> None:
    del job["checkpoints"]
    run = trainings.start(job, tmp_path / "run", {"wait_at": 8})
    run.wait_for_step(7)
    time.sleep(0.2)
    assert run.kill(signal.SIGTERM) == 1


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (truncate, empty, flip, put_a_folder, Path.unlink)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(
    trainings: Trainings,
    job: dict[str, Any],
    undisturbed: Run,
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    """Whichever file of it is; the training itself is started for one of them."""
    trainings.finish(job, tmp_path / "run", {"kill_at": NEW + 1 + 3 * CALLS})
    folder = Path(job["project_root"]) / FOLDER
    whole = folder / "step_00000006"
    assert read(whole).state.step == 6
    for name in FILES:
        damaged = tmp_path / f"damaged_{name}"
        shutil.copytree(whole, damaged)
        damage(damaged / name)
        with pytest.raises(DamagedError):
            read(damaged)
    damage(whole / FILES[DAMAGES.index(damage)])
    again = trainings.finish(job, tmp_path / "run")
    same(again, undisturbed)
    assert again.result["resumed_from"] == 4
    (warning,) = again.result["warnings"]
    assert warning["category"] == "infra"
    assert warning["symptom"].startswith("The checkpoint step_00000006 was passed over: ")
    assert warning["symptom"] in again.log


def test_whatever_is_in_its_place(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    """Files, links and folders without anything in them; and the trainer may not read one."""
    folder = Path(job["project_root"]) / FOLDER
    folder.mkdir(parents=True)
    (folder / "step_00000002").write_text("a file")
    (folder / "step_00000004").symlink_to(tmp_path)
    (folder / "step_00000006").mkdir()
    (folder / "step_00000099").mkdir()
    (folder / "notes.txt").write_text("the user's own")
    run = trainings.finish(job, tmp_path / "run")
    same(run, undisturbed)
    assert run.result["resumed_from"] == 0
    assert len(run.result["warnings"]) == 4
    assert run.checkpoints == ["notes.txt", "step_00000014", "step_00000015"]
    assert tmp_path.is_dir()


def test_a_folder_that_can_not_be_is_said_and_ends_nothing(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    folder = Path(job["project_root"]) / FOLDER
    folder.parent.mkdir(parents=True)
    folder.write_text("a file")
    run = trainings.finish(job, tmp_path / "run")
    same(run, undisturbed)
    (warning,) = run.result["warnings"]
    assert warning["symptom"].startswith(
        "No checkpoint could be written at step 2, 4, 6, 8, 10 and"
    )


@pytest.mark.parametrize("call", range(1, CALLS))
def test_a_disk_that_is_full_while_a_checkpoint_is_written(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path, call: int
) -> None:
    run = trainings.finish(job, tmp_path / "run", {"no_space_at": [NEW + CALLS + call]})
    same(run, undisturbed)
    (warning,) = run.result["warnings"]
    assert warning["symptom"] == (
        "No checkpoint could be written at step 4: No space left on device."
    )
    assert run.checkpoints == ["step_00000014", "step_00000015"]


def change_rate(job: dict[str, Any]) -> None:
    job["settings"]["learning_rate"] = 2e-2


def change_data(job: dict[str, Any]) -> None:
    path = Path(job["project_root"]) / "data/train.jsonl"
    write_chats(path, [chat(n) for n in range(1, 11)])


def change_fingerprint(job: dict[str, Any]) -> None:
    job["provenance"] = {"fingerprint": "sha256:1"}


@pytest.mark.parametrize("change", [change_rate, change_data, change_fingerprint])
def test_a_checkpoint_of_other_inputs_is_passed_over(
    trainings: Trainings,
    job: dict[str, Any],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
) -> None:
    if change == change_rate:
        job["provenance"] = {}  # a job made by hand
    trainings.finish(job, tmp_path / "run", {"kill_at": NEW + 1 + 2 * CALLS})
    change(job)
    run = trainings.finish(job, tmp_path / "run")
    assert run.status == 0
    assert run.result["resumed_from"] == 0
    assert [w["symptom"] for w in run.result["warnings"]] == [
        f"The checkpoint step_0000000{n} was passed over: it is of a training with other inputs."
        for n in (4, 2)
    ]
    assert run.checkpoints == ["step_00000014", "step_00000015"]


def test_fresh_goes_on_from_none_but_its_own(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    trainings.finish(job, tmp_path / "run", {"kill_at": NEW + 1 + 2 * CALLS})
    forced = {**with_checkpoints(job, fresh=True), "run": "run_20260210T000000Z"}
    run = trainings.finish(forced, tmp_path / "run", {"kill_at": 1 + 4 * CALLS})
    assert "passed over: this run trains anew" in run.log
    assert run.checkpoints[-2:] == ["step_00000006", "step_00000008"]
    again = trainings.finish(forced, tmp_path / "run")
    same(again, undisturbed)
    assert again.result["effective"]["resumed_from"] == [8]


def test_another_base_to_compute_on_is_said(
    trainings: Trainings, job: dict[str, Any], tmp_path: Path
) -> None:
    trainings.finish(job, tmp_path / "run", {"kill_at": NEW + 1 + CALLS})
    folder = Path(job["project_root"]) / FOLDER / "step_00000002"
    state = json.loads((folder / "state.json").read_text())
    state.update(device="cuda: another", threads=9)
    (folder / "state.json").write_text(json.dumps(state))
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in FILES[:-1]]
    (folder / "SHA256SUMS").write_text("".join(sums))
    run = trainings.finish(job, tmp_path / "run")
    assert run.status == 0
    assert run.result["resumed_from"] == 2
    (warning,) = run.result["warnings"]
    assert "device cuda: another -> cpu: " in warning["symptom"]
    assert "threads 9 -> 2" in warning["symptom"]
    assert "may differ" in warning["action"]


def test_by_time(
    trainings: Trainings, job: dict[str, Any], undisturbed: Run, tmp_path: Path
) -> None:
    run = trainings.finish(with_checkpoints(job, steps=0, minutes=1e-9), tmp_path / "run")
    same(run, undisturbed)
    assert run.log.count("checkpoint of step") == STEPS
    shutil.rmtree(Path(job["project_root"]) / FOLDER)
    run = trainings.finish(with_checkpoints(job, steps=0, minutes=5, keep=1), tmp_path / "run")
    assert run.log.count("checkpoint of step") == 1
    assert run.checkpoints == ["step_00000015"]


def test_there_is_no_pickle(trainings: Trainings, job: dict[str, Any], tmp_path: Path) -> None:
    trainings.finish(job, tmp_path / "run")
    folder = Path(job["project_root"]) / FOLDER / "step_00000015"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        if name.endswith(".safetensors"):
            safetensors.torch.load_file(folder / name)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, check=False)
    assert done.returncode == 0


def test_a_training_that_diverges_keeps_what_was_good(
    trainings: Trainings, job: dict[str, Any], tmp_path: Path
) -> None:
    job = with_checkpoints(job, steps=1)
    job["settings"].update(learning_rate=1e30, max_grad_norm=0, warmup_ratio=0.9)
    run = trainings.finish(job, tmp_path / "run")
    assert run.status == 1
    assert run.result["error"]["category"] == "training_logic"
    assert run.checkpoints
    last = Path(job["project_root"]) / FOLDER / run.checkpoints[-1]
    assert f"The last good checkpoint is kept in {last};" in run.result["error"]["action"]
    step = int(run.checkpoints[-1].removeprefix("step_"))
    assert f"at step {step + 1}," in run.result["error"]["symptom"]
