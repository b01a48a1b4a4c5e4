"""The environment variables that beat the inventory, as variables of the GPU hosts."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.inventory.host import Host
from ansible.plugins.vars import BaseVarsPlugin

DOCUMENTATION = """
name: environment
short_description: Settings from the controller's environment
description:
  - Gives the hosts of the group C(gpu_hosts) the settings that the controller's environment
    holds. A vars plugin comes after the inventory's own variables and before C(-e), which is
    the documented order (command line, environment, inventory, default), with every program
    that reads the inventory, C(ansible-inventory --host) among them.
  - An empty value means not set.
"""

ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "ansible_host": ("REMOTE_HOST",),
    "ansible_port": ("REMOTE_PORT",),
    "ansible_user": ("REMOTE_USER",),
    "project_root": ("TRAIN_SYNC_PROJECT_ROOT", "REMOTE_PROJECT_ROOT"),
    "non_interactive": ("TRAIN_SYNC_NON_INTERACTIVE",),
    "assume_yes": ("TRAIN_SYNC_ASSUME_YES",),
    "skip_sample": ("TRAIN_SYNC_SKIP_SAMPLE",),
    "gpu_gate": ("TRAIN_SYNC_GPU_GATE",),
    "acceptance_gate": ("TRAIN_SYNC_ACCEPTANCE_GATE",),
    "model_name_or_path": ("MODEL_NAME_OR_PATH",),
    "use_modelscope": ("USE_MODELSCOPE",),
    "modelscope_cache": ("MODELSCOPE_CACHE",),
    "hf_home": ("HF_HOME",),
    "hf_endpoint": ("HF_ENDPOINT",),
    "hf_token": ("HF_TOKEN",),
    "runtime_base": ("RUNTIME_BASE",),
    "data_base": ("DATA_BASE",),
    "out_base": ("OUT_BASE",),
    "log_dir": ("LOG_DIR",),
    "max_length": ("MAX_LENGTH",),
    "per_device_train_batch_size": ("PER_DEVICE_TRAIN_BATCH_SIZE",),
    "gradient_accumulation_steps": ("GRADIENT_ACCUMULATION_STEPS",),
    "num_train_epochs": ("NUM_TRAIN_EPOCHS",),
    "learning_rate": ("LEARNING_RATE",),
    "target_modules": ("TARGET_MODULES",),
    "use_qlora": ("USE_QLORA",),
    "seed": ("SEED",),
}
"""Each variable with the environment names that set it; the first that holds something wins."""


PIPE_COLUMNS = 100
"""How wide tables are where nobody sits at a terminal, and COLUMNS isn't set."""


def settings_from(environment: dict[str, str]) -> dict[str, str]:
    """The variables that ``environment`` sets; empty values don't count."""
    found = {}
    for variable, names in ENVIRONMENT.items():
        value = next((environment[name] for name in names if environment.get(name)), None)
        if value is not None:
            found[variable] = value
    return found


def person_at_terminal() -> bool:
    """Whether someone sits at this controller's terminal.

    Asked here because vars plugins run in Ansible's main process: its workers have no terminal.
    ansible-runner gives the playbook a terminal that nobody sits at, and is known by its
    environment.
    """
    # In a worker, which asks when a template reads hostvars, standard input is closed.
    streams = (sys.stdin, sys.stdout)
    terminal = all(s is not None and not s.closed and s.isatty() for s in streams)
    return terminal and "AWX_ISOLATED_DATA_DIR" not in os.environ


class VarsModule(BaseVarsPlugin):  # type: ignore[misc]  # ansible-core has no types
    """Answers for hosts of ``gpu_hosts`` only: groups and other hosts get nothing."""

    REQUIRES_ENABLED = True

    def get_vars(self, loader: Any, path: str, entities: Any) -> dict[str, Any]:
        """The environment's settings for the one host in ``entities``."""
        super().get_vars(loader, path, entities)
        entities = entities if isinstance(entities, list) else [entities]
        if len(entities) != 1 or not isinstance(entities[0], Host):
            return {}
        host = entities[0]
        groups = {group.name: group for group in host.get_groups()}
        if "gpu_hosts" not in groups:
            return {}
        settings: dict[str, Any] = dict(settings_from(dict(os.environ)))
        settings["controller_terminal"] = person_at_terminal()
        settings["controller_columns"] = shutil.get_terminal_size((PIPE_COLUMNS, 24)).columns
        if "ansible_host" in settings:
            if len(groups["gpu_hosts"].get_hosts()) > 1:
                raise AnsibleParserError(
                    "REMOTE_HOST names one host, but the inventory has several GPU hosts. "
                    "Unset it, or give an inventory with one host."
                )
            if host.vars.get("ansible_connection") == "local":
                # The default inventory is this machine; an address turns it into that one.
                settings |= {
                    "ansible_connection": "ssh",
                    "ansible_python_interpreter": "auto_silent",
                }
        return settings
