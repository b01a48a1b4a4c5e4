#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: stop
short_description: End the stage that runs in a project, and nothing else
description:
  - Asks the training to end (TERM, through its supervisor), waits, and has it killed after O(grace) seconds.
  - Returns when the stage has ended and its record is written. The stage is not done then, and the next run trains it.
  - A process is known by its number, its start time and the boot, so that no other one is ever hit.
  - A start that is under way is waited for, and its stage ended. It is no error that nothing runs.
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
  root:
    description: The project's folder.
    type: path
    required: true
  by:
    description: Who asks for it, as the record will say.
    type: str
    required: true
  call:
    description: What names this call, so that one that is repeated after a cut finds its own end.
    type: str
    required: true
  grace:
    description: Seconds that the training has to end by itself.
    type: int
    default: 60
"""

EXAMPLES = r"""
- name: End the stage that runs
  stop:
    root: /srv/tutor
    by: me@laptop
    call: 1770629400-0123456789abcdef
"""

RETURN = r"""
state:
  description:
    - C(stopped), or C(done) or C(failed) where the stage ended by itself meanwhile.
    - C(nothing) where nothing runs and no start is under way.
    - In check mode C(running), or C(starting) where a start is under way, which is waited for otherwise.
  type: str
  returned: success
stage:
  description: The stage that it was.
  type: str
  returned: success
run:
  description: Its run.
  type: str
  returned: success
pid:
  description: The process number of its supervisor.
  type: int
  returned: success
log:
  description: Its log, under the project's folder.
  type: str
  returned: success
killed:
  description: Whether it had to be killed.
  type: bool
  returned: success
seconds:
  description: How long it took to end.
  type: float
  returned: success
waited:
  description: The process number of a supervisor that waited for the next stage and was ended.
  type: int
  returned: success
left:
  description: What the stage has left running, by name and process number.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import stop
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "by": {"type": "str", "required": True},
            "call": {"type": "str", "required": True},
            "grace": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        answer = stop.stop(
            given["root"], given["by"], given["call"], given["grace"], module.check_mode
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=answer["state"] != "nothing" or bool(answer["waited"]), **answer)


if __name__ == "__main__":
    main()
