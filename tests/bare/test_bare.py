"""From nothing but sshd and python3 to a trained sample stage, on a machine of its own.

    make test-bare

The packages come from a folder of wheels that the controller carries over, the base model by its
name from a hub on loopback; no index is asked. Two minutes or so, and two gigabytes of disk while
it runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.bare.bare_host import BareHost, MissingError
from tests.bare.bare_site import Site
from tests.bare.wheel_folder import PROJECT, wheel_folder
from tests.integration.sites import Outcome, Playbooks
from tests.unit.hub_server import Hub, Repository, hub_server

pytestmark = [pytest.mark.bare, pytest.mark.ssh, pytest.mark.timeout(1500)]

MODEL = "demo/tiny-qwen3"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a base model that has learned nothing."""
    folder = tmp_path_factory.mktemp("model")
    program = PROJECT / "tests/molecule/tiny_base.py"
    command = [sys.executable, str(program), str(folder), str(PROJECT / "examples/tutor")]
    subprocess.run(command, check=True)
    with hub_server() as server:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        server.models[MODEL] = Repository(files)
        yield server


@pytest.fixture(scope="module")
def site(
    bare: BareHost, hub: Hub, playbooks: Playbooks, tmp_path_factory: pytest.TempPathFactory
) -> Site:
    """The example with a few chats, and the wheels to carry over."""
    try:
        wheels = wheel_folder()
    except MissingError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("site")
    program = PROJECT / "tests/molecule/small_project.py"
    source = PROJECT / "examples/tutor"
    subprocess.run([sys.executable, str(program), str(source), str(folder / "src")], check=True)
    return Site(
        bare,
        folder,
        playbooks,
        provision_wheels=str(wheels),
        model_name_or_path=MODEL,
        hf_endpoint=hub.url,
        max_length=768,
        num_train_epochs=1,
        max_new_tokens=8,
    )


@pytest.fixture(scope="module")
def checked(site: Site) -> tuple[Outcome, Outcome, bool]:
    """The precheck and a run in check mode before anything, and whether they left a trace."""
    before = site.contents()
    precheck = site.run(playbook="playbooks/precheck.yml")
    check = site.run("--check", "--tags", "sample")
    return precheck, check, site.contents() == before


@pytest.fixture(scope="module")
def trained(site: Site, checked: Any) -> Outcome:
    """The one run that makes all of it."""
    return site.run("--tags", "sample")


def test_before_anything_is_there_the_precheck_says_so(
    checked: tuple[Outcome, Outcome, bool],
) -> None:
    precheck, check, untouched = checked
    assert precheck.status == 0, precheck.output
    (packages,) = (line for line in precheck.lines if line.startswith("packages "))
    assert packages.split()[1] == "unknown", precheck.output
    assert "no Python for the training" in packages
    assert check.status == 0, check.output
    assert "makes a venv in outputs/training_sync/venv that sees /usr/bin/python3" in check.output
    assert f"fetches the model {MODEL}@main" in check.output
    assert untouched


def test_the_sample_stage_is_trained_and_comes_home(site: Site, trained: Outcome) -> None:
    assert trained.status == 0, trained.output
    adapter = site.home / "adapter/adapter_sample/adapter_model.safetensors"
    assert adapter.stat().st_size > 0
    marker = json.loads((site.home / "training_sync/stages/sample.json").read_text())
    assert marker["status"] == "done"
    assert marker["host"] == "bare"
    assert set(marker["inputs"]["packages"]) == {"torch", "transformers", "peft"}


def test_the_model_and_the_caches_lie_on_the_data_disk(site: Site, trained: Outcome) -> None:
    assert os.readlink(site.root / "models") == "/data/models"
    snapshots = list((site.bare.root / "data/huggingface/hub").glob("models--*/snapshots/*"))
    assert len(snapshots) == 1
    assert (site.bare.root / "data/cache").is_dir()
    assert not (site.bare.root / "root/.cache/huggingface").exists()


def test_the_systems_own_python_is_as_it_was(site: Site, trained: Outcome) -> None:
    """What was installed lies in the project's own folder."""
    added = [name for name in site.contents() if "site-packages" in name or "dist-packages" in name]
    outside = [name for name in added if not name.startswith(f"{site.root}/outputs/")]
    assert [name for name in outside if "torch" in name or "transformers" in name] == []


def test_the_active_gate_is_on_record(site: Site, trained: Outcome) -> None:
    (record,) = site.home.glob("training_sync/run_*/precheck.json")
    kept = json.loads(record.read_text())
    found = {one["check"]: one["result"] for one in kept["findings"]}
    assert kept["active"]["facts"]["torch"]["version"].startswith("2.")
    assert found["torch"] == "ok"
    assert found["cpu_product"] == "ok"
    assert found["tokenizer"] == "ok"
    assert found["chat_tokens"] in ("ok", "warn")
    assert found["torch_cuda"] == "skipped"


def test_the_second_run_finds_nothing_to_do(site: Site, trained: Outcome, hub: Hub) -> None:
    hub.asked.clear()
    again = site.run("--tags", "sample")
    assert again.status == 0, again.output
    assert again.recap["bare"]["changed"] == 0
    provision = site.run("--tags", "provision")
    assert provision.status == 0, provision.output
    assert provision.recap["bare"]["changed"] == 0
    assert hub.asked == []


def test_a_ready_machine_passes_the_precheck(site: Site, trained: Outcome) -> None:
    precheck = site.run(playbook="playbooks/precheck.yml")
    assert precheck.status == 0, precheck.output
    for check in ("torch", "cpu_product", "model_config", "tokenizer", "chat_template"):
        assert any(line.split()[:2] == [check, "ok"] for line in precheck.lines), precheck.output


def test_a_models_folder_that_is_there_is_kept(site: Site, trained: Outcome) -> None:
    link = site.root / "models"
    link.unlink()
    link.mkdir()
    (link / "notes.txt").write_text("dear")
    outcome = site.run("--tags", "provision")
    assert outcome.status == 0, outcome.output
    (backup,) = site.root.glob("models.backup-*")
    assert (backup / "notes.txt").read_text() == "dear"
    assert os.readlink(link) == "/data/models"
    shutil.rmtree(backup)
