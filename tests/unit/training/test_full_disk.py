"""A full disk: nothing half-written in the adapter's place, no step lost to a log line."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.small_disk import fill, small_disk
from training import __main__ as program
from training.__main__ import main
from training.checkpoint import Checkpoint, write
from training.failures import explain
from training.folder import make
from training.job import CheckpointRule
from training.keeper import Checkpoints
from training.metrics import Metrics
from training.progress import Progress
from training.state import State
from training.stopping import StopRequest


def test_lines_that_the_disk_did_not_take_are_written_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with small_disk("size=16k") as disk:
        metrics = Metrics(disk / "metrics.jsonl")
        metrics.add({"step": 1})
        fill(disk / "filler")
        for step in range(2, 900):  # beyond the page that the file has already
            metrics.add({"step": step})
        with pytest.raises(OSError, match="No space left"):
            metrics.finish()
        (disk / "filler").unlink()
        metrics.finish()
        lines = (disk / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, 900))
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl can't be written: No space left on device.") == 1


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@contextlib.contextmanager
def full_disk() -> Iterator[Path]:
    """A file system that has room for a job that begins, and is full when that ends."""
    with small_disk("size=64k") as disk:
        (disk / "result.json").write_text('{"status": "of before"}')
        yield disk


def do(disk: Path, monkeypatch: pytest.MonkeyPatch, work: Any, progress: Any = None) -> Any:
    """A job whose result lies on a disk that is full when ``work`` is through."""

    def run(*_: object) -> Any:
        fill(disk / "filler")
        return work()

    monkeypatch.setattr(program, "_run", run)
    job = disk.parent / f"{disk.name}.json"
    job.write_text(json.dumps({"result": str(disk / "result.json"), "token": "t1"}))
    try:
        return program._do(job, progress or Progress(), {}, program.Term())
    finally:
        job.unlink()


RESULTS = {
    "done": lambda: {"status": "done", "metrics": {"train_loss": 0.5}},
    "failed": lambda: program._failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")),
}


@pytest.mark.parametrize("status", RESULTS)
def test_a_result_finds_the_room_that_was_kept_for_it(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    with full_disk() as disk:
        assert do(disk, monkeypatch, RESULTS[status])["status"] == status
        result = read(disk / "result.json")
        assert (result["status"], result["token"]) == (status, "t1")
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "result.json"]
        assert status == "done" or result["error"]["symptom"] == "The disk is full at x."


def test_a_result_that_does_not_fit_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one: the supervisor writes it when there is room."""
    large = {"status": "done", "warnings": [{"symptom": "x" * 200} for _ in range(600)]}
    reader, writer = os.pipe()
    chunks: list[bytes] = []
    thread = threading.Thread(
        target=lambda: chunks.extend(iter(lambda: os.read(reader, 1 << 16), b""))
    )
    thread.start()
    with full_disk() as disk:
        assert do(disk, monkeypatch, lambda: {**large}, Progress(writer))["status"] == "done"
        assert sorted(path.name for path in disk.iterdir()) == ["filler", "result.json"]
        assert read(disk / "result.json")["status"] == "of before"
    os.close(writer)
    thread.join(20)
    os.close(reader)
    (line,) = b"".join(chunks).splitlines()
    assert json.loads(line) == {"result": {**large, "token": "t1"}}


@pytest.mark.parametrize("heard", ["nowhere", "by nobody"])
def test_what_nobody_hears_waits_for_room(monkeypatch: pytest.MonkeyPatch, heard: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    large = {"status": "done", "warnings": ["x" * 90000]}
    with small_disk("size=256k") as disk:
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                (disk / "filler").unlink()

        monkeypatch.setattr(program.time, "sleep", wait)
        progress = Progress(writer) if heard == "by nobody" else Progress()
        assert do(disk, monkeypatch, lambda: {**large}, progress)["status"] == "done"
        assert read(disk / "result.json")["status"] == "done"
        assert waits == [program._ROOM_EVERY] * 3
    os.close(writer)


def test_it_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "ROOM_WITHIN", -1.0)
    with full_disk() as disk:
        large = {"status": "done", "warnings": ["x" * 90000]}
        assert do(disk, monkeypatch, lambda: {**large})["status"] == "failed"
        assert read(disk / "result.json")["status"] == "of before"
    assert "result.json can't be written: No space left on device." in capsys.readouterr().err


