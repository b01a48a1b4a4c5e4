"""A full disk: nothing half-written in the adapter's place, no step lost to a log line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.small_disk import small_disk
from training.__main__ import main
from training.checkpoint import Checkpoint
from training.job import CheckpointRule
from training.keeper import Checkpoints
from training.metrics import Metrics
from training.state import State
from training.stopping import StopRequest


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 512)
        except OSError:
            pass


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
