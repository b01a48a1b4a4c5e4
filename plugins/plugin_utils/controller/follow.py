"""Follow a running stage over a connection that may break.

A poll is one short command that prints the status and the log's new bytes: a module call would
cost the host ten times as much. Success is what the status says, never how a command ended.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleConnectionFailure

from .action import GaveUpError

POLL_SECONDS = (0.3, 2.0)
"""The pause between two polls: the first one, and the longest that it grows to."""

LOG_CHUNK = 256 * 1024
"""The most new bytes of the log that one poll brings."""

MARK = "\x1d"
"""What stands before the status: a host's login files may print a banner in front of it."""

SEPARATOR = "\x1e"
"""What stands between the status and the log: a control character that JSON escapes."""

SILENT_AFTER = 60.0
"""Seconds without a heartbeat, or without an answer that can be read, before one gives up."""


def poll_command(status: str, log: str, offset: int) -> str:
    """The shell command that prints status and new log bytes.

    Both paths come from the request and are quoted; ssh takes nothing but a shell's line.
    """
    quoted = shlex.quote(status), shlex.quote(log)
    return (
        f"printf '\\035' && cat {quoted[0]} && printf '\\036' && "
        f"if [ -f {quoted[1]} ]; then tail -c +{offset + 1} {quoted[1]} | head -c {LOG_CHUNK}; fi"
    )


def parse_answer(text: str) -> tuple[dict[str, Any], bytes]:
    """The status and the new log bytes out of what the command printed.

    :raises ValueError: where it isn't what the command prints.
    """
    _banner, mark, printed = text.partition(MARK)
    head, separator, tail = printed.partition(SEPARATOR)
    if not (mark and separator):
        raise ValueError("no status and no log")
    status = json.loads(head)
    if not isinstance(status, dict):
        raise ValueError("no status")
    return status, tail.encode("utf-8", "surrogateescape")


class Link:
    """Commands over a connection, tried again with growing pauses when it breaks.

    :param run: runs one shell command and returns its standard output, or raises
        AnsibleConnectionFailure.
    :param reset: drops the connection, so that the next command makes a new one.
    :param patience: seconds for which a broken connection is tried again.
    :param say: shows a line to the person.
    """

    def __init__(
        self,
        run: Callable[[str], str],
        reset: Callable[[], None],
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        self._run = run
        self._reset = reset
        self._patience = patience
        self._say = say
        self.cuts: list[dict[str, float]] = []

    def __call__(self, attempt: Callable[[], Any]) -> Any:
        """``attempt()``, again and again while the connection is broken."""
        broken_since = 0.0
        pause = 1.0
        while True:
            try:
                answer = attempt()
            except AnsibleConnectionFailure as error:
                now = time.monotonic()
                if not broken_since:
                    broken_since = now
                    self._say("  The connection broke; the training goes on there. Reconnecting.")
                if now - broken_since > self._patience:
                    raise GaveUpError(
                        f"The host could not be reached again in {self._patience:.0f} s.",
                        "The training goes on there without us: give the same command again "
                        "when the host can be reached, and it attaches.",
                        "infra",
                    ) from error
                time.sleep(pause)
                pause = min(pause * 1.6, 30.0)
                self._reset()
                continue
            if broken_since:
                away = time.monotonic() - broken_since
                self.cuts.append({"seconds": round(away, 1)})
                self._say(f"  Connected again after {away:.0f} s.")
            return answer

    def command(self, line: str) -> str:
        """Run one shell command, over cuts."""
        return str(self(lambda: self._run(line)))
