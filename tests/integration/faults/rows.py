"""What a row of the table of faults is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tests.integration.faults.lab import Lab

Scenario = Callable[[Lab], None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """One point of injection, and the state that it has to end in."""

    name: str
    where: str
    """The point of injection."""
    how: str
    """What is done there, and with which training: ``stub``, ``real`` or ``direct``."""
    expected: str
    """The state in the end."""
    act: Scenario
    fast: bool = False
    """Whether ``make test`` has it as well."""
    root: bool = False
    """Whether it needs root's rights; skipped without."""
