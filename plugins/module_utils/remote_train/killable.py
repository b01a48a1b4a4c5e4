"""Do what may hang in child processes that can be killed.

A dead NFS mount holds ``statvfs`` for ever, a driver that hangs holds ``nvidia-smi``, a broken
user directory holds ``getpwuid``. Each job gets a process of its own; all of them run at once.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: Seconds that a killed child gets to go. One that the kernel won't let go is left behind.
PATIENCE = 1.0

DONE, HANGS, BROKE = "done", "hangs", "broke"


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``done`` with its ``value``, ``hangs``, or ``broke`` with a ``reason``.

    ``seconds`` is what it took, or the limit that it went over.
    """

    state: str
    value: Any = None
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """A function without arguments, and for how many seconds it is waited for."""

    function: Callable[[], Any]
    seconds: float


def run(jobs: Mapping[str, Job]) -> dict[str, Outcome]:
    """Do all jobs at once, each in a child; returns when the last one has ended or is given up.

    Values come back pickled. What a job raises is its outcome, not an exception here.
    """
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    answers: dict[str, bytes] = dict.fromkeys(jobs, b"")
    children: dict[str, int] = {}
    with selectors.DefaultSelector() as selector:
        for name, job in jobs.items():
            reader, children[name] = _start(job)
            selector.register(reader, selectors.EVENT_READ, name)
        while waiting := list(selector.get_map().values()):
            left = min(started + jobs[key.data].seconds for key in waiting) - time.monotonic()
            for key, _events in selector.select(max(left, 0)):
                chunk = os.read(key.fd, 1 << 16)
                answers[key.data] += chunk
                if not chunk:
                    taken = time.monotonic() - started
                    outcomes[key.data] = _outcome(answers[key.data], taken)
                    _let_go(selector, key.fd)
            for key in list(selector.get_map().values()):
                limit = jobs[key.data].seconds
                if time.monotonic() >= started + limit:
                    outcomes[key.data] = Outcome(HANGS, seconds=limit)
                    _let_go(selector, key.fd)
    _end(list(children.values()))
    return {name: outcomes[name] for name in jobs}


def _let_go(selector: selectors.BaseSelector, reader: int) -> None:
    selector.unregister(reader)
    os.close(reader)


def _start(job: Job) -> tuple[int, int]:
    """Fork a child that does a job; the end of the pipe that its answer comes out of, its id."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, pid
    status = 1
    try:
        os.setsid()  # a group of its own, so that the programs it runs end with it
        _close_all_but(writer)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(_answer(job.function))
        status = 0
    finally:
        os._exit(status)  # nothing of the parent's is run down twice


def _close_all_but(writer: int) -> None:
    """Let go of what the parent has open.

    A child that is left behind would otherwise hold the connection: ssh ends when the last
    process has closed its output.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    most = os.sysconf("SC_OPEN_MAX")
    os.closerange(3, writer)
    os.closerange(writer + 1, min(most, 1 << 16) if most > 0 else 1 << 16)


def _answer(function: Callable[[], Any]) -> bytes:
    try:
        return pickle.dumps((True, function()))
    except BaseException as error:
        return pickle.dumps((False, f"{type(error).__name__}: {error}"))


def _outcome(answer: bytes, taken: float) -> Outcome:
    if not answer:
        return Outcome(BROKE, reason="its process ended without a word", seconds=taken)
    try:
        well, value = pickle.loads(answer)  # noqa: S301 - written by our own child
    except Exception as error:
        return Outcome(BROKE, reason=f"its answer can't be read ({error})", seconds=taken)
    if well:
        return Outcome(DONE, value, seconds=taken)
    return Outcome(BROKE, reason=str(value), seconds=taken)


def _end(children: list[int]) -> None:
    """Kill what still runs, and don't wait for what can't be killed."""
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        # Between fork and setsid there is no such group yet.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    left = list(children)
    while left:
        left = [pid for pid in left if not _gone(pid)]
        if left and time.monotonic() > deadline:
            return
        if left:
            time.sleep(0.005)


def _gone(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
