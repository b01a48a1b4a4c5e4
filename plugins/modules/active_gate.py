#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: active_gate
short_description: Say whether the training's own Python can do this training
description:
  - The active part of the GPU gate, in one round trip, after provisioning. Runs torch on the
    processor and on the GPUs, loads configuration and tokenizer of the base models, and counts the
    longest chats in tokens.
  - Each check gives one finding, in the form of the module M(gpu_probe). A finding never makes the
    module fail; RV(stop) says whether the run should stop, and the role decides.
  - The action plugin of the same name asks again where the connection breaks, for
    C(reconnect_timeout) seconds.
  - What hangs is killed after O(timeout), and is itself a finding. A folder of models that gives
    no answer makes the module fail, with the category C(infra).
author: the remote-train authors
attributes:
  check_mode:
    description: Can run in check mode and changes nothing.
    support: full
  diff_mode:
    description: Shows differences.
    support: none
  platform:
    description: Where the module runs.
    platforms: linux
    support: full
options:
  project_root:
    description: The training project's folder on the GPU host.
    type: path
    required: true
  python:
    description: The training's Python. Without it, everything is C(unknown).
    type: str
    default: ""
  mode:
    description: What a failed check of the GPU does, as in the module M(gpu_probe).
    type: str
    choices: [strict, warn, "off"]
    default: strict
  stages:
    description: The stages that would run, as the request has them.
    type: list
    elements: dict
    default: []
  storage:
    description: Where models lie, C(runtime_base), C(hf_home) and C(modelscope_cache).
    type: dict
    default: {}
  silence:
    description: Checks that are silenced, with the reasons, by name, as in M(gpu_probe).
    type: dict
    default: {}
  gpus:
    description: How many GPUs the run asks for.
    type: int
    default: 1
  driver_cuda:
    description: The newest CUDA that the driver runs, as M(gpu_probe) returns it.
    type: str
    default: ""
  warn_bandwidth:
    description: The speed from the host's memory to a GPU's, in GiB/s, below which that is a warning.
    type: float
    default: 4
  min_bandwidth:
    description: The speed below which it fails.
    type: float
    default: 0.5
  memory_slack:
    description:
      - By which part a GPU may fall short of the estimate before that fails. Default, as in
        M(gpu_probe).
    type: float
  timeout:
    description: For how many seconds all of it is waited for, at most 50.
    type: float
    default: 45
  full_timeout:
    description:
      - The setting C(active_gate_timeout), where O(timeout) is what is left of the gate's time; 0 for
        the same. What gets much less and gives no answer in it is unknown, not failed.
    type: float
    default: 0
  driver_fails:
    description: Whether the module M(gpu_probe) found that the driver doesn't answer.
    type: bool
    default: false
  models_lost:
    description: The base models that the module M(gpu_probe) found to be missing folders.
    type: list
    elements: str
    default: []
  coming:
    description: The data files that are still to be sent.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: See whether the training's Python can do it
  active_gate:
    project_root: /srv/tutor
    python: /opt/conda/bin/python
    stages: "{{ settings_request.stages }}"
"""

RETURN = r"""
findings:
  description: One entry for each check, in the form of the module M(gpu_probe).
  returned: success
  type: list
  elements: dict
stop:
  description: Whether the run should stop here.
  returned: success
  type: bool
stopping:
  description: The findings that make it stop.
  returned: success
  type: list
  elements: dict
message:
  description: One sentence that says why it stops; empty where it doesn't.
  returned: success
  type: str
hint:
  description: What to do about the first of RV(stopping).
  returned: success
  type: str
closing:
  description: One sentence that says how it ended where the run goes on, as in M(gpu_probe).
  returned: success
  type: str
mode:
  description: The mode that was in force.
  returned: success
  type: str
summary:
  description: How many findings there are of each result.
  returned: success
  type: dict
table:
  description: The findings that are neither C(ok) nor C(skipped), as a text table; may be empty.
  returned: success
  type: str
full_table:
  description: All findings as a text table.
  returned: success
  type: str
facts:
  description: What the training's Python said, by part.
  returned: success
  type: dict
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import inspect
import os
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import (
    active_facts,
    active_gate,
    gate_module,
    gate_torch,
    limited,
)
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.gate_limits import ActiveLimits, Limits
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **gate_module.ARGUMENTS,
            "python": {"type": "str", "default": ""},
            "gpus": {"type": "int", "default": 1},
            "driver_cuda": {"type": "str", "default": ""},
            "warn_bandwidth": {"type": "float", "default": 4},
            "min_bandwidth": {"type": "float", "default": 0.5},
            "memory_slack": {"type": "float"},
            "timeout": {"type": "float", "default": 45},
            "full_timeout": {"type": "float", "default": 0},
            "driver_fails": {"type": "bool", "default": False},
            "models_lost": {"type": "list", "elements": "str", "default": []},
            "coming": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    given = module.params
    stages, root, storage = given["stages"], given["project_root"], given["storage"]
    try:
        names = ("warn_bandwidth", "min_bandwidth")
        full = given["full_timeout"] or given["timeout"]
        limits = ActiveLimits.of({"timeout": full, **{name: given[name] for name in names}})
        slack = given["memory_slack"]
        slack = Limits.of({} if slack is None else {"memory_slack": slack}).memory_slack
        silenced = gate_module.reasons(given)
        bases = limited.look(
            lambda: active_facts.bases_of(stages, root, storage, os.environ),
            active_facts.places(stages, root, storage),
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    facts = active_facts.gather(
        active_facts.Facts(
            python=given["python"],
            bases=bases,
            gpus=given["gpus"],
            driver_cuda=given["driver_cuda"],
            warn_bandwidth=limits.warn_bandwidth,
            min_bandwidth=limits.min_bandwidth,
            memory_slack=slack,
            driver_fails=given["driver_fails"],
            coming=tuple(given["coming"]),
            lost=tuple(given["models_lost"]),
            cut_from=full,
        ),
        root,
        given["mode"],
        inspect.getsource(gate_torch),
        max(min(given["timeout"], full) - (time.monotonic() - started), 1.0),
    )
    findings = active_gate.run_checks(facts, given["mode"], silenced)
    module.exit_json(
        facts={name: part for name, part in facts.found.items() if "lengths" not in name},
        **gate_module.answer(findings, given["mode"], started, "The training's Python"),
    )


if __name__ == "__main__":
    main()
