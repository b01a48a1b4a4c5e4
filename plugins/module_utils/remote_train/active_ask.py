"""Ask a training's own Python, in children that can be killed.

The questions run in two children at once, since a GPU that hangs must not keep the tokenizer from
being looked at. Each has the same time; one that hasn't ended by then is killed, and the part that
it was in is named.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

KILLED_WITHIN = 2.0
"""Seconds that a killed child is waited for; one that hangs in a driver doesn't die."""

REACHED = {
    "torch": ("torch", "cpu_products", "cuda", "gpu_products", "bandwidth"),
    "model": ("transformers", "config:", "tokenizer:", "lengths:"),
}
"""The parts of each child, in their order."""


def ask(
    python: str, program: str, requests: Mapping[str, Mapping[str, Any]], seconds: float
) -> dict[str, dict[str, Any]]:
    """Run the program once for each request, all at once; what they said.

    :param program: the text of :mod:`gate_torch`.
    :param seconds: after which a child that hasn't ended is killed.
    :returns: ``found``, ``hung`` and ``died``, each by part.
    """
    folder = tempfile.mkdtemp(prefix="remote-train-")
    try:
        path = os.path.join(folder, "gate_torch.py")
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(program)
        children = {
            kind: _Child([python, path, kind], json.dumps(dict(request)), folder)
            for kind, request in requests.items()
        }
        _wait(list(children.values()), seconds)
        answer: dict[str, dict[str, Any]] = {"found": {}, "hung": {}, "died": {}}
        for kind, child in children.items():
            child.tell(answer, kind, seconds)
        return answer
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Child:
    """One child that prints JSON lines."""

    def __init__(self, command: list[str], given: str, folder: str) -> None:
        self.output = b""
        self.killed = False
        self.errors = os.path.join(folder, f"{command[-1]}.err")
        self.failure = ""
        self.process: subprocess.Popen[bytes] | None = None
        asked = os.path.join(folder, f"{command[-1]}.json")
        with open(asked, "w", encoding="utf-8") as stream:
            stream.write(given)
        try:
            with open(asked, "rb") as stdin, open(self.errors, "wb") as stderr:
                self.process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=folder,
                    start_new_session=True,
                )
        except OSError as error:
            self.failure = f"can't be started: {error.strerror}"

    def tell(self, answer: dict[str, dict[str, Any]], kind: str, seconds: float) -> None:
        """Add what it said to the answer."""
        begun = ""
        for line in self.output.decode("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and "begin" in told:
                    begun = str(told["begin"])
                elif isinstance(told, dict) and "part" in told:
                    answer["found"][told["part"]] = told["facts"]
                    begun = ""
        begun = begun or ("" if self._well else REACHED[kind][0])
        if self.killed:
            answer["hung"][begun or REACHED[kind][-1]] = f"{seconds:.0f} s"
        elif not self._well and begun not in answer["found"]:
            answer["died"][begun] = self.failure or self._ending()

    @property
    def _well(self) -> bool:
        return self.process is not None and self.process.returncode == 0

    def _ending(self) -> str:
        status = self.process.returncode if self.process else None
        if status is not None and status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        with open(self.errors, "rb") as stream:
            lines = stream.read().decode("utf-8", "replace").strip().splitlines()
        return f"ended with status {status}: {lines[-1] if lines else 'no word'}"


def _wait(children: Sequence[_Child], seconds: float) -> None:
    """Read what the children print until they end; kill those that take too long."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for child in children:
            if child.process and child.process.stdout:
                selector.register(child.process.stdout, selectors.EVENT_READ, child)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _events in selector.select(left):
                chunk = os.read(key.fd, 1 << 16)
                key.data.output += chunk
                if not chunk:
                    selector.unregister(key.fileobj)
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(deadline - time.monotonic(), 0.2))
        except subprocess.TimeoutExpired:
            child.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(KILLED_WITHIN)
        if child.process.stdout:
            child.process.stdout.close()
