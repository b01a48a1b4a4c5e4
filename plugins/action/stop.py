"""End the stage that runs, and say how it ended."""

from __future__ import annotations

import getpass
import socket
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import link
from controller.action import GaveUpError, Result, TrainAction, failed, new_token
from controller.progress import duration, waiting


class ActionModule(TrainAction):
    """``stop:`` with the request; returns what the module of the same name says."""

    def act(self, task_vars: Result) -> Result:
        """Have it ended on the host. Over a cut, the call's own name finds what it has done."""
        wanted = self.argument("request")
        line = self.line_for(task_vars)
        arguments = {
            "root": wanted["project_root"],
            "by": _me(),
            "call": new_token(),
            "grace": wanted["stop_grace"],
        }
        over_cuts = link.Link(
            lambda _: "",
            self._connection,
            float(wanted["reconnect_timeout"]),
            line.keep,
            "a stage that was asked to end ends there by itself",
            "it says how that ended",
        )
        try:
            with waiting(line, f"waiting for its end, {wanted['stop_grace']} s at the most"):
                done: Result = over_cuts(lambda: self.call("stop", arguments, task_vars))
        except GaveUpError as error:
            return failed(error)
        for text in _lines(wanted["project_root"], done, wanted["stop_grace"]):
            line.keep(f"  {text}")
        return done


def _me() -> str:
    """Who asks for it, for the record and for whoever else follows that stage."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def _lines(root: str, done: Result, grace: int) -> list[str]:
    """How it ended, in words."""
    stage, left = done["stage"], ", ".join(done["left"])
    who = f"{stage} of {done['run']}, process {done['pid']}"
    if done["state"] == "nothing":
        held = [f"its lock is held by what a stage has left running: {left}"] if left else []
        if done.get("waited"):
            held.append(f"ended process {done['waited']}, which waited for the next stage")
        return [f"no stage runs in {root}: there is nothing to stop", *held]
    if done["state"] == "starting":
        return [
            f"a start is under way in {root}: would wait for its stage to run, and stop that; it "
            f"would have {grace} s to end by itself"
        ]
    if done["state"] == "running":
        return [f"would stop {who}; it would have {grace} s to end by itself"]
    after = duration(done["seconds"])
    said = {
        "stopped": f"stopped {who}: it ended after {after}",
        "done": f"{stage} came to its good end by itself meanwhile",
        "failed": f"{stage} failed by itself meanwhile",
    }[done["state"]]
    if done["state"] == "stopped" and done["killed"]:
        said = f"stopped {who}: it did not end within {grace} s and was killed"
    found = [said, f"its log is {done['log']}"]
    if left:
        found.append(f"what it had started is still running: {left}")
    return found
