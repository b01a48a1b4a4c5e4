"""Kills the controller at one of its steps: ``FAULTS_KILL_AT=code_sync:start`` (test only).

After the colon: ``start``, ``end``, or seconds after the start.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[4]))

from ansible.plugins.callback import CallbackBase

from tests.integration.faults import processes

DOCUMENTATION = """
name: kill_at
type: aggregate
short_description: Kills the controller at one of its steps
description: Only for the fault suite.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc]
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_at"

    def __init__(self) -> None:
        super().__init__()
        self._step, _, self._when = os.environ.get("FAULTS_KILL_AT", ":").partition(":")

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:  # noqa: ARG002
        if task.action != self._step or self._when == "end":
            return
        delay = 0.0 if self._when == "start" else float(self._when)
        if delay:
            threading.Timer(delay, self._kill).start()
        else:
            self._kill()

    def v2_runner_on_ok(self, result: Any) -> None:
        if result.task.action == self._step and self._when == "end":
            self._kill()

    def _kill(self) -> None:
        processes.kill_tree(os.getpid())
