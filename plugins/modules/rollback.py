#!/usr/bin/python
"""The Ansible module rollback; the work is done in module_utils: remote_train/rollback."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rollback
short_description: Go back to what a project was before a sync
author: remote-train contributors
description:
  - Makes the files that syncs have changed what they were in a version that is kept; all of it or
    nothing, under the same journal as M(apply_bundle).
  - Going back makes a version of its own, so that it can be undone in the same way.
  - Refuses, and then changes nothing, when a file that would be replaced was changed on the host
    since it was applied, or when what is kept isn't what it was. A file that would be removed and
    was changed is kept, with a warning.
  - Touches no file that didn't change between that version and the present one.
options:
  root:
    description:
      - The folder that bundles were applied to.
    type: path
    required: true
  state_dir:
    description:
      - The folder that was given as O(state_dir) when they were applied.
    type: path
    required: true
  version:
    description:
      - The number of the version to go back to.
      - C(previous) is the one before the present one; C(list) changes nothing and lists them.
    type: str
    default: previous
  keep:
    description:
      - How many versions are kept beside the present one.
    type: int
    default: 5
attributes:
  check_mode:
    description: Can run in check mode; checks what is kept, says what would change, writes nothing.
    support: full
  diff_mode:
    description: Lists the files that are replaced, removed and added, each with its digest.
    support: full
  platform:
    description: The systems that it runs on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
---
- name: Go back to what the project was before the last sync
  rollback:
    root: /srv/tutor
    state_dir: /srv/tutor/outputs/training_sync

- name: List the versions
  rollback:
    root: /srv/tutor
    state_dir: /srv/tutor/outputs/training_sync
    version: list
"""

RETURN = r"""
---
versions:
  description: The versions that can be gone back to, oldest first; the last is the present one.
  returned: success
  type: list
  elements: dict
  contains:
    number:
      description: Its number; 0 is what was there before the first sync.
      type: int
    made:
      description: When it was applied (UTC); empty for number 0.
      type: str
    by:
      description: C(apply), C(rollback), or empty for number 0.
      type: str
    of:
      description: The bundle's name, or the number of the version that was gone back to.
      type: str
    sha256:
      description: The digest of the bundle.
      type: str
    files:
      description: How many files its manifest lists.
      type: int
    current:
      description: Whether it is the present one.
      type: bool
left:
  description: The number of the version that was left.
  returned: when it went back, or would
  type: int
target:
  description: The number of the version that it went back to.
  returned: when it went back, or would
  type: int
version:
  description: The number under which that is the present version now; null in check mode.
  returned: when it went back, or would
  type: int
added:
  description: The files that are there again, sorted; names that can't be printed have escapes.
  returned: when it went back, or would
  type: list
  elements: str
replaced:
  description: The files whose bytes or mode changed.
  returned: when it went back, or would
  type: list
  elements: str
removed:
  description: The files that a later sync had brought.
  returned: when it went back, or would
  type: list
  elements: str
kept:
  description: Such files that were changed on the host since, and are left there.
  returned: when it went back, or would
  type: list
  elements: str
bytes:
  description: The sizes of the files written, added up.
  returned: when it went back, or would
  type: int
seconds:
  description: How long it took.
  returned: when it went back, or would
  type: float
lines:
  description: What changed, or the list of versions, for a person.
  returned: success
  type: list
  elements: str
problems:
  description: The first 1,000 reasons to refuse, as those of M(verify_manifest).
  returned: when it was refused
  type: list
  elements: dict
problem_count:
  description: The number of all problems.
  returned: when it was refused
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import live, recovery, versions
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.file_names import shown
from ansible.module_utils.remote_train.problems import failure
from ansible.module_utils.remote_train.rollback import RollbackResult, rollback

SHOWN = 20  # files that are listed for a person; --diff lists all


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "version": {"type": "str", "default": "previous"},
            "keep": {"type": "int", "default": versions.KEEP},
        },
        supports_check_mode=True,
    )
    try:
        result = answer(module)
    except TrainError as error:
        module.fail_json(**failure(error))
    module.exit_json(**result)


def answer(module: AnsibleModule) -> dict:
    params = module.params
    root, state_dir, wanted = params["root"], params["state_dir"], params["version"].strip()
    if params["keep"] < 0:
        raise TrainError(f"The number of versions to keep is {params['keep']}, which is below 0.")
    if wanted == "list":
        return listed(module, root, state_dir)
    if not (wanted == "previous" or (wanted.isascii() and wanted.isdigit())):
        raise TrainError(
            f"version is {wanted!r}, which is no version's number.",
            "Give a number, previous, or list, which shows them.",
        )
    if live.is_held(root):
        raise TrainError(
            f"A training is running in {root}; going back now would change its files under it.",
            "Wait until it has ended, or stop it.",
        )
    number = None if wanted == "previous" else int(wanted)
    done = rollback(root, state_dir, number, check=module.check_mode, keep=params["keep"])
    for warning in done.warnings:
        module.warn(warning)
    result = {
        "changed": done.changed,
        "versions": [record(version) for version in versions.versions(state_dir)],
        **{key: getattr(done, key) for key in ("left", "target", "version", "unchanged", "bytes")},
        **{
            key: [shown(name) for name in getattr(done, key)]
            for key in ("added", "replaced", "removed", "kept")
        },
        "seconds": round(done.seconds, 3),
        "lines": told(done, module.check_mode),
    }
    if module._diff:
        result["diff"] = {
            "before": "".join(f"{line}\n" for line in done.before),
            "after": "".join(f"{line}\n" for line in done.after),
        }
    return result


def listed(module: AnsibleModule, root: str, state_dir: str) -> dict:
    if recovery.pending(state_dir):
        module.warn(f"A sync of {root} is at work or was interrupted; this is what was before it.")
    found = versions.versions(state_dir)
    lines = [version.line for version in found] or [f"  No version of {root} is kept."]
    return {"changed": False, "versions": [record(version) for version in found], "lines": lines}


def record(version: versions.Version) -> dict:
    fields = ("number", "made", "by", "of", "sha256", "files", "current")
    return {field: getattr(version, field) for field in fields}


def told(done: RollbackResult, check: bool) -> list:
    if not done.changed:
        return [f"  the files are as they were in version {done.target} already"]
    groups = (
        ("+", "added", done.added),
        ("~", "replaced", done.replaced),
        ("-", "removed", done.removed),
    )
    counts = ", ".join(f"{len(names)} {word}" for _sign, word, names in groups if names)
    verb = "would be" if check else "are"
    lines = [f"  the files {verb} as in version {done.target} again: {counts}"]
    files = [f"  {sign} {shown(name)}" for sign, _word, names in groups for name in names]
    lines += files[:SHOWN]
    if len(files) > SHOWN:
        lines.append(f"  and {len(files) - SHOWN} more; --diff shows all")
    if not check:
        lines.append(f"  this is version {done.version}; -e version={done.left} goes forth again")
    return lines


if __name__ == "__main__":
    main()
