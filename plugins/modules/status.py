#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: status
short_description: Say where each stage stands, and what the machine does
description:
  - One look, which changes nothing and waits for nothing. It works while a training runs, and where nothing was ever done.
  - Outputs are known by their sizes, and a base model in a folder is taken for what it was, so that no gigabytes are read.
  - The action plugin of the same name brings the digests of the code, and makes C(lines) of the answer.
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
    description: The digests of the training's code and of the scorer, as the controller has them.
    type: list
    elements: str
    required: true
  requirements:
    description: What the training's Python must have.
    type: dict
    default: {}
  python:
    description: The Python that the user named, if one.
    type: str
    default: ""
  nvidia_smi:
    description: The program that is asked about the GPUs, for at most five seconds.
    type: str
    default: nvidia-smi
"""

EXAMPLES = r"""
- name: See where the stages stand
  status:
    request: "{{ settings_request }}"
"""

RETURN = r"""
stages:
  description: Each stage of the request; what isn't known is null.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The stage's name.
      type: str
    state:
      description: C(runs), C(done), C(failed), C(stopped), C(out of date) or C(not yet).
      type: str
    reason:
      description: Why it is out of date, or how it failed.
      type: str
    phase:
      description: What a running stage does, C(load), C(train), C(evaluate) or C(save).
      type: str
    step:
      description: The step of the training, or the number of answers of the evaluation.
      type: int
    steps:
      description: Of how many.
      type: int
    loss:
      description: The last loss, or the mean one of a stage that is done.
      type: float
    started:
      description: When it was started, in UTC.
      type: str
    ended:
      description: When it ended, in UTC.
      type: str
    seconds:
      description: How long it took, or has run.
      type: float
    eta:
      description: An estimate of the seconds that the training still takes.
      type: int
    silent:
      description: Seconds since a running stage's last sign of life.
      type: int
    run:
      description: The run that this is from.
      type: str
    log:
      description: Its log, under project_root.
      type: str
log_lines:
  description: The last lines of the log of the stage that runs.
  type: list
  elements: str
  returned: success
gpus:
  description: Each GPU with C(index), C(name), C(utilization) in percent, C(memory_used_mib) and C(memory_total_mib).
  type: list
  elements: dict
  returned: success
gpus_note:
  description: Why nvidia-smi tells of none; empty where there is no such program.
  type: str
  returned: success
lock:
  description:
    - Who holds the lock of the project, with C(pid), C(host), C(since), C(stage), C(run), or null.
    - C(left) names the processes that hold it though no stage runs.
  type: dict
  returned: success
interrupted:
  description: The folders in which a sync is at work, or was interrupted.
  type: list
  elements: str
  returned: success
worker:
  description: The process that waits for the next stage, C(pid), C(run) and for how many C(seconds) more; null for none.
  type: dict
  returned: success
time:
  description: The host's time in UTC.
  type: str
  returned: success
lines:
  description: The same for a person, at most 100 columns wide.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import status
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "code": {"type": "list", "elements": "str", "required": True},
            "requirements": {"type": "dict", "default": {}},
            "python": {"type": "str", "default": ""},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
        },
        supports_check_mode=True,
        no_log=True,  # a password may stand in the URL of git, and the host's log would hold it
    )
    given = module.params
    try:
        found = status.look(
            given["request"],
            tuple(given["code"]),
            given["requirements"],
            given["python"],
            given["nvidia_smi"],
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
