"""The processes that train: a worker for many stages, a command for one, and one left by the dead.

Each runs in a session of its own, so that a signal to its group hits it and what it started. All
of them hold the project's lock: should the supervisor be killed, nothing starts a second training
beside one that lives on.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

from . import live, processes
from .errors import TrainError

QUIET_WITHIN = 5.0
"""Seconds in which a worker that has nothing to do must end when its input ends, or at TERM."""


class Running:
    """A training that runs."""

    def __init__(self, who: dict[str, Any], reader: int | None) -> None:
        """:param reader: where its progress lines come from; None for nowhere."""
        self.who = who
        self.reader = reader
        self.alarm: int | None = None
        """What can be read once it has ended, where no signal tells."""
        self.result: dict[str, Any] | None = None
        """Its result, where it has told it, since the disk didn't take it."""

    def ended(self) -> int | None:
        """Its return code, negative for a signal; None while it runs."""
        raise NotImplementedError

    def heard(self, facts: Mapping[str, Any]) -> bool:
        """Whether a line of it was about its process, and not about its progress."""
        del facts
        return False

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it started."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was needed to follow it; it has ended."""


class Command(Running):
    """A command of the user's own."""

    def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str], lock: int) -> None:
        """Start it.

        :raises TrainError: where it can't be started.
        """
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, writer)
            try:
                log = stack.enter_context(open(job["log_path"], "ab", buffering=0))
                self._process = _start(job, environment, writer, lock, log, subprocess.DEVNULL)
            except BaseException:
                os.close(reader)
                raise
        super().__init__(live.identity(self._process.pid), reader)

    def ended(self) -> int | None:
        """See :class:`Running`."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """See :class:`Running`."""
        _signal_group(self._process.pid, number)

    def close(self) -> None:
        """See :class:`Running`."""
        if self.reader is not None:
            os.close(self.reader)


class Orphan(Running):
    """A training whose supervisor was killed: no child of ours, and no progress comes from it."""

    def __init__(self, who: Mapping[str, Any]) -> None:
        super().__init__(dict(who), None)
        with contextlib.suppress(ProcessLookupError):  # without one, it is looked at now and then
            self.alarm = processes.held(int(who.get("pid") or 0))

    def ended(self) -> int | None:
        """See :class:`Running`."""
        # How it ended, only its parent could have asked: its result says it, or nothing does.
        return None if processes.is_process(self.who) else 0

    def signal(self, number: int) -> None:
        """See :class:`Running`."""
        with contextlib.suppress(PermissionError):  # see _signal_group
            processes.send_group(self.who, number)

    def close(self) -> None:
        """See :class:`Running`."""
        if self.alarm is not None:
            os.close(self.alarm)
            self.alarm = None


class _Job(Running):
    """One job of a worker."""

    def __init__(self, worker: Worker, name: str) -> None:
        """:param name: what its worker calls it."""
        super().__init__(worker.who, worker.reader)
        self._worker = worker
        self._name = name
        self._status: int | None = None

    def ended(self) -> int | None:
        """See :class:`Running`."""
        code = self._worker.poll()
        if code is not None and self._status is None:
            return code
        return self._status

    def heard(self, facts: Mapping[str, Any]) -> bool:
        """See :class:`Running`."""
        if isinstance(facts.get("result"), dict):
            self.result = facts["result"]
            return True
        if "job_ended" not in facts:
            return False
        if facts["job_ended"] == self._name:
            self._status = 0 if facts.get("status") == 0 else 1
            self._worker.spent = bool(facts.get("ends"))
        return True

    def signal(self, number: int) -> None:
        """See :class:`Running`."""
        self._worker.signal(number)

    def close(self) -> None:
        """See :class:`Running`."""
        if self._worker.spent:
            self._worker.end()


class Worker:
    """The process that trains one stage after the other."""

    def __init__(self, job: Mapping[str, Any], environment: Mapping[str, str], lock: int) -> None:
        """Start it for ``job``, which it is then given.

        :raises TrainError: where it can't be started.
        """
        self.kind = _kind(job, environment)
        self.spent = False
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        orders, self._orders = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, writer)
            stack.callback(os.close, orders)
            try:
                # What it says before its first job (that a package is missing) belongs to it.
                log = stack.enter_context(open(job["log_path"], "ab", buffering=0))
                self._process = _start(job, environment, writer, lock, log, orders)
            except BaseException:
                os.close(self.reader)
                os.close(self._orders)
                raise
        self.who = live.identity(self._process.pid)
        self._open = True

    def serves(self, job: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
        """Whether it lives, and is what would be started for this job."""
        return not self.spent and self.poll() is None and self.kind == _kind(job, environment)

    def give(self, job: Mapping[str, Any]) -> Running:
        """Let it do a job."""
        name = job["token"]  # each job lies in the same file
        line = json.dumps({"job": job["training_path"], "log": job["log_path"], "token": name})
        with contextlib.suppress(BrokenPipeError):  # it has just ended, which is seen next
            os.write(self._orders, line.encode() + b"\n")
        return _Job(self, name)

    def poll(self) -> int | None:
        """Its return code; None while it lives."""
        return self._process.poll()

    def signal(self, number: int) -> None:
        """Send a signal to it and to what it started."""
        _signal_group(self._process.pid, number)

    def end(self) -> None:
        """Have it end: its input ends, then TERM, then KILL."""
        self.spent = True
        if not self._open:
            return
        self._open = False
        os.close(self._orders)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(QUIET_WITHIN)
                break
            self.signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIET_WITHIN)
        os.close(self.reader)


def _kind(job: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[Any, ...]:
    """What a worker can't change any more once it runs."""
    return tuple(job["argv"]), job["cwd"], sorted(environment.items())


def _start(
    job: Mapping[str, Any],
    environment: Mapping[str, str],
    writer: int,
    lock: int,
    log: Any,
    stdin: int,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            job["argv"],
            cwd=job["cwd"],
            env={**os.environ, **environment, "REMOTE_TRAIN_PROGRESS_FD": str(writer)},
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=(writer, lock),
            start_new_session=True,
        )
    except OSError as error:
        raise TrainError(
            f"{job['argv'][0]} can't be started: {error.strerror}.",
            "Check the stage's command, or the Python that trains.",
        ) from error


def _signal_group(pid: int, number: int) -> None:
    # What may not be signalled (it has become another user's) is followed until it ends.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
