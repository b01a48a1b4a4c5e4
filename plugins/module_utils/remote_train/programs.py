"""Run a program on the host that changes something and has to succeed, line by line.

What only answers, and may hang, is asked by :mod:`asked`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from .asked import kill
from .errors import TrainError

KEPT_LINES = 200
"""How many of a program's last lines are kept, to find its reason in."""


_CAUSE = re.compile(r"\s*cause(?:d by)?:", re.IGNORECASE)
_GOES_ON = re.compile(r"\s{4,}\S")
_WARNING = re.compile(r"\s*warning\b", re.IGNORECASE)


class FailedError(TrainError):
    """A program didn't do what it was run for; category ``infra``.

    :param reason: the line that says why; empty where it couldn't be started, or took too long.
    :param lines: the last ones that it printed.
    """

    def __init__(
        self, message: str, hint: str, reason: str = "", lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint, "infra")
        self.reason = reason
        self.lines = tuple(lines)


def run(
    command: Sequence[str],
    failure: str,
    hint: str,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
    within: float = 6 * 3600.0,
    given: str = "",
) -> None:
    """Run a program to its end.

    :param failure: how the sentence begins when it fails.
    :param environment: what it gets beside this process's own.
    :param on_line: is called with each line that it prints, on either stream.
    :param within: seconds that it may take; then it is killed, with all that it started.
    :param given: what it reads on its standard input.
    :raises FailedError: with the program's own reason.
    """
    try:
        child = subprocess.Popen(
            list(command),
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            # Only what was made inheritable goes on: the lock, held for as long as this runs.
            close_fds=False,
        )
    except OSError as error:
        raise FailedError(f"{failure}: {error}.", hint) from error
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    with _ended(child, within) as late:
        if child.stdin:
            # One that ended without reading says why by its status.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(given)
                child.stdin.close()
        for line in child.stdout or ():
            text = line.rstrip()
            if text:
                lines.append(text)
                on_line(text)
        status = child.wait()
    if late:
        raise FailedError(f"{failure}: it took longer than {within:.0f} s.", hint)
    if status:
        why = reason(list(lines))
        raise FailedError(f"{failure}: {why}", hint, why, lines)


@contextlib.contextmanager
def _ended(child: subprocess.Popen[str], within: float) -> Iterator[list[bool]]:
    """See to it that ``child`` doesn't outlive the body, nor lasts longer than ``within`` seconds.

    What it yields is empty unless it took too long.
    """
    late: list[bool] = []

    def end() -> None:
        late.append(True)
        kill(child.pid)

    timer = threading.Timer(within, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        if child.poll() is None:  # what listens to it has failed
            kill(child.pid)
            child.wait()
        if child.stdout:
            child.stdout.close()


def reason(lines: Sequence[str]) -> str:
    """The line that says why a program failed: pip's ``ERROR:``, uv's ``cause:``, else the last."""
    causes = [line.strip() for line in _unwrapped(lines) if _CAUSE.match(line)]
    if causes:
        return causes[-1].partition(":")[2].strip()
    errors = [line for line in lines if "error" in line.lower() and not _WARNING.match(line)]
    return (errors or list(lines[-1:]) or ["no word"])[-1].strip()


def _unwrapped(lines: Sequence[str]) -> list[str]:
    """The lines, those put together that uv has wrapped: it indents what a cause goes on with."""
    whole: list[str] = []
    for line in lines:
        if whole and _CAUSE.match(whole[-1]) and _GOES_ON.match(line):
            whole[-1] += f" {line.strip()}"
        else:
            whole.append(line)
    return whole
