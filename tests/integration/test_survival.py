"""A stage outlives its controller: killed, cut off, or not alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import sshd_host
from remote_train import live
from tests.integration.sites import COMMAND, STAGES, Outcome, Site, finish, tree, until

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh


def status(site: Site) -> dict[str, object]:
    """What the supervisor on the host says of itself; empty before it says anything."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((site.sync / "live/status.json").read_text(encoding="utf-8")))
    return {}


def wait_for(site: Site, stage: str) -> None:
    """Wait until a stage is in its middle."""
    until(lambda: stage in site.trained(), f"the start of {stage}")


def workers(site: Site) -> list[int]:
    """The processes of this machine that run a playbook on the site."""
    needle = os.fsencode(site.folder / "hosts.yml")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if needle in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def damaged(site: Site, *stages: str) -> Site:
    """The site with the adapters of some stages damaged, so that they train again."""
    for stage in stages:
        site.adapter(stage).write_bytes(b"damaged")
    return site


def shown_by(process: subprocess.Popen[str], text: str) -> str:
    """What a playbook shows up to the line that has ``text``."""
    assert process.stdout is not None
    shown = ""
    for line in process.stdout:
        shown += line
        if text in line:
            return shown
    raise AssertionError(f"{text!r} was not shown:\n{shown}")


# The controller killed --------------------------------------------------------------------------


@pytest.fixture
def orphaned(trained_clone: Callable[..., Site]) -> Site:
    """A site whose `style` has been trained and isn't at home: its controller was killed."""
    site = damaged(trained_clone(), "style", "writing")
    hold = site.hold("style")
    process = site.start("--tags", "style,writing")
    wait_for(site, "style")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    hold.unlink()
    return site


def test_a_gate_that_stops_leaves_nothing_on_the_host_that_was_trained(orphaned: Site) -> None:
    """What was there before the gate, and what this command followed, comes home."""
    site = orphaned
    outcome = site.run("--tags", "style,writing", "-e", "gpu_gate_min_disk_gib=1000000")
    assert outcome.status == 2, outcome.output
    assert outcome.failures[0].startswith("[gpu] The check disk_free failed: ")
    assert "nothing was changed on the host" not in outcome.output
    run = site.runs()[-1].name
    at_home = site.home / "training_sync" / run
    assert list(at_home.glob("train_style_*.log"))
    adapter = "adapter/adapter_style/adapter_model.safetensors"
    assert (site.home / adapter).read_bytes() == site.adapter("style").read_bytes() != b"damaged"
    assert json.loads((at_home / "precheck.json").read_text(encoding="utf-8"))["stops"] is True


class Orphan:
    """A run whose controller was killed in the middle of `style`, and what came after."""

    def __init__(self, site: Site) -> None:
        self.site = site
        hold = site.hold("style")
        first = site.start()
        wait_for(site, "style")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert first.stdout is not None
        first.stdout.close()
        self.process = int(str(until(lambda: status(site).get("child"), "a child")["pid"]))
        self.run = str(status(site)["run"])
        self.alive = Path(f"/proc/{self.process}").exists()
        until(lambda: workers(site) == [], "the end of the killed playbook's workers")
        before = tree(site.folder)
        self.refused = site.run("-e", "on_lock=fail")
        self.changed_by_refusal = {
            name
            for name, content in tree(site.folder).items()
            if before.get(name) != content and not name.endswith("live/status.json")
        }
        second = site.start()
        self.seen = shown_by(second, "following it.")
        still = status(site)
        self.attached_to = (still["stage"], still["run"], still["state"])
        hold.unlink()
        rest = finish(second)
        self.second = Outcome(rest.status, self.seen + rest.output, rest.seconds)


@pytest.fixture(scope="module")
def orphan(first_run: tuple[Site, Outcome], tmp_path_factory: pytest.TempPathFactory) -> Orphan:
    """See the class."""
    site = first_run[0].clone(tmp_path_factory.mktemp("orphan") / "site")
    return Orphan(damaged(site, "style", "all"))


