#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: logs
short_description: The last lines of a stage's log
description:
  - Reads a log from its end, and never more than 4 MiB of it.
  - The action plugin of the same name shows the lines, and follows the log of a stage that runs.
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
  log_dir:
    description: The folder of the logs, under O(root).
    type: str
    required: true
  stage:
    description: Whose log it is; empty for the stage that runs or ran last.
    type: str
    default: ""
  lines:
    description: How many lines.
    type: int
    default: 100
"""

EXAMPLES = r"""
- name: The end of the last stage's log
  logs:
    root: /srv/tutor
    log_dir: outputs/logs
"""

RETURN = r"""
log:
  description: The log, under the project's folder; empty where there is none.
  type: str
  returned: success
stage:
  description: Whose log it is.
  type: str
  returned: success
live:
  description: The status of that stage where it runs now, else null.
  type: dict
  returned: success
text:
  description: The last lines, as they are.
  type: str
  returned: success
cut:
  description: Whether the first of them may be cut off, since it lies further back than is read.
  type: bool
  returned: success
end:
  description: The place in the log, in bytes, up to which the lines go.
  type: int
  returned: success
size:
  description: The log's size in bytes.
  type: int
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import live, log_tail


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "log_dir": {"type": "str", "required": True},
            "stage": {"type": "str", "default": ""},
            "lines": {"type": "int", "default": 100},
        },
        supports_check_mode=True,
    )
    given = module.params
    running = live.running(given["root"])
    try:
        answer = log_tail.look(
            given["root"], given["log_dir"], given["stage"], given["lines"], running
        )
    except OSError as error:
        module.fail_json(
            msg=f"The log can't be read on the host: {error}",
            hint=f"Look into {given['log_dir']} there.",
            category="infra",
        )
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
