"""A bare machine gets a Python that could train, in half a minute: from tiny packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from remote_train import pythons
from tests.bare import bare_host
from tests.bare.bare_host import BareHost, MissingError
from tests.bare.bare_site import Site
from tests.bare.wheel_folder import PROJECT
from tests.integration.sites import Playbooks
from tests.unit.wheels import wheel

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(1200)]


def test_a_host_without_pip_is_sent_one_and_the_wheels(
    bare: BareHost, playbooks: Playbooks, tmp_path: Path
) -> None:
    assert bare.ssh("python3", "-m", "pip").returncode == 1
    wheels = tmp_path / "wheels"
    text = (PROJECT / "training" / "requirements.txt").read_text(encoding="utf-8")
    for name, bounds in pythons.parse_requirements(text).items():
        wheel(wheels, name, bounds.split(",")[0].lstrip(">=") + ".1")
    shutil.copytree(PROJECT / "examples/tutor", tmp_path / "src")
    site = Site(
        bare,
        tmp_path,
        playbooks,
        model_name_or_path="/srv/model",
        provision_wheels=str(wheels),
    )
    precheck = site.run(playbook="playbooks/precheck.yml")
    assert precheck.status == 0, precheck.output
    (packages,) = (line for line in precheck.lines if line.startswith("packages "))
    assert packages.split()[1] == "unknown", precheck.output
    assert "no Python for the training" in packages
    before = site.contents()
    check = site.run("--tags", "provision", "--check")
    assert check.status == 0, check.output
    assert site.contents() == before
    outcome = site.run("--tags", "provision")
    assert outcome.status == 0, outcome.output
    said = [line.replace("sends", "sent") for line in check.lines if line.startswith("sends ")]
    assert len(said) == 2  # the wheels, and a pip
    for line in said:
        assert line in outcome.lines, outcome.output
    (made,) = (line for line in check.lines if line.startswith("makes a venv "))
    assert made.replace("makes", "made", 1) in outcome.lines, outcome.output
    found = bare.ssh(f"/srv/tutor/{pythons.VENV}/bin/python", "-c", "'import torch, peft'")
    assert found.returncode == 0, found.stderr
    again = site.run("--tags", "provision")
    assert again.status == 0, again.output
    assert again.recap["bare"]["changed"] == 0


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo I: Retrieving InRelease; sleep 600",
            "base system after 1 s: I: Retrieving InRelease",
        ),
        ("echo E: no mirror; exit 1", "base system: E: no mirror"),
    ],
)
def test_a_mirror_that_cannot_be_reached_is_a_reason_to_skip(
    monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(bare_host, "MIRROR_SECONDS", 1.0)
    with pytest.raises(MissingError, match=words):
        bare_host._bootstrap(["sh", "-c", script])
    bare_host._bootstrap(["sh", "-c", "echo 1; echo 2; echo 3; sleep 2"])
