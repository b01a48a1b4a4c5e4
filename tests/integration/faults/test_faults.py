"""Every fault of the table ends in the right state, with nothing lost.

What a fault does stands in its scenario, and what has to hold after all of them in
``Lab.settle``: the same command again does the right next thing until nothing is left to do,
the stage was trained as often as it must, its marker is whole and says the truth, the adapter
has the bytes of an undisturbed run, no file is half written, every log is at home whole, and no
process is left.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.integration.faults.lab import Lab
from tests.integration.faults.rows import Fault
from tests.integration.faults.table import FAULTS


def _row(fault: Fault) -> Any:
    marks = [pytest.mark.ssh, pytest.mark.timeout(900)]
    if not fault.fast:
        marks.append(pytest.mark.whole)
    if fault.root:
        marks.append(pytest.mark.skipif(os.geteuid() != 0, reason="it takes root"))
    return pytest.param(fault, id=fault.name, marks=marks)


@pytest.mark.parametrize("fault", [_row(fault) for fault in FAULTS])
def test_fault(fault: Fault, lab: Lab) -> None:
    fault.act(lab)


def test_the_table_has_forty_faults_that_differ() -> None:
    points = {(fault.where, fault.how, fault.expected) for fault in FAULTS}
    assert len(points) == len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert len(points) >= 40
