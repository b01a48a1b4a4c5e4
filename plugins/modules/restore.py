#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: restore
short_description: See what a host lacks of a run, or verify that it lacks nothing
description:
  - Compares the files of a run with those on the host, and names the stages that are done there
    with something else.
  - With O(finish), verifies that all of them are there, and keeps them with the run.
author: the remote-train authors
attributes:
  check_mode:
    description: Can run in check mode, and looks there as it does otherwise.
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
    description: The project's root.
    type: path
    required: true
  run:
    description: The name of the run.
    type: str
    required: true
  digests:
    description: SHA-256 of each file of the run, by its path under O(root).
    type: dict
    required: true
  finish:
    description: Whether the files have been sent.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: See what the host lacks
  restore:
    root: /srv/tutor
    run: run_20260209T093000Z
    digests: "{{ digests_of_the_run }}"
"""

RETURN = r"""
missing:
  description: The files that are not there.
  type: list
  elements: str
  returned: when looking
different:
  description: The files that are there with other bytes.
  type: list
  elements: str
  returned: when looking
done:
  description: The stages that are done there with something else.
  type: list
  elements: str
  returned: when looking
verified:
  description: The number of files that are as they should be.
  type: int
  returned: with O(finish)
problems:
  description: A sentence for each file that could not be kept with the run.
  type: list
  elements: str
  returned: with O(finish)
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import disk_errors, restore
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "run": {"type": "str", "required": True},
            "digests": {"type": "dict", "required": True},
            "finish": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    # Ansible sends a module's arguments back with its result; these may be long.
    digests = given.pop("digests")
    try:
        if given["finish"] and not module.check_mode:
            answer = restore.finish(given["root"], given["run"], digests)
        else:
            answer = restore.look(given["root"], digests)
    except OSError as refused:
        error = disk_errors.cannot(f"The run can't be kept in {given['root']}", refused)
        module.fail_json(msg=error.message, hint=error.hint, category=error.category)
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
