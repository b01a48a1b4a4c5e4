#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: stage
short_description: Start one stage, detached, or find that it runs or is up to date
description:
  - Takes the stage's fingerprint, compares it with its marker, and starts the training under a
    supervisor in a process session of its own. It returns as soon as the supervisor has said
    that it runs.
  - Idempotent by O(token), since ssh may send a command twice.
  - The action plugin of the same name starts a stage with this module and then follows it.
author: the remote-train authors
attributes:
  check_mode:
    description: Can run in check mode and returns what it would otherwise.
    support: none
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
  attach:
    description:
      - Starts no stage. Where one runs and its supervisor was killed, another supervisor is started,
        which follows the training to its end.
    type: bool
    default: false
  stage:
    description: The name of the stage. Needed unless O(attach=true), as are the next three.
    type: str
  run:
    description: The name of the run that the stage belongs to.
    type: str
  token:
    description: What names this start.
    type: str
  python:
    description: The Python that trains.
    type: str
  environment:
    description: What the training gets beside its own environment. Never written down.
    type: dict
    default: {}
  requirements:
    description: What the training's Python must have.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Start the stage style
  stage:
    request: "{{ settings_request }}"
    stage: style
    run: run_20260209T093000Z
    token: 1770629400-0123456789abcdef
    python: /opt/conda/bin/python
"""

RETURN = r"""
outcome:
  description: C(started), C(attached) (this token runs already), C(busy) (another training runs) or C(skipped).
  type: str
  returned: success
verdict:
  description: What the marker makes of the stage, C(action), C(reasons) and C(warnings).
  type: dict
  returned: success
notes:
  description: What was found of processes that are dead, a sentence each. Such a lock is taken over.
  type: list
  elements: str
  returned: success
status:
  description: The supervisor's status; empty for a stage that is skipped.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import launch
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "attach": {"type": "bool", "default": False},
            "stage": {"type": "str"},
            "run": {"type": "str"},
            "token": {"type": "str", "no_log": False},
            "python": {"type": "str"},
            "environment": {"type": "dict", "default": {}, "no_log": True},
            "requirements": {"type": "dict", "default": {}},
        },
        required_if=[("attach", False, ("stage", "run", "token", "python"))],
        supports_check_mode=False,
    )
    given = module.params
    wanted = given["request"]
    try:
        if given["attach"]:
            answer = launch.attach(wanted["project_root"], given["environment"])
        else:
            answer = launch.start(
                wanted,
                next(s for s in wanted["stages"] if s["name"] == given["stage"]),
                given["run"],
                given["token"],
                given["python"],
                given["environment"],
                given["requirements"],
            )
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=answer["outcome"] == "started", **answer)


if __name__ == "__main__":
    main()
