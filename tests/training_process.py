"""A training in a process of its own: start it, wait for a step, kill it, look at what it left.

    with Trainings() as trainings:
        run = trainings.start(job, folder)
        run.wait_for_step(3)
        run.kill(signal.SIGKILL)

The process is forked from one that has imported torch once (this file is its program), since that
takes seconds; what it does there is ``training.__main__.main``. :func:`alone` starts one as the
supervisor does, by ``python -m training``.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[1]
FAULTS = HOUSE / "tests" / "training_faults"
VARIABLE = "REMOTE_TRAIN_TEST_FAULT"
PATIENCE = 120.0
# On a busy machine, threads that spin while they wait for each other take minutes for what takes
# a second otherwise. The bytes are the same.
CALM = {"OMP_WAIT_POLICY": "passive"}


@dataclasses.dataclass
class Run:
    """A training that was started.

    :param ended: waits for its end and returns its status: negative for a signal.
    """

    job: dict[str, Any]
    folder: Path
    pid: int
    ended: Callable[[], int]
    status: int | None = None

    @property
    def progress(self) -> list[dict[str, Any]]:
        """Its progress lines."""
        text = (self.folder / "progress.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def result(self) -> dict[str, Any]:
        """What ``result.json`` says; empty, where there is none."""
        path = Path(self.job["result"])
        return json.loads(path.read_bytes()) if path.exists() else {}

    @property
    def adapter(self) -> bytes:
        folder = Path(self.job["project_root"]) / self.job["adapter_dir"]
        return (folder / "adapter_model.safetensors").read_bytes()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """``metrics.jsonl`` without what differs each time."""
        folder = Path(self.job["project_root"]) / self.job["adapter_dir"]
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        differing = {"seconds", "tokens_per_second", "peak_memory_bytes"}
        return [{k: v for k, v in json.loads(x).items() if k not in differing} for x in lines]

    @property
    def checkpoints(self) -> list[str]:
        """The names of what is in the folder of its checkpoints."""
        folder = Path(self.job["project_root"]) / self.job["checkpoints"]["folder"]
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def wait_for(self, what: Callable[[dict[str, Any]], bool]) -> None:
        """Until a progress line is such."""
        deadline = time.monotonic() + PATIENCE
        while not any(what(line) for line in self.progress):
            assert time.monotonic() < deadline, f"it didn't come to that:\n{self.log}"
            assert self.alive(), f"it ended before that:\n{self.log}"
            time.sleep(0.005)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda line: line["phase"] == "train" and line["step"] >= step)

    def wait_for_phase(self, phase: str) -> None:
        self.wait_for(lambda line: line["phase"] == phase)

    def alive(self) -> bool:
        """Whether it lives; one that has ended and wasn't waited for is none that lives."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    def kill(self, number: int) -> int:
        """Send a signal and wait for the end."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        if self.status is None:
            self.status = self.ended()
        return self.status


class Trainings:
    """The process that trainings are forked from, one after the other."""

    def __enter__(self) -> Trainings:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            cwd=HOUSE,
            env={**os.environ, **CALM, "PYTHONPATH": str(HOUSE)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._current: Run | None = None
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._server.communicate()  # at the end of its input, it ends

    def start(self, job: dict[str, Any], folder: Path, fault: dict[str, Any] | None = None) -> Run:
        """Start the job; ``folder`` gets its log and its progress."""
        self._end()
        path = _prepare(job, folder)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        answers = self._server.stdout
        self._server.stdin.write(json.dumps([str(path), str(folder), fault or {}]) + "\n")
        self._server.stdin.flush()
        pid = int(answers.readline())
        self._current = Run(job, folder, pid, lambda: int(answers.readline()))
        return self._current

    def _end(self) -> None:
        """End what a test that failed has left running."""
        if self._current and self._current.status is None:
            self._current.kill(signal.SIGKILL)

    def finish(self, job: dict[str, Any], folder: Path, fault: dict[str, Any] | None = None) -> Run:
        """Start the job and wait for its end."""
        run = self.start(job, folder, fault)
        run.wait()
        return run


def alone(job: dict[str, Any], folder: Path, fault: dict[str, Any] | None = None) -> Run:
    """Start the job by ``python -m training``."""
    path = _prepare(job, folder)
    told = os.open(folder / "progress.jsonl", os.O_WRONLY | os.O_APPEND)
    faulty = {VARIABLE: json.dumps(fault), "PYTHONPATH": str(FAULTS)} if fault else {}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "training", str(path)],
            cwd=HOUSE,
            env={**os.environ, **CALM, "REMOTE_TRAIN_PROGRESS_FD": str(told), **faulty},
            pass_fds=[told],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    os.close(told)
    return Run(job, folder, process.pid, process.wait)


def _prepare(job: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Path(job["result"]).unlink(missing_ok=True)
    (folder / "log").write_bytes(b"")
    (folder / "progress.jsonl").write_bytes(b"")
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


def _serve() -> None:
    """Fork a training for each line of standard input; answer its pid, and then its status."""
    for name in ("training.stage", "training.__main__", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    for line in sys.stdin:
        path, folder, fault = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 70
            try:
                status = _train(path, Path(folder), fault)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        print(child, flush=True)  # noqa: T201  # the answer
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)  # noqa: T201


def _train(path: str, folder: Path, fault: dict[str, Any]) -> int:
    os.dup2(os.open(folder / "log", os.O_WRONLY | os.O_APPEND), 1)
    os.dup2(1, 2)
    told = os.open(folder / "progress.jsonl", os.O_WRONLY | os.O_APPEND)
    os.environ["REMOTE_TRAIN_PROGRESS_FD"] = str(told)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.import_module("tests.training_faults.sitecustomize").arm(fault)
    status: int = importlib.import_module("training.__main__").main([path])
    return status


if __name__ == "__main__":
    _serve()
