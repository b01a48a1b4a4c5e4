"""Start a stage on the GPU host, or find it running, and follow it to its end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import follow, link
from controller.action import (
    GaveUpError,
    Result,
    TrainAction,
    failed,
    new_token,
)
from controller.progress import describe, duration
from remote_train import issues, live
from remote_train.errors import TrainError


class ActionModule(TrainAction):
    """``stage:`` with the request and a stage's name; or ``attach: true`` for whatever runs."""

    def act(self, task_vars: Result) -> Result:
        """Start or attach, then follow."""
        self._request = self.argument("request")
        self._root = self._request["project_root"]
        self._line = self.line_for(task_vars)
        self._link = link.Link(
            self._command,
            self._connection.reset,
            float(self._request["reconnect_timeout"]),
            self._line.keep,
        )
        if self.argument("attach", False):
            try:
                return self._attach()
            except GaveUpError as error:
                return failed(error)
        name = self.argument("stage")
        blocked = self._blocked_by(name)
        if blocked:
            self._line.keep(f"  {name}: not run, since it needs {', '.join(blocked)}")
            return {"changed": False, "stage": name, "state": "blocked"}
        if self.check:
            return {"changed": True, "stage": name, "state": "would run"}
        try:
            return self._train(name, task_vars)
        except TrainError as error:
            return {
                **failed(error),
                "stage": name,
                "state": "failed",
                "issues": self._cuts(name),
            }

    def _train(self, name: str, task_vars: Result) -> Result:
        """Start the stage and follow it, until how it ended is known."""
        while True:
            started = self._start(name, task_vars)
            if started["outcome"] == "skipped":
                self._line.keep(f"  {name}  up to date")
                return {"changed": False, "stage": name, "state": "skipped"}
            for reason in started["verdict"].get("reasons", []):
                self._line.keep(f"  {name}: {reason}")
            followed = self._follow(started["status"])
            if followed is not None:
                return followed

    def _blocked_by(self, name: str) -> list[str]:
        """The needs of a stage that failed in this run, or were blocked themselves."""
        needs = next(s for s in self._request["stages"] if s["name"] == name)["needs"]
        stuck = [
            before["stage"]
            for before in self.argument("before", [])
            if before.get("state") in ("failed", "blocked")
        ]
        return [need for need in needs if need in stuck]

    def _command(self, line: str) -> str:
        return self.read(line, "The stage's status", "Look into outputs/training_sync/live there.")

    def _start(self, name: str, task_vars: Result) -> Result:
        """Start the stage; over a cut, the token makes a second start find the first."""
        arguments = {
            "request": self._request,
            "stage": name,
            "run": self.argument("run"),
            "token": new_token(),
            "python": self.argument("python"),
            "environment": {k: str(v) for k, v in self.argument("environment", {}).items() if v},
            "requirements": self.argument("requirements", {}),
        }
        started: Result = self._link(lambda: self.call("stage", arguments, task_vars))
        while started["outcome"] == "busy":
            # Somebody else's training began between our plan and now.
            holder = started["status"]
            self._refuse_or_say(holder)
            followed = self._follow(holder)
            if followed and followed.get("stopped") and self._request["on_lock"] == "attach":
                # Who stops a stage that several follow means all of them.
                raise TrainError(followed["msg"], followed["hint"], followed["category"])
            started = self._link(lambda: self.call("stage", arguments, task_vars))
        return started

    def _attach(self) -> Result:
        """Follow the training that runs already."""
        status = self.argument("live")
        live.require_running(self._root, status)
        self._refuse_or_say(status)
        if self.check:
            return {"changed": False, "stage": status.get("stage"), "state": "running"}
        followed = self._follow(status) or {"stage": status.get("stage"), "state": "ended"}
        # How it ended is in its own record, and what to do about it the next plan says.
        return {**followed, "changed": False, "failed": False}

    def _refuse_or_say(self, holder: Result) -> None:
        who = (
            f"The stage {holder.get('stage')} of {holder.get('run')} is running on "
            f"{holder.get('host')} as process {holder.get('pid')} since {holder.get('since')}"
        )
        if self._request["on_lock"] == "fail":
            raise TrainError(
                f"{who}.", "Wait for it, or leave out on_lock=fail to follow it.", "ops"
            )
        verb = "waiting for it" if self._request["on_lock"] == "wait" else "following it"
        if self.check:
            verb = "a run would wait for its end"
        self._line.keep(f"  {who}: {verb}.")

    def _follow(self, status: Result) -> Result | None:
        """Poll until the stage has ended; what it says is the result.

        None where it has ended and another controller has started a stage since: its marker
        says how, and a start reads that.
        """
        path = live.path(self._root, "status.json")
        log = os.path.join(self._root, str(status.get("log", "")))
        token, stage = status.get("token"), str(status.get("stage"))
        offset, pause = 0, follow.POLL_SECONDS[0]
        silent = self._request["on_lock"] == "wait" and self.argument("attach", False)
        beat, beat_seen = status.get("heartbeat"), time.monotonic()
        unreadable_since: float | None = None
        while status.get("state") == "running":
            text = self._link.command(follow.poll_command(path, log, offset))
            try:
                status, fresh = follow.parse_answer(text)
            except ValueError:
                unreadable_since = unreadable_since or time.monotonic()
                if time.monotonic() - unreadable_since > follow.SILENT_AFTER:
                    raise self._unreadable(stage, text) from None
                time.sleep(pause)
                continue
            unreadable_since = None
            offset += len(fresh)
            if status.get("token") != token:
                return None
            if status.get("heartbeat") != beat:
                beat, beat_seen = status.get("heartbeat"), time.monotonic()
            elif time.monotonic() - beat_seen > follow.SILENT_AFTER:
                raise self._silent(stage)
            self._show(stage, status, fresh, silent)
            if len(fresh) < follow.LOG_CHUNK and status.get("state") == "running":
                time.sleep(pause)
                pause = min(pause * 1.3, follow.POLL_SECONDS[1])
        return self._verdict(stage, status)

    def _silent(self, stage: str) -> TrainError:
        return TrainError(
            f"The supervisor of {stage} has given no sign of life for {follow.SILENT_AFTER:.0f} s.",
            "It was killed, the disk is full, or the host hangs: look at "
            "outputs/training_sync/live there, then give the same command again.",
            "infra",
        )

    def _unreadable(self, stage: str, text: str) -> TrainError:
        first = text.strip().splitlines()[:1] or [""]
        return TrainError(
            f"What the host says of {stage} could not be read for {follow.SILENT_AFTER:.0f} s; "
            f"it begins with {first[0][:60]!r}.",
            "See what the login shell prints there, and outputs/training_sync/live; then give "
            "the same command again.",
            "infra",
        )

    def _show(self, stage: str, status: Result, fresh: bytes, silent: bool) -> None:
        if silent:
            return
        if self.verbose:
            for line in fresh.decode("utf-8", "replace").splitlines():
                self._line.keep(f"  | {line}")
        elapsed = float(status.get("heartbeat", 0)) - float(status.get("started_at", 0))
        self._line.update(describe(stage, status.get("progress") or {}, elapsed))

    def _cuts(self, stage: str) -> list[Result]:
        """An issue for each time that the connection broke."""
        return [
            issues.make(
                "train",
                f"The connection broke for {cut['seconds']} s while {stage} was followed.",
                category="infra",
                severity="warning",
                stage=stage,
                action="Nothing to do: the stage went on by itself.",
                status="handled",
            )
            for cut in self._link.cuts
        ]

    def _verdict(self, stage: str, status: Result) -> Result:
        result: Result = {
            "changed": True,
            "stage": stage,
            "state": status.get("state"),
            "issues": self._cuts(stage),
            "log": status.get("log"),
        }
        error = status.get("error")
        stopped = status.get("stopped")
        if error:
            said = f"The stage {stage} failed: {error['symptom']}"
            if stopped:
                result["stopped"] = stopped
                said = f"The stage {stage} was stopped by {stopped.get('by')}."
            result.update(
                failed=True,
                msg=said,
                hint=error["action"] or f"Its log is {status.get('log')} on the host.",
                category=error["category"],
                recorded=True,
            )
        elapsed = float(status.get("heartbeat", 0)) - float(status.get("started_at", 0))
        how = "was stopped after" if stopped else f"{status.get('state')} in"
        self._line.keep(f"  {stage}  {how} {duration(elapsed)}")
        return result
