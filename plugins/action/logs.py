"""Show the end of a stage's log, and what comes to it until the stage ends."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import follow, link
from controller.action import GaveUpError, Result, TrainAction, failed
from controller.log_lines import LogLines
from controller.progress import size
from remote_train import live
from remote_train.errors import TrainError


class ActionModule(TrainAction):
    """``logs:`` with the request; returns what the module of the same name says."""

    def act(self, task_vars: Result) -> Result:
        """Show the last lines, then follow where that is asked for."""
        wanted = self.argument("request")
        logs, self._root = wanted["logs"], wanted["project_root"]
        line = self.line_for(task_vars)
        self._lines = LogLines(line.keep)
        self._link = link.Link(
            self._command, self._connection.reset, float(wanted["reconnect_timeout"]), line.keep
        )
        found = self.call(
            "logs",
            {
                "root": self._root,
                "log_dir": wanted["log_dir"],
                "stage": logs["stage"],
                "lines": logs["lines"],
            },
            task_vars,
        )
        of = f" of {found['stage']}" if found["stage"] else ""
        if found["log"]:
            cut = "; the first line is cut off" if found["cut"] else ""
            line.keep(f"  {found['log']}, {size(found['size'])}{cut}")
            self._lines.take(found["text"].encode("utf-8", "surrogatepass"))
        elif not found["live"]:
            line.keep(f"  there is no log{of} in {self._root} yet")
        if not (logs["follow"] and found["live"]):
            self._lines.end()
            if logs["follow"] and found["log"]:
                line.keep(f"  {found['stage']} isn't running: nothing comes to this log")
            return {key: value for key, value in found.items() if key != "live"}
        try:
            line.keep(f"  {self._follow(found['live'], int(found['end']))}")
        except GaveUpError as error:
            return failed(error)
        return {"changed": False, "log": found["log"], "stage": found["stage"]}

    def _command(self, words: str) -> str:
        answer = self._low_level_execute_command(
            words, sudoable=False, encoding_errors="surrogateescape"
        )
        if answer["rc"] != 0:
            said = str(answer["stderr"]).strip().splitlines()[-1:] or ["no word"]
            raise TrainError(
                f"The log can't be read on the host: {said[0]}",
                "Look into outputs/training_sync/live there.",
                "infra",
            )
        return str(answer["stdout"])

    def _follow(self, status: Result, offset: int) -> str:
        """Show what comes to the log until the stage has ended; how that was."""
        stage, token, log = status.get("stage"), status.get("token"), str(status.get("log"))
        path, where = live.path(self._root, "status.json"), os.path.join(self._root, log)
        pause, beat, seen = follow.POLL_SECONDS[0], None, time.monotonic()
        while True:
            text = self._link.command(follow.poll_command(path, where, offset))
            try:
                status, fresh = follow.parse_answer(text)
            except ValueError:
                status, fresh = {"state": "running", "token": token, "heartbeat": beat}, b""
            if status.get("token") != token:
                # The log is still that of the stage that was followed.
                self._lines.take(fresh)
                self._lines.end()
                return f"{stage} has ended, and something else has been started since"
            offset += len(fresh)
            self._lines.take(fresh)
            pause = follow.POLL_SECONDS[0] if fresh else min(pause * 1.3, follow.POLL_SECONDS[1])
            if len(fresh) >= follow.LOG_CHUNK:
                continue
            if status.get("state") in live.ENDED:
                self._lines.end()
                by = (status.get("stopped") or {}).get("by")
                return f"{stage} was stopped by {by}" if by else f"{stage}  {status['state']}"
            if status.get("heartbeat") != beat:
                beat, seen = status.get("heartbeat"), time.monotonic()
            elif time.monotonic() - seen > follow.SILENT_AFTER:
                self._lines.end()
                raise TrainError(
                    f"{stage} has given no sign of life for {follow.SILENT_AFTER:.0f} s.",
                    "Its supervisor was killed, the disk is full, or the host hangs: "
                    "playbooks/status.yml says more.",
                    "infra",
                )
            time.sleep(pause)