def test_a_log_on_a_full_disk_takes_no_error_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk() as disk, (disk / "log").open("w") as log:
        fill(disk / "filler")
        monkeypatch.setattr("sys.stderr", log)
        known = program._failed(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
        assert known["error"]["symptom"] == "The disk is full."
        assert known["error"]["category"] == "infra"
        defect = program._failed(ValueError("y" * 5000))
        assert defect["error"]["category"] == "training_logic"
        (disk / "filler").unlink()


@pytest.mark.parametrize("words", ["Disk quota exceeded", "No space left on device"])
def test_a_full_disk_is_known_by_its_words_too(words: str) -> None:
    """Rust's and C++'s libraries raise errors of their own."""
    known = explain(RuntimeError(f"I/O error: {words} (os error)"))
    assert known is not None
    assert known.symptom == "The disk is full."


def test_new_folders_above_a_checkpoint_are_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power takes the checkpoint's folder, whatever was flushed in it."""
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "outputs").mkdir()
    folder = tmp_path / "outputs/training_sync/checkpoints/style"
    make(folder)
    above = [tmp_path / "outputs", folder.parents[1], folder.parent]
    assert sorted(synced) == sorted(map(str, above))
    synced.clear()
    make(folder)
    assert synced == []
    state = State(step=1, adapter={}, optimizer={}, random={}, loss_sum=0.0, token_sum=0, memory={})
    write(folder.with_name("writing"), Checkpoint(state, [], {}))
    assert str(folder.parent) in synced


@pytest.mark.training
def test_an_adapter_that_does_not_fit_leaves_the_old_one(
    make_job: Any, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk("size=48k") as disk:
        job = make_job(num_train_epochs=0.5)
        job["project_root"] = str(disk)
        job["checkpoints"] = {"folder": "checkpoints"}
        for name in ("data/train.jsonl", "data/bench.jsonl"):
            (disk / name).parent.mkdir(exist_ok=True)
            (disk / name).write_bytes((project / name).read_bytes())
        old = disk / job["adapter_dir"] / "adapter_model.safetensors"
        old.parent.mkdir(parents=True)
        old.write_bytes(b"old")
        (tmp_path / "job.json").write_text(json.dumps(job))
        assert main([str(tmp_path / "job.json")]) == 1
        result = json.loads(Path(job["result"]).read_bytes())
        assert result["error"]["category"] == "infra"
        assert result["error"]["symptom"].startswith("The disk is full")
        assert old.read_bytes() == b"old"
        assert [path.name for path in old.parent.iterdir()] == [old.name]
        assert not (disk / "checkpoints").exists()
    said = capsys.readouterr()
    assert "no checkpoint could be written at step 2: it needs" in said.out
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("own", [False, True])
def test_others_checkpoints_make_room_even_for_the_first_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    others = [tmp_path / f"step_0000000{number}" for number in (1, 2, 3)]
    for path in others:
        path.mkdir()
        (path / "adapter.safetensors").write_bytes(b"damaged")
    keeper = Checkpoints(
        CheckpointRule(folder=str(tmp_path)),
        tmp_path,
        {},
        Metrics(tmp_path / "metrics.jsonl"),
        StopRequest(),
    )
    if own:
        keeper._own = others[:1]
    monkeypatch.setattr(keeper, "_room", lambda: 0)
    weights = {"w": torch.zeros(3)}
    state = State(1, 0.0, 0, {}, weights, {}, {})
    assert "are free" in keeper._unfit(Checkpoint(state, [], {}))
    assert [path.exists() for path in others] == [own, False, False]
