"""Looking at a host, stopping a stage and reading its log, over a real sshd."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import sshd_host
from tests.integration.sites import COMMAND, STAGES, Outcome, Site, finish, tree, until

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh

ME = f"{getpass.getuser()}@{socket.gethostname()}"


def look(site: Site, name: str, *arguments: str, status: int = 0) -> Outcome:
    """Run one of the playbooks, which has to end with ``status``."""
    outcome = site.run(*arguments, playbook=f"playbooks/{name}.yml")
    assert outcome.status == status, outcome.output
    return outcome


def state_of(outcome: Outcome, stage: str) -> str:
    """What the table says of a stage, in one line."""
    (line,) = [line for line in outcome.lines if re.match(rf"{stage} ", line)]
    return line


def live_status(site: Site) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((site.sync / "live/status.json").read_text(encoding="utf-8")))
    return {}


def in_the_middle(site: Site, stage: str) -> dict[str, Any]:
    """Wait until the supervisor says which process trains the stage."""
    until(lambda: stage in site.trained(), f"the start of {stage}")
    return dict(
        until(
            lambda: (
                live_status(site).get("stage") == stage
                and live_status(site).get("child")
                and live_status(site)
            ),
            "its child",
        )
    )


@pytest.fixture
def held(trained_clone: Callable[..., Site]) -> Iterator[tuple[Site, subprocess.Popen[str]]]:
    """A site on which `style` is in its middle, and the run that follows it."""
    site = trained_clone()
    site.adapter("style").write_bytes(b"damaged")
    hold = site.hold("style")
    process = site.start()
    try:
        in_the_middle(site, "style")
        yield site, process
    finally:
        hold.unlink(missing_ok=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def shown_by(process: subprocess.Popen[str], text: str) -> str:
    """What a playbook shows up to the line that has ``text``."""
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if text in line:
            return shown
    raise AssertionError(f"{text!r} was not shown:\n{shown}")


# status -----------------------------------------------------------------------------------------


def test_where_nothing_was_ever_done(new_site: Callable[..., Site]) -> None:
    site = new_site(project_src="")
    before = tree(site.host)
    outcome = look(site, "status")
    assert [state_of(outcome, stage).split() for stage in STAGES] == [
        [stage, "not", "yet"] for stage in STAGES
    ]
    assert outcome.recap["gpu"]["changed"] == 0
    stopped = look(site, "stop")
    assert f"no stage runs in {site.root}: there is nothing to stop" in stopped.lines
    assert stopped.recap["gpu"]["changed"] == 0
    logs = look(site, "logs", "-e", "follow=true")
    assert f"there is no log in {site.root} yet" in logs.lines
    assert tree(site.host) == before


def test_all_done_and_what_is_out_of_date(trained_clone: Callable[..., Site]) -> None:
    site = trained_clone(project_src="")
    site.adapter("writing").unlink()
    before = tree(site.host)
    outcome = look(site, "status")
    assert tree(site.host) == before
    assert re.match(r"style +done +\d:\d\d +at \d{4}-", state_of(outcome, "style"))
    line = state_of(outcome, "writing")
    assert "out of date" in line
    assert "adapter_model.safetensors is" in " ".join(outcome.lines)
    table, _, _recap = outcome.output.partition("PLAY RECAP")
    assert max(len(line) for line in table.splitlines()) <= 100, table
    other = look(site, "status", "-e", "learning_rate=0.5")
    assert "out of date" in state_of(other, "style")


def test_one_that_runs_and_one_that_failed(held: tuple[Site, subprocess.Popen[str]]) -> None:
    site, process = held
    log = site.root / str(live_status(site)["log"])
    with log.open("a", encoding="utf-8") as stream:
        stream.write("first\nstep 3\x1b[2J of 9\n")
    fake = site.folder / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '0, NVIDIA H100, 97, 71000, 81559'\n", encoding="utf-8")
    fake.chmod(0o755)
    outcome = look(site, "status", "-e", f"gpu_gate_nvidia_smi={fake}")
    assert re.match(r"style +runs +\d:\d\d +is at work since ", state_of(outcome, "style"))
    assert "| first" in outcome.lines
    assert "| step 3 of 9" in outcome.lines
    assert "GPU 0 NVIDIA H100: 97 % busy, 69.3 of 79.6 GiB" in outcome.lines
    pid = live_status(site)["pid"]
    assert any(line.startswith(f"the lock is held by process {pid} on ") for line in outcome.lines)
    site.fail("style")
    (site.folder / "hold.style").unlink()
    assert finish(process).status == 2
    after = look(site, "status")
    assert re.match(r"style +failed .*The command ended with", state_of(after, "style"))
    assert not any("the lock is held" in line for line in after.lines)


# stop -------------------------------------------------------------------------------------------


def test_a_stage_is_stopped_and_who_follows_it_says_so(
    held: tuple[Site, subprocess.Popen[str]],
) -> None:
    site, process = held
    child = live_status(site)["child"]["pid"]
    would = look(site, "stop", "--check")
    assert any(line.startswith("would stop style of run_") for line in would.lines)
    assert live_status(site)["state"] == "running"
    stopped = look(site, "stop")
    assert any(line.startswith("stopped style of run_") for line in stopped.lines)
    assert stopped.recap["gpu"]["changed"] == 1
    assert not Path(f"/proc/{child}").exists()
    rest = finish(process)
    assert rest.status == 2, rest.output
    assert f"[gpu] The stage style was stopped by {ME}." in rest.failures
    run = site.home / "training_sync" / site.runs()[-1].name
    assert (run / ".stage_style_failed").exists()
    assert f"The stage was stopped by {ME}." in (run / "ISSUES.md").read_text(encoding="utf-8")
    (issue,) = [json.loads(line) for line in (run / "issues.jsonl").open(encoding="utf-8")]
    assert (issue["category"], issue["stage"]) == ("ops", "style")
    assert re.match(r"style +stopped .*was stopped by", state_of(look(site, "status"), "style"))
    # It isn't done: the next run trains it.
    (site.folder / "hold.style").unlink()
    again = site.run()
    assert again.status == 0, again.output
    assert site.trained() == ["style", "style"]
    assert "there is nothing to stop" in look(site, "stop").output


def test_who_has_attached_ends_as_well_and_does_not_start_it_again(
    held: tuple[Site, subprocess.Popen[str]],
) -> None:
    site, process = held
    os.killpg(process.pid, signal.SIGKILL)
    second = site.start()
    shown = shown_by(second, "following it.")
    look(site, "stop")
    rest = finish(second)
    assert rest.status == 2, shown + rest.output
    ends = "This command ends too: give it again to train on."
    assert f"[gpu] The stage style was stopped by {ME}. {ends}" in rest.failures
    assert site.trained() == ["style"]
    run = site.home / "training_sync" / site.runs()[-1].name
    assert (run / ".stage_style_failed").exists()
    assert (run / "SHA256SUMS").exists()


def test_what_does_not_mind_the_signal_is_killed(trained_clone: Callable[..., Site]) -> None:
    deaf = f"trap '' TERM\n{COMMAND}"
    site = trained_clone(stage_command=["sh", "-c", deaf])
    site.hold("style")
    process = site.start("--tags", "style")
    in_the_middle(site, "style")
    stopped = look(site, "stop", "-e", "stop_grace=1")
    rest = finish(process)
    (line,) = [line for line in stopped.lines if line.startswith("stopped style")]
    assert line.endswith("it did not end within 1 s and was killed")
    assert rest.status == 2
    assert f"[gpu] The stage style was stopped by {ME}." in rest.failures


# logs -------------------------------------------------------------------------------------------


def test_the_last_lines_of_the_last_stage_and_of_another(
    first_run: tuple[Site, Outcome],
) -> None:
    site, _ = first_run
    outcome = look(site, "logs")
    assert "trained all" in outcome.lines
    outcome = look(site, "logs", "-e", "log_stage=style", "-e", "follow=true")
    assert "trained style" in outcome.lines
    assert "style isn't running: nothing comes to this log" in outcome.lines
    wrong = look(site, "logs", "-e", "log_stage=styl", status=2)
    assert wrong.failures == ["[gpu] log_stage is 'styl', and there is no such stage."]
    assert "Did you mean style?" in wrong.output
    wrong = look(site, "logs", "-e", "log_lines=0", status=2)
    assert wrong.failures == ["[gpu] log_lines is 0."]


def test_a_growing_log_is_followed_to_the_end_of_its_stage(
    held: tuple[Site, subprocess.Popen[str]],
) -> None:
    site, process = held
    log = site.root / str(live_status(site)["log"])
    with log.open("ab") as stream:
        stream.write(b"".join(b"line %d\n" % number for number in range(200)))
    view = site.start("-e", "follow=true", playbook="playbooks/logs.yml")
    shown = shown_by(view, "line 199")
    assert "line 100\n" in shown
    assert "line 99\n" not in shown
    with log.open("ab") as stream:
        stream.write(b"half ")
        stream.flush()
        time.sleep(1)
        stream.write(b"a line\x07\n")
    shown += shown_by(view, "half a line")
    (site.folder / "hold.style").unlink()
    rest = finish(view)
    assert rest.status == 0, rest.output
    assert "trained style" in rest.lines
    assert "style  done" in rest.lines
    assert "\x07" not in shown
    assert finish(process).status == 0


def test_ctrl_c_ends_the_view_and_not_the_training(
    held: tuple[Site, subprocess.Popen[str]],
) -> None:
    site, process = held
    view = site.start("-e", "follow=true", playbook="playbooks/logs.yml")
    shown_by(view, ".log, ")
    os.killpg(view.pid, signal.SIGINT)
    view.communicate(timeout=30)
    assert view.returncode != 0
    assert live_status(site)["state"] == "running"
    (site.folder / "hold.style").unlink()
    assert finish(process).status == 0


def test_a_log_is_followed_over_a_cut(
    held: tuple[Site, subprocess.Popen[str]], tmp_path: Path, gpu_host: GpuHost
) -> None:
    site, process = held
    server = sshd_host.start(tmp_path / "own")
    try:
        view = site.start(
            *("-e", "follow=true", "-e", f"ansible_port={server.port}"),
            *("-e", f"ansible_ssh_private_key_file={server.client_key}"),
            "-e",
            json.dumps(
                {
                    "ansible_ssh_common_args": "-F /dev/null -o IdentitiesOnly=yes"
                    f" -o IdentityAgent=none -o UserKnownHostsFile={server.known_hosts}"
                }
            ),
            playbook="playbooks/logs.yml",
        )
        shown_by(view, ".log, ")
        sessions = sshd_host.children(server.pid)
        sshd_host.end(server.pid)
        for pid, started in sessions:
            if sshd_host.started_at(pid) == started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shown_by(view, "The connection broke")
        log = site.root / str(live_status(site)["log"])
        with log.open("a", encoding="utf-8") as stream:
            stream.write("written meanwhile\n")
        sshd_host.launch(server.folder, sshd_host.program("sshd", "openssh-server"), server.port)
        shown_by(view, "Connected again after ")
        shown_by(view, "written meanwhile")
        (site.folder / "hold.style").unlink()
        rest = finish(view)
    finally:
        sshd_host.stop(server.folder)
    assert rest.status == 0, rest.output
    assert "style  done" in rest.lines
    assert finish(process).status == 0
