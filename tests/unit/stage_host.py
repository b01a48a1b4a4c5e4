"""What the tests of requests, plans and stages share: settings as a run has them, and a GPU host.

The host is a folder with an engine whose training does what a test asks of it, and no torch.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from remote_train import fingerprint, launch, live, markers, request

HOUSE = Path(__file__).resolve().parents[2]
FIRST = "t1"
"""The token of a start, unless a test draws another."""
RUN = "run_20260209T093000Z"
TRAIN = "data/training/processed/style_sft.jsonl"
BENCHMARK = "data/training/eval/style_benchmark.jsonl"
DATA = (
    TRAIN,
    BENCHMARK,
    "data/training/processed/style_sft_sample.jsonl",
    "data/training/processed/writing_sft.jsonl",
    "data/training/eval/writing_benchmark.jsonl",
)


def load_yaml(*parts: str) -> Any:
    """A YAML file of the checkout."""
    return copy.deepcopy(_read_yaml(HOUSE.joinpath(*parts)))


@functools.cache
def _read_yaml(path: Path) -> Any:
    return yaml.load(path.read_bytes(), yaml.CSafeLoader)


def specs() -> dict[str, dict[str, Any]]:
    """The options of every role's entry points, by role."""
    found = {}
    for path in sorted(HOUSE.glob("roles/*/meta/argument_specs.yml")):
        entries = _read_yaml(path)["argument_specs"]
        found[path.parts[-3]] = {k: v for e in entries.values() for k, v in e["options"].items()}
    return found


def _templated(value: Any, base: str) -> Any:
    """``value`` with the one variable that the defaults use."""
    if isinstance(value, str):
        return value.replace("{{ data_base }}", base)
    if isinstance(value, list):
        return [_templated(item, base) for item in value]
    if isinstance(value, dict):
        return {key: _templated(item, base) for key, item in value.items()}
    return value


def values(**changes: Any) -> dict[str, Any]:
    """Every setting of the role ``settings``, by its default or as given."""
    defaults = load_yaml("roles", "settings", "defaults", "main.yml")
    unknown = set(changes) - set(defaults)
    assert not unknown, unknown
    merged = {**defaults, "project_root": "/srv/tutor", **changes}
    return dict(_templated(merged, merged["data_base"]))


def kinds() -> dict[str, str]:
    """The type of each setting, from the role's argument spec."""
    return {name: option.get("type", "str") for name, option in specs()["settings"].items()}


def build(tags: Any = ("all",), skip: Any = (), terminal: bool = False, **changes: Any) -> Any:
    """The request of a run with these settings."""
    return request.build(values(**changes), kinds(), tags, skip, terminal)


def stage_of(wanted: dict[str, Any], name: str = "style") -> dict[str, Any]:
    """One stage of a request."""
    return next(stage for stage in wanted["stages"] if stage["name"] == name)


def done_marker(root: Path, wanted: dict[str, Any], name: str = "style") -> dict[str, Any]:
    """A stage as it is after a good training: one output, and its marker; the marker."""
    stage = stage_of(wanted, name)
    output = f"{stage['adapter_dir']}/adapter_model.safetensors"
    put(root, {output: b"weights"})
    inputs, evaluation = inputs_of(root, wanted, name)
    marker = {
        "status": "done",
        "run": RUN,
        "fingerprint": fingerprint.digest(inputs),
        "evaluation_fingerprint": fingerprint.digest(evaluation),
        "inputs": inputs,
        "evaluation": evaluation,
        "effective": {"micro_batch_tokens": 4096},
        "outputs": markers.outputs_of(str(root), [output]),
        "metrics": {"train_loss": 0.5, "steps": 8, "scores": {}},
        "started": "2026-02-09T09:30:00Z",
        "ended": "2026-02-09T09:31:00Z",
        "seconds": 60.0,
        "host": "gpu",
        "accelerator": "cpu",
    }
    markers.write(str(root), name, marker)
    return marker


