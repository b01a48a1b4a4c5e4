"""The process that owns a running stage on the GPU host: its lock, its status and its log.

It is started detached (its own session, no terminal) and needs nobody: when the connection is
cut, it goes on, and what it writes is what counts. It runs one stage from its job file:

1. takes the lock of the project, so that no second training can start;
2. starts the training as a child whose output goes straight to the log;
3. keeps ``status.json`` up to date with a heartbeat and the progress that the child reports;
4. when the child ends, hashes what came out and writes the marker.

Run as ``python -m remote_train.supervisor PROJECT_ROOT`` from the engine folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from . import issues, live, markers, runs, stop_request
from .atomic import write_json
from .errors import TrainError

HEARTBEAT = 2.0
"""Seconds between two writes of the status, when there is no news."""

ROOM_WITHIN = 600.0
"""Seconds for which what came out is tried to be written again while the disk is full."""

TAIL_LINES = 50
"""How many of the log's last lines are kept with an issue whose cause isn't known."""


class Stage:
    """One stage under supervision."""

    def __init__(self, root: str, job: dict[str, Any], lock: int) -> None:
        self.root = root
        self.job = job
        self.lock = lock
        self.started = time.time()
        self.stop_signal = 0
        self.kill_at: float | None = None
        self.killed = False
        self.patience = 0.0
        self.status: dict[str, Any] = {
            "schema": 1,
            "stage": job["stage"],
            "run": job["run"],
            "token": job["token"],
            "mode": job["mode"],
            "state": "running",
            "log": job["log"],
            "started": issues.now(),
            "started_at": self.started,
            "progress": {},
            **live.identity(os.getpid()),
        }

    def write_status(self, **news: Any) -> None:
        """Publish the status, with the time as its heartbeat."""
        self.status.update(news, heartbeat=time.time())
        write_json(live.path(self.root, "status.json"), self.status)

    def beat(self, **news: Any) -> None:
        """Publish the status if that can be done: a full disk must not end what runs.

        What couldn't be written comes with the next beat.
        """
        with contextlib.suppress(OSError):
            self.write_status(**news)

    def run(self) -> int:
        """Start the training, follow it to its end, and judge it.

        :returns: the exit status of this process: 0 for a stage that is done.
        """
        log_path = os.path.join(self.root, self.job["log"])
        os.makedirs(os.path.dirname(log_path), exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.job["result"])
        self.write_status()
        try:
            with open(log_path, "ab", buffering=0) as log:
                returncode = self._child(log)
            failure = self._failure(returncode)
            if failure is None:
                self._with_room(self._write_marker)
        except TrainError as error:
            failure = _problem(error.category, error.message, "", error.hint)
        except OSError as error:
            failure = _problem("infra", f"What came out can't be kept: {error}", str(error), "")
        return self.end(failure)

    def _child(self, log: Any) -> int:
        """Run the training and relay its progress into the status; its return code."""
        reader, writer = os.pipe()
        environment = {**os.environ, "REMOTE_TRAIN_PROGRESS_FD": str(writer)}
        try:
            child = subprocess.Popen(
                self.job["argv"],
                cwd=self.job["cwd"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # The child holds the lock as well: should this process be killed, nothing
                # starts a second training beside one that lives on.
                pass_fds=(writer, self.lock),
                start_new_session=True,
            )
        except OSError as error:
            raise TrainError(
                f"{self.job['argv'][0]} can't be started: {error.strerror}.",
                "Check the stage's command, or the Python that trains.",
            ) from error
        os.close(writer)

        signal.signal(signal.SIGTERM, lambda number, _frame: self._ask_to_end(child, number))
        try:
            self.beat(child=live.identity(child.pid))
            self._relay(reader, child)
        finally:
            os.close(reader)
            while child.poll() is None:
                # A command of the user's own may close the pipe, or never know of it.
                self.beat()
                self._kill_when_due(child)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(HEARTBEAT)
        return child.returncode

    def _ask_to_end(self, child: subprocess.Popen[bytes], number: int) -> None:
        """Ask the training and what it started to end; it has the grace time of the note for that.

        This is the one place where a stage is asked to end: a checkpoint that is to be written
        first is the training's answer to this signal, within the same time.
        """
        self.stop_signal = number
        grace = stop_request.grace_of(stop_request.read(self.root, self.job["token"]))
        if grace is not None and self.kill_at is None:
            self.kill_at = time.monotonic() + grace
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)

    def _kill_when_due(self, child: subprocess.Popen[bytes]) -> None:
        """Kill a training that was asked to end and hasn't, once its time is over."""
        if self.kill_at is not None and time.monotonic() > self.kill_at and child.poll() is None:
            self.killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def _relay(self, reader: int, child: subprocess.Popen[bytes]) -> None:
        """Take progress out of the pipe until that is closed, or the child has ended."""
        rest = b""
        while True:
            ready, _, _ = select.select([reader], [], [], HEARTBEAT)
            if ready:
                chunk = os.read(reader, 65536)
                if not chunk:
                    break
                *lines, rest = (rest + chunk).split(b"\n")
                self._take_progress(lines)
            if child.poll() is not None and not ready:
                break
            self.beat()
            self._kill_when_due(child)

    def _take_progress(self, lines: list[bytes]) -> None:
        """The last progress line that is one."""
        for line in reversed(lines):
            try:
                progress = json.loads(line)
            except ValueError:
                continue
            if isinstance(progress, dict):
                self.status["progress"] = progress
                return

    def _failure(self, returncode: int) -> dict[str, Any] | None:
        """What went wrong, or None. Success is what the result says, not how the child ended."""
        result = live.read_json(self.job["result"])
        own = bool(self.job["command"])
        finished = not own and not returncode and result.get("status") == "done"
        if self.stop_signal and not finished:
            # Killed by whoever stops it, where this process couldn't be the one to do it.
            killed = self.killed or returncode == -signal.SIGKILL
            return self.stopped(stop_request.read(self.root, self.job["token"]), killed)
        if result.get("status") == "failed":
            error = result.get("error") or {}
            return _problem(
                error.get("category", "ops"),
                error.get("symptom", "The training failed."),
                error.get("cause", ""),
                error.get("action", ""),
            )
        if returncode < 0:
            name = signal.Signals(-returncode).name
            return _problem(
                "infra",
                f"The training was killed by {name}.",
                "SIGKILL without a word is most often the system running out of memory.",
                "Look at the kernel's log, and start the same command again.",
            )
        if returncode or (not own and result.get("status") != "done"):
            return _problem(
                "training_logic",
                f"The training ended with status {returncode}, and not well.",
                "\n".join(self._log_tail()),
                f"Read the end of {self.job['log']}, or ISSUES.md in the run's folder.",
            )
        changed = [
            name
            for name, digest in (result.get("data") or {}).items()
            if self._expected_data().get(name) != digest
        ]
        if changed:
            return _problem(
                "data",
                f"{', '.join(changed)} changed while the stage was starting.",
                "The bytes that were trained on are not those of the fingerprint.",
                "Start the same command again.",
            )
        return None

    def stopped(self, note: dict[str, Any], killed: bool) -> dict[str, Any]:
        """The failure of a stage that somebody has stopped; the status and the record say so too.

        :param note: what ``stop_request`` holds of it; empty where somebody sent a signal.
        """
        signalled = signal.Signals(self.stop_signal or signal.SIGTERM).name
        by = str(note.get("by") or signalled)
        self.status["stopped"] = {"by": by, "killed": killed}
        cause = "It was asked to end."
        if killed:
            grace = stop_request.grace_of(note)
            within = "" if grace is None else f" within {grace:g} s"
            cause += f" It didn't{within}, and was killed."
        return _problem(
            "ops",
            f"The stage was stopped by {by}.",
            cause,
            "Give the same command again: it trains what is not done.",
        )

    def _expected_data(self) -> dict[str, str]:
        return {**self.job["inputs"]["data"], **self.job["evaluation_inputs"]["data"]}

    def _log_tail(self) -> list[str]:
        with open(os.path.join(self.root, self.job["log"]), "rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - 65536))
            text = stream.read().decode("utf-8", "replace")
        return text.splitlines()[-TAIL_LINES:]

    def _outputs(self, result: dict[str, Any]) -> list[str]:
        """What came out, by path under the root: as the training says, else what is there."""
        if result.get("outputs"):
            return [str(name) for name in result["outputs"]]
        folder = os.path.join(self.root, self.job["adapter_dir"])
        found = [
            os.path.relpath(os.path.join(where, file), self.root)
            for where, _folders, files in os.walk(folder)
            for file in files
        ]
        if not found:
            raise TrainError(
                f"{self.job['adapter_dir']} holds nothing.",
                "The stage's command must leave its adapter there.",
                "training_logic",
            )
        return found

    def _write_marker(self) -> None:
        result = live.read_json(self.job["result"])
        identity = live.identity(os.getpid())
        before, _ = markers.read(self.root, self.job["stage"])
        effective, metrics = (dict(result.get(key) or {}) for key in ("effective", "metrics"))
        if self.job["mode"] == "evaluate" and before:
            effective = {**before["effective"], **effective}
            metrics = {**before["metrics"], **metrics}
        markers.write(
            self.root,
            self.job["stage"],
            {
                "status": "done",
                "run": self.job["run"],
                "fingerprint": self.job["fingerprint"],
                "evaluation_fingerprint": self.job["evaluation_fingerprint"],
                "inputs": self.job["inputs"],
                "evaluation": self.job["evaluation_inputs"],
                "effective": effective,
                "outputs": markers.outputs_of(self.root, self._outputs(result)),
                "metrics": metrics,
                "started": self.status["started"],
                "ended": issues.now(),
                "seconds": round(time.time() - self.started, 3),
                "host": identity["host"],
                "accelerator": result.get("accelerator"),
            },
        )

    def end(self, failure: dict[str, Any] | None) -> int:
        """Leave the run's record, then say how it ended; the status comes last.

        A disk that stays full is no defect of this program: its log gets a sentence.
        """
        try:
            self._leave_record(failure)
        except OSError as error:
            failure = failure or _problem(
                "infra", f"The run's record can't be kept: {error}", str(error), ""
            )
        ending = {"state": "failed" if failure else "done", "error": failure}
        try:
            self._with_room(lambda: self.write_status(**ending, ended=issues.now()))
        except OSError as error:
            stage = self.job["stage"]
            _say(f"The stage {stage} has {ending['state']}, and its status can't be kept: {error}")
            return 1
        return 1 if failure else 0

    def _with_room(self, write: Callable[[], None]) -> None:
        """``write()``, again and again while the disk is full; one patience for all of them."""
        while True:
            try:
                return write()
            except OSError as error:
                now = time.monotonic()
                self.patience = self.patience or now + ROOM_WITHIN
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or now > self.patience:
                    raise
            time.sleep(HEARTBEAT)
            self.beat()

    def _leave_record(self, failure: dict[str, Any] | None) -> None:
        """The issues, the record and the state file in the run's folder."""
        result = live.read_json(self.job["result"])
        stage, run = self.job["stage"], self.job["run"]
        state = "failed" if failure else "done"
        found = [
            issues.make(
                "train",
                warning.get("symptom", ""),
                category=warning.get("category", "data"),
                severity="warning",
                stage=stage,
                cause=warning.get("cause", ""),
                action=warning.get("action", ""),
            )
            for warning in result.get("warnings") or []
        ]
        if failure:
            found.append(issues.make("train", stage=stage, **failure))
        path = os.path.join(runs.folder(self.root, run), "issues.jsonl")
        for issue in found:
            self._with_room(functools.partial(issues.append, path, issue))
        record = {
            "state": state,
            "mode": self.job["mode"],
            "reasons": self.job["reasons"],
            "fingerprint": self.job["fingerprint"],
            "started": self.status["started"],
            "ended": issues.now(),
            "seconds": round(time.time() - self.started, 3),
            "log": self.job["log"],
            "metrics": result.get("metrics") or {},
            "phases": result.get("seconds") or {},
            "accelerator": result.get("accelerator"),
            "effective": result.get("effective") or {},
            "error": failure,
            "stopped": self.status.get("stopped"),
        }
        self._with_room(lambda: runs.record_stage(self.root, run, stage, record))
        self._with_room(lambda: runs.mark(self.root, run, stage, state))


def close(root: str, token: str, note: dict[str, Any], killed: bool) -> bool:
    """Leave the record of a stage that was stopped, in place of its supervisor, which is dead.

    :param token: the start that is meant; where another one has begun since, nothing is done.
    :param note: what ``stop_request`` holds of it.
    :param killed: whether the training had to be killed.
    :returns: whether the lock was free, and so this could be done.
    """
    status = live.read_json(live.path(root, "status.json"))
    job = live.read_json(live.path(root, "job.json"))
    if {status.get("token"), job.get("token")} != {token}:
        return True
    lock = live.take(root, live.read_json(live.path(root, "holder.json")))
    if lock is None:
        return False
    try:
        stage = Stage(root, job, lock)
        stage.status = dict(status)
        stage.started = float(status.get("started_at") or stage.started)
        stage.end(stage.stopped(note, killed))
    finally:
        os.close(lock)
    return True


def _problem(category: str, symptom: str, cause: str, action: str) -> dict[str, Any]:
    """A failure in the fields of an issue."""
    if category not in issues.CATEGORIES:
        category = "ops"
    return {"category": category, "symptom": symptom, "cause": cause, "action": action}


def _say(text: str) -> None:
    """Leave a sentence in supervisor.log, if that can be written."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))


def main(arguments: list[str]) -> int:
    """Supervise the stage whose job lies in the live folder of the project root given."""
    root = arguments[0]
    job = live.read_json(live.path(root, "job.json"))
    holder = {
        **live.identity(os.getpid()),
        "stage": job["stage"],
        "run": job["run"],
        "token": job["token"],
        "since": issues.now(),
    }
    try:
        lock = live.take(root, holder)
        return 3 if lock is None else Stage(root, job, lock).run()
    except OSError as error:
        _say(f"The supervisor of {job['stage']} can't write what it has to: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
