#!/usr/bin/python
"""The Ansible module apply_bundle; the work is done in module_utils: remote_train/bundle_apply."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: apply_bundle
short_description: Unpack a verified bundle into a project
author: remote-train contributors
description:
  - Checks a C(.tar.gz) by its digest, unpacks it into a staging folder of mode 0700 while hashing
    every byte, and holds the files against the manifest in the bundle.
  - Only when all of it is right, moves the files that differ into place, each by a rename, and
    removes the files that the manifest applied before lists and this one doesn't. All of it or
    nothing; killed at any instant, the next run finishes or undoes it first.
  - Keeps the files that it replaces and removes as a version, which M(rollback) goes back to.
  - Refuses, and then changes nothing, names that lead out of O(root), links, devices, setuid bits,
    files that are listed twice, not listed or missing, and symlinks on the way inside O(root).
  - Deletes nothing that it did not make. A file that was changed since is kept, with a warning.
  - The executable bit travels; owners, times and other modes don't.
  - With an offer, takes a bundle that holds only those files of it that the host lacks.
options:
  src:
    description:
      - The bundle, on the host, or a folder that it came into in parts.
    type: path
  content:
    description:
      - The bundle itself, in Base64, where it is small enough to come along.
    type: str
  label:
    description:
      - What the bundle is called, in messages and in the list of versions. By default its file's name.
    type: str
    default: ""
  project_root:
    description:
      - A project in which no training may be running, or it is refused, since its files would change under it.
    type: path
  offer:
    description:
      - All the project's files, as they were offered, where the bundle holds only some of them.
    type: str
  offer_sha256:
    description:
      - The digest of the offer that M(plan) has kept in O(state_dir), in place of O(offer).
    type: str
  signature:
    description:
      - The signature of the manifest, where it doesn't come in the bundle.
    type: str
  allowed_signers:
    description:
      - Whose signatures count, as lines of an allowed-signers file (ssh-keygen(1)). With it, a manifest that none of them has signed is refused.
    type: str
  cache:
    description:
      - Take a file on the host that has the inode, size and times of the last look for unchanged.
    type: bool
    default: false
  wait:
    description:
      - Seconds for which another sync that is at work is waited for.
    type: float
    default: 0
  root:
    description:
      - The folder that the bundle's names start from. It is made when it is missing.
    type: path
    required: true
  state_dir:
    description:
      - A folder on the same file system as O(root), for the staging folder, the journal, the
        versions that are kept, and the manifest of what was applied last, C(SYNC_MANIFEST.sha256).
      - It may lie in O(root); no bundle can write into it then.
    type: path
    required: true
  sha256:
    description:
      - The digest that O(src) must have.
      - By default the one in the file of the same name with C(.sha256) behind it. Without either,
        nothing vouches for the bundle as a whole, which is warned of.
    type: str
  keep:
    description:
      - How many versions are kept beside the new one, for M(rollback).
    type: int
    default: 5
attributes:
  check_mode:
    description: Can run in check mode; verifies all, says what would change, and writes nothing.
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
- name: Bring the project to what the bundle holds
  apply_bundle:
    src: /srv/tutor/outputs/training_sync/incoming/project.tar.gz
    root: /srv/tutor
    state_dir: /srv/tutor/outputs/training_sync
    sha256: "{{ bundle_sha256 }}"
"""

RETURN = r"""
---
added:
  description: The files that are new, sorted; names that can't be printed have escapes.
  returned: success
  type: list
  elements: str
replaced:
  description: The files whose bytes or executable bit changed.
  returned: success
  type: list
  elements: str
removed:
  description: The files that the bundle applied before had and this one doesn't.
  returned: success
  type: list
  elements: str
kept:
  description: Such files that were changed on the host since, and are left there.
  returned: success
  type: list
  elements: str
unchanged:
  description: The number of files that were as they should be.
  returned: success
  type: int
  sample: 40
bytes:
  description: The sizes of the files written, added up.
  returned: success
  type: int
  sample: 4096
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 0.3
algorithm:
  description: How the manifest's digests were made.
  returned: success
  type: str
  choices: [sha256, sha1]
legacy:
  description: Whether they are SHA-1, which no longer withstands an attacker.
  returned: success
  type: bool
sha256:
  description: The digest of the bundle.
  returned: success
  type: str
signer:
  description: Who has signed the manifest; empty where nobody had to.
  returned: success
  type: str
version:
  description: The number of the version that is there now, for M(rollback); null in check mode.
  returned: success
  type: int
problems:
  description: The first 1,000 reasons to refuse, as those of M(verify_manifest).
  returned: when the bundle or the target was refused
  type: list
  elements: dict
problem_count:
  description: The number of all problems.
  returned: when the bundle or the target was refused
  type: int
"""

