"""The event file, read back by TensorBoard's own reader where it is installed."""

from __future__ import annotations

import json
import math
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from tests.training_process import Trainings
from tests.unit.small_disk import fill, small_disk
from training.events import NAME, Events, Steps, _checksum


def scalars(folder: Path) -> dict[str, list[tuple[float, int, float]]]:
    """The points of each curve: when, at which step, what."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    reader = pytest.importorskip(name, reason="tensorboard is not installed").EventAccumulator(
        str(folder), size_guidance={"scalars": 0}
    )
    reader.Reload()
    return {
        tag: [(e.wall_time, e.step, e.value) for e in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def step(number: int, **more: Any) -> dict[str, Any]:
    seconds = {"data": 0.5, "forward": 1.0}
    return {"step": number, "loss": 1 / number, "seconds": seconds, "tokens": 300, **more}


def whole_records(path: Path) -> int:
    """How many records there are, each with checksums that are right."""
    data, at, count = path.read_bytes(), 0, 0
    while at < len(data):
        (length,) = struct.unpack("<Q", data[at : at + 8])
        assert data[at + 8 : at + 12] == _checksum(data[at : at + 8])
        body = data[at + 12 : at + 12 + length]
        assert data[at + 12 + length : at + 16 + length] == _checksum(body)
        at, count = at + 16 + length, count + 1
    return count


def test_a_known_checksum() -> None:
    """CRC-32C of "123456789" is e3069283; TensorFlow rotates it by 15 bits and adds a number."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == struct.pack("<I", masked)


def test_every_number_of_a_step_is_a_curve(tmp_path: Path) -> None:
    log = Steps(tmp_path / "metrics.jsonl")
    numbers = [1, 2, 127, 128, 300, 70_000]  # of one, two and three bytes
    before = time.time()
    for number in numbers:
        log.add(step(number, odd=math.inf, text="left out"))
    log.finish()
    assert whole_records(tmp_path / NAME) == len(numbers) + 1
    found = scalars(tmp_path)
    assert set(found) == {"loss", "seconds/data", "seconds/forward", "tokens", "odd"}
    assert [at for _, at, _ in found["loss"]] == numbers
    assert [value for *_, value in found["loss"]] == pytest.approx([1 / n for n in numbers])
    assert [value for *_, value in found["odd"]] == [math.inf] * len(numbers)
    assert all(before <= when <= time.time() for when, *_ in found["loss"])


def test_restored_steps_keep_their_distance_in_time(tmp_path: Path) -> None:
    log = Steps(tmp_path / "metrics.jsonl")
    log.restore([json.dumps(step(n)) + "\n" for n in (1, 2)])
    log.add(step(3))
    found = scalars(tmp_path)["loss"]
    assert [at for _, at, _ in found] == [1, 2, 3]
    assert found[1][0] - found[0][0] == pytest.approx(1.5)
    assert found[1][0] <= found[2][0]


def test_what_a_full_disk_did_not_take_is_written_later(capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk("size=16k") as disk:
        events = Events(disk / NAME)
        events.add(step(1), 0.0)
        fill(disk / "filler")
        for number in range(2, 400):
            events.add(step(number), 0.0)
        with pytest.raises(OSError, match="No space left"):
            events.write()
        (disk / "filler").unlink()
        with pytest.raises(OSError, match="No space left"):  # it's more than the disk holds
            events.write()
    said = capsys.readouterr().out
    assert said.count(f"{NAME} can't be written: No space left on device.") == 1
    with small_disk("size=128k") as disk:
        events = Events(disk / NAME)
        events.add(step(1), 0.0)
        fill(disk / "filler")
        for number in range(2, 400):
            events.add(step(number), 0.0)
        (disk / "filler").unlink()
        events.add(step(400), 0.0)
        assert whole_records(disk / NAME) == 401


@pytest.mark.training
def test_a_training_that_was_killed_has_each_step_once(make_job: Any, tmp_path: Path) -> None:
    job = make_job(num_train_epochs=5, lora_dropout=0.1)
    job["checkpoints"] = {"folder": "checkpoints", "steps": 2, "minutes": 0}
    with Trainings() as trainings:
        run = trainings.start(job, tmp_path / "run")
        run.wait_for_step(5)
        run.kill(signal.SIGKILL)
        again = trainings.finish(job, tmp_path / "run")
    assert again.status == 0, again.log
    assert again.result["resumed_from"] >= 4
    name = f"{job['adapter_dir']}/{NAME}"
    assert name in again.result["outputs"]
    folder = Path(job["project_root"]) / job["adapter_dir"]
    assert whole_records(folder / NAME) == 1 + len(again.metrics)
    found = scalars(folder)
    assert [at for _, at, _ in found["loss"]] == list(range(1, 16))
    losses = [value for *_, value in found["loss"]]
    assert losses == pytest.approx([line["loss"] for line in again.metrics])
    assert {"learning_rate", "grad_norm", "seconds/backward", "peak_memory_bytes"} <= set(found)
