"""The process that owns the stages of a run on the GPU host: their lock, their status, their log.

It is started detached (its own session, no terminal) and needs nobody: when the connection is
cut, it goes on, and what it writes is what counts. It is given one stage after the other:

1. takes the lock of the project, so that no second training can start;
2. has the stage trained by a worker, which stays for the next one, or by the user's own command;
3. keeps ``status.json`` up to date with a heartbeat and the progress that the training reports;
4. when that ends, hashes what came out and writes the marker; or tries again, where that may help;
5. lets go of the lock, and waits for the next stage, as long as it has a worker to keep.

Run as ``python -m remote_train.supervisor PROJECT_ROOT`` from the engine folder, with its first
order on standard input. See :mod:`remote_train.handover` for the others.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from . import handover, issues, live
from .stage_run import StageRun, say
from .worker_process import Command, Running, Worker

LOOK = 5.0
"""Seconds after which a supervisor that waits looks whether its folder is still there."""

FIRST_WITHIN = 30.0
"""Seconds in which whoever started it must have given the first order."""


class Signals:
    """TERM and the ends of children, as something that can be waited for."""

    def __init__(self) -> None:
        self.asked = 0
        self._reader, writer = os.pipe()
        for descriptor in (self._reader, writer):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _ask(self, number: int, _frame: object) -> None:
        self.asked = number

    def wait(self, readers: list[int], seconds: float) -> list[int]:
        """Wait for something to read or a signal; what can be read."""
        ready, _, _ = select.select([*readers, self._reader], [], [], seconds)
        if self._reader in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._reader, 4096):
                    pass
        return [reader for reader in readers if reader in ready]


class Crew:
    """The project's lock, and the worker that is kept."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._lock: int | None = None
        self._held = False
        self._running: Running | None = None
        self.worker: Worker | None = None

    def take(self, job: Mapping[str, Any]) -> bool:
        """Take the lock for a stage; whether it was free, or is ours already."""
        if self._held:
            return True
        if job["command"]:
            # It gets the whole GPU. And its lock is one of its own: what it leaves running in the
            # background is held to account by it.
            self.end()
        holder = {
            **live.identity(os.getpid()),
            "stage": job["stage"],
            "run": job["run"],
            "token": job["token"],
            "since": issues.now(),
        }
        if self._lock is None:
            self._lock = live.take(self._root, holder)
            self._held = self._lock is not None
        elif live.lock(self._lock):
            self._held = True
            live.say_holder(self._root, holder)
        return self._held

    def start(self, job: Mapping[str, Any], environment: Mapping[str, str]) -> Running:
        """Start the stage's training, in the worker that waits where it is the right one."""
        if self._lock is None:
            raise AssertionError("the lock comes first")
        self._running = None
        if job["command"]:
            self._running = Command(job, environment, self._lock)
            return self._running
        if self.worker is not None and not self.worker.serves(job, environment):
            self.worker.end()
            self.worker = None
        if self.worker is None:
            self.worker = Worker(job, environment, self._lock)
        self._running = self.worker.give(job)
        return self._running

    def leave(self) -> None:
        """Go after a defect: a training that runs is left alone, and keeps the lock."""
        if self._running is None or self._running.ended() is not None:
            self.end()
        elif self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def release(self) -> None:
        """Let go of the lock; a worker keeps the open file, and not the lock."""
        self._held, self._running = False, None
        if self._lock is None:
            return
        if self.worker is not None:
            live.unlock(self._lock)
        if not self.alive():
            self.end()

    def alive(self) -> bool:
        """Whether there is a worker to wait with."""
        return self.worker is not None and not self.worker.spent and self.worker.poll() is None

    def end(self) -> None:
        """End the worker."""
        if self.worker is not None:
            self.worker.end()
            self.worker = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Supervisor:
    """One stage after the other, for one project."""

    def __init__(self, root: str, engine: str) -> None:
        """:param engine: the digest of the engine that this program is of."""
        self._root = root
        self._signals = Signals()
        self._crew = Crew(root)
        self._facts = {**live.identity(os.getpid()), "engine": engine, "since": issues.now()}
        self._lock: int | None = None
        self._orders: int | None = None
        self._idle = 0.0
        self._rest = b""

    def run(self) -> int:
        """Do what the orders say, until there are none; the exit status.

        :returns: of the last stage, 0 where it is done; 3 where another supervisor lives.
        """
        self._lock = handover.hold(self._root)
        if self._lock is None:
            return 3
        status = 0
        self._say("starting")
        order = self._first()
        self._orders = handover.open_orders(self._root)
        while order is not None and not self._signals.asked:
            done = self._do(order)
            status = status if done is None else done
            order = self._next()
        # After a defect, a training that runs is left alone: the next start finds what it did.
        self._go()
        return status

    def _go(self) -> None:
        """End the worker, and let go of all; the next one finds the GPU free."""
        if self._lock is None:
            return
        self._crew.end()
        handover.close_orders(self._root)
        os.close(self._lock)
        self._lock = None

    def _say(self, state: str, **more: Any) -> None:
        worker = self._crew.worker.who if self._crew.worker is not None else None
        self._facts.update(more, state=state, worker=worker)
        handover.say(self._root, self._facts)

    def _first(self) -> dict[str, Any] | None:
        """The first order, which comes on standard input."""
        text = b""
        deadline = time.monotonic() + FIRST_WITHIN
        while not self._signals.asked and time.monotonic() < deadline:
            if self._signals.wait([0], max(0.0, deadline - time.monotonic())):
                chunk = os.read(0, 65536)
                if not chunk:
                    break
                text += chunk
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        return handover.read_line(text)

    def _do(self, order: Mapping[str, Any]) -> int | None:
        """One stage; None for an order that isn't for the job that lies there."""
        job = live.read_json(live.path(self._root, "job.json"))
        if not job or job.get("token") != order.get("token"):
            return None
        job["log_path"] = os.path.join(self._root, job["log"])
        job["training_path"] = live.path(self._root, "training.json")
        adopts = order.get("adopt")
        if not adopts and not self._crew.take(job):
            say(f"The lock of {self._root} is held by another process.")
            return 3
        stage = StageRun(self._root, job, order.get("environment") or {}, self._crew, self._signals)
        try:
            if adopts:
                stage.adopt(live.read_json(live.path(self._root, "status.json")))
            self._say("running", stage=job["stage"], run=job["run"])
            status = stage.run()
        except BaseException:
            # Not release(): it would take the lock from a training that runs on.
            self._crew.leave()
            raise
        self._idle = float(job.get("idle_timeout") or 0)
        if self._crew.alive() and not self._signals.asked:
            self._say("waiting", until=time.time() + self._idle)
        self._crew.release()
        return status

    def _next(self) -> dict[str, Any] | None:
        """The next order; None where it is time to go."""
        deadline = time.monotonic() + self._idle
        while not self._signals.asked and self._orders is not None and self._crew.alive():
            order = self._read_order()
            if order is not None:
                return order
            left = deadline - time.monotonic()
            if not os.path.exists(live.path(self._root, handover.ORDERS)):
                return None
            if left > 0:
                self._signals.wait([self._orders], min(LOOK, left))
                continue
            # Whoever starts a stage holds this lock until that runs: no order comes too late.
            with live.starting(self._root, wait=False) as free:
                if free:
                    order = self._read_order()
                    if order is None:
                        self._go()
                    return order
            self._signals.wait([self._orders], 0.2)
        return None

    def _read_order(self) -> dict[str, Any] | None:
        if self._orders is not None:
            with contextlib.suppress(BlockingIOError):
                self._rest += os.read(self._orders, 1 << 20)
        while b"\n" in self._rest:
            line, _, self._rest = self._rest.partition(b"\n")
            order = handover.read_line(line)
            if order is not None:
                return order
        return None


def main(arguments: list[str]) -> int:
    """Supervise the project whose root is given, for the engine whose digest is."""
    root, engine = (*arguments, "")[:2]
    try:
        return Supervisor(root, engine).run()
    except OSError as error:
        say(f"The supervisor of {root} can't write what it has to: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
