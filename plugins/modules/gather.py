#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: gather
short_description: Gather one run in its folder, with the digests of all that comes home
description:
  - Brings reports, logs and records of a run together in its folder, writes C(SHA256SUMS) over
    it and C(outputs.sha256) over adapters, markers and finished logs.
  - With O(pack), packs the named files into one bundle to be fetched instead, and removes
    bundles that have waited for more than a day.
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
  run:
    description: The name of the run.
    type: str
    required: true
  controller:
    description: What the controller knows of the run.
    type: dict
  pack:
    description: Paths under the project root to pack into a bundle; nothing is gathered then.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Gather a run
  gather:
    request: "{{ settings_request }}"
    run: run_20260209T093000Z
    controller: "{{ what_the_controller_knows }}"
"""

RETURN = r"""
files:
  description: What to bring home, C(path) under the project root, C(sha256) and C(size) each.
  type: list
  elements: dict
  returned: when gathering
table:
  description: The stages as a text table.
  type: str
  returned: when gathering
verdict:
  description: How the run ended as a whole.
  type: str
  returned: when gathering
against:
  description: What speaks against it, a phrase each.
  type: list
  elements: str
  returned: when gathering
summary:
  description: The path of TRAINING_SUMMARY.md under the project root.
  type: str
  returned: when gathering
removed:
  description: The old runs that were removed, by the rule C(keep_runs).
  type: list
  elements: str
  returned: when gathering
not_removed:
  description: A sentence for each old run that could not be removed.
  type: list
  elements: str
  returned: when gathering
bundle:
  description: The bundle's path on the host.
  type: str
  returned: when packing
sha256:
  description: The bundle's digest.
  type: str
  returned: when packing
size:
  description: The bundle's size in bytes.
  type: int
  returned: when packing
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import disk_errors, gather
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "run": {"type": "str", "required": True},
            "controller": {"type": "dict"},
            "pack": {"type": "list", "elements": "str"},
        },
        mutually_exclusive=[("controller", "pack")],
        required_one_of=[("controller", "pack")],
    )
    given = module.params
    root = given["request"]["project_root"]
    try:
        if given["pack"] is not None:
            answer = gather.pack(root, given["pack"])
        else:
            answer = gather.gather(given["request"], given["run"], given["controller"])
    except OSError as refused:
        error = disk_errors.cannot(f"The record can't be written to {root}", refused)
        module.fail_json(**failure(error))
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=given["pack"] is None, **answer)


if __name__ == "__main__":
    main()
