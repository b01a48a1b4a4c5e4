"""Check every setting and turn them into the request that the other steps read."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible.utils.vars import load_extra_vars

from controller.action import PROJECT, Result, TrainAction
from remote_train import gate_checks, gate_limits, request
from remote_train.errors import TrainError

OPEN_NAMES = {"groups", "hostvars", "vars", "omit", "environment", "playbook_dir", "stage"}
"""Names that Ansible or this project itself puts among the variables."""


class ActionModule(TrainAction):
    """``settings:``; returns ``request``, which is empty with ``names_only``, and ``started``.

    ``started`` is this machine's clock as the settings were read, in seconds since 1970.
    """

    _requires_connection = False

    def act(self, task_vars: Result) -> Result:
        """Read the variables in force, refuse what is no setting, build the request."""
        started = time.time()
        specs = self._specs()
        own = self._own_names(task_vars)
        known = {name for spec in specs.values() for name in spec} | set(own)
        request.check_names(load_extra_vars(self._loader), known, exact=True)
        magic = OPEN_NAMES | {name for name in task_vars if name.startswith(_MAGIC)}
        request.check_names(set(task_vars) - magic, known, exact=False)
        self._check_gate(task_vars)
        if self.argument("names_only", False):
            return {"changed": False, "request": {}, "started": started}
        spec = specs["settings"]
        values = {name: self._value(name, task_vars) for name in spec}
        built = request.build(
            values,
            {name: option.get("type", "str") for name, option in spec.items()},
            run_tags=task_vars.get("ansible_run_tags", ["all"]),
            skip_tags=task_vars.get("ansible_skip_tags", []),
            terminal=bool(task_vars.get("controller_terminal")),
        )
        return {"changed": False, "request": built, "started": started}

    def _specs(self) -> dict[str, dict[str, Any]]:
        """The options of every role here, by role."""
        specs = {}
        for path in sorted(Path(PROJECT, "roles").glob("*/meta/argument_specs.yml")):
            loaded = self._loader.load_from_file(str(path))
            specs[path.parts[-3]] = dict(loaded["argument_specs"]["main"]["options"])
        return specs

    def _check_gate(self, task_vars: Result) -> None:
        """Refuse what is wrong in the settings of both gates, before any contact."""
        for limits in (gate_limits.Limits, gate_limits.ActiveLimits):
            names = {field.name: limits.prefix + field.name for field in dataclasses.fields(limits)}
            limits.of(
                {
                    name: self._value(variable, task_vars)
                    for name, variable in names.items()
                    if variable in task_vars
                }
            )
        for variable, check in (
            ("gpu_gate_timeout", gate_limits.timeout),
            ("gpu_gate_nvidia_smi", gate_limits.program),
            ("gpu_gate_silence", self._silenced),
        ):
            if variable in task_vars:
                check(self._value(variable, task_vars))

    @staticmethod
    def _silenced(given: Any) -> None:
        gate_limits.silenced(
            request.typed("gpu_gate_silence", given or {}, "dict"), gate_checks.NAMES
        )

    def _own_names(self, task_vars: Result) -> list[str]:
        value = self._value("own_variables", task_vars)
        return [str(name) for name in value]

    def _value(self, name: str, task_vars: Result) -> Any:
        if name not in task_vars:
            raise TrainError(
                f"The setting {name} has no value.", "Run the role settings first.", "ops"
            )
        return self._templar.template(task_vars[name])


_MAGIC = (
    "inventory_",
    "group_names",
    "role_",
    "play_",
    "parent_role",
    "dependent_role",
    "discovered",
)
