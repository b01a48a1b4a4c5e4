"""Provisioning over a real connection: packages carried over, a model from a hub, a cut."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sshd_host
from remote_train import detached, provision, pythons
from tests.integration.sites import PROJECT, Site, finish, until
from tests.integration.test_survival import cut, shown_by
from tests.unit.hub_server import Hub, Repository, hub_server
from tests.unit.wheels import wheel

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh

MODEL = "owner/Model-1B"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 8000,
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub with one model."""
    with hub_server() as server:
        server.models[MODEL] = Repository(dict(FILES))
        yield server


@pytest.fixture
def site(new_site: Callable[..., Site], hub: Hub, tmp_path: Path) -> Site:
    """A site whose stages are trained by this project, from a model on the hub."""
    return new_site(
        stage_command=[],
        model_name_or_path=MODEL,
        hf_endpoint=hub.url,
        hf_token="hf_" + "s3cret",
        runtime_base=str(tmp_path / "data"),
        provision_python=sys.executable,
    )


def provisioning(site: Site, *arguments: str) -> Any:
    """``--tags provision``, with more than the sentence where something fails."""
    return site.run("--tags", "provision", *arguments)


def test_a_model_and_the_data_disk_in_one_step_and_then_nothing(
    site: Site, hub: Hub, tmp_path: Path
) -> None:
    check = provisioning(site, "--check")
    assert check.status == 0, check.output
    assert f"fetches the model {MODEL}@main from {hub.url}" in check.output, check.output
    assert not (tmp_path / "data").exists()
    assert hub.asked == []
    first = provisioning(site)
    assert first.status == 0, first.output
    for verb, done in (("makes ", "made "), ("links ", "linked "), ("fetches ", "fetched ")):
        (said,) = {line for line in check.lines if line.startswith(verb)}
        assert said.replace(verb, done, 1) in first.lines, first.output
    assert first.recap["gpu"]["changed"] == 1
    assert f"fetched the model {MODEL}@main from {hub.url}" in first.output
    assert os.readlink(site.root / "models") == str(tmp_path / "data" / "models")
    (snapshot,) = (tmp_path / "data/huggingface/hub").glob("models--*/snapshots/*")
    assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "s3cret" not in first.output
    for path in (site.root / detached.FOLDER).iterdir():
        assert b"s3cret" not in path.read_bytes(), path
    hub.asked.clear()
    second = provisioning(site)
    assert second.status == 0, second.output
    assert second.recap["gpu"]["changed"] == 0
    assert hub.asked == []


def test_a_model_that_cannot_be_had_is_one_sentence(site: Site) -> None:
    outcome = provisioning(site, "-e", "model_name_or_path=owner/none")
    assert outcome.status == 2
    failure = outcome.failures[0]
    assert "There is no model owner/none on http://127.0.0.1" in failure
    assert any(line.startswith("Hint: Check model_name_or_path") for line in outcome.lines)


def test_what_ended_provisioning_is_on_record(site: Site) -> None:
    outcome = site.run("-e", "model_name_or_path=owner/none")
    assert outcome.status == 2, outcome.output
    run = site.home / "training_sync" / site.runs()[-1].name
    issues = [json.loads(line) for line in (run / "issues.jsonl").open(encoding="utf-8")]
    (issue,) = [issue for issue in issues if issue["phase"] == "provision"]
    assert (issue["category"], issue["severity"]) == ("model_download", "error")
    assert issue["symptom"].startswith("There is no model owner/none on http://127.0.0.1")
    assert "model_name_or_path" in issue["action"]


