#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Say what a run would do on this host, and why
description:
  - Compares the markers of the stages with the inputs of today, and the files of the training
    project with those that sync would bring.
  - Changes nothing, but for a sync that was interrupted, which it finishes or undoes first.
author: the remote-train authors
attributes:
  check_mode:
    description: Can run in check mode and returns what it would otherwise.
    support: full
  diff_mode:
    description: Shows what has changed.
    support: none
  platform:
    description: Where the module runs.
    platforms: linux
    support: full
options:
  request:
    description: The request, as the action C(settings) builds it.
    type: dict
    required: true
  code:
    description: The digests of the training's code as the controller has it, weights first, then scorer.
    type: list
    elements: str
    required: true
  requirements:
    description: What the training's Python must have, by name, with bounds such as C(>=2.6).
    type: dict
    default: {}
  python:
    description: The only Python to look at. Default, all that are found are tried.
    type: str
    default: ""
  coming:
    description: The project's files that sync would bring, SHA-256 by path. Null where nothing is synced.
    type: dict
  engine:
    description: The files of the engine folder that sync would bring, SHA-256 by path.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Plan
  plan:
    request: "{{ settings_request }}"
    code: ["sha256:...", "sha256:..."]
    requirements:
      torch: ">=2.6"
"""

RETURN = r"""
stages:
  description: Each stage with C(name), C(action) (train, evaluate, skip, leave), C(reasons) and C(warnings).
  type: list
  elements: dict
  returned: success
work:
  description: The names of the stages that would train or be evaluated.
  type: list
  elements: str
  returned: success
live:
  description: Status and holder of the training that is running now, or null.
  type: dict
  returned: success
python:
  description: The Python that would train, with its packages, or null where provision must make one.
  type: dict
  returned: success
pythons_tried:
  description: Every Python that was looked at, and what it lacks.
  type: list
  elements: dict
  returned: success
home:
  description:
    - What the last collect gathered, C(path) and C(sha256) each.
    - Empty where one of those files has gone from the host.
  type: list
  elements: dict
  returned: success
uncollected:
  description: The name of the last run where it has to be collected (again), or null.
  type: str
  returned: success
interrupted:
  description: A sentence for each sync that was found interrupted, on how it ended.
  type: list
  elements: str
  returned: success
sync:
  description: The paths that sync would add, change and remove; null where nothing is synced.
  type: dict
  returned: success
engine_changed:
  description: Whether sync would send this project's own code.
  type: bool
  returned: success
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import plan, recovery, runs
from ansible.module_utils.remote_train.errors import TrainError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "code": {"type": "list", "elements": "str", "required": True},
            "requirements": {"type": "dict", "default": {}},
            "python": {"type": "str", "default": ""},
            "coming": {"type": "dict"},
            "engine": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    root = given["request"]["project_root"]
    engine = os.path.join(root, plan.ENGINE)
    interrupted, changed = [], False
    try:
        # What was interrupted comes to its end first: one look at one name each where nothing was.
        for place, state in ((root, os.path.join(root, runs.SYNC)), (engine, f"{engine}/.state")):
            if module.check_mode and recovery.pending(state):
                interrupted.append(f"A sync of {place} was interrupted; a run ends it first.")
            elif ended := recovery.recover(place, state):
                interrupted.append(ended.sentence)
                changed = True
        made = plan.make(
            given["request"],
            (given["code"][0], given["code"][1]),
            given["requirements"],
            given["python"],
            given["coming"],
        )
        made["sync"] = plan.compare(root, given["coming"])
        made["engine_changed"] = plan.engine_differs(root, given["engine"])
    except TrainError as error:
        module.fail_json(msg=error.message, hint=error.hint, category=error.category)
    module.exit_json(changed=changed, interrupted=interrupted, **made)


if __name__ == "__main__":
    main()
