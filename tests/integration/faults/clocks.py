"""A clock that jumps: libfaketime in the processes of one stage, never the machine's clock."""

from __future__ import annotations

import glob
import sys
from pathlib import Path

import pytest

from tests.integration.faults.lab import Lab
from tests.integration.faults.rows import Scenario
from tests.integration.faults.waits import until
from tests.integration.sites import finish

LIBRARIES = "/usr/lib/*/faketime/libfaketimeMT.so.1"


def _python(lab: Lab, offset: Path) -> Path:
    """The host's Python, under a clock that is so many seconds off as a file says."""
    found = glob.glob(LIBRARIES)
    if not found:
        pytest.skip("libfaketime is not installed (package faketime)")
    offset.write_text("+0\n", encoding="ascii")
    # Some versions of libfaketime refuse the call that time.sleep makes when they leave the
    # monotonic clock alone, as a jump of the wall clock does.
    (lab.folder / "sitecustomize.py").write_text(
        "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n",
        encoding="ascii",
    )
    wrapper = lab.folder / "python"
    wrapper.write_text(
        f"#!/bin/sh\nexport LD_PRELOAD={found[0]} FAKETIME_TIMESTAMP_FILE={offset}"
        f" FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 PYTHONPATH={lab.folder}\n"
        f'exec {sys.executable} "$@"\n',
        encoding="ascii",
    )
    wrapper.chmod(0o755)
    return wrapper


def jumps(seconds: int) -> Scenario:
    """The host's clock jumps in mid-training, as the supervisor sees it."""

    def act(lab: Lab) -> None:
        offset = lab.folder / "offset"
        python = str(_python(lab, offset))
        site = lab.stub(ansible_python_interpreter=python, gpu_gate_max_clock_skew=7200)
        hold = site.hold("style")
        process = lab.start(site)
        before = lab.training(site)
        offset.write_text(f"{seconds:+d}\n", encoding="ascii")
        until(
            lambda: (
                (lab.status(site)["heartbeat"] - before["heartbeat"]) * seconds > 0
                and abs(lab.status(site)["heartbeat"] - before["heartbeat"]) > abs(seconds) / 2
            ),
            "a heartbeat after the jump",
        )
        hold.unlink()
        outcome = finish(process)
        assert outcome.status == 0, outcome.output
        lab.settle(site)

    return act
