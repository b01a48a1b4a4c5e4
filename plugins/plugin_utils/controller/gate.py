"""What both parts of the gate do on the controller: ask the host, over a link that may break."""

from __future__ import annotations

import time
from typing import ClassVar

from remote_train import gate, gate_host, gate_limits, gate_model, host_facts

from . import link
from .action import GaveUpError, Result, TrainAction
from .progress import SHOWN_AFTER, waiting

LEAST = 12.0
"""With fewer seconds left, nothing is asked: a start takes some of them."""


class GateAction(TrainAction):
    """The module of the same name with the task's arguments, but for two that are for here.

    ``reconnect_timeout`` says for how long a broken connection is tried again: the module changes
    nothing, so that it is simply asked anew. ``until`` is this machine's clock, in seconds since
    1970, at which the answer is due; each time that the module is asked it gets what is left.
    """

    module: ClassVar[str]
    doing: ClassVar[str]
    """What is shown while it takes long."""
    limit: ClassVar[str]
    """The module's argument that says for how long anything is waited for."""
    subject: ClassVar[str]
    """What passes or doesn't, in its last line."""
    tells_time: ClassVar[bool] = False
    """Whether the module gets this machine's clock."""

    def act(self, task_vars: Result) -> Result:
        """Ask until there is an answer, or nobody can be reached any more."""
        given = dict(self._task.args)
        patience = float(given.pop("reconnect_timeout", 0))
        until = float(given.pop("until", 0))
        line = self.line_for(task_vars, SHOWN_AFTER)
        tries = 0

        def ask() -> Result:
            nonlocal tries
            tries += 1
            left = until - time.time()
            if until and tries > 1 and left < LEAST:
                raise GaveUpError(
                    "The connection broke, and too little was left of the minute to ask anew.",
                    "The gate changes nothing there: give the same command again.",
                    "infra",
                )
            rest = {self.limit: min(float(given.get(self.limit, left)), left)} if until else {}
            # Taken as it is sent: what the way takes is a part of the difference.
            now = {"controller_time": time.time()} if self.tells_time else {}
            with waiting(line, self.doing):
                answer = self.call(self.module, {**given, **rest, **now}, task_vars)
            if now and answer.get("clock_ahead") is not None:
                took = time.time() - now["controller_time"]
                return _clock_judged(answer, took - answer["seconds"])
            return answer

        over_cuts = link.Link(
            lambda _line: "",  # it runs no commands
            self._connection,
            patience,
            line.keep,
            "the gate changes nothing there",
            "it asks anew",
        )
        answer: Result = over_cuts(ask)
        columns = int(task_vars.get("controller_columns") or gate.COLUMNS)
        return _shown(answer, self.subject, columns)


def _findings(answer: Result) -> list[gate_model.Finding]:
    return [gate_model.Finding(**found) for found in answer.get("findings") or []]


def _shown(answer: Result, subject: str, columns: int) -> Result:
    """The answer with its tables as wide as this machine's terminal."""
    if "findings" not in answer:
        return answer
    # The mode as the module understood it: YAML reads a bare off as false.
    return {**answer, **gate.told(_findings(answer), answer["mode"], subject, columns)}


def _clock_judged(answer: Result, way: float) -> Result:
    """The answer with the host's clock judged anew, now that it is known how long the way took.

    :param way: the seconds there and back.
    """
    host = host_facts.HostFacts(clock_ahead=answer["clock_ahead"], clock_way=max(way, 0.0))
    limits = gate_limits.Limits.of(answer["limits"])
    context = gate_model.Context(host=host, limits=limits)
    (check,) = (one for one in gate_host.CHECKS if one.name == "clock")
    findings = [
        (check.run(context, found.silenced) if found.check == check.name else found).as_dict()
        for found in _findings(answer)
    ]
    return {**answer, "findings": findings}