import base64
import binascii
import os
import re
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import live, offer
from ansible.module_utils.remote_train.bundle_apply import Delivery, apply
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.file_names import shown
from ansible.module_utils.remote_train.problems import failure
from ansible.module_utils.remote_train.signature import Trust
from ansible.module_utils.remote_train.versions import KEEP


def trust(params: dict[str, Any]) -> Trust | None:
    """Whose signature counts; None where none is asked for."""
    if params["allowed_signers"] is None:
        return None
    signature = params["signature"]
    return Trust(params["allowed_signers"], None if signature is None else signature.encode())


def delivered(params: dict[str, Any]) -> Delivery:
    """How the bundle came. :raises TrainError: when a part of it is damaged or gone."""
    # Ansible sends a module's arguments back with its result; these are long.
    text, packed = params.pop("content"), params.pop("offer")
    content, offered = None, None
    if text is not None:
        try:
            content = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise TrainError(f"content is not Base64: {error}.", "", "integrity") from error
    if packed is not None:
        offered = offer.unpack(packed)
    elif params["offer_sha256"] is not None:
        offered = offer.kept(params["state_dir"], params["offer_sha256"])
    return Delivery(content, offered, params["cache"], params["label"], params["wait"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path"},
            "content": {"type": "str"},
            "label": {"type": "str", "default": ""},
            "project_root": {"type": "path"},
            "root": {"type": "path", "required": True},
            "state_dir": {"type": "path", "required": True},
            "sha256": {"type": "str"},
            "keep": {"type": "int", "default": KEEP},
            "offer": {"type": "str"},
            "offer_sha256": {"type": "str"},
            "signature": {"type": "str"},
            "allowed_signers": {"type": "str"},
            "cache": {"type": "bool", "default": False},
            "wait": {"type": "float", "default": 0},
        },
        mutually_exclusive=[("src", "content"), ("offer", "offer_sha256")],
        required_one_of=[("src", "content")],
        supports_check_mode=True,
        no_log=True,  # the host's log is no place for the project's bytes
    )
    params = module.params
    expected = params["sha256"]
    if expected is not None and not re.fullmatch(r"[0-9A-Fa-f]{64}", expected):
        module.fail_json(msg=f"sha256 is not a digest of 64 hex digits: {expected!r}.")
    if params["keep"] < 0:
        module.fail_json(msg=f"The number of versions to keep is {params['keep']}, below 0.")
    try:
        if (
            params["project_root"]
            and not module.check_mode
            and live.is_held(params["project_root"])
        ):
            raise TrainError(
                f"A training is running in {params['project_root']}; a sync would change its files"
                " under it.",
                "Run it again: it follows that training to its end first.",
            )
        delivery = delivered(params)
        # One that came along lies nowhere, and nothing may be taken to lie beside it.
        nowhere = os.path.join(params["state_dir"], "incoming", "along", "bundle")
        done = apply(
            nowhere if params["src"] is None else params["src"],
            params["root"],
            params["state_dir"],
            expected,
            check=module.check_mode,
            keep=params["keep"],
            trust=trust(params),
            delivery=delivery,
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    for warning in done.warnings:
        module.warn(warning)
    result = {
        "changed": done.changed,
        "added": [shown(name) for name in done.added],
        "replaced": [shown(name) for name in done.replaced],
        "removed": [shown(name) for name in done.removed],
        "kept": [shown(name) for name in done.kept],
        "unchanged": done.unchanged,
        "bytes": done.bytes,
        "seconds": round(done.seconds, 3),
        "algorithm": done.algorithm,
        "legacy": done.legacy,
        "sha256": done.sha256,
        "signer": done.signer,
        "version": done.version,
    }
    if module._diff:
        result["diff"] = {
            "before": "".join(f"{line}\n" for line in done.before),
            "after": "".join(f"{line}\n" for line in done.after),
        }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
