"""What both parts of the gate do on the controller: ask the host, over a link that may break."""

from __future__ import annotations

import time
from typing import ClassVar

from . import link
from .action import Result, TrainAction
from .progress import SHOWN_AFTER, waiting


class GateAction(TrainAction):
    """The module of the same name with the task's arguments; ``reconnect_timeout`` is for here.

    The module changes nothing, so that it is simply asked again where the connection breaks.
    """

    module: ClassVar[str]
    doing: ClassVar[str]
    """What is shown while it takes long."""
    tells_time: ClassVar[bool] = False
    """Whether the module gets this machine's clock."""

    def act(self, task_vars: Result) -> Result:
        """Ask until there is an answer, or nobody can be reached any more."""
        given = dict(self._task.args)
        patience = float(given.pop("reconnect_timeout", 0))
        line = self.line_for(task_vars, SHOWN_AFTER)

        def ask() -> Result:
            # Taken as it is sent: what the way takes is a part of the difference.
            now = {"controller_time": time.time()} if self.tells_time else {}
            with waiting(line, self.doing):
                return self.call(self.module, {**given, **now}, task_vars)

        over_cuts = link.Link(
            lambda _line: "",  # it runs no commands
            self._connection.reset,
            patience,
            line.keep,
            "the gate changes nothing there",
            "it asks anew",
        )
        answer: Result = over_cuts(ask)
        return answer
