"""Draw the page of a run again, from what is at home; no host is reached."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller.action import Result, TrainAction
from controller.report.page import write_page
from controller.report.read import newest, read_run
from remote_train import request
from remote_train.errors import TrainError


class ActionModule(TrainAction):
    """``report:`` with ``dest``, ``run`` (empty: the newest) and ``language``."""

    _requires_connection = False

    def act(self, _task_vars: Result) -> Result:
        """Write ``report.html`` into the run's folder; its path is ``report``."""
        home = os.path.abspath(os.path.expanduser(self.argument("dest")))
        language = request.mode("report_language", self.argument("language"), request.LANGUAGES)
        run = self.argument("run") or newest(home)
        if not run:
            raise TrainError(
                f"There is no run in {home}.",
                "Name the folder that results came home to with collect_dest.",
                "ops",
            )
        if self.check:
            read_run(home, run)
            self.say(f"  would draw the page of {run} in {home}")
            return {"changed": False}
        try:
            return {"changed": True, "report": write_page(home, run, language)}
        except OSError as error:
            raise TrainError(
                f"The page of {run} can't be written: {error.strerror} ({error.filename}).",
                "Make room there, or see to it that this user may write there.",
                "infra",
            ) from error
