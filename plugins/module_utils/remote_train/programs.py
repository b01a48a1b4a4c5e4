"""Run programs on the host: ask some for a limited time, or follow one that works, line by line.

:func:`ask` is for what answers and may hang: it never raises, and ends in time even where the
kernel won't let the program go. :func:`run` is for what changes something and has to succeed.
What hangs inside of this process instead needs a child of its own (:mod:`killable`).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from .errors import TrainError

ENDED, HANGS, UNUSABLE = "ended", "hangs", "unusable"

KILLED_WITHIN = 2.0
"""Seconds that a killed program is waited for; one that hangs in a driver doesn't die."""

MOST_OUTPUT = 64 * 1024 * 1024
"""Bytes that a program that is asked may print; one that prints more prints without end."""

_AFTERWARDS = 0.5
"""Seconds that a program's output stays open for after its end, for what a child of it prints."""

KEPT_LINES = 200
"""How many of a program's last lines are kept, to find its reason in."""


@dataclass(frozen=True)
class Ended:
    """How a program ended that was asked something.

    ``state`` is ``ended`` (``status`` is its exit status, below 0 the signal that killed it),
    ``hangs`` (it was killed when its time was over; what it had printed is there) or ``unusable``
    (``reason`` says why it can't be run).
    """

    state: str
    status: int = 0
    output: bytes = b""
    complaint: bytes = b""
    reason: str = ""

    @property
    def text(self) -> str:
        """What it printed on its standard output, without blanks around it."""
        return self.output.decode("utf-8", "replace").strip()

    @property
    def complaints(self) -> str:
        """What it printed on its standard error, without blanks around it."""
        return self.complaint.decode("utf-8", "replace").strip()


def ask(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run one program for at most ``seconds`` and take what it prints; see :func:`ask_all`."""
    return ask_all({"": command}, seconds, environment=environment)[""]


def ask_all(
    commands: Mapping[str, Sequence[str]],
    seconds: float,
    given: Mapping[str, str] | None = None,
    folder: str = "",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Ended]:
    """Run programs at once, each for at most ``seconds``, and take what they print.

    Never raises for what a program does or is, and takes at most :data:`KILLED_WITHIN` seconds
    more than the limit: what runs then is killed with all that it started, and what can't be
    killed is left behind.

    :param given: what each reads on its standard input.
    :param folder: the folder that they run in, if not the current one.
    :param environment: what they get beside this process's own.
    """
    deadline = time.monotonic() + seconds
    asked = {
        name: _Asked(command, (given or {}).get(name, ""), folder, environment or {})
        for name, command in commands.items()
    }
    with selectors.DefaultSelector() as selector:
        for one in asked.values():
            for stream, kept in one.streams():
                selector.register(stream, selectors.EVENT_READ, (one, kept))
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _events in selector.select(min(left, _AFTERWARDS / 2)):
                if not key.data[0].read(key.fd, key.data[1]):
                    selector.unregister(key.fileobj)
            for key in list(selector.get_map().values()):
                if key.data[0].over():
                    selector.unregister(key.fileobj)
    patience = max(deadline - time.monotonic(), 0.2)
    return {name: one.end(patience) for name, one in asked.items()}


class _Asked:
    """One program that is asked."""

    def __init__(
        self, command: Sequence[str], given: str, folder: str, environment: Mapping[str, str]
    ) -> None:
        self.output, self.complaint = bytearray(), bytearray()
        self.reason = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._gone = 0.0
        try:
            with tempfile.TemporaryFile() if given else open(os.devnull, "rb") as stdin:
                if given:
                    stdin.write(given.encode())
                    stdin.seek(0)
                self.process = subprocess.Popen(
                    list(command),
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **environment},
                    cwd=folder or None,
                    start_new_session=True,  # a group of its own, so that its children go with it
                )
        except OSError as error:
            self.reason = error.strerror or str(error)

    def streams(self) -> list[tuple[IO[bytes], bytearray]]:
        """What is to be read, and where to."""
        if self.process is None or self.process.stdout is None or self.process.stderr is None:
            return []
        return [(self.process.stdout, self.output), (self.process.stderr, self.complaint)]

    def read(self, descriptor: int, kept: bytearray) -> bool:
        """Read what stands in a stream; whether there may be more."""
        chunk = os.read(descriptor, 1 << 16)
        kept += chunk
        if len(self.output) + len(self.complaint) > MOST_OUTPUT:
            self.reason = f"it prints more than {MOST_OUTPUT >> 20} MiB"
        return bool(chunk) and not self.reason

    def over(self) -> bool:
        """Whether nothing is waited for any more: it prints too much, or ended a while ago."""
        if not self._gone and self.process and self.process.poll() is not None:
            self._gone = time.monotonic()
        return bool(self.reason or (self._gone and time.monotonic() - self._gone > _AFTERWARDS))

    def end(self, patience: float) -> Ended:
        """How it ended; kills it where it hasn't within ``patience`` seconds."""
        process = self.process
        if process is None:
            return Ended(UNUSABLE, reason=self.reason)
        late = bool(self.reason)
        if not late:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                late = True
        if late:
            _kill(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_WITHIN)
        for stream, _kept in self.streams():
            stream.close()
        state = UNUSABLE if self.reason else HANGS if late else ENDED
        status = process.returncode or 0
        return Ended(state, status, bytes(self.output), bytes(self.complaint), self.reason)


def _kill(group: int) -> None:
    """Kill a program and all that it started, as far as this user may."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


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

    def end() -> None:
        late.append(True)
        _kill(child.pid)

    timer = threading.Timer(within, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
        if child.poll() is None:  # what listens to it has failed
            _kill(child.pid)
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
