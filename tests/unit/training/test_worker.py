"""One process for many jobs: the same bytes, whatever went before."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.training_process import alone
from tests.unit.small_disk import fill, small_disk
from training import __main__ as program
from training import base_model
from training.__main__ import Term, _do
from training.errors import JobError
from training.failures import Stopped
from training.progress import Progress

HOUSE = Path(__file__).resolve().parents[3]


class Worker:
    """A worker with its two pipes, as the supervisor holds it."""

    def __init__(self) -> None:
        self.folder = Path()
        reader, writer = os.pipe()
        self._lines = os.fdopen(reader, "rb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "training", "--serve"],
            cwd=HOUSE,
            env={**os.environ, "REMOTE_TRAIN_PROGRESS_FD": str(writer), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)

    def order(
        self, job: dict[str, Any], name: str, log: Path | None = None, **more: str
    ) -> tuple[Path, Path]:
        """Give a job; its file and its log."""
        path, log = self.folder / f"{name}.json", log or self.folder / f"{name}.log"
        path.write_text(json.dumps(job), encoding="utf-8")
        assert self.process.stdin is not None
        line = json.dumps({"job": str(path), "log": str(log), **more})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return path, log

    def until(self, what: str) -> dict[str, Any]:
        """The next line that has this key."""
        for line in self._lines:
            facts: dict[str, Any] = json.loads(line)
            if what in facts:
                return facts
        raise AssertionError(f"no {what}")

    def do(self, job: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
        """Do a job; its result and its log."""
        path, log = self.order(job, name)
        ended = self.until("job_ended")
        assert ended["job_ended"] == str(path)
        result: dict[str, Any] = json.loads(Path(job["result"]).read_text(encoding="utf-8"))
        assert ended["status"] == (0 if result["status"] == "done" else 1)
        return result, log.read_text(encoding="utf-8")

    def close(self) -> int:
        """End its input, and wait for its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def workers() -> Iterator[list[Worker]]:
    """All that were started; a start takes seconds."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture
def worker(
    workers: list[Worker], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Worker]:
    """The one that the test before has left as good as it was, else a new one."""
    if not workers or workers[-1].process.poll() is not None:
        workers.append(Worker())
    worker = workers[-1]
    worker.folder = tmp_path
    failed = request.session.testsfailed
    yield worker
    if request.session.testsfailed > failed:
        worker.process.kill()
        worker.process.wait()


def adapter(project: Path, stage: str) -> bytes:
    folder = project / f"outputs/adapter/adapter_{stage}"
    return (folder / "adapter_model.safetensors").read_bytes()


def test_stages_in_one_process_give_the_bytes_of_processes_of_their_own(
    worker: Worker, make_job: Any, project: Path, tmp_path: Path, base_folder: Path
) -> None:
    """With dropout on, another rank and other layers, an evaluation and a failure in between."""
    base = tmp_path / "base"  # that no stage before has left in the worker
    shutil.copytree(base_folder, base)
    make_job = functools.partial(make_job, model_name_or_path=str(base))
    jobs = {
        "style": make_job("style", lora_dropout=0.2),
        "low": {**make_job("low", lora_dropout=0.1), "low_memory": True},
        "writing": make_job("writing", lora_dropout=0.3, lora_r=4, target_modules=["q_proj"]),
        "again": make_job("again", lora_dropout=0.2),
    }
    apart = {}
    for stage in ("style", "writing"):
        assert alone(jobs[stage], tmp_path / "alone").wait() == 0
        apart[stage] = adapter(project, stage)
    apart["again"] = apart["style"]
    logs = {}
    for stage, job in jobs.items():
        result, logs[stage] = worker.do(job, stage)
        assert result["status"] == "done", logs[stage]
        assert adapter(project, stage) == apart.get(stage, adapter(project, stage)), stage
        if stage == "style":
            scores = result["metrics"]["scores"]
        if stage == "writing":
            broken = make_job("broken", target_modules=["no_such_layer"])
            assert worker.do(broken, "broken")[0]["error"]["category"] == "ops"
            result, _ = worker.do(make_job("style", mode="evaluate"), "evaluate")
            assert result["metrics"]["scores"] == scores
    assert "still loaded" not in logs["style"]
    assert "The base model is still loaded." in logs["writing"]
    assert "The base model is still loaded." in logs["again"]
    assert "has changed" not in "".join(logs.values())
    assert "step 1/" in logs["writing"]
    assert "writing" not in logs["style"]


def test_a_data_error_leaves_it_as_good_as_before(
    worker: Worker, make_job: Any, project: Path
) -> None:
    good = (project / "data/train.jsonl").read_bytes()
    (project / "data/train.jsonl").write_bytes(b"{}\n")
    result, log = worker.do(make_job(), "bad")
    assert result["error"]["category"] == "data"
    assert "error: " in log
    (project / "data/train.jsonl").write_bytes(good)
    assert worker.do(make_job(), "good")[0]["status"] == "done"
    assert worker.process.poll() is None


def test_what_is_no_job_ends_nothing(worker: Worker, make_job: Any) -> None:
    assert worker.process.stdin is not None
    worker.process.stdin.write(b"no job\n[]\n")
    nowhere, _ = worker.order({"schema": 1}, "nowhere")
    ended = worker.until("job_ended")
    assert ended == {"job_ended": str(nowhere), "status": 1, "ends": False}
    assert worker.do(make_job(), "good")[0]["status"] == "done"
    assert worker.close() == 0


def test_a_job_is_called_by_its_token(worker: Worker, make_job: Any) -> None:
    """All jobs of a project lie in the same file."""
    name = "t1"
    job = {**make_job(num_train_epochs=0.5), "token": name}
    worker.order(job, "named", token=name)
    ended = worker.until("job_ended")
    assert ended == {"job_ended": name, "status": 0, "ends": False}
    assert json.loads(Path(job["result"]).read_text())["token"] == name


@pytest.mark.parametrize("place", ["folder", "full"])
def test_a_job_whose_log_can_not_be_opened_is_not_done_unseen(
    worker: Worker, make_job: Any, place: str
) -> None:
    disk = small_disk("size=16k,nr_inodes=2") if place == "full" else contextlib.nullcontext()
    with disk as folder:
        if folder is None:
            log, why = worker.folder / "here.log", "Is a directory"
            log.mkdir()
        else:
            log = folder / "here.log"
            fill(folder / "filler")
        job = make_job()
        worker.order(job, "here", log=log)
        ended = worker.until("job_ended")
    assert (ended["status"], ended["ends"]) == (1, True)
    error = json.loads(Path(job["result"]).read_text())["error"]
    assert error["category"] == "infra"
    expected = f"The disk is full at {log}."
    if place == "folder":
        expected = f"The log {log} can't be written: {why}."
    assert error["symptom"] == expected
    assert not Path(job["project_root"], job["adapter_dir"]).exists()
    assert worker.process.wait(30) == 0


def test_what_can_not_be_taken_off_ends_no_stage_that_is_done(
    make_job: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(base_model, "_take_off", lambda model: model.no_such_thing())
    path, kept = tmp_path / "job.json", {}
    for _ in range(2):
        path.write_text(json.dumps(make_job(num_train_epochs=0.5)), encoding="utf-8")
        assert _do(path, Progress(), kept, Term())["status"] == "done"
    said = capsys.readouterr().out
    assert said.count("The base model has changed, so the next stage loads it again.") == 2
    assert "still loaded" not in said


def test_after_a_defect_it_says_so_and_ends(worker: Worker, make_job: Any, project: Path) -> None:
    """Nobody knows what it has left behind."""
    (project / "outputs").write_text("in the way", encoding="utf-8")
    result, log = worker.do(make_job(), "defect")
    assert result["error"]["category"] == "training_logic"
    assert "Traceback" in log
    assert worker.process.wait(30) == 0


def test_a_signal_ends_the_job_and_the_process(worker: Worker, make_job: Any) -> None:
    job = make_job(num_train_epochs=200)
    worker.order(job, "long")
    worker.until("step")
    os.kill(worker.process.pid, signal.SIGTERM)
    ended = worker.until("job_ended")
    assert (ended["status"], ended["ends"]) == (1, True)
    assert "signal" in json.loads(Path(job["result"]).read_text())["error"]["symptom"]
    assert worker.process.wait(30) == 0


def test_a_signal_between_jobs_ends_it_quietly(worker: Worker, make_job: Any) -> None:
    worker.do(make_job(), "first")
    os.kill(worker.process.pid, signal.SIGTERM)
    assert worker.process.wait(30) == 0


@pytest.mark.parametrize("end", ["done", "failed"])
@pytest.mark.parametrize("kept", [None, {}])
def test_a_signal_after_the_end_waits_for_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, kept: dict[str, Any] | None
) -> None:
    """From the job's own end on: also between that and the writing."""
    before = signal.getsignal(signal.SIGTERM)
    term = Term()
    signal.signal(signal.SIGTERM, term)
    explain = program.explain
    write = program.write_result

    def ends(*_: Any) -> dict[str, Any]:
        if end == "failed":
            raise JobError("data", "No.", "")
        return {"status": "done"}

    def signalled(name: str, then: Any) -> None:
        def first(*given: Any) -> Any:
            signal.raise_signal(signal.SIGTERM)
            return then(*given)

        monkeypatch.setattr(program, name, first)

    monkeypatch.setattr(program, "_result", ends)
    signalled("explain", explain)
    signalled("write_result", write)
    path, result = tmp_path / "job.json", tmp_path / "result.json"
    path.write_text(json.dumps({"result": str(result)}), encoding="utf-8")
    try:
        with contextlib.suppress(Stopped) if kept is not None else contextlib.nullcontext():
            program._do(path, Progress(), kept, term)
            assert kept is None  # a worker ends
    finally:
        signal.signal(signal.SIGTERM, before)
    assert json.loads(result.read_text())["status"] == end
    with pytest.raises(Stopped):
        term()


def test_a_reader_that_reads_nothing_holds_up_no_training() -> None:
    reader, writer = os.pipe()
    progress = Progress(writer)

    def train() -> None:
        for step in range(20_000):
            progress("train", step=step)

    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(30)
    waits = training.is_alive()
    with os.fdopen(reader, "rb") as lines:
        os.set_blocking(reader, False)
        told = [json.loads(line) for line in lines.read().splitlines()]
        assert not waits
        assert [facts["step"] for facts in told] == list(range(len(told)))
        assert len(told) > 100
    os.close(writer)