def test_a_cut_and_a_dead_controller_end_no_fetch(
    site: Site, hub: Hub, gpu_host: GpuHost, tmp_path: Path
) -> None:
    # The hub breaks off again and again, so that there is time.
    hub.cuts = [100_000, *[0] * 4]
    run = site.start("--tags", "provision")
    until(lambda: list((tmp_path / "data").rglob("*.part")), "the fetch")
    for pid, _started in sshd_host.children(gpu_host.sshd.pid):
        os.kill(pid, signal.SIGTERM)
    outcome = finish(run)
    assert outcome.status == 0, outcome.output
    assert f"fetched the model {MODEL}@main" in outcome.output

    hub.models["owner/other"] = Repository(dict(FILES) | {"config.json": b"[]"})
    hub.models["owner/other"].files["model.safetensors"] = bytes(3_000_000)
    hub.cuts = [100_000, *[0] * 3]
    other = ("-e", "model_name_or_path=owner/other")
    run = site.start("--tags", "provision", *other)
    until(lambda: list((tmp_path / "data").rglob("*.part")), "the fetch")
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    until(lambda: detached.running(str(site.root)) is None, "its end", 30)
    again = provisioning(site, *other)
    assert again.status == 0, again.output
    assert again.recap["gpu"]["changed"] == 0


def test_earlier_provisioning_can_be_ended_as_it_is_said(
    site: Site, hub: Hub, tmp_path: Path
) -> None:
    """Whoever corrects a setting after Ctrl-C needn't wait for what it was wrong in."""
    hub.models["owner/other"] = Repository(dict(FILES))
    hub.models["owner/other"].files["model.safetensors"] = b"other" * 1000
    hub.cuts = [100_000, *[0] * 200]
    run = site.start("--tags", "provision")
    until(lambda: list((tmp_path / "data").rglob("*.part")), "the fetch")
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    run = site.start("--tags", "provision", "-e", "model_name_or_path=owner/other")
    shown = shown_by(run, "on the host: kill ")
    pid = re.search(r"process (\d+), for 0:\d\d now: fetching owner/Model-1B", shown)
    assert pid, shown
    hub.cuts = []
    os.kill(int(pid.group(1)), signal.SIGTERM)
    outcome = finish(run)
    assert outcome.status == 0, shown + outcome.output
    assert "fetched the model owner/other@main" in outcome.output
    assert not list((tmp_path / "data").rglob("models--owner--Model-1B/snapshots/*/*.safetensors"))


def test_a_host_that_is_away_for_a_while_is_followed_again(
    new_site: Callable[..., Site], hub: Hub, tmp_path: Path
) -> None:
    server = sshd_host.start(tmp_path / "own_sshd")
    try:
        site = new_site(
            stage_command=[],
            model_name_or_path=MODEL,
            hf_endpoint=hub.url,
            runtime_base=str(tmp_path / "data"),
            provision_python=sys.executable,
            ansible_port=server.port,
            ansible_ssh_private_key_file=str(server.client_key),
            ansible_ssh_common_args="-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
            f" -o UserKnownHostsFile={server.known_hosts}",
        )
        hub.cuts = [100_000, *[0] * 6]
        run = site.start("--tags", "provision")
        until(lambda: list((tmp_path / "data").rglob("*.part")), "the fetch")
        cut(server)
        shown = shown_by(run, "Reconnecting.")
        sshd_host.launch(server.folder, sshd_host.program("sshd", "openssh-server"), server.port)
        shown += shown_by(run, "Connected again after ")
        rest = finish(run)
    finally:
        sshd_host.stop(tmp_path / "own_sshd")
    assert rest.status == 0, shown + rest.output
    assert f"fetched the model {MODEL}@main" in rest.output


def test_wheels_are_carried_over_to_a_host_without_internet(
    new_site: Callable[..., Site], tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    text = (PROJECT / "training" / "requirements.txt").read_text(encoding="utf-8")
    for name, bounds in pythons.parse_requirements(text).items():
        wheel(wheels, name, bounds.split(",")[0].lstrip(">=") + ".1")
    site = new_site(
        stage_command=[],
        model_name_or_path=str(tmp_path),
        provision_python="",
        provision_wheels=str(wheels),
    )
    started = time.monotonic()
    outcome = provisioning(site)
    assert outcome.status == 0, outcome.output
    assert "sent " in outcome.output
    assert (site.root / pythons.VENV / "bin/python").exists()
    sent = {path.name for path in (site.root / provision.INCOMING).glob("*/*.whl")}
    assert {path.name for path in wheels.iterdir()} <= sent
    assert time.monotonic() - started < 60
    again = provisioning(site)
    assert again.status == 0, again.output
    assert again.recap["gpu"]["changed"] == 0
