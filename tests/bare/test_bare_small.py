"""A bare machine gets a Python that could train, in seconds: from tiny packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from remote_train import pythons
from tests.bare.bare_host import BareHost
from tests.bare.bare_site import Site
from tests.bare.wheel_folder import PROJECT
from tests.integration.sites import Playbooks
from tests.unit.wheels import wheel

pytestmark = pytest.mark.ssh


def test_a_host_without_pip_is_sent_one_and_the_wheels(
    kept_bare: BareHost, playbooks: Playbooks, tmp_path: Path
) -> None:
    assert kept_bare.ssh("python3", "-m", "pip").returncode == 1
    wheels = tmp_path / "wheels"
    text = (PROJECT / "training" / "requirements.txt").read_text(encoding="utf-8")
    for name, bounds in pythons.parse_requirements(text).items():
        wheel(wheels, name, bounds.split(",")[0].lstrip(">=") + ".1")
    shutil.copytree(PROJECT / "examples/tutor", tmp_path / "src")
    site = Site(
        kept_bare,
        tmp_path,
        playbooks,
        model_name_or_path="/srv/model",
        provision_wheels=str(wheels),
    )
    outcome = site.run("--tags", "provision")
    assert outcome.status == 0, outcome.output
    found = kept_bare.ssh(f"/srv/tutor/{pythons.VENV}/bin/python", "-c", "'import torch, peft'")
    assert found.returncode == 0, found.stderr
    again = site.run("--tags", "provision")
    assert again.status == 0, again.output
    assert again.recap["bare"]["changed"] == 0
