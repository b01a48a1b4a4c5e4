"""One stage under supervision: its attempts, its status, its end."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from . import failures, gpu_watch, heartbeat, issues, live, stage_record, stop_request
from .atomic import write_json
from .errors import TrainError
from .failures import KINDS, Failure, Witness
from .worker_process import Orphan, Running

HEARTBEAT = 2.0
"""Seconds between two writes of the status, when there is no news."""

NEWS = HEARTBEAT / 4
"""Seconds between two writes at the least: a small model makes many steps in one."""

ROOM_WITHIN = 600.0
"""Seconds for which what came out is tried to be written again while the disk is full."""

ROOM = 256 * 1024 * 1024
"""Bytes that must be free before a training is started again that has found the disk full."""

SILENT_AFTER = 300.0
"""Seconds without a sign of the training (progress, or a longer log) after which that is said."""

LONGEST_PAUSE = 3600.0
"""Seconds that the pauses before new attempts, each twice as long, grow to."""


NUMBERS = ("heartbeat", "progress", "gpu", "silent_for")
"""What changes all the time in the status; the rest is waited for until the disk has it."""


class Signals(Protocol):
    """What the supervisor is told by signals."""

    asked: int
    """The signal that asks it to end; 0 for none."""

    def wait(self, readers: list[int], seconds: float) -> list[int]:
        """Wait for something to read or a signal; what can be read."""


class Crew(Protocol):
    """Who holds the project's lock, and starts what trains."""

    def take(self, job: Mapping[str, Any]) -> bool:
        """Take the lock for a stage; whether it was free."""

    def start(self, job: Mapping[str, Any], environment: Mapping[str, str]) -> Running:
        """Start the stage's training."""


