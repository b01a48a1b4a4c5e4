"""The command `remote-train` itself: what it passes on, where paths lead, how it ends."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.sites import STAGES, Outcome, Playbooks, Site, finish, until

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh

PROGRAM = Path(sys.executable).with_name("remote-train")
DONE, FAILED, WRONG, UNREACHABLE, INTERRUPTED = range(5)


class Launcher(Playbooks):
    """Runs `remote-train` in place of a playbook."""

    def command(
        self,
        *arguments: str,
        playbook: str | Path = "",  # noqa: ARG002 - the base has it
    ) -> list[str]:
        return [str(PROGRAM), *arguments]


def launched(site: Site) -> Site:
    """The site, run by `remote-train`."""
    launcher = Launcher(site.playbooks.folder, site.playbooks.control)
    return dataclasses.replace(site, playbooks=launcher)


@pytest.fixture
def fresh(new_site: Callable[..., Site]) -> Site:
    """A site that has never been synced."""
    return launched(new_site())


@pytest.fixture
def clone(trained_clone: Callable[..., Site]) -> Site:
    """A trained site of the test's own, with the stage `style` to be trained again."""
    site = launched(trained_clone())
    site.adapter("style").write_bytes(b"damaged")
    return site


# A run, and where its results go ----------------------------------------------------------------


def test_a_run_with_paths_relative_to_the_current_folder(fresh: Site) -> None:
    arguments = ["--project-src", "src", "--collect-dest", "there"]
    outcome = fresh.playbooks.run("-i", "hosts.yml", *arguments, cwd=fresh.folder)
    assert outcome.status == DONE, outcome.output
    assert fresh.trained() == list(STAGES)
    assert (fresh.folder / "there/adapter/adapter_style/adapter_model.safetensors").is_file()
    assert not fresh.home.exists()


def test_without_any_destination_results_come_to_outputs_here(
    trained_clone: Callable[..., Site],
) -> None:
    site = launched(trained_clone(project_src="", collect_dest=""))
    here = site.folder / "here"
    here.mkdir()
    outcome = site.playbooks.run(*site.arguments("collect"), cwd=here)
    assert outcome.status == DONE, outcome.output
    assert (here / "outputs/adapter/adapter_style/adapter_model.safetensors").is_file()


def test_a_plan_says_what_would_run_and_changes_nothing(clone: Site) -> None:
    outcome = clone.run("plan")
    assert outcome.status == DONE, outcome.output
    assert "trains: " in outcome.plan_of("style")
    assert "skips: up to date" in outcome.plan_of("writing")
    assert clone.trained() == []


def test_host_port_and_user_beat_the_environment(clone: Site, gpu_host: GpuHost) -> None:
    # Nothing else says which key the host has, and with which one to log in.
    config = clone.folder / "ssh_args"
    config.write_text(f"UserKnownHostsFile {gpu_host.known_hosts}\n", encoding="utf-8")
    outcome = clone.playbooks.run(
        *("plan", "--host", gpu_host.sshd.address, "--port", str(gpu_host.port)),
        *("--user", gpu_host.user, "--key", str(gpu_host.key)),
        *("--project-root", str(clone.root), "--project-src", "src", "--gpu-gate", "off"),
        cwd=clone.folder,
        env={
            "REMOTE_HOST": "192.0.2.1",
            "REMOTE_PORT": "1",
            "REMOTE_USER": "nobody-of-this-name",
            "TRAIN_SYNC_PROJECT_ROOT": "/nowhere",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_SSH_COMMON_ARGS": f"-F '{config}' -o IdentitiesOnly=yes",
        },
    )
    assert outcome.status == DONE, outcome.output
    # The inventory's stage_command is missing here, so that all would train anew.
    assert "trains: " in outcome.plan_of("style")


# Exit statuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu-gate", "lax"], "gpu_gate is 'lax'"),
        (["--stage", "styel"], "styel names no stage"),
        (["--project-src", "missing"], "there is no such folder"),
    ],
)
def test_a_wrong_request_ends_with_2(fresh: Site, arguments: list[str], words: str) -> None:
    outcome = fresh.run(*arguments)
    assert outcome.status == WRONG, outcome.output
    assert words in outcome.output
    assert not fresh.root.exists()


def test_wrong_data_fails_the_gate_and_ends_with_1(fresh: Site) -> None:
    data = fresh.src / "data/training/processed/style_sft.jsonl"
    data.write_text("{\n", encoding="utf-8")
    outcome = fresh.run()
    assert outcome.status == FAILED, outcome.output
    assert "style_sft.jsonl" in outcome.output
    assert not fresh.root.exists()


