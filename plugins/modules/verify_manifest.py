#!/usr/bin/python
"""The Ansible module verify_manifest; the work is done in module_utils/remote_train/manifest.py."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: verify_manifest
short_description: Hold a folder against its manifest of digests
author: remote-train contributors
description:
  - Hashes every file under a folder and compares it with the manifest that came along.
  - The manifest is C(SYNC_MANIFEST.sha256) if the folder has one, with SHA-256 digests, otherwise
    C(SYNC_MANIFEST.txt), with SHA-256 or legacy SHA-1 digests.
  - Reads the lines that C(sha256sum), C(sha1sum) and C(shasum) write, in text, binary and BSD
    tag form, with their backslash escapes.
  - Unlike C(sha256sum -c), refuses malformed lines, an empty manifest, absolute paths, C(..), NUL
    bytes, names that are listed twice or differ in case or Unicode form only, symlinks anywhere on
    the way, whatever is no regular file, and files that no line names.
  - Manifests and their signatures (C(*.sig)) never count as unlisted, and neither do the
    AppleDouble files (C(._*)) that macOS leaves; those are warned of.
  - Changes nothing.
options:
  root:
    description:
      - The folder that the manifest's names start from.
    type: path
    required: true
  manifest:
    description:
      - The manifest, relative to O(root) unless absolute.
      - One whose name ends in C(.sha256) holds SHA-256; else the length of the digests says.
      - Found in O(root) by default.
    type: path
  allow_unlisted:
    description:
      - Whether files that the manifest doesn't list may be there.
    type: bool
    default: false
  workers:
    description:
      - Threads that hash.
      - As many as there are processors by default.
    type: int
attributes:
  check_mode:
    description: Can run in check mode, and does the same there, since it changes nothing.
    support: full
  diff_mode:
    description: Has no difference to show, since it changes nothing.
    support: none
  platform:
    description: The systems that it runs on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
---
- name: Verify what was unpacked
  verify_manifest:
    root: /srv/tutor

- name: Verify a project that has outputs beside its own files
  verify_manifest:
    root: /srv/tutor
    manifest: outputs/training_sync/SYNC_MANIFEST.sha256
    allow_unlisted: true
"""

RETURN = r"""
---
algorithm:
  description: How the digests were made; empty when no line of the manifest says.
  returned: when root and manifest could be read
  type: str
  choices: [sha256, sha1, ""]
  sample: sha256
legacy:
  description: Whether the digests are SHA-1, which no longer withstands an attacker.
  returned: when root and manifest could be read
  type: bool
  sample: false
manifest:
  description: The path of the manifest.
  returned: when root and manifest could be read
  type: str
  sample: /srv/tutor/SYNC_MANIFEST.sha256
verified:
  description: The number of files that are as listed.
  returned: when root and manifest could be read
  type: int
  sample: 42
bytes:
  description: The sizes of those files, added up.
  returned: when root and manifest could be read
  type: int
  sample: 1048576
seconds:
  description: How long it took.
  returned: when root and manifest could be read
  type: float
  sample: 0.25
problems:
  description: The first 1,000 reasons to refuse; empty when all is well.
  returned: when root and manifest could be read
  type: list
  elements: dict
  contains:
    line:
      description: The line of the manifest, from 1; null where no line is to blame.
      type: int
    path:
      description: The file's name, with bytes that can't be printed as escapes.
      type: str
    problem:
      description: The rule that is broken, as an identifier that doesn't change.
      type: str
      sample: digest-differs
    message:
      description: One sentence for a person.
      type: str
      sample: "line 3: data/a.jsonl has another digest than listed"
problem_count:
  description: The number of all problems, also of those beyond the first 1,000.
  returned: when root and manifest could be read
  type: int
  sample: 0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.manifest import verify
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "manifest": {"type": "path"},
            "allow_unlisted": {"type": "bool", "default": False},
            "workers": {"type": "int"},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["workers"] is not None and params["workers"] < 1:
        module.fail_json(msg=f"workers is {params['workers']}; it must be 1 or more.")
    try:
        found = verify(
            params["root"], params["manifest"], params["allow_unlisted"], params["workers"]
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    for warning in found.warnings:
        module.warn(warning)
    result = {
        "changed": False,
        "algorithm": found.algorithm,
        "legacy": found.legacy,
        "manifest": found.manifest,
        "verified": found.verified,
        "bytes": found.bytes,
        "seconds": round(found.seconds, 3),
        "problems": [problem._asdict() for problem in found.problems],
        "problem_count": found.problem_count,
    }
    if found.problem_count:
        module.fail_json(msg=found.summary, category="integrity", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
