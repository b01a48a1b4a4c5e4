"""Run a program on the host, its lines as they come, and say in one sentence why it failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from .errors import TrainError

KEPT_LINES = 200
"""How many of a program's last lines are kept, to find its reason in."""


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
    :raises TrainError: category ``infra``, with the program's own reason.
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
        raise TrainError(f"{failure}: {error}.", hint, "infra") from error
    lines: list[str] = []
    with _ended(child, within) as late:
        if child.stdin:
            with contextlib.suppress(
                BrokenPipeError
            ):  # it ended without reading; its status says why
                child.stdin.write(given)
                child.stdin.close()
        for line in child.stdout or ():
            text = line.rstrip()
            if text:
                lines = [*lines[-KEPT_LINES:], text]
                on_line(text)
        status = child.wait()
    if late:
        raise TrainError(f"{failure}: it took longer than {within:.0f} s.", hint, "infra")
    if status:
        raise TrainError(f"{failure}: {reason(lines)}", _hint(lines, hint), "infra")


@contextlib.contextmanager
def _ended(child: subprocess.Popen[str], within: float) -> Iterator[list[bool]]:
    """See to it that ``child`` doesn't outlive the body, nor lasts longer than ``within`` seconds.

    What it yields is empty unless it took too long.
    """
    late: list[bool] = []

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)

    def end() -> None:
        late.append(True)
        kill()

    timer = threading.Timer(within, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        if child.poll() is None:  # what listens to it has failed
            kill()
            child.wait()
        if child.stdout:
            child.stdout.close()


def reason(lines: Sequence[str]) -> str:
    """The line that says why a program failed: pip's ``ERROR:``, uv's ``cause:``, else the last."""
    causes = [line.strip() for line in lines if line.strip().startswith("cause:")]
    if causes:
        return causes[-1].partition(":")[2].strip()
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or list(lines[-1:]) or ["no word"])[-1].strip()


def _hint(lines: Sequence[str], hint: str) -> str:
    if any("No space left on device" in line or "os error 28" in line for line in lines):
        return "The disk is full: make room there, or set runtime_base to a larger disk."
    return hint