def test_the_training_goes_on_without_its_controller(orphan: Orphan) -> None:
    assert orphan.alive
    assert orphan.attached_to == ("style", orphan.run, "running")


def test_the_same_command_attaches_and_says_to_what(orphan: Orphan) -> None:
    (line,) = [line for line in orphan.second.lines if line.endswith(": following it.")]
    assert re.fullmatch(
        rf"The stage style of {orphan.run} is running on \S+ as process \d+ "
        r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: following it\.",
        line,
    )


def test_the_stage_is_not_started_a_second_time(orphan: Orphan) -> None:
    """Then the plan is made anew, and what was not reached before runs."""
    assert orphan.second.status == 0, orphan.second.output
    assert orphan.site.trained() == ["style", "all"]
    assert "skips: up to date" in orphan.second.plan_of("style")


def test_the_same_run_is_collected(orphan: Orphan) -> None:
    site = orphan.site
    assert site.runs()[-1].name == orphan.run
    at_home = site.home / "training_sync" / orphan.run
    names = {path.name for path in at_home.glob(".stage_*_done")}
    assert {".stage_style_done", ".stage_all_done", ".stage_collect_done"} <= names
    assert list(at_home.glob("train_style_*.log"))
    assert (
        site.adapter("style").read_bytes()
        == (site.home / "adapter/adapter_style/adapter_model.safetensors").read_bytes()
    )


def test_on_lock_fail_refuses_at_once_and_changes_nothing(orphan: Orphan) -> None:
    refused = orphan.refused
    assert refused.status == 2, refused.output
    (said,) = refused.failures
    assert said.startswith(f"[gpu] The stage style of {orphan.run} is running on ")
    assert "  Hint: Wait for it, or leave out on_lock=fail to follow it." in refused.output
    assert orphan.changed_by_refusal == set()


# The connection cut -----------------------------------------------------------------------------


@pytest.fixture
def own_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd_host.Sshd]:
    """A server that nobody else's connections go through."""
    folder = tmp_path_factory.mktemp("own_sshd")
    try:
        yield sshd_host.start(folder)
    finally:
        sshd_host.stop(folder)


