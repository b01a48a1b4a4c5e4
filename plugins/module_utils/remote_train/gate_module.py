"""The form that the modules gpu_probe and active_gate share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import gate
from .gate_checks import NAMES
from .gate_limits import silenced
from .gate_model import MODES, STRICT, Finding

ARGUMENTS: dict[str, dict[str, Any]] = {
    "project_root": {"type": "path", "required": True},
    "mode": {"type": "str", "choices": list(MODES), "default": STRICT},
    "silence": {"type": "dict", "default": {}},
    "stages": {"type": "list", "elements": "dict", "default": []},
    "storage": {"type": "dict", "default": {}},
}
"""The arguments of both, each documented in both."""


def reasons(given: Mapping[str, Any]) -> dict[str, str]:
    """The reasons of ``silence``, by check; it may name checks of either part of the gate.

    :raises TrainError: for a name that is no check, and where a reason is missing.
    """
    return silenced(given["silence"], NAMES)


def answer(findings: Sequence[Finding], mode: str, started: float, subject: str) -> dict[str, Any]:
    """What is returned of the findings, whatever was looked at.

    :param started: when it began, on the monotonic clock.
    :param subject: what passes or doesn't.
    """
    return {
        "changed": False,
        "mode": mode,
        **gate.told(findings, mode, subject),
        "seconds": round(time.monotonic() - started, 3),
    }
