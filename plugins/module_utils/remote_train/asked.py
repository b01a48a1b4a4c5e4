"""Ask programs that answer and may hang, for a limited time.

It never raises, and ends in time even where the kernel won't let a program go. What hangs inside
of this process instead needs a child of its own (:mod:`killable`); what changes something and has
to succeed is run by :mod:`programs`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from .processes import signal_name

ENDED, HANGS, UNUSABLE = "ended", "hangs", "unusable"

KILLED_WITHIN = 2.0
"""Seconds that a killed program is waited for; one that hangs in a driver doesn't die."""

MOST_OUTPUT = 64 * 1024 * 1024
"""Bytes that a program that is asked may print; one that prints more prints without end."""

_AFTERWARDS = 0.5
"""Seconds that a program's output stays open for after its end, for what a child of it prints."""


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

    @property
    def trouble(self) -> str:
        """Why it gave no good answer, in words that follow its name."""
        if self.state == UNUSABLE:
            return f"can't be started: {self.reason}"
        if self.status < 0:
            return f"was killed by {signal_name(-self.status)}"
        said = (self.complaints or self.text).splitlines()[-1:] or ["no word"]
        return f"ended with status {self.status}: {said[0].strip()[:200]}"


def ask(
    command: Sequence[str | bytes],
    seconds: float,
    environment: Mapping[str, str | None] | None = None,
    given: bytes = b"",
    folder: str = "",
) -> Ended:
    """Run one program for at most ``seconds`` and take what it prints; see :func:`ask_all`."""
    return ask_all({"": command}, seconds, {"": given}, folder, environment)[""]


def ask_all(
    commands: Mapping[str, Sequence[str | bytes]],
    seconds: float,
    given: Mapping[str, bytes] | None = None,
    folder: str = "",
    environment: Mapping[str, str | None] | None = None,
) -> dict[str, Ended]:
    """Run programs at once, all of them for at most ``seconds``, and take what they print.

    Never raises for what a program does or is, and takes at most :data:`KILLED_WITHIN` seconds
    more than the limit, however many they are: what runs then is killed with all that it started,
    and what can't be killed is left behind.

    :param given: what each reads on its standard input.
    :param folder: the folder that they run in, if not the current one.
    :param environment: what they get beside this process's own; None takes one of those away.
    """
    deadline = time.monotonic() + seconds
    asked = {
        name: _Asked(command, (given or {}).get(name, b""), folder, environment or {})
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
    until = max(deadline, time.monotonic() + 0.2)
    late = [one for one in asked.values() if not one.ended(until)]
    for one in late:
        one.kill()
    until = time.monotonic() + KILLED_WITHIN
    for one in late:
        one.gone(until)
    return {name: one.answer() for name, one in asked.items()}


class _Asked:
    """One program that is asked."""

    def __init__(
        self,
        command: Sequence[str | bytes],
        given: bytes,
        folder: str,
        environment: Mapping[str, str | None],
    ) -> None:
        self.output, self.complaint = bytearray(), bytearray()
        self.reason = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._late = False
        self._gone_at = 0.0
        whole = {**os.environ, **environment}
        try:
            with tempfile.TemporaryFile() if given else open(os.devnull, "rb") as stdin:
                if given:
                    stdin.write(given)
                    stdin.seek(0)
                self.process = subprocess.Popen(
                    list(command),
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={name: value for name, value in whole.items() if value is not None},
                    cwd=folder or None,
                    start_new_session=True,  # a group of its own, so that its children go with it
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            self.reason = getattr(error, "strerror", None) or str(error)

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
        if not self._gone_at and self.process and self.process.poll() is not None:
            self._gone_at = time.monotonic()
        after = time.monotonic() - self._gone_at if self._gone_at else 0.0
        return bool(self.reason) or after > _AFTERWARDS

    def ended(self, until: float) -> bool:
        """Whether it has ended by itself by then, on the monotonic clock."""
        self._late = self.process is not None and (bool(self.reason) or not self.gone(until))
        return not self._late

    def gone(self, until: float) -> bool:
        """Whether it runs no more by then."""
        if self.process:
            try:
                self.process.wait(until - time.monotonic())
            except subprocess.TimeoutExpired:
                return False
        return True

    def kill(self) -> None:
        """Kill it, with all that it started."""
        if self.process:
            kill(self.process.pid)

    def answer(self) -> Ended:
        """How it ended."""
        for stream, _kept in self.streams():
            stream.close()
        state = UNUSABLE if self.reason else HANGS if self._late else ENDED
        status = (self.process.returncode if self.process else 0) or 0
        return Ended(state, status, bytes(self.output), bytes(self.complaint), self.reason)


def kill(group: int) -> None:
    """Kill a program and all that it started, as far as this user may."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