CODE = ("sha256:" + "c" * 64, "sha256:" + "e" * 64)
PACKAGES = {"torch": "2.13.0"}


def inputs_of(root: Path, wanted: dict[str, Any], name: str = "style") -> Any:
    """The inputs of a stage and those of its evaluation, with :data:`CODE`."""
    stage = stage_of(wanted, name)
    base = fingerprint.base_model(stage["model"], str(root))
    return fingerprint.stage_inputs(stage, str(root), CODE, PACKAGES, base)


def put(root: Path, files: dict[str, bytes]) -> None:
    """Write files below ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def project(root: Path) -> Path:
    """A training project's data; nothing that runs here looks at what is in it."""
    put(root, {name: f"{name}\n".encode() for name in DATA})
    return root


HEARTBEAT = "HEARTBEAT = 2.0"
"""Seconds that tests don't wait for: they run with a tenth of one."""

FAKE_TRAINING = '''
"""Does what FAKE in its environment asks for, and says so as the real one does."""
import contextlib, hashlib, json, os, pathlib, signal, sys, time

fake = json.loads(os.environ.get("FAKE", "{}"))


def say(line):
    with contextlib.suppress(OSError):
        os.write(int(os.environ["REMOTE_TRAIN_PROGRESS_FD"]), line)


def progress(**values):
    say(json.dumps(values).encode() + b"\\n")


def wait():
    while not (root / "go_on").exists():
        time.sleep(0.02)


def stop(*_):
    (root / "was_stopped").touch()
    sys.exit(3)


def train():
    global job, root
    with open(order["job"]) as stream:
        job = json.load(stream)
    root = pathlib.Path(job["project_root"])
    adapter = root / job["adapter_dir"]
    if fake.get("mind_the_signal"):
        signal.signal(signal.SIGTERM, stop)
    print("begins", flush=True)
    with open(root / "starts", "a") as stream:
        stream.write(job["mode"] + "\\n")
    progress(phase="load")
    if "crash" in fake:
        raise RuntimeError(fake["crash"])
    if fake.get("hold"):
        wait()
    data = {
        name: "sha256:" + hashlib.sha256((root / name).read_bytes()).hexdigest()
        for name in (*job["train"], *job["evaluate"])
    }
    data.update(fake.get("data", {}))
    say(b"no JSON\\n[1]\\n")
    progress(phase="train", step=1, steps=2, loss=1.5)
    if fake.get("wait"):
        wait()
    if job["mode"] == "train":
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "adapter_model.safetensors").write_text(fake.get("weights", "weights"))
    outputs = [job["adapter_dir"] + "/adapter_model.safetensors"]
    result = {
        "token": job["token"],
        "status": "done",
        "metrics": {"train_loss": 0.5} if job["mode"] == "train" else {"scores": {"x": 1}},
        "effective": {"threads": 1},
        "data": data,
        "outputs": outputs,
        "accelerator": "cpu: fake",
        "seconds": {"train": 0.1},
        "warnings": [],
    }
    result.update(fake.get("result", {}))
    if "told" in fake:
        progress(result=result)
    elif "no_result" not in fake:
        with open(job["result"] + ".new", "w") as stream:
            json.dump(result, stream)
        os.replace(job["result"] + ".new", job["result"])
    print("ends", flush=True)
    if fake.get("exit"):
        sys.exit(fake["exit"])


assert sys.argv[1:] == ["--serve"], sys.argv
with os.fdopen(os.dup(0), "rb", buffering=0) as orders:
    for line in iter(orders.readline, b""):
        order = json.loads(line)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train()
        progress(job_ended=order["token"], status=0)
'''


