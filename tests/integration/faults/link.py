"""The link between controller and host is cut, and the host's sshd ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import sshd_host
from tests.integration.faults.lab import Lab, shown_until
from tests.integration.faults.proxy import Link
from tests.integration.faults.rows import Scenario
from tests.integration.faults.waits import until
from tests.integration.sites import Outcome, Site, finish


def before_the_start(lab: Lab) -> None:
    """No connection at all: said, nothing changed; later the same command trains."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    link.cut()
    outcome = site.run()
    assert outcome.status != 0, outcome.output
    assert not site.root.exists()
    link.restore()
    lab.settle(site)


def while_starting(lab: Lab) -> None:
    """Cut when the host has the job and hasn't answered: the second start finds the first."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    hold = site.hold("style")
    process = lab.start(site)
    until((site.sync / "live/job.json").exists, "the job")
    link.cut()
    time.sleep(1)
    link.restore()
    lab.training(site)
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def _cut_while_following(lab: Lab, site: Site, link: Link, silent: bool) -> Outcome:
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    (link.hush if silent else link.cut)()
    shown = shown_until(process, "The connection broke; the training goes on there.")
    time.sleep(1)
    link.restore()
    shown += shown_until(process, "Connected again after")
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, shown + outcome.output
    issue = lab.issue(site, "connection broke")
    assert (issue["category"], issue["severity"], issue["status"]) == (
        "infra",
        "warning",
        "handled",
    )
    return outcome


def reset_while_following(lab: Lab) -> None:
    """Every connection is reset in mid-training."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    _cut_while_following(lab, site, link, silent=False)
    lab.settle(site)


def silent_while_following(lab: Lab) -> None:
    """Nothing arrives any more, and nobody says so."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    _cut_while_following(lab, site, link, silent=True)
    lab.settle(site)


def as_the_stage_ends(lab: Lab) -> None:
    """Cut; the stage ends meanwhile; the link is back, and its end is seen."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    link.cut()
    hold.unlink()
    assert lab.ended(site)["state"] == "done"
    link.restore()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def longer_than_the_timeout(lab: Lab) -> None:
    """Cut for longer than reconnect_timeout: the command gives up, the training doesn't."""
    link = lab.link()
    site = lab.stub(**lab.through(link), reconnect_timeout=2)
    hold = site.hold("style")
    process = lab.start(site)
    before = lab.training(site)
    link.cut()
    outcome = finish(process)
    assert outcome.status != 0, outcome.output
    assert "could not be reached again in 2 s" in outcome.output
    assert lab.status(site)["token"] == before["token"]
    assert lab.status(site)["state"] == "running"
    link.restore()
    hold.unlink()
    lab.ended(site)
    lab.settle(site)


def flapping(lab: Lab) -> None:
    """Cut and back again, five times in five seconds."""
    link = lab.link()
    site = lab.stub(**lab.through(link))
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    link.flap(5, 0.5)
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def in_the_step(title: str) -> Scenario:
    """Cut in one of the other steps, which may fail: the same command then does the rest."""

    def act(lab: Lab) -> None:
        link = lab.link()
        site = lab.stub(**lab.through(link), reconnect_timeout=20)
        process = lab.start(site)
        shown_until(process, title)
        time.sleep(0.2)
        link.cut()
        time.sleep(1)
        link.restore()
        finish(process)
        lab.settle(site)

    return act


def _end_sshd(server: sshd_host.Sshd, sessions_too: bool) -> None:
    sessions = sshd_host.children(server.pid)
    sshd_host.end(server.pid)
    if not sessions_too:
        return
    for pid, started in sessions:
        if sshd_host.started_at(pid) == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _launch_again(server: sshd_host.Sshd) -> None:
    program = sshd_host.program("sshd", "openssh-server")
    sshd_host.launch(server.folder, program, server.port)


def sshd_restarted(sessions_too: bool) -> Scenario:
    """The host's sshd ends in mid-training and comes back."""

    def act(lab: Lab) -> None:
        server = lab.own_sshd()
        site = lab.stub(**lab.behind(server))
        hold = site.hold("style")
        process = lab.start(site)
        before = lab.training(site)
        _end_sshd(server, sessions_too)
        time.sleep(2)
        _launch_again(server)
        time.sleep(2)
        assert lab.status(site)["token"] == before["token"]
        assert lab.status(site)["state"] == "running"
        hold.unlink()
        outcome = finish(process)
        assert outcome.status == 0, outcome.output
        lab.settle(site)

    return act


BOOT_ID = "/proc/sys/kernel/random/boot_id"


def rebooted(lab: Lab) -> None:
    """All that ran is dead, and sshd comes back under another boot id, in a mount namespace."""
    server = lab.own_sshd()
    site = lab.stub(**lab.behind(server))
    hold = site.hold("style")
    process = lab.start(site)
    before = lab.training(site)
    lab.kill(process)
    lab.kill_all(site)
    _end_sshd(server, sessions_too=True)
    _launch_after_reboot(lab, server)
    hold.unlink()
    lab.settle(site, trained=2)
    assert lab.status(site)["boot_id"] != before["boot_id"]


def _launch_after_reboot(lab: Lab, server: sshd_host.Sshd) -> None:
    other = lab.folder / "boot_id"
    other.write_text("00000000-1111-2222-3333-444444444444\n", encoding="ascii")
    sshd = sshd_host.program("sshd", "openssh-server")
    wrapper = Path(lab.folder) / "sshd-after-reboot"
    wrapper.write_text(
        "#!/bin/sh\nexec unshare --mount sh -c "
        f'\'mount --bind {other} {BOOT_ID} && exec {sshd} "$@"\' sshd "$@"\n',
        encoding="utf-8",
    )
    wrapper.chmod(0o755)
    sshd_host.launch(server.folder, str(wrapper), server.port)
    answer = subprocess.run(
        server.ssh_command("cat", BOOT_ID), capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("00000000-"), "the boot id is not another one"
