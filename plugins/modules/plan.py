#!/usr/bin/python
# Copyright: the remote-train authors. Apache License 2.0 (see LICENSE)
from __future__ import annotations

DOCUMENTATION = r"""
module: plan
short_description: Say what a run would do on this host, and why
description:
  - Compares the markers of the stages with the inputs of today, and the files of the training
    project with those that sync would bring.
  - Fails with the category C(infra) where a folder gives no answer, within a minute.
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
  offer:
    description: The project's files that sync would bring, as the controller packs them. Null where nothing is synced.
    type: str
  state:
    description: The folder of the sync's own state, under C(project_root).
    type: str
    default: outputs/training_sync
  cache:
    description: Take a file that has the inode, size and times of the last look for unchanged.
    type: bool
    default: false
  git:
    description: What the host pulls by itself, with C(url), C(ref), C(allow_dirty) and C(allowed_signers). Null where it doesn't.
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
provision:
  description: What provisioning would do beside a Python, a phrase each.
  type: list
  elements: str
  returned: success
bare:
  description:
    - What provisioning will do about a Python, C(install) (the packages it adds), C(msg) and C(hint) of its refusal.
    - Null where there is a Python already, or none is needed.
  type: dict
  returned: success
interrupted:
  description: A sentence for each sync that was found interrupted, on how it ended.
  type: list
  elements: str
  returned: success
sync:
  description:
    - What sync would do; null where nothing is synced.
    - C(add), C(change) and C(mode) (the executable bit alone) are places in the offer, C(remove) and C(kept) names to be shown.
  type: dict
  returned: success
git:
  description:
    - What a pull would do, C(changes), C(before), C(after) (commits) and C(lines) for a person, with C(url), without what is secret in it, and C(ref).
    - Null where the host doesn't pull.
  type: dict
  returned: success
is_clone:
  description: Whether the project on the host is a clone of git's.
  type: bool
  returned: success
offer_kept:
  description: Whether the host has kept the offer, so that it need not be sent again.
  type: bool
  returned: success
engine_changed:
  description: Whether sync would send this project's own code.
  type: bool
  returned: success
"""

import os
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import (
    git_tree,
    git_url,
    offer,
    plan,
    recovery,
    restore_place,
    target_change,
)
from ansible.module_utils.remote_train.digest_cache import DigestCache
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.problems import failure


def pull_of(
    root: str, wanted: Mapping[str, Any] | None, stages: list[dict[str, Any]], request: Any
) -> dict[str, Any] | None:
    """What a pull would do; stages that it may change are marked. None where nothing is pulled."""
    if wanted is None:
        return None
    done = git_tree.pull(
        root,
        wanted["url"],
        wanted["ref"],
        wanted["allow_dirty"],
        check=True,
        allowed_signers=wanted.get("allowed_signers"),
    )
    if done.changed:
        changed = None if done.files is None else {name for _sign, name in done.files}
        plan.unsure(stages, request, changed, f"git brings {done.after[:12]}")
    return {
        "url": git_url.without_login(wanted["url"]),
        "ref": wanted["ref"],
        "changes": done.changed,
        "before": done.before,
        "after": done.after,
        "lines": done.told(check=True),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "code": {"type": "list", "elements": "str", "required": True},
            "requirements": {"type": "dict", "default": {}},
            "python": {"type": "str", "default": ""},
            "offer": {"type": "str"},
            "state": {"type": "str", "default": "outputs/training_sync"},
            "cache": {"type": "bool", "default": False},
            "git": {"type": "dict"},
            "engine": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
        no_log=True,  # a password may stand in the URL of git, and the host's log would hold it
    )
    given = module.params
    # Ansible sends a module's arguments back with its result, which -vvv shows: a password may
    # stand in this one's URL.
    git = given.pop("git")
    root = given["request"]["project_root"]
    engine = os.path.join(root, plan.ENGINE)
    state = os.path.join(root, given["state"])
    interrupted, changed = [], False
    try:
        plan.reach(given["request"], given["python"])
        # What was interrupted comes to its end first: one look at one name each where nothing was.
        states = [
            (root, os.path.join(root, folder))
            for folder in (*plan.STATES, *restore_place.interrupted(root))
        ]
        for place, its_state in (*states, (engine, f"{engine}/.state")):
            if module.check_mode and recovery.pending(its_state):
                interrupted.append(f"A sync of {place} was interrupted; a run ends it first.")
            elif ended := recovery.recover(place, its_state):
                interrupted.append(ended.sentence)
                changed = True
        # Ansible sends a module's arguments back with its result; this one is long.
        packed = given.pop("offer")
        offered = None if packed is None else offer.unpack(packed)
        made = plan.make(
            given["request"],
            (given["code"][0], given["code"][1]),
            given["requirements"],
            given["python"],
            offered,
        )
        made["git"] = pull_of(root, git, made["stages"], given["request"])
        made["work"] = plan.work_of(made["stages"])
        made["sync"], made["offer_kept"] = None, False
        if offered is not None:
            known = target_change.cache_path(state)
            cache = DigestCache(known, root) if given["cache"] else None
            sync = made["sync"] = plan.compare(root, state, offered, cache)
            if not module.check_mode:
                if cache:
                    cache.save()
                made["offer_kept"] = plan.sends(sync) and offer.keep(state, offered, packed)
        made["is_clone"] = os.path.lexists(os.path.join(root, ".git"))
        made["engine_changed"] = plan.engine_differs(root, given["engine"])
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(changed=changed, interrupted=interrupted, **made)


if __name__ == "__main__":
    main()
