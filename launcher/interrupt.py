"""Ctrl-C, and the other signals that ask a run to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks the run to stop; a hang-up only where it isn't ignored already, as nohup does."""

STEPS = ((0.0, signal.SIGINT), (1.0, signal.SIGTERM))
"""How the playbook is asked: after how many seconds, with what.

Ansible tidies up after the first, but it may get lost: it is a Python exception there, and an
exception at the wrong place counts as a failed task. The second ends it at once.
Both it passes on to its workers.
"""

GRACE = 5.0
"""Seconds after which the playbook is killed."""


class Interrupt:
    """Passes a stop on to the playbook, which runs in a session of its own.

    A playbook is asked first: killed at once, it would leave behind its worker processes, each
    in a session of its own, and one of them may be about to start a training.

    :param pid_of: the playbook's process, or None before it is known.
    """

    def __init__(self, pid_of: Callable[[], int | None]) -> None:
        self._pid_of = pid_of
        self._signals = 0
        self._since = 0.0
        self._steps = list(STEPS)

    @property
    def happened(self) -> bool:
        """Whether a signal came."""
        return self._signals > 0

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._signals += 1

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count signals in place of dying of them; afterwards all is as it was."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def must_kill(self) -> bool:
        """ansible-runner's cancel callback: whether it shall kill the playbook now."""
        if not self._signals:
            return False
        pid = self._pid_of()
        if pid is None:
            return True  # it has no workers yet
        self._since = self._since or time.monotonic()
        passed = time.monotonic() - self._since
        while self._steps and passed >= self._steps[0][0]:
            _, number = self._steps.pop(0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return self._signals > 2 or passed > GRACE
