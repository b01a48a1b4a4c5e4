"""A file of ours is damaged: the marker, the adapter, the status."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from controller.follow import POLL_SECONDS
from remote_train import live
from tests.integration.faults import processes
from tests.integration.faults.lab import Lab
from tests.integration.faults.rows import Scenario
from tests.integration.faults.waits import until
from tests.integration.sites import finish


def truncated(path: Path) -> None:
    """The second half is missing."""
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    """Nothing is in it any more."""
    os.truncate(path, 0)


def flipped(path: Path) -> None:
    """One bit in its middle is another one."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x04
    path.write_bytes(content)


def replaced(path: Path) -> None:
    """A folder is in its place: it can't be read, whoever reads."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "emptied": emptied,
    "flipped": flipped,
    "a folder in its place": replaced,
}


def marker(damage: str) -> Scenario:
    """The marker of a stage that is done: it is trained again, and the marker whole again."""

    def act(lab: Lab) -> None:
        site = lab.trained()
        DAMAGES[damage](site.marker("style"))
        again = lab.settle(site, trained=2)
        assert "style" in again.output

    return act


def marker_lies(lab: Lab) -> None:
    """One letter of an input in the marker is another one: its fingerprint shows it."""
    site = lab.trained()
    path = site.marker("style")
    said = json.loads(path.read_text(encoding="utf-8"))
    name = next(iter(said["inputs"]["data"]))
    said["inputs"]["data"][name] = "sha256:" + "0" * 64
    path.write_text(json.dumps(said), encoding="utf-8")
    lab.settle(site, trained=2)


def adapter(damage: str) -> Scenario:
    """The adapter of a stage that is done: it is trained again."""

    def act(lab: Lab) -> None:
        site = lab.trained()
        DAMAGES[damage](site.adapter("style"))
        lab.settle(site, trained=2)

    return act


def adapter_at_home(damage: str) -> Scenario:
    """What came home is damaged there: it is fetched again, and nothing trains."""

    def act(lab: Lab) -> None:
        site = lab.trained()
        path = site.home / "adapter/adapter_style/adapter_model.safetensors"
        DAMAGES[damage](path)
        lab.settle(site)

    return act


def status_at_rest(damage: str) -> Scenario:
    """The status that a stage has left behind: nothing depends on it, and the next start works."""

    def act(lab: Lab) -> None:
        site = lab.trained()
        DAMAGES[damage](site.sync / "live/status.json")
        again = site.run()
        assert again.status == 0, again.output
        assert len(site.trained()) == 1
        site.adapter("style").write_bytes(b"damaged")
        lab.settle(site, trained=2)

    return act


def status_while_running(damage: str) -> Scenario:
    """The status of a stage that runs: its supervisor writes it again, and nothing ends."""

    def act(lab: Lab) -> None:
        site = lab.stub()
        hold = site.hold("style")
        process = lab.start(site)
        supervisor = lab.training(site)["pid"]
        # It would write it again within two seconds: whoever follows is to meet the damage.
        processes.kill(supervisor, number=signal.SIGSTOP)
        try:
            DAMAGES[damage](Path(live.path(str(site.root), "status.json")))
            time.sleep(4 * POLL_SECONDS[1])
            assert process.poll() is None, finish(process).output
        finally:
            processes.kill(supervisor, number=signal.SIGCONT)
        until(lambda: lab.status(site).get("pid") == supervisor, "the status, written again")
        hold.unlink()
        outcome = finish(process)
        assert outcome.status == 0, outcome.output
        lab.settle(site)

    return act


def data_on_the_host(lab: Lab) -> None:
    """Data is changed there in mid-training: the marker says what was trained on, and the next
    command puts the data right and keeps the stage, which was trained on the right ones."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    data = site.root / "data/training/processed/style_sft.jsonl"
    data.write_bytes(data.read_bytes().splitlines(keepends=True)[0])
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)
    assert data.read_bytes() == (site.src / data.relative_to(site.root)).read_bytes()


def data_at_home(lab: Lab) -> None:
    """Data is changed in the project in mid-training: the stage ends on the old, then trains
    on the new."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    data = site.src / "data/training/processed/style_sft.jsonl"
    data.write_bytes(b"".join(data.read_bytes().splitlines(keepends=True)[:3]))
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    again = lab.settle(site, trained=2)
    assert "style_sft.jsonl" in again.output


def big_log(lab: Lab) -> None:
    """A log of 100 MB: followed, and at home byte for byte."""
    line = (
        "yes 0123456789012345678901234567890123456789012345678901234567890123 | head -c 104857600"
    )
    site = lab.stub(
        stage_command=[
            "sh",
            "-c",
            f"echo style >> ../../trace; {line}; mkdir -p outputs/adapter/adapter_style; "
            "echo style at 0.0001 > outputs/adapter/adapter_style/adapter_model.safetensors",
        ]
    )
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    (log,) = (site.root / "outputs/logs").glob("train_style_*.log")
    assert log.stat().st_size >= 104857600
    lab.settle(site)
