"""Records of a run that isn't there any more, and one that is."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from remote_train import live
from tests.integration.faults import processes
from tests.integration.faults.lab import Lab, shown_until
from tests.integration.faults.waits import until
from tests.integration.sites import Site, finish


def _orphaned(lab: Lab) -> Site:
    """A site whose stage, supervisor and all were killed: what the last record says is stale."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    lab.kill(process)
    lab.kill_all(site)
    hold.unlink()
    assert lab.status(site)["state"] == "running"
    return site


def _record(site: Site, **news: Any) -> None:
    """Write another process into what the lock and the status say."""
    for name in ("holder.json", "status.json"):
        path = site.sync / "live" / name
        record = {**json.loads(path.read_text(encoding="utf-8")), **news}
        path.write_text(json.dumps(record), encoding="utf-8")


def stale(lab: Lab) -> None:
    """The record says that a stage runs, and its process is dead: taken over, and that is said."""
    site = _orphaned(lab)
    dead = lab.status(site)["pid"]
    again = lab.settle(site, trained=2)
    assert f"process {dead} since" in again.output, again.output
    assert "its lock is taken over" in again.output, again.output


def pid_used_again(lab: Lab) -> None:
    """The number on record is that of somebody else's process by now, which nothing happens to."""
    site = _orphaned(lab)
    stranger = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        _record(site, pid=stranger.pid, child={**lab.status(site)["child"], "pid": stranger.pid})
        stopped = site.run(playbook="playbooks/stop.yml")
        assert stopped.status == 0, stopped.output
        lab.settle(site, trained=2)
        assert processes.lives(stranger.pid), "a stranger's process was ended"
    finally:
        stranger.kill()
        stranger.wait()


def pid_used_by_us(lab: Lab) -> None:
    """The number and even the start time are those of a living process, of another boot."""
    site = _orphaned(lab)
    stranger = subprocess.Popen(["sleep", "100"], start_new_session=True)
    try:
        identity = {**live.identity(stranger.pid), "boot_id": "0" * 36}
        _record(site, **identity, child=identity)
        stopped = site.run(playbook="playbooks/stop.yml")
        assert stopped.status == 0, stopped.output
        lab.settle(site, trained=2)
        assert processes.lives(stranger.pid), "a stranger's process was ended"
    finally:
        stranger.kill()
        stranger.wait()


def earlier_boot(lab: Lab) -> None:
    """The record is of an earlier boot: it is taken over, and that is said."""
    site = _orphaned(lab)
    _record(site, boot_id="12345678-0000-0000-0000-000000000000")
    again = lab.settle(site, trained=2)
    assert "the host was started anew since" in again.output, again.output


def alive(lab: Lab) -> None:
    """The lock is held by a living stage: followed, not taken."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    status = lab.training(site)
    lab.kill(process)
    second = lab.start(site)
    shown = shown_until(second, "following it.")
    assert f"as process {status['pid']} since" in shown
    assert processes.lives(status["pid"])
    hold.unlink()
    outcome = finish(second)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def of_a_stranger(lab: Lab) -> None:
    """Something holds the lock's file and says nothing: named, and nothing is started."""
    site = lab.stub()
    first = site.run()
    assert first.status == 0, first.output
    site.adapter("style").write_bytes(b"damaged")
    lock = live.path(str(site.root), "lock")
    stranger = subprocess.Popen(["flock", lock, "sleep", "100"], start_new_session=True)
    try:
        until(lambda: live.is_locked(lock), "the stranger's lock")
        refused = site.run()
    finally:
        processes.kill_tree(stranger.pid)
        stranger.wait()
    assert refused.status == 2, refused.output
    assert "sleep" in refused.failures[0] or "flock" in refused.failures[0]
    lab.settle(site, trained=2)


def lock_is_a_folder(lab: Lab) -> None:
    """A folder in the place of the lock: a sentence, no traceback; gone, all goes on."""
    site = lab.stub()
    folder = site.sync / "live/lock"
    folder.mkdir(parents=True)
    refused = site.run()
    assert refused.status != 0, refused.output
    assert "Traceback" not in refused.output
    assert site.trained() == []
    os.rmdir(folder)
    lab.settle(site)
