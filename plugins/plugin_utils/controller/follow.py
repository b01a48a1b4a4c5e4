"""Follow a running stage over a connection that may break.

A poll is one short command that prints the status and the log's new bytes: a module call would
cost the host ten times as much. Success is what the status says, never how a command ended.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

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