def test_an_inventory_that_is_none_ends_with_2(fresh: Site) -> None:
    (fresh.folder / "hosts.yml").write_text("gpu_hosts: {hosts: {}}\n", encoding="utf-8")
    outcome = fresh.run()
    assert outcome.status == WRONG, outcome.output


def test_an_unknown_host_ends_with_3(fresh: Site) -> None:
    arguments = ["--host", "nowhere.invalid", "--project-root", str(fresh.root)]
    outcome = fresh.playbooks.run("plan", *arguments, cwd=fresh.folder)
    assert outcome.status == UNREACHABLE, outcome.output


def test_a_failed_stage_ends_with_1(clone: Site) -> None:
    clone.fail("style")
    outcome = clone.run()
    assert outcome.status == FAILED, outcome.output


# Ctrl-C -----------------------------------------------------------------------------------------


def interrupted(process: subprocess.Popen[str]) -> Outcome:
    """Press Ctrl-C, and wait for the end."""
    started = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    return finish(process, started)


@pytest.fixture
def held(clone: Site) -> Iterator[tuple[Site, Path]]:
    """A site whose stage `style` waits in its middle, and the file that holds it."""
    hold = clone.hold("style")
    yield clone, hold
    hold.unlink(missing_ok=True)


def test_ctrl_c_in_a_stage_ends_with_4_and_the_same_command_collects_it(
    held: tuple[Site, Path],
) -> None:
    site, hold = held
    process = site.start()
    until(lambda: site.trained() == ["style"], "the start of style")
    outcome = interrupted(process)
    assert outcome.status == INTERRUPTED, outcome.output
    assert outcome.seconds < 5
    assert "The training goes on there: give the same command again" in outcome.output
    assert (site.sync / "live/status.json").is_file()
    again = site.start()
    assert again.stdout is not None
    shown = ""
    for line in again.stdout:
        shown += line
        if "following it." in line:
            break
    hold.unlink()
    rest = finish(again)
    assert rest.status == DONE, shown + rest.output
    assert "following it." in shown
    assert site.trained().count("style") == 1
    at_home = site.home / "adapter/adapter_style/adapter_model.safetensors"
    assert at_home.read_bytes() == site.adapter("style").read_bytes() != b"damaged"


def test_ctrl_c_before_any_stage_ends_with_1_and_starts_none(clone: Site) -> None:
    process = clone.start()
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if "trains: " in line:
            break
    outcome = interrupted(process)
    assert outcome.status == FAILED, shown + outcome.output
    assert outcome.seconds < 5
    assert "No training was running" in outcome.output
    time.sleep(3)  # longer than what was left of the run up to the first stage
    assert clone.trained() == []
    assert leftover(clone) == []


def leftover(site: Site) -> list[str]:
    """Processes that still work on a site."""
    needle = os.fsencode(site.folder)
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if needle in words:
            found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def test_the_program_is_installed() -> None:
    assert shutil.which(PROGRAM)


# Looking on, and stopping ------------------------------------------------------------------------


def test_status_logs_and_stop(clone: Site) -> None:
    """Ctrl-C ends the view alone; the stop ends the stage, and the run that follows it."""
    hold = clone.hold("style")
    run = clone.start("--stage", "style")
    try:
        until(lambda: clone.trained() == ["style"], "the start of style")
        until(lambda: '"child"' in (clone.sync / "live/status.json").read_text(), "its child")
        looked = clone.playbooks.run(*clone.arguments("status"), cwd=clone.folder)
        assert looked.status == DONE, looked.output
        assert any(line.split()[:2] == ["style", "runs"] for line in looked.lines)
        view = clone.start("logs", "-f", "-n", "5", "--stage", "style")
        assert view.stdout is not None
        for line in view.stdout:
            if ".log, " in line:
                break
        os.kill(view.pid, signal.SIGINT)
        rest = finish(view)
        assert rest.status == INTERRUPTED, rest.output
        assert "The view has ended, and nothing else" in rest.output
        stopped = clone.playbooks.run(*clone.arguments("stop", "--grace", "5"), cwd=clone.folder)
        assert stopped.status == DONE, stopped.output
        assert "stopped style of run_" in stopped.output
        rest = finish(run)
        assert rest.status == FAILED, rest.output
        assert "was stopped by" in rest.output
    finally:
        hold.unlink(missing_ok=True)
        run.kill()
