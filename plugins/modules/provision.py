#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: provision
short_description: Find a Python that can train, or make one
description:
  - Takes the first Python on the host that has what the training needs. Where none has, it makes
    a venv under O(project_root) that sees the packages of the host's best Python, and installs
    what is missing there. A torch that is there is never replaced.
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
  project_root:
    description: The training project's folder on the host.
    type: path
    required: true
  requirements:
    description: What the training's Python must have, by name, with bounds such as C(>=2.6).
    type: dict
    required: true
  python:
    description: The only Python to use. It is never installed into.
    type: str
    default: ""
  index_url:
    description: Where packages come from. Default, as pip is set up on the host. May hold a password.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Find a Python that can train, or make one
  provision:
    project_root: /srv/tutor
    requirements:
      torch: ">=2.6"
      transformers: ">=5,<6"
"""

RETURN = r"""
python:
  description: The Python that trains, with C(path), C(python) (its version) and C(packages).
  type: dict
  returned: success
installed:
  description: What was installed.
  type: list
  elements: str
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import provision
from ansible.module_utils.remote_train.errors import TrainError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project_root": {"type": "path", "required": True},
            "requirements": {"type": "dict", "required": True},
            "python": {"type": "str", "default": ""},
            "index_url": {"type": "str", "default": "", "no_log": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        answer = provision.ensure(
            given["project_root"],
            given["requirements"],
            given["python"],
            given["index_url"],
            module.check_mode,
        )
    except TrainError as error:
        module.fail_json(msg=error.message, hint=error.hint, category=error.category)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
