"""The controller ends, at each of its steps."""

from __future__ import annotations

import signal

from tests.integration.faults.lab import Lab, shown_until
from tests.integration.faults.rows import Scenario
from tests.integration.faults.waits import until
from tests.integration.sites import finish


def at(step: str) -> Scenario:
    """Killed when a step starts or ends, or so many seconds after its start."""

    def act(lab: Lab) -> None:
        site = lab.stub()
        lab.killed_at(site, step)
        lab.settle(site)

    return act


def while_starting(lab: Lab) -> None:
    """Killed when the host has the job and hasn't answered yet."""
    site = lab.stub()
    process = lab.start(site)
    until((site.sync / "live/job.json").exists, "the job")
    lab.kill(process)
    lab.settle(site)


def while_following(lab: Lab) -> None:
    """Killed in mid-training; the next one attaches, and shows what was said meanwhile."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    before = lab.training(site)
    lab.kill(process)
    second = lab.start(site)
    shown_until(second, "following it.")
    assert lab.status(site)["token"] == before["token"]
    hold.unlink()
    outcome = finish(second)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def twice_while_following(lab: Lab) -> None:
    """Killed, attached, killed again; then the training ends with nobody there."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    lab.kill(process)
    second = lab.start(site)
    shown_until(second, "following it.")
    lab.kill(second)
    hold.unlink()
    assert lab.ended(site)["state"] == "done"
    lab.settle(site)


def interrupted(number: int) -> Scenario:
    """Sent a signal while it follows: Ctrl-C, a CI job that is ended, a terminal that closes."""

    def act(lab: Lab) -> None:
        site = lab.stub()
        hold = site.hold("style")
        # A suite that was started with nohup would hand it on that HUP is to be ignored.
        ours = signal.signal(number, signal.SIG_DFL)
        try:
            process = lab.start(site)
        finally:
            signal.signal(number, ours)
        before = lab.training(site)
        process.send_signal(number)
        outcome = finish(process)
        assert outcome.status != 0, outcome.output
        assert lab.status(site)["state"] == "running"
        assert lab.status(site)["token"] == before["token"]
        hold.unlink()
        assert lab.ended(site)["state"] == "done"
        lab.settle(site)

    return act


by_ctrl_c = interrupted(signal.SIGINT)
by_term = interrupted(signal.SIGTERM)
by_hangup = interrupted(signal.SIGHUP)


def as_the_stage_ends(lab: Lab) -> None:
    """Killed in the moment in which the marker appears."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    hold.unlink()
    until(site.marker("style").exists, "the marker")
    lab.kill(process)
    lab.settle(site)


def two_at_once(lab: Lab) -> None:
    """Two controllers in the same second: one training, and both bring it home."""
    site = lab.stub()
    both = [lab.start(site), lab.start(site, "-e", f"collect_dest={site.folder}/home2")]
    outcomes = [finish(process) for process in both]
    shown = "\n".join(outcome.output for outcome in outcomes)
    assert [outcome.status for outcome in outcomes] == [0, 0], shown
    name = "adapter/adapter_style/adapter_model.safetensors"
    assert (site.folder / "home2" / name).read_bytes() == site.adapter("style").read_bytes()
    lab.settle(site)


def second_refuses(lab: Lab) -> None:
    """A second controller with on_lock=fail: told who holds it, and nothing is changed."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    status = lab.training(site)
    refused = site.run("-e", "on_lock=fail")
    assert refused.status == 2, refused.output
    assert f"as process {status['pid']} since" in refused.failures[0]
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def second_waits(lab: Lab) -> None:
    """A second controller with on_lock=wait: shows nothing, and trains nothing again."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    waiting = lab.start(site, "-e", "on_lock=wait")
    shown_until(waiting, "waiting for it.")
    hold.unlink()
    outcomes = [finish(process), finish(waiting)]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes
    lab.settle(site)