class StageRun:
    """One stage, from its first status to its last."""

    def __init__(
        self,
        root: str,
        job: dict[str, Any],
        environment: Mapping[str, str],
        crew: Crew,
        signals: Signals,
    ) -> None:
        self.root = root
        self.job = job
        self._environment = dict(environment)
        self._crew = crew
        self._signals = signals
        self._began = time.monotonic()
        self._before = 0.0
        self._written = 0.0
        self._told = False
        self._kill_at: float | None = None
        self._killed = False
        self._patience = 0.0
        self._pen = threading.Lock()
        self._said: dict[str, Any] = {}
        self._sign = time.monotonic()
        self._log_size = 0
        self._gpu = gpu_watch.Watch({**os.environ, **self._environment})
        self._orphan: Orphan | None = None
        self._kinds: Counter[str] = Counter()
        self.status: dict[str, Any] = {
            "schema": 1,
            "stage": job["stage"],
            "run": job["run"],
            "token": job["token"],
            "mode": job["mode"],
            "state": "running",
            "attempt": 0,
            "log": job["log"],
            "started": issues.now(),
            "started_at": time.time(),
            "progress": {},
            **live.identity(os.getpid()),
        }

    def adopt(self, status: Mapping[str, Any]) -> None:
        """Follow a training that runs on after its supervisor was killed, instead of starting it.

        :param status: what that supervisor said last.
        """
        self.status = {**status, **live.identity(os.getpid())}
        for name in ("retry_at", "paced_from"):  # no progress comes from it any more
            self.status.pop(name, None)
        self.status.setdefault("attempt", 1)
        # None comes from it any more, and what it said last is no longer so.
        self.status["progress"] = {}
        self._before = max(0.0, time.time() - float(status.get("started_at") or time.time()))
        self._orphan = Orphan(status.get("child") or {})

    @property
    def seconds(self) -> float:
        """How long it has taken, by a clock that nobody sets."""
        return self._before + time.monotonic() - self._began

    # The status

    def write_status(self, **news: Any) -> None:
        """Publish the status, with the time as its heartbeat.

        Where only numbers have changed, it isn't waited for the disk.
        """
        with self._pen:
            self.status.update(news, heartbeat=time.time())
            self._written = time.monotonic()
            said = {name: fact for name, fact in self.status.items() if name not in NUMBERS}
            file = live.path(self.root, "status.json")
            write_json(file, self.status, durable=said != self._said)
            self._said = said

    def beat(self, **news: Any) -> None:
        """Publish the status if that can be done: a full disk must not end what runs.

        What couldn't be written comes with the next beat.
        """
        self._notice()
        self._publish(**news)

    def _publish(self, **news: Any) -> None:
        try:
            self.write_status(**news)
        except OSError:
            heartbeat.move_on(live.path(self.root, "status.json"))

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Beat while the body runs, however long that takes; it may write the status, too."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                self._publish()

        thread = threading.Thread(target=beat, daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads: it has to do without
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread.ident is not None:
                thread.join()

    def _notice(self) -> None:
        """What is seen of the training from outside: its silence, its GPU."""
        with contextlib.suppress(OSError):
            size = os.stat(self.job["log_path"]).st_size
            if size != self._log_size:
                self._log_size, self._sign = size, time.monotonic()
        silent = time.monotonic() - self._sign
        if silent > SILENT_AFTER and "retry_at" not in self.status:
            if "silent_for" not in self.status:
                self._say_silent()
            self.status["silent_for"] = round(silent)
        else:
            self.status.pop("silent_for", None)
        gpu = self._gpu.look()
        if gpu is not None:
            self.status["gpu"] = gpu

    def _say_silent(self) -> None:
        issue = issues.make(
            "train",
            f"The training of {self.job['stage']} has given no sign for {SILENT_AFTER:.0f} s.",
            category="infra",
            severity="warning",
            stage=self.job["stage"],
            cause="It hangs, or does something long without a word. It is not ended for that.",
            action="Look at its log and its GPU; playbooks/stop.yml ends it.",
        )
        with contextlib.suppress(OSError):
            stage_record.add_issue(self.root, self.job["run"], issue)

    # The attempts

    def run(self) -> int:
        """Have the stage trained, and judge how that ended.

        :returns: 0 for a stage that is done, else 1.
        """
        if self._orphan is None:
            self.write_status()
        else:
            self.beat()  # it runs already: a full disk is no reason not to follow it
        try:
            failure = self._attempts()
        except TrainError as error:
            failure = _of(error)
        except OSError as error:
            failure = stage_record.of_disk("What came out can't be kept", error)
        return self.end(failure)

    def _attempts(self) -> Failure | None:
        while True:
            failure = self._attempt()
            if failure is None or not self._is_tried_again(failure):
                return failure
            if not self._pause(failure):
                return self._stopped() if self._signals.asked else failure
            self._forget()

    def _attempt(self) -> Failure | None:
        running: Running
        if self._signals.asked:
            return self._stopped()
        if self._orphan is not None:
            running = self._orphan
        else:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(self.job["result"])
            self.status["attempt"] += 1
            try:
                os.makedirs(os.path.dirname(self.job["log_path"]), exist_ok=True)
                running = self._crew.start(self.job, self._environment)
            except TrainError as error:
                return _of(error)
            except OSError as error:
                return stage_record.unstarted(self.job, error)
        witness = Witness()
        try:
            self._sign = time.monotonic()
            self.beat(child=running.who)
            code = self._follow(running)
        except OSError as error:
            return self._lost(running, error)
        finally:
            running.close()
        if self._orphan is not None:
            self._crew.take(self.job)  # it was the training's own; what it left may have it still
        failure = self._failure(running, code, witness)
        self._orphan = None
        if failure is None:
            started = str(self.status["started"])
            job, root = self.job, self.root
            self._with_room(lambda: stage_record.write_marker(root, job, started, self.seconds))
        return failure

    def _follow(self, running: Running) -> int:
        """Relay its progress into the status until it has ended; its return code."""
        rest = b""
        reader = running.reader
        news = False
        while True:
            now = time.monotonic()
            due = self._written + (NEWS if news else HEARTBEAT)
            wait = max(0.0, min(due, self._kill_at or due) - now)
            watched = [fd for fd in (reader, running.alarm) if fd is not None]
            ready = reader in self._signals.wait(watched, wait)
            code = running.ended()  # looked at first: what it has said by then is there to be read
            if reader is not None and (ready or code is not None):
                chunk = _read(reader)
                if not chunk:
                    reader = None if chunk is None else reader
                else:
                    *lines, rest = (rest + chunk).split(b"\n")
                    self._take_progress(running, lines)
                    code = running.ended() if code is None else code
            if code is not None:
                return code
            self._ask_to_end(running)
            news = news or ready
            if time.monotonic() - self._written >= (NEWS if news else HEARTBEAT):
                self.beat()
                news = False

    def _take_progress(self, running: Running, lines: list[bytes]) -> None:
        """What the lines say: of the process each, of the progress the last one."""
        for line in lines:
            try:
                facts = json.loads(line)
            except ValueError:
                continue
            if isinstance(facts, dict) and not running.heard(facts):
                self.status["progress"] = facts
                if facts.get("phase") == "train" and "step" in facts:
                    # From here on its pace is known: see stage_states.
                    first = {"step": facts["step"], "at": time.time()}
                    self.status.setdefault("paced_from", first)
        self._sign = time.monotonic()

    def _ask_to_end(self, running: Running) -> None:
        """Hand on a signal, once; and kill what hasn't ended within its time.

        This is the one place where a training is asked to end: a checkpoint that is to be written
        first is its answer to this signal, within the same time.
        """
        if self._signals.asked and not self._told:
            self._told = True
            grace = stop_request.grace_of(stop_request.read(self.root, self.job["token"]))
            self._kill_at = None if grace is None else time.monotonic() + grace
            running.signal(self._signals.asked)
        if self._kill_at is not None and time.monotonic() > self._kill_at:
            self._killed, self._kill_at = True, None
            running.signal(signal.SIGKILL)

    def _lost(self, running: Running, error: OSError) -> Failure:
        """End a training that can't be followed any more: its stage has not ended before it has."""
        while running.ended() is None:
            running.signal(signal.SIGKILL)
            time.sleep(NEWS)
            self.beat()
        if self._signals.asked:
            return self._stopped(True)
        symptom = "The training could be followed no longer, and was ended"
        hint = "Give the same command again: it goes on from the last checkpoint."
        return Failure("host", f"{symptom}: {error.strerror or error}.", str(error), hint)

    def _result(self, running: Running) -> dict[str, Any]:
        """The training's result: as it lies there, or as it was told where the disk is full."""
        result = stage_record.result_of(self.job)
        if result or running.result is None:
            return result
        told = stage_record.own_result(self.job, running.result)
        write = functools.partial(write_json, self.job["result"], told)
        if told.get("status") == "done":
            self._with_room(write)
        elif told:
            with contextlib.suppress(OSError):
                write()
        return told

    def _failure(self, running: Running, code: int, witness: Witness) -> Failure | None:
        """What went wrong, or None. Success is what the result says, not how the child ended."""
        result = self._result(running)
        own = bool(self.job["command"])
        finished = not own and not code and result.get("status") == "done"
        tail = stage_record.tail(self.root, self.job)
        if self._signals.asked and not finished:
            # Killed by whoever stops it, where this process couldn't be the one to do it.
            return self._stopped(self._killed or code == -signal.SIGKILL)
        if result.get("status") == "failed":
            return failures.of_error(result.get("error") or {}, tail)
        if isinstance(running, Orphan) and not finished:
            return Failure(
                "signal",
                "The training ended without a word after its supervisor was killed.",
                "\n".join(tail),
                "Give the same command again: it goes on from the last checkpoint.",
            )
        if code < 0:
            return witness.of_signal(-code, int(running.who["pid"]))
        if code or (not own and result.get("status") != "done"):
            return witness.of_end(
                f"The command ended with exit status {code}."
                if code
                else "The training ended without a result that says it is done.",
                tail,
                f"Read the end of {self.job['log']}.",
            )
        return stage_record.changed_data(self.job, result)

    def _stopped(self, killed: bool = False) -> Failure:
        note = stop_request.read(self.root, self.job["token"])
        self.status["stopped"], failure = stage_record.stopped(note, self._signals.asked, killed)
        return failure

    def _is_tried_again(self, failure: Failure) -> bool:
        kind = KINDS[failure.kind]
        self.status["kind"] = kind.name
        if kind.policy not in (failures.RETRY, failures.ROOM) or self._signals.asked:
            return False
        self._kinds[kind.name] += 1
        if kind.most is not None and self._kinds[kind.name] > kind.most:
            return False
        # The lock of a training that was adopted was its own.
        again = int(self.status["attempt"]) <= int(self.job["retries"])
        return again and self._crew.take(self.job)

    def _pause(self, failure: Failure) -> bool:
        """Say that there is a new attempt, and wait for its time; whether it may begin."""
        attempt, most = int(self.status["attempt"]), int(self.job["retries"]) + 1
        pause = min(LONGEST_PAUSE, float(self.job["retry_pause"]) * 2 ** (attempt - 1))
        error = failure.as_error()
        then = f"in {pause:g} s" if KINDS[failure.kind].policy == failures.RETRY else "with room"
        issue = issues.make(
            "train",
            error["symptom"],
            category=error["category"],
            severity="warning",
            stage=self.job["stage"],
            cause=error["cause"],
            action=f"Attempt {attempt + 1} of {most} begins {then}. {error['action']}".strip(),
            status="handled",
        )
        began = time.monotonic()
        self.beat(retry_at=time.time() + pause)
        self._with_room(lambda: stage_record.add_issue(self.root, self.job["run"], issue))
        wants_room = KINDS[failure.kind].policy == failures.ROOM
        while not self._signals.asked:
            passed = time.monotonic() - began
            has_room = not wants_room or self._free() >= ROOM
            if passed >= pause and has_room:
                return True
            if passed >= pause + ROOM_WITHIN:
                return False
            wait = min(HEARTBEAT, pause - passed) if passed < pause else HEARTBEAT
            self._signals.wait([], wait)
            self.beat()
        return False

    def _free(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def _forget(self) -> None:
        """Forget what was so of the attempt before; its job, and so its checkpoints, are the same.

        With ``force``, the training goes on from checkpoints of its own run alone.
        """
        for name in ("retry_at", "silent_for", "paced_from"):
            self.status.pop(name, None)
        self.status["progress"] = {}

    # The end

    def end(self, failure: Failure | None) -> int:
        """Leave the run's record, then say how it ended; the status comes last.

        A disk that stays full is no defect of this program: its log gets a sentence.
        """
        self.status.pop("retry_at", None)
        if failure is not None:
            self.status["kind"] = failure.kind
        else:
            self.status.pop("kind", None)
        try:
            stage_record.leave(
                self.root, self.job, self.status, failure, self.seconds, self._with_room
            )
        except OSError as error:
            failure = failure or stage_record.of_disk("The run's record can't be kept", error)
        state = "failed" if failure else "done"
        ending = {"state": state, "error": failure.as_error() if failure else None}
        try:
            self._with_room(lambda: self.write_status(**ending, ended=issues.now()))
        except OSError as error:
            stage = self.job["stage"]
            say(f"The stage {stage} has {state}, and its status can't be kept: {error}")
            return 1
        return 1 if failure else 0

    def _with_room(self, write: Callable[[], None]) -> None:
        """``write()``, again and again while the disk is full.

        What fails in a row shares one patience; with what could be written, a new one begins.
        """
        while True:
            try:
                with self._beating():
                    write()
            except OSError as error:
                now = time.monotonic()
                self._patience = self._patience or now + ROOM_WITHIN
                if error.errno not in failures.FULL or now > self._patience:
                    raise
            else:
                self._patience = 0.0
                return
            time.sleep(HEARTBEAT)
            self.beat()


def say(text: str) -> None:
    """Leave a sentence in supervisor.log, if that can be written."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))


def _of(error: TrainError) -> Failure:
    kind = "setting" if error.category == "ops" else "unknown"
    return Failure(kind, error.message, "", error.hint, error.category)


def _read(reader: int) -> bytes | None:
    """What can be read now; nothing for nothing, None at the end."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(reader, 65536)
        except BlockingIOError:
            return b"".join(chunks)
        if not chunk:
            return b"".join(chunks) or None
        chunks.append(chunk)
