"""Show the end of a stage's log, and what comes to it until the stage ends."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import follow, link
from controller.action import GaveUpError, Result, TrainAction, failed
from controller.log_lines import LogLines
from controller.progress import size
from controller.watch import Watch
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
            self._command, self._connection, float(wanted["reconnect_timeout"]), line.keep
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
        stage, token = status.get("stage"), status.get("token")
        try:
            watch = Watch(self._link, self._connection)
            for poll in follow.polls(self._link.command, self._root, status, offset, watch=watch):
                self._lines.take(poll.fresh)
                status = poll.status
        finally:
            self._lines.end()
        if status.get("token") != token:
            return f"{stage} has ended, and something else has been started since"
        by = (status.get("stopped") or {}).get("by")
        return f"{stage} was stopped by {by}" if by else f"{stage}  {status['state']}"
