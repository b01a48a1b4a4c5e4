"""A host with a run to be collected, and the real action that brings it home.

Modules run in this process, and what is sent to the host's shell is run by this machine's. The
link breaks where a test says so.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import types
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleConnectionFailure

from plugins.action import collect
from remote_train import gather, plan, runs
from tests.unit.stage_host import RUN, build, done_marker, put

ADAPTER = "outputs/adapter/adapter_style/adapter_model.safetensors"
LOG = "outputs/logs/train_style_20260209T093000Z.log"


class CollectHost:
    """The host in ``folder/root``, home in ``folder/home``.

    :ivar cuts: bytes of each next answer of the host's shell, before the link breaks in it; None
        for one that comes whole.
    :ivar moved: the bytes that came over the link.
    :ivar flip: a place in the next answer that comes with one bit changed.
    """

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.root = folder / "root"
        self.home = folder / "home"
        self.changes: dict[str, Any] = {"acceptance_gate": "off", "reconnect_timeout": 0, **changes}
        self.run = self.began = RUN
        self.cuts: list[int | None] = []
        self.moved = 0
        self.resets = 0
        self.flip = -1
        self.said: list[str] = []
        self.warned: list[str] = []
        for name in ("sample", "style"):
            done_marker(self.root, self.request, name)
        put(self.root, {LOG: b"log\n"})
        self.record(RUN)

    @property
    def request(self) -> Any:
        """The request of a run here."""
        return build(project_root=str(self.root), **self.changes)

    def record(self, run: str) -> None:
        """Let ``style`` have been trained by a run."""
        self.run = run
        fields = {"state": "done", "reasons": ["it is a test"], "log": LOG}
        runs.record_stage(str(self.root), run, "style", fields)
        runs.mark(str(self.root), run, "style", "done")

    def train(self, run: str, content: bytes, stages: tuple[str, ...] = ("style",)) -> None:
        """Train stages anew: as the training does it, with new files in the old ones' place."""
        for name in stages:
            output = f"outputs/adapter/adapter_{name}/adapter_model.safetensors"
            (self.root / output).unlink(missing_ok=True)
            marker = done_marker(self.root, self.request, name)
            (self.root / output).unlink()
            put(self.root, {output: content + name.encode()})
            outputs = gather.markers.outputs_of(str(self.root), [output])
            gather.markers.write(str(self.root), name, {**marker, "run": run, "outputs": outputs})
        self.record(run)

    def large(self, size: int, seed: int = 0) -> bytes:
        """Make the adapter so large, of bytes that don't repeat."""
        content = random.Random(seed).randbytes(size)  # noqa: S311
        put(self.root, {ADAPTER: content})
        return content

    def _exec(self, line: str, in_data: Any = None, sudoable: bool = True) -> Any:
        assert in_data is None
        assert not sudoable  # with a terminal, bytes would not come as they are
        done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
        printed = b"Welcome to the host.\n" + done.stdout
        cut = self.cuts.pop(0) if self.cuts else None
        if cut is not None:
            self.moved += cut
            raise AnsibleConnectionFailure("the link broke")
        self.moved += len(printed)
        if 0 <= self.flip < len(printed):
            printed = bytearray(printed)
            printed[self.flip] ^= 1
            self.flip = -1
        return done.returncode, bytes(printed), done.stderr

    def _call(self, module: str, arguments: Any, _vars: Any) -> Any:
        assert module == "gather"
        if "pack" in arguments:
            return gather.pack(str(self.root), arguments["pack"])
        return gather.gather(self.request, arguments["run"], arguments["controller"])

    def _reset(self) -> None:
        self.resets += 1

    def action(self, again: bool = False) -> Any:
        """The action, ready to act; ``again`` verifies what is at home."""
        made = object.__new__(collect.ActionModule)
        arguments = {
            "request": self.request,
            "run": self.run,
            "dest": str(self.home),
            "controller": CONTROLLER,
        }
        if again:
            arguments["expected"] = plan.at_home(str(self.root))
        made._task = types.SimpleNamespace(args=arguments, check_mode=False, diff=False)
        made._connection = types.SimpleNamespace(
            transport="ssh", exec_command=self._exec, reset=self._reset
        )
        made.say = self.said.append
        made.warn = self.warned.append
        made.call = self._call
        made.shell = lambda words, *_: subprocess.run(words, check=True) and ""
        return made

    def collect(self, again: bool = False) -> Any:
        """Bring the run home."""
        return self.action(again).act({})


CONTROLLER: dict[str, Any] = {
    "started": "2026-02-09T09:30:00Z",
    "plan": [],
    "findings": [],
    "gate_stops": False,
    "issues": [],
    "python": None,
    "gpus": [],
    "driver_version": "",
    "stopped": False,
    "failure": None,
}


def sha256(content: bytes) -> str:
    """In lower-case hex."""
    return hashlib.sha256(content).hexdigest()