def cut(server: sshd_host.Sshd) -> None:
    """End the server and its sessions, and keep its keys and its port."""
    sessions = sshd_host.children(server.pid)
    sshd_host.end(server.pid)
    for pid, started in sessions:
        if sshd_host.started_at(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_cut_connection_is_made_again_and_the_stage_goes_on(
    trained_clone: Callable[..., Site], own_sshd: sshd_host.Sshd, gpu_host: GpuHost
) -> None:
    site = damaged(
        trained_clone(
            ansible_port=own_sshd.port,
            ansible_ssh_private_key_file=str(own_sshd.client_key),
            ansible_ssh_common_args="-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
            f" -o UserKnownHostsFile={own_sshd.known_hosts}",
        ),
        "style",
    )
    hold = site.hold("style")
    process = site.start()
    wait_for(site, "style")
    until(lambda: status(site).get("state") == "running", "the status")
    cut(own_sshd)
    shown = shown_by(process, "The connection broke; the training goes on there. Reconnecting.")
    time.sleep(1)  # long enough for one attempt that finds nobody
    sshd_host.launch(own_sshd.folder, sshd_host.program("sshd", "openssh-server"), own_sshd.port)
    shown += shown_by(process, "Connected again after ")
    hold.unlink()
    rest = finish(process)
    assert rest.status == 0, shown + rest.output
    assert site.trained() == ["style"]
    run = site.home / "training_sync" / site.runs()[-1].name
    issues = [json.loads(line) for line in (run / "issues.jsonl").open(encoding="utf-8")]
    (issue,) = [issue for issue in issues if issue["phase"] == "train"]
    assert (issue["category"], issue["severity"], issue["status"]) == (
        "infra",
        "warning",
        "handled",
    )
    assert re.fullmatch(
        r"The connection broke for [\d.]+ s while style was followed\.", issue["symptom"]
    )


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_link_that_is_cut_in_the_gate(
    trained_clone: Callable[..., Site], own_sshd: sshd_host.Sshd, comes_back: bool
) -> None:
    """A failure like any other, with a record at home; where the host is back, it is asked anew."""
    site = damaged(
        trained_clone(
            ansible_port=own_sshd.port,
            ansible_ssh_private_key_file=str(own_sshd.client_key),
            ansible_ssh_common_args="-F /dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
            f" -o UserKnownHostsFile={own_sshd.known_hosts}",
            gpu_gate="warn",
            reconnect_timeout=30 if comes_back else 1,
        ),
        "style",
    )
    slow = site.folder / "nvidia-smi"
    slow.write_text(f"#!/bin/sh\ntouch {site.folder}/asked\nsleep 4\nexit 9\n")
    slow.chmod(0o755)
    before = {run.name for run in (site.home / "training_sync").glob("run_*")}
    process = site.start("-e", f"gpu_gate_nvidia_smi={slow}", "--tags", "style")
    until((site.folder / "asked").exists, "the gate's question")
    cut(own_sshd)
    shown = shown_by(process, "The connection broke; the gate changes nothing there. Reconnecting.")
    if comes_back:
        program = sshd_host.program("sshd", "openssh-server")
        sshd_host.launch(own_sshd.folder, program, own_sshd.port)
    rest = finish(process)
    shown += rest.output
    if comes_back:
        assert rest.status == 0, shown
        assert site.trained() == ["style"]
        return
    assert rest.status == 2, shown
    assert rest.failures[0] == "[gpu] The host could not be reached again in 1 s."
    assert rest.recap["gpu"]["unreachable"] == 0
    assert site.trained() == []
    runs = {run.name for run in (site.home / "training_sync").glob("run_*")} - before
    (run,) = (site.home / "training_sync" / name for name in runs)
    lines = (run / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    (issue,) = map(json.loads, lines)
    assert (issue["phase"], issue["category"], issue["symptom"]) == (
        "precheck",
        "infra",
        "The host could not be reached again in 1 s.",
    )


# Two controllers --------------------------------------------------------------------------------


def test_two_controllers_at_once_train_each_stage_once(
    trained_clone: Callable[..., Site],
) -> None:
    site = damaged(trained_clone(), *STAGES)
    both = [site.start(), site.start("-e", f"collect_dest={site.folder}/home2")]
    outcomes = [finish(process) for process in both]
    shown = "\n".join(outcome.output for outcome in outcomes)
    assert sorted(site.trained()) == sorted(STAGES), shown
    assert [outcome.status for outcome in outcomes] == [0, 0], shown
    assert tree(site.home / "adapter") == tree(site.folder / "home2" / "adapter")
    again = site.run()
    assert again.status == 0, again.output
    assert site.trained().count("style") == 1


def waits_for(lock: Path) -> bool:
    """Whether a process waits for a lock on a file: a line with an arrow in proc_locks(5)."""
    inode = f":{lock.stat().st_ino} "
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any(" -> FLOCK " in line and inode in line for line in lines)


def test_a_start_waits_while_another_one_is_being_made(
    trained_clone: Callable[..., Site],
) -> None:
    """Else the second writes its job over the first one's."""
    site = damaged(trained_clone(), "style")
    with live.starting(str(site.root)):
        process = site.start("--tags", "style")
        until(lambda: waits_for(site.sync / "live/start.lock"), "the wait for the other start")
        assert site.trained() == []
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    assert site.trained() == ["style"]


def test_a_check_says_that_a_training_runs_and_does_not_wait(
    trained_clone: Callable[..., Site],
) -> None:
    site = damaged(trained_clone(), "style")
    hold = site.hold("style")
    process = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: status(site).get("state") == "running", "the status")
    check = site.run("--check", "--tags", "style")
    still = status(site).get("state")
    hold.unlink()
    rest = finish(process)
    assert still == "running"
    assert check.status == 0, check.output
    (line,) = [line for line in check.lines if " is running on " in line]
    assert line.endswith(": a run would follow it.")
    assert rest.status == 0, rest.output
    assert site.trained() == ["style"]


# Odd hosts and odd stages -----------------------------------------------------------------------


def test_what_a_stage_leaves_running_is_named(trained_clone: Callable[..., Site]) -> None:
    """A child in the background inherits the lock, which is held beyond the stage's end."""
    left = f"{COMMAND}\nsleep 300 &\necho $! > ../../background\n"
    site = trained_clone(stage_command=["sh", "-c", left])
    first = site.run("--tags", "style")
    pid = int((site.folder / "background").read_text(encoding="utf-8"))
    try:
        second = site.run("--tags", "style")
    finally:
        os.kill(pid, signal.SIGKILL)
    assert first.status == 0, first.output
    assert second.status == 2, second.output
    (said,) = second.failures
    assert said.startswith(
        "[gpu] The stage style has ended, and something that it started is still running on the "
        f"host: sleep (process {pid})."
    )
    assert site.trained() == ["style"]
    third = site.run("--tags", "style")
    assert third.status == 0, third.output


def test_a_host_whose_shell_prints_a_banner(
    trained_clone: Callable[..., Site], tmp_path: Path
) -> None:
    shell = tmp_path / "sh"
    shell.write_text('#!/bin/sh\necho "Welcome to the GPU cloud!"\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    site = damaged(trained_clone(ansible_shell_executable=str(shell)), "style")
    outcome = site.run("--tags", "style")
    assert outcome.status == 0, outcome.output
    assert site.trained() == ["style"]


# Secrets ----------------------------------------------------------------------------------------

SECRET = "planted-5ecret-0f-the-tests"  # noqa: S105 - it is one on purpose, and opens nothing
HASH = hashlib.sha256(SECRET.encode()).hexdigest()
READS_IT = """
mkdir -p outputs/adapter/adapter_style
printf %s "$HF_TOKEN" | sha256sum > outputs/adapter/adapter_style/adapter_model.safetensors
[ ! -e ../../fail.style ]
"""


def test_a_secret_reaches_the_training_and_nothing_else(
    trained_clone: Callable[..., Site],
) -> None:
    site = with_own_remote_tmp(trained_clone(stage_command=["sh", "-c", READS_IT]))
    given = ["-e", f"hf_token={SECRET}"]
    outcomes = [site.run("-vvv", "--diff", "--tags", "style", *given)]
    # It arrived.
    assert site.adapter("style").read_text(encoding="utf-8").split()[0] == HASH
    site.adapter("style").unlink()
    # A wrong setting beside it; and from the environment, with a stage that fails.
    outcomes.append(site.run("-vvv", *given, "-e", "gpu_gate=lax"))
    site.fail("style")
    outcomes.append(site.run("-vvv", "--tags", "style", env={"HF_TOKEN": SECRET}))
    assert site.adapter("style").read_text(encoding="utf-8").split()[0] == HASH
    assert [outcome.status for outcome in outcomes] == [0, 2, 2]
    for outcome in outcomes:
        assert SECRET not in outcome.output
    for folder in (site.folder, site.playbooks.folder):
        for name, content in tree(folder).items():
            assert SECRET not in name
            assert isinstance(content, str) or SECRET.encode() not in content, name


def with_own_remote_tmp(site: Site) -> Site:
    """The site with Ansible's temporary folder on the host where the test can see it."""
    hosts = site.folder / "hosts.yml"
    text = hosts.read_text(encoding="utf-8")
    line = f"      ansible_remote_tmp: {site.host / 'ansible'}\n"
    marker = "      ansible_host:"
    assert marker in text
    hosts.write_text(text.replace(marker, line + marker, 1), encoding="utf-8")
    return site
