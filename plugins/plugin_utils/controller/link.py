"""A connection that may break, and is made again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError

from remote_train import failures

from .action import GaveUpError
from .progress import Line, duration

CONNECT_WITHIN = 4
"""Seconds for a connection that is made while the one before it isn't known to be broken.

Where the one that all commands share dies of a silence while a command is being started over it,
ssh makes another one for that, and would wait for it for as long as for the first one of all.
"""


SAID_EVERY = 30.0
"""Seconds of a break between two lines that stay, where no line can be rewritten."""

ONE_BREAK = 5.0
"""Seconds of a connection that is whole, up to which the break after them is still the same one."""


def hurry(connection: Any) -> Callable[[bool], None]:
    """What makes ``connection`` give up early while it is thought to be whole."""
    try:
        patient = int(connection.get_option("timeout"))
    except (AttributeError, KeyError, TypeError, ValueError, AnsibleError):
        return lambda _: None  # a plugin without that option

    def set_timeout(whole: bool) -> None:
        connection.set_option("timeout", min(patient, CONNECT_WITHIN) if whole else patient)

    return set_timeout


def _clock() -> float:
    """Seconds that pass while a laptop sleeps as well, where the system counts them (Linux)."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


class Link:
    """Commands over a connection, tried again with growing pauses when it breaks.

    :param run: runs one shell command and returns its standard output, or raises
        AnsibleConnectionFailure.
    :param connection: Ansible's own; it is dropped by ``reset``, so that the next command makes a
        new one, and while it is thought to be whole, it is given little time for that.
    :param patience: seconds for which a broken connection is tried again.
    :param say: shows a line to the person.
    :param stays: the half of a sentence that says what a break doesn't undo.
    :param again: what the same command does, when the host is back.
    """

    def __init__(
        self,
        run: Callable[[str], str],
        connection: Any,
        patience: float,
        say: Callable[[str], None],
        stays: str = "the training goes on there",
        again: str = "it attaches",
    ) -> None:
        self._run = run
        self._reset = connection.reset
        self._patience = patience
        self._say = say
        self._stays = stays
        self._again = again
        self._hurry = hurry(connection)
        self._parent = os.getppid()
        self.cuts: list[dict[str, float]] = []
        line = getattr(say, "__self__", None)
        self._live = line if isinstance(line, Line) and line.live else None
        self._broken_since = 0.0
        self._began = 0.0
        self._mended: float | None = None
        self._pause = 1.0
        self._said = 0.0

    def __call__(self, attempt: Callable[[], Any]) -> Any:
        """``attempt()``, again and again while the connection is broken.

        An answer of None means that nothing was asked of the host: it ends no break.
        """
        began = _clock()
        while True:
            if os.getppid() != self._parent:
                # The playbook was killed, and this is one of its workers: nobody looks on.
                raise SystemExit("the playbook is gone")
            self._hurry(not self._broken_since)
            try:
                answer = attempt()
            except AnsibleConnectionFailure as error:
                self._broke(began, error)
                self._wait()
                self._reset()
                continue
            if answer is not None and self._broken_since:
                self._is_whole()
            return answer

    def _broke(self, began: float, error: AnsibleConnectionFailure) -> None:
        """Take note of a break, and give up where it has lasted too long."""
        now = time.monotonic()
        if not self._broken_since:
            self._broken_since = self._said = now
            self._began, self._pause = began, 1.0
            if self._mended is not None and _clock() - self._mended < ONE_BREAK and self.cuts:
                self._began = self._mended - self.cuts.pop()["seconds"]
            self._say(f"  The connection broke; {self._stays}. Reconnecting.")
        if now - self._broken_since > self._patience:
            self._broken_since = 0.0
            found = failures.of_silence(self._patience, self._stays, self._again)
            raise GaveUpError(found.symptom, found.action, found.as_error()["category"]) from error

    def _wait(self) -> None:
        """Wait for the next try, and say for how long."""
        left = self._pause
        self._pause = min(self._pause * 1.6, 30.0)
        while left > 0:
            now = time.monotonic()
            gone = now - self._broken_since
            rest = f"gives up in {duration(self._patience - gone)}"
            text = f"  No connection for {duration(gone)}; next try in {left:.0f} s, {rest}"
            if self._live:
                self._live.update(text)
            elif now - self._said >= SAID_EVERY:
                self._said = now
                self._say(text)
            step = min(1.0, left) if self._live else left
            time.sleep(step)
            left -= step

    def _is_whole(self) -> None:
        self._broken_since = 0.0
        self._mended = _clock()
        away = self._mended - self._began
        self.cuts.append({"seconds": round(away, 1)})
        gone = f"{away:.0f} s" if away < 120 else duration(away)
        self._say(f"  Connected again after {gone}.")

    def command(self, line: str) -> str:
        """Run one shell command, over cuts."""
        return str(self(lambda: self._run(line)))
