"""Start a stage on the GPU host, or find it running, and follow it to its end."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import follow, link
from controller.action import (
    Result,
    TrainAction,
    failed,
    new_token,
)
from controller.followed import Followed
from controller.log_lines import LogLines
from controller.progress import duration
from controller.stage_line import StageLine
from controller.watch import Watch
from remote_train import failures, issues, live, runs
from remote_train.errors import TrainError

ENDS_TOO = "This command ends too: give it again to train on."
"""The hint of whoever follows, or waits for, a stage that a person has stopped."""


class ActionModule(TrainAction):
    """``stage:`` with the request and a stage's name; or ``attach: true`` for whatever runs."""

    def __init__(self, *arguments: object, **named: object) -> None:
        super().__init__(*arguments, **named)
        self._notes: list[Result] = []

    def act(self, task_vars: Result) -> Result:
        """Start or attach, then follow."""
        self._request = self.argument("request")
        self._root = self._request["project_root"]
        self._line = self.line_for(task_vars)
        self._link = link.Link(
            self._command,
            self._connection,
            float(self._request["reconnect_timeout"]),
            self._line.keep,
        )
        self._followed = Followed(self.argument("home"))
        if self.argument("attach", False):
            return self._attach(task_vars)
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
                "issues": self._issues(name),
            }

    def _train(self, name: str, task_vars: Result) -> Result:
        """Start the stage and follow it, until how it ended is known."""
        while True:
            started = self._start(name, task_vars)
            self._take_notes(name, started.get("notes") or [])
            if started["outcome"] == "skipped":
                self._line.keep(f"  {name}  up to date")
                return {
                    "changed": False,
                    "stage": name,
                    "state": "skipped",
                    "issues": self._issues(name),
                }
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
            followed = self._follow(holder, ours=False)
            if followed and followed.get("stopped"):
                # Who stops a stage that several follow, or wait for, means all of them.
                raise TrainError(followed["msg"], ENDS_TOO, followed["category"])
            if followed and self._is_ours(followed) and followed["stage"] == name:
                raise TrainError(followed["msg"], followed["hint"], followed["category"])
            started = self._link(lambda: self.call("stage", arguments, task_vars))
        return started

    def _attach(self, task_vars: Result) -> Result:
        """Follow the training that runs already."""
        status = self.argument("live")
        live.require_running(self._root, status)
        self._refuse_or_say(status)
        if self.check:
            return {"changed": False, "stage": status.get("stage"), "state": "running"}
        stage = str(status.get("stage"))
        try:
            # Where its supervisor was killed, another one follows it from now on.
            arguments = {"request": self._request, "attach": True}
            found: Result = self._link(lambda: self.call("stage", arguments, task_vars))
            self._take_notes(stage, found["notes"])
            followed = self._follow(found["status"], ours=False)
        except TrainError as error:
            # No failure of this step: what can be had of the run comes home first.
            result = failed(error)
            result.update(failed=False, trouble={**failed(error), "recorded": False})
            if runs.is_name(status.get("run")):
                # The host has no folder of it yet where none of its stages has ended.
                result["trouble"]["run"] = status["run"]
        else:
            result = {"state": "ended", **(followed or {}), "failed": False}
            # How it ended is in its own record; but going on after it has failed, or somebody has
            # stopped it, would start that very stage again.
            stopped = "stopped" in result
            if stopped or (self._is_ours(followed) and not self._goes_on):
                result["trouble"] = {
                    "msg": result["msg"],
                    "hint": ENDS_TOO if stopped else result["hint"],
                    "category": "ops" if stopped else result["category"],
                    "recorded": True,
                }
            elif followed and self._is_ours(followed):
                # One result of the run's stages, as if this command had started it.
                result["ended"] = {**followed, "issues": []}
        return {**result, "stage": stage, "changed": False, "issues": self._issues(stage)}

    def _is_ours(self, followed: Result | None) -> bool:
        """Whether a stage that somebody else has started failed, and that counts for this command.

        Who waits for a training doesn't look at how it ended.
        """
        return bool(followed and followed.get("failed") and not self._waits)

    @property
    def _goes_on(self) -> bool:
        """Whether the other stages go on after one that has failed."""
        return bool(self._request.get("on_stage_failure") == "continue")

    @property
    def _waits(self) -> bool:
        """Whether what somebody else has started is waited for, and not looked at."""
        return bool(self._request["on_lock"] == "wait")

    def _refuse_or_say(self, holder: Result) -> None:
        who = (
            f"The stage {holder.get('stage')} of {holder.get('run')} is running on "
            f"{holder.get('host')} as process {holder.get('pid')} since {holder.get('since')}"
        )
        if self._request["on_lock"] == "fail":
            raise TrainError(
                f"{who}.", "Wait for it, or leave out on_lock=fail to follow it.", "ops"
            )
        verb = "waiting for it" if self._waits else "following it"
        if self.check:
            verb = "a run would wait for its end" if self._waits else "a run would follow it"
        self._line.keep(f"  {who}: {verb}.")

    def _follow(self, status: Result, ours: bool = True) -> Result | None:
        """Poll until the stage has ended; what it says is the result.

        None where it has ended and another controller has started a stage since: its marker
        says how, and a start reads that.

        :param ours: whether this command has started it; else it does as ``on_lock`` says.
        """
        stage, token = str(status.get("stage")), status.get("token")
        quiet = self._waits and not ours
        shown = StageLine(stage, int(self._request["survival"]["stage_retries"]) + 1)
        lines = LogLines(lambda line: self._line.keep(f"  | {line}"))
        reads = self.verbose and not quiet
        offset = 0
        if not (ours or quiet):
            offset = self._catch_up(status, lines if reads else None)
        try:
            for poll in follow.polls(
                self._link.command, self._root, status, offset, not reads, self._watch()
            ):
                if reads:
                    lines.take(poll.fresh)
                if poll.status.get("token") != token:
                    return None
                status = poll.status
                text = shown.line(status)
                self._followed.keep(
                    status,
                    poll.end,
                    poll.fresh,
                    step=shown.step,
                    steps=shown.steps,
                    loss=shown.loss,
                )
                news = [shown.resumed(status), shown.news(status)]
                if quiet:
                    continue
                for said in filter(None, news):
                    self._line.keep(said)
                if status.get("state") == "running":
                    self._line.update(text)
        finally:
            lines.end()
        self._followed.forget(token)
        self._line.keep(shown.ended(status))
        return self._verdict(stage, status)

    def _watch(self) -> Watch:
        return Watch(self._link, self._connection)

    def _catch_up(self, status: Result, lines: LogLines | None) -> int:
        """Say what has happened since somebody last followed the stage from here.

        :param lines: where the log's lines are shown that came meanwhile, if they are.
        :returns: up to where in the log it has been read.
        """
        seen = self._followed.read(token=status.get("token"))
        happened = _meanwhile(seen, status) if seen else ""
        if happened:
            self._line.keep(f"  {happened}")
        offset = int(seen.get("offset", 0))
        if lines is None:
            return offset
        log = os.path.join(self._root, str(status.get("log")))
        text = self._link.command(follow.missed_command(log, offset))
        try:
            missed = follow.parse_missed(text, offset)
        except ValueError:
            return offset
        if missed.left_out:
            self._line.keep(
                f"  {missed.left_out:,} lines of the log before these are left out; all of it "
                "comes home with collect."
            )
        lines.take(missed.text)
        return missed.end

    def _take_notes(self, stage: str, notes: list[Any]) -> None:
        """Show what the start found there, a lock of a dead process say, and keep it."""
        for said in notes:
            note = said
            if isinstance(said, str):
                note = issues.make(
                    "train",
                    said,
                    category="infra",
                    severity="warning",
                    stage=stage,
                    status="handled",
                )
            self._line.keep(f"  {stage}: {note['symptom']}")
            self._notes.append(note)

    def _issues(self, stage: str) -> list[Result]:
        """What the start noted, and an issue for each time that the connection broke."""
        return self._notes + [
            issues.make(
                "train",
                severity="warning",
                stage=stage,
                status="handled",
                **failures.of_cut(stage, cut["seconds"]).as_error(),
            )
            for cut in self._link.cuts
        ]

    def _verdict(self, stage: str, status: Result) -> Result:
        result: Result = {
            "changed": True,
            "stage": stage,
            "state": status.get("state"),
            "issues": self._issues(stage),
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
        return result


def _meanwhile(seen: Result, status: Result) -> str:
    """What has happened since a stage was last looked at, in a line; empty where nobody knows."""
    told = status.get("progress")
    progress = told if isinstance(told, dict) else {}
    now = _shown(progress.get("step"), 0)
    changes = [
        f"{name} {before} -> {after}"
        for name, before, after in (
            ("step", _shown(seen.get("step"), 0), now),
            ("loss", _shown(seen.get("loss"), 3), _shown(progress.get("loss"), 3)),
        )
        if before is not None and after is not None
    ]
    if changes:
        took = duration(time.time() - _number(seen.get("at"), time.time()))
        return f"Meanwhile, in {took}: {', '.join(changes)}."
    steps = _shown(progress.get("steps"), 0)
    of = f" of {steps}" if steps is not None else ""
    return f"now at step {now}{of}" if now is not None else ""


def _number(value: object, otherwise: float) -> float:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if known else otherwise  # type: ignore[arg-type]


def _shown(value: object, digits: int) -> str | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:.{digits}f}" if known else None
