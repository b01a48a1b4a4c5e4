#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: provision
short_description: Make a GPU host ready for the training, and find the Python that trains
description:
  - Takes the first Python on the host that has what the training needs. Where none has, a venv is
    made under O(project_root) that sees the packages of the host's best Python, and what is missing
    is installed there. A torch that is there is never replaced.
  - Puts models and caches into C(runtime_base), and links C(models) of the project there.
  - Fetches base models that are named on a hub, and not in the cache yet.
  - What takes long runs in a process of its own that outlives the connection. The module returns
    at once; RV(status) says how far it is. With nothing to do, no process is started.
  - The action plugin of the same name starts the work with this module, and follows it.
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
  wheels:
    description: A folder of wheels on the host. Without O(index_url), no index is asked then.
    type: str
    default: ""
  pip:
    description: The path of a pip wheel on the host, for a host that has neither uv nor pip.
    type: str
    default: ""
  digests:
    description: SHA-256 of the files that were sent before, by path. They are verified before use.
    type: dict
    default: {}
  storage:
    description: Where models and caches lie, C(runtime_base), C(hf_home) and C(modelscope_cache).
    type: dict
    default: {}
  stages:
    description:
      - The stages whose base models are needed, C(command) and C(model) each. A model that is a
        folder here is not moved away; one that is a name on a hub is fetched.
    type: list
    elements: dict
    default: []
  endpoint:
    description: A mirror of the Hugging Face hub. One with a password goes into O(secrets), as C(HF_ENDPOINT).
    type: str
    default: ""
  secrets:
    description: What the fetch gets in its environment, such as C(HF_TOKEN). Never written down.
    type: dict
    default: {}
  token:
    description:
      - What names this start. Work that was started with the same token is not started again.
      - Without it, nothing is started; the module only says what there is to do.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Make the host ready
  provision:
    project_root: /srv/tutor
    requirements:
      torch: ">=2.6"
      transformers: ">=5,<6"
    storage: {runtime_base: /data}
    stages:
      - command: ""
        model: {model_name_or_path: Qwen/Qwen3-8B, model_revision: main, use_modelscope: false}
"""

RETURN = r"""
steps:
  description: What is left to do, a phrase each. Empty where the host is ready.
  type: list
  elements: str
  returned: success
python:
  description: The Python that trains, with C(path), C(python) (its version) and C(packages). Null where it is yet to be made.
  type: dict
  returned: success
tried:
  description: Every Python that was looked at, with what it lacks.
  type: list
  elements: dict
  returned: success
installed:
  description: What would be, or is being, installed.
  type: list
  elements: str
  returned: success
needs_pip:
  description: Whether the host has nothing to install with, so that O(pip) is needed.
  type: bool
  returned: success
status:
  description:
    - The status of the work with O(token), or of other work that was found running. Its C(token)
      says whose it is. Empty where there is none.
  type: dict
  returned: success
"""

import inspect

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import (
    detached,
    fetch_model,
    model_cache,
    package_index,
    provision,
)
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.installer import Source
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project_root": {"type": "path", "required": True},
            "requirements": {"type": "dict", "required": True},
            "python": {"type": "str", "default": ""},
            "index_url": {"type": "str", "default": "", "no_log": True},
            "wheels": {"type": "str", "default": ""},
            "pip": {"type": "str", "default": ""},
            "digests": {"type": "dict", "default": {}},
            "storage": {"type": "dict", "default": {}},
            "stages": {"type": "list", "elements": "dict", "default": []},
            "endpoint": {"type": "str", "default": ""},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "token": {"type": "str", "default": "", "no_log": False},
        },
        supports_check_mode=True,
    )
    given = module.params
    wanted = provision.Wanted(
        root=given["project_root"],
        requirements=given["requirements"],
        python=given["python"],
        source=Source(given["index_url"], given["wheels"]),
        storage=given["storage"],
        models=model_cache.by_name(given["stages"], given["project_root"]),
        in_use=sorted({str(stage["model"]["model_name_or_path"]) for stage in given["stages"]}),
        endpoint=given["endpoint"],
        secrets=given["secrets"],
        pip=given["pip"],
        digests=given["digests"],
    )
    try:
        status = detached.running(wanted.root) or detached.ended(wanted.root, given["token"]) or {}
        outlook = provision.look(wanted)
        lacks_pip = outlook.needs_pip and not wanted.pip
        starts = bool(outlook.steps and given["token"]) and not (module.check_mode or lacks_pip)
        if starts and not status:
            # Read now: what this module was sent in is gone before the work needs it.
            fetcher = inspect.getsource(fetch_model)
            status = detached.start(
                wanted.root,
                given["token"],
                lambda reporter: provision.carry_out(wanted, reporter, fetcher),
                (
                    *(str(value) for value in given["secrets"].values()),
                    *package_index.hidden(given["index_url"]),
                ),
            )
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(
        changed=bool(outlook.steps) and (starts or module.check_mode),
        steps=outlook.steps,
        python=outlook.python,
        tried=outlook.tried,
        installed=outlook.install,
        needs_pip=outlook.needs_pip,
        status=status,
    )


if __name__ == "__main__":
    main()
