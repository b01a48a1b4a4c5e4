"""Runs the Molecule scenario, and shows that its idempotence step can fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from molecule.command.idempotence import Idempotence

import sshd_host

CHECKOUT = Path(__file__).resolve().parents[2]
SCENARIO = CHECKOUT / "tests/molecule/default"
SEQUENCE = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["scenario"]["test_sequence"]
SECONDS = 540


def environment(**more: str) -> dict[str, str]:
    """What Molecule and Ansible need; a terminal's colours and verbosity stay out."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", **more}


def steps(output: str) -> list[tuple[str, str]]:
    """Each step in the report at the end of Molecule's output, with how it ended.

    Its arrow is another one where Molecule shows no colours.
    """
    report = re.sub(r"\x1b\[[0-9;]*m", "", output).rpartition("DETAILS")[2]
    return re.findall(r"default (?:➜|>) (\w+): Executed: (\w+)", report)


@pytest.mark.training
@pytest.mark.ssh
@pytest.mark.timeout(600)
def test_the_scenario_goes_through_every_step(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["molecule", "test"],
        cwd=CHECKOUT,
        env=environment(
            MOLECULE_GLOB="tests/molecule/*/molecule.yml",
            MOLECULE_EPHEMERAL_DIRECTORY=str(tmp_path),
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
        left_running = sshd_host.find(tmp_path / "ssh")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        sshd_host.stop(tmp_path / "ssh")
    assert process.returncode == 0, output[-6000:]
    assert steps(output) == [(step, "Successful") for step in SEQUENCE], output[-6000:]
    assert {"converge", "idempotence", "side_effect", "verify"} < set(SEQUENCE)
    assert left_running is None


@pytest.mark.parametrize(("changed", "idempotent"), [("true", False), ("false", True)])
def test_the_idempotence_step_reads_the_recap_of_our_callback(
    tmp_path: Path, changed: str, idempotent: bool
) -> None:
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [{"ansible.builtin.command": "true", "changed_when": changed}],
    }
    playbook = tmp_path / "play.yml"
    playbook.write_text(yaml.safe_dump([play]))
    result = subprocess.run(
        ["ansible-playbook", str(playbook)],
        env=environment(ANSIBLE_CONFIG=str(CHECKOUT / "ansible.cfg")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PLAY RECAP" in result.stdout
    assert "TASK [" not in result.stdout, "this is not the callback of this project"
    assert Idempotence._is_idempotent(None, result.stdout) is idempotent
