"""The disk is full: a small file system in memory, mounted for one fault."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from controller.follow import SILENT_AFTER
from tests.integration.faults.hooks.fill import fill
from tests.integration.faults.lab import Lab
from tests.integration.faults.waits import until
from tests.integration.sites import Site, finish

SMALL = {"gpu_gate_min_disk_gib": 0}
"""The gate would have a gigabyte free."""

MEGABYTES = 512
"""The disk's size: the sync leaves 256 MiB of it free, and a training that it has ended is started
again with as much room, not before."""


def small(lab: Lab, site: Site) -> Path:
    """Give the host's folder of a site a small disk of its own."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(site.host)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    lab.at_end(lambda: subprocess.run(["umount", "--lazy", str(site.host)], check=False))
    return site.host


def at_the_start(lab: Lab) -> None:
    """Full before anything begins: said, nothing half; room is made, and it trains."""
    site = lab.stub(**SMALL)
    filler = small(lab, site) / "filler"
    fill(filler)
    outcome = site.run()
    assert outcome.status != 0, outcome.output
    assert "Traceback" not in outcome.output
    filler.unlink()
    lab.settle(site)


_LOGS = """
echo style >> ../../trace
head -c 600000000 /dev/zero > ../filler 2>/dev/null
truncate --size=-20M ../filler
yes 'a line of the log' | head -c 30000000
touch ../../logged
while [ -e ../../hold.style ]; do sleep 0.05; done
mkdir -p outputs/adapter/adapter_style
echo style at 0.0001 > outputs/adapter/adapter_style/adapter_model.safetensors
"""


def while_logging(lab: Lab) -> None:
    """The log fills the disk: the heartbeat can't be written, and all ends well when it can."""
    site = lab.stub(**SMALL, stage_command=["sh", "-c", _LOGS])
    host = small(lab, site)
    hold = site.hold("style")
    process = lab.start(site)
    until((site.folder / "logged").exists, "the full disk")
    assert _is_full(host)
    time.sleep(5)
    (host / "filler").unlink()
    hold.unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


_ENDS_FULL = """
echo style >> ../../trace
mkdir -p outputs/adapter/adapter_style
echo style at 0.0001 > outputs/adapter/adapter_style/adapter_model.safetensors
head -c 600000000 /dev/zero > ../filler 2>/dev/null
touch ../../full
"""


def while_the_marker_is_written(lab: Lab) -> None:
    """Full when the stage's command ends: the marker is tried until there is room."""
    site = lab.stub(**SMALL, stage_command=["sh", "-c", _ENDS_FULL])
    host = small(lab, site)
    process = lab.start(site)
    until((site.folder / "full").exists, "the full disk")
    time.sleep(4)
    assert not site.marker("style").exists()
    (host / "filler").unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def for_over_a_minute(lab: Lab) -> None:
    """The same for longer than a silence is borne: heard of all the while, done with room."""
    site = lab.stub(**SMALL, stage_command=["sh", "-c", _ENDS_FULL])
    host = small(lab, site)
    process = lab.start(site)
    until((site.folder / "full").exists, "the full disk")
    time.sleep(SILENT_AFTER + 10)
    assert process.poll() is None, finish(process).output
    assert not site.marker("style").exists()
    (host / "filler").unlink()
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def while_checkpointing(lab: Lab) -> None:
    """Full before a checkpoint: nothing half counts, and with room again the bytes are right."""
    site = lab.real(**SMALL)
    host = small(lab, site)
    lab.faults(site, {"id": "full", "step": 4, "do": "fill", "path": str(host / "filler")})
    first = lab.start(site)
    until((host / "filler").exists, "the full disk")
    time.sleep(3)
    (host / "filler").unlink()
    outcome = finish(first)
    assert outcome.status == 0, outcome.output
    lab.settle(site, trained=None, adapter=lab.right())


def _is_full(folder: Path) -> bool:
    return os.statvfs(folder).f_bavail == 0
