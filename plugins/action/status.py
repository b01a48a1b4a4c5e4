"""Say where each stage stands: one round trip, and a table for a person."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller import project, status_table
from controller.action import Result, TrainAction
from remote_train import fingerprint


class ActionModule(TrainAction):
    """``status:`` with the request; returns what the module of the same name says, and lines."""

    def act(self, task_vars: Result) -> Result:
        """Ask the host, and make lines of its answer."""
        wanted = self.argument("request")
        found = self.call(
            "status",
            {
                "request": wanted,
                "code": fingerprint.code_digests(project.ENGINE_PARTS["training"]),
                "requirements": project.requirements_for(wanted),
                "python": self.argument("python", ""),
                "nvidia_smi": self.argument("nvidia_smi", "nvidia-smi"),
            },
            task_vars,
        )
        host = str(task_vars.get("inventory_hostname") or "")
        return {**found, "lines": status_table.lines(host, wanted["project_root"], found)}