class Host:
    """A GPU host: a folder with data and an engine, on which stages really start and run."""

    def __init__(self, root: Path) -> None:
        self.root = project(root)
        self.engine = root / "outputs/training_sync/engine"
        source = HOUSE / "plugins" / "module_utils" / "remote_train"
        shutil.copytree(
            source, self.engine / "remote_train", ignore=shutil.ignore_patterns("__pycache__")
        )
        supervisor = self.engine / "remote_train" / "stage_run.py"
        source_text = supervisor.read_text(encoding="utf-8")
        assert HEARTBEAT in source_text
        supervisor.write_text(source_text.replace(HEARTBEAT, "HEARTBEAT = 0.1"), encoding="utf-8")
        put(
            self.engine / "training",
            {
                "__init__.py": b"",
                "__main__.py": FAKE_TRAINING.encode(),
                "fit.py": b"RATE = 1\n",
                "evaluate.py": b"SCORE = 1\n",
                "report.py": b"TITLE = 1\n",
                "card.py": b"TITLE = 1\n",
            },
        )
        self._pids: set[int] = set()

    def request(self, **changes: Any) -> Any:
        """A request of this host."""
        return build(project_root=str(self.root), **{"stage_retry_pause": 0, **changes})

    def start(
        self,
        fake: dict[str, Any] | None = None,
        stage: str = "style",
        mark: str = FIRST,
        environment: dict[str, str] | None = None,
        run: str = RUN,
        python: str = sys.executable,
        **changes: Any,
    ) -> dict[str, Any]:
        """Start a stage as the module does; ``mark`` is the token of the start."""
        wanted = self.request(**changes)
        given = {"FAKE": json.dumps(fake or {}), **(environment or {})}
        started = launch.start(wanted, stage_of(wanted, stage), run, mark, python, given, {})
        self._note(started["status"])
        return started

    def status(self) -> dict[str, Any]:
        """What the supervisor says."""
        status = live.read_json(live.path(str(self.root), "status.json"))
        self._note(status)
        return status

    def _note(self, status: dict[str, Any]) -> None:
        for who in (status, status.get("child") or {}):
            if who.get("pid"):
                self._pids.add(who["pid"])

    def wait(self, what: Any, seconds: float = 15.0) -> dict[str, Any]:
        """Wait until ``what(status)`` holds; the status."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status()
            if status and what(status):
                return status
            time.sleep(0.01)
        raise AssertionError(f"{status} {self.log()} {self.supervisor_log()}")

    def finish(self) -> dict[str, Any]:
        """Wait until the stage has ended and its lock is free; the status."""
        status = self.wait(lambda status: status["state"] != "running")
        self.until(lambda: not live.is_held(str(self.root)))
        return status

    def until(self, what: Any, seconds: float = 10.0) -> None:
        """Wait until ``what()`` holds."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def trained(self, **fake: Any) -> dict[str, Any]:
        """Start a stage and wait for its end."""
        started = self.start(fake)
        assert started["outcome"] == "started", started
        return self.finish()

    def marker(self, stage: str = "style") -> dict[str, Any] | None:
        """The marker of a stage."""
        return markers.read(str(self.root), stage)[0]

    def starts(self) -> list[str]:
        """The mode of each training that began here."""
        path = self.root / "starts"
        return path.read_text().split() if path.exists() else []

    def log(self) -> str:
        """The log of the stage."""
        name = self.status().get("log")
        path = self.root / str(name)
        return path.read_text() if name and path.is_file() else ""

    def supervisor_log(self) -> str:
        """What the supervisor itself complained of."""
        return (self.root / live.FOLDER / "supervisor.log").read_text()

    def issues(self) -> list[dict[str, Any]]:
        """The issues of the run."""
        path = self.root / "outputs/training_sync" / RUN / "issues.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def states(self, run: str = RUN) -> set[str]:
        """The state files of a run."""
        folder = self.root / "outputs/training_sync" / run
        return {path.name for path in folder.glob(".stage_*")}

    def close(self) -> None:
        """End what a failed test left running, by the process numbers noted."""
        self.status()
        for pid in self._pids:
            if pid == os.getpid():
                continue
            folder = Path(f"/proc/{pid}/cwd")
            with contextlib.suppress(OSError):
                if str(self.root) in os.readlink(folder):
                    os.kill(pid, signal.SIGKILL)
