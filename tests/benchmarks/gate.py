"""How long the gate takes: one round trip of gpu_probe, and a whole playbooks/precheck.yml.

The machine's nvidia-smi is a fake that answers at once, or never: what is measured is the gate.
A real driver without persistence mode adds what it needs to wake up, some seconds. Where the driver
hangs, so does torch: then a fake Python never answers what is asked of torch.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import BIN, PROJECT, Row, seconds
from tests.unit import fake_smi

HEALTHY_SECONDS, HANGING_SECONDS = 10.0, 60.0
"""The most that it may take on a healthy machine, and whatever hangs. Not ratios, since what they
promise is a time; both are far above what any machine's load makes of them."""

HANGS = "gave no answer within 20 s"


def measure(repeats: int) -> list[Row]:
    """The medians on a healthy machine, and one turn each on a machine whose driver hangs."""
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as name:
        folder = Path(name)
        answering = fake_smi.answers(folder / "healthy")
        hanging = fake_smi.broken(folder / "hanging", "hanging")
        _hanging_logs(folder / "hanging")
        stuck = _python(folder / "hanging", 'case "$2" in torch) exec sleep 300 ;; esac')
        shutil.copytree(PROJECT / "examples" / "tutor", folder / "tutor")
        healthy = [_once(folder, answering, "driver 550") for _ in range(repeats)]
        whole = [_precheck(folder, answering, sys.executable, "driver 550") for _ in range(repeats)]
        return [
            Row("gate, healthy machine: seconds", statistics.median(healthy), HEALTHY_SECONDS),
            Row(
                "gate, driver and kernel's log that never answer: seconds",
                _once(folder, hanging, HANGS),
                HANGING_SECONDS,
            ),
            Row(
                "precheck.yml, healthy machine: seconds", statistics.median(whole), HEALTHY_SECONDS
            ),
            Row(
                "precheck.yml, driver and torch that never answer: seconds",
                _precheck(folder, hanging, stuck, "torch can't be imported,"),
                HANGING_SECONDS,
            ),
        ]


def _hanging_logs(folder: Path) -> None:
    """Programs that never show the kernel's log, beside the nvidia-smi that never answers."""
    for name in ("dmesg", "journalctl"):
        (folder / name).write_text("#!/bin/sh\nsleep 300\n")
        (folder / name).chmod(0o755)


def _python(folder: Path, text: str) -> str:
    """This Python, but for what ``text`` makes of its arguments; its path."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\n{text}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def _once(folder: Path, program: str, must_say: str) -> float:
    """The seconds of one round trip that must say what it should."""
    arguments = {"project_root": str(folder / "tutor"), "nvidia_smi": program}
    command = [
        str(Path(sys.executable).with_name("ansible")),
        *("localhost", "-i", "localhost,", "-c", "local", "-m", "gpu_probe"),
        *("-e", json.dumps({"ansible_python_interpreter": sys.executable})),
        *("-a", json.dumps(arguments)),
    ]
    environment = _environment("ansible.builtin.default")
    environment["PATH"] = f"{Path(program).parent}{os.pathsep}{environment['PATH']}"
    return seconds(command, env=environment, must_say=must_say)


def _precheck(folder: Path, program: str, python: str, must_say: str) -> float:
    """The seconds of a whole playbook, on a project with data.

    There is no GPU for torch: the mode is warn, and the check that torch hangs in is silenced, so
    that the playbook runs to its end.
    """
    given: dict[str, Any] = {
        "project_root": str(folder / "tutor"),
        "gpu_gate": "warn",
        "gpu_gate_nvidia_smi": program,
        "gpu_gate_silence": {"torch": "for the bench"},
        "provision_python": python,
        "non_interactive": True,
    }
    command = [
        *(BIN / "ansible-playbook", "-i", PROJECT / "inventory" / "local"),
        *(PROJECT / "playbooks" / "precheck.yml", "-e", json.dumps(given)),
    ]
    return seconds(command, env=_environment(), must_say=must_say)


def _environment(callback: str = "") -> dict[str, str]:
    shown = {"ANSIBLE_STDOUT_CALLBACK": callback} if callback else {}
    return {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), **shown}
