"""The training alone, without host and playbook: where the bytes count, many times over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remote_train import live
from tests.integration.faults import processes
from tests.integration.faults.waits import until
from tests.integration.sites import Site

PROGRAM = Path(__file__).with_name("zygote.py")


class Zygote:
    """A process that trains on demand: see zygote.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )

    def train(self, order: dict[str, str], meanwhile: Callable[[int], None] | None = None) -> int:
        """Train a job to its end, or to what ``meanwhile`` does to its process; its status."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = self._answer()["pid"]
        if meanwhile:
            meanwhile(pid)
        return self._answer()["status"]

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that trains has ended"
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        processes.kill_tree(self._process.pid)
        self._process.communicate()


class Project:
    """A copy of an undisturbed site's project, whose job is trained directly."""

    def __init__(self, zygote: Zygote, site: Site, folder: Path) -> None:
        self._zygote = zygote
        self.root = folder / "project"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(site.root / "data", self.root / "data")
        job = live.read_json(live.path(str(site.root), "training.json"))
        job.update(project_root=str(self.root), result=str(folder / "result.json"))
        if "checkpoints" not in job:
            job["checkpoints"] = {
                "folder": "outputs/training_sync/checkpoints/style",
                "steps": 3,
                "minutes": 5,
                "keep": 2,
                "fresh": False,
            }
        self.job = job
        self.folder = folder
        self.order = {
            "job": str(folder / "job.json"),
            "log": str(folder / "log"),
            "progress": str(folder / "progress"),
            "faults": str(folder),
        }

    def faults(self, *faults: dict[str, Any]) -> None:
        """Say what is to happen: see hooks/."""
        (self.folder / "faults.json").write_text(json.dumps(faults), encoding="utf-8")

    @property
    def result(self) -> dict[str, Any]:
        """The training's own word on how it ended."""
        return live.read_json(self.job["result"])

    @property
    def adapter(self) -> bytes:
        """The bytes that came out."""
        return (self.root / self.job["adapter_dir"] / "adapter_model.safetensors").read_bytes()

    @property
    def log(self) -> str:
        """The training's log so far."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def checkpoints(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        folder = self.root / "outputs/training_sync/checkpoints/style"
        return sorted(path for path in folder.glob("step_*") if path.name[5:].isdigit())

    def step(self) -> int:
        """The last step that was reported."""
        with contextlib.suppress(OSError, ValueError):
            lines = (self.folder / "progress").read_text(encoding="utf-8").splitlines()
            steps = [json.loads(line) for line in lines if line.endswith("}")]
            return max((line["step"] for line in steps if "step" in line), default=0)
        return 0

    def train(self, meanwhile: Callable[[int], None] | None = None) -> int:
        """Train, from the last checkpoint if there is one; the process's status."""
        Path(self.order["job"]).write_text(json.dumps(self.job), encoding="utf-8")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.order["progress"])
        return self._zygote.train(self.order, meanwhile)

    def train_until(self, step: int, number: int, pause: float = 0.0) -> int:
        """Train until a step is reported, and a moment longer; then send a signal."""

        def send(pid: int) -> None:
            until(lambda: self.step() >= step or not processes.lives(pid), f"step {step}")
            time.sleep(pause)
            processes.kill(pid, number=number)

        return self.train(send)
