#!/usr/bin/python
"""The Ansible module pull; the work is done in module_utils: remote_train/git_tree."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: pull
short_description: Bring a project to a commit with the git of this host
author: remote-train contributors
description:
  - Clones into O(root) where nothing is there yet but C(outputs), else fetches and goes on.
  - A branch goes forward only; a tag or a commit is pinned. Submodules go to the commits that the
    project names.
  - Loses nothing. Tracked files that were changed on the host, commits that the remote doesn't
    have, and files that are in the way end it before anything is changed.
  - Asks for nothing, runs no hooks, checks host keys, and says nothing of what is secret in a URL.
  - A pull that was killed is taken up by the next one.
options:
  root:
    description:
      - The project's root on the host.
    type: path
    required: true
  url:
    description:
      - Where to pull from. C(https), C(ssh), C(user@host:path), C(file) or an absolute path.
      - A name and a password in it are used and never written down on the host.
    type: str
    required: true
  ref:
    description:
      - A branch, a tag, or a commit by all of its digits. By default the remote's default branch.
    type: str
    default: ""
  allow_dirty:
    description:
      - Go on although tracked files were changed on the host, where git can keep the changes.
    type: bool
    default: false
  allowed_signers:
    description:
      - The text of an allowed-signers file. Where it is given, the commit, or the tag that is
        pinned, has to be signed by one of them, with a key of ssh, under the namespace C(git).
      - It is checked before anything is checked out, and takes git 2.34. Submodules are of the
        commits that it names, and their own signatures are not looked at.
    type: str
attributes:
  check_mode:
    description:
      - Can run in check mode; asks the remote, says what would change or why it can't, and leaves
        no trace.
    support: full
  diff_mode:
    description:
      - Lists the paths that change. In check mode those of submodules, and of a first clone, are
        not known.
    support: full
  platform:
    description: The systems that it runs on.
    platforms: posix
    support: full
"""

EXAMPLES = r"""
---
- name: Follow a branch
  pull:
    root: /srv/tutor
    url: https://git.example.org/tutor.git
    ref: main

- name: Pin a release
  pull:
    root: /srv/tutor
    url: git@git.example.org:tutor.git
    ref: v1.2.0
"""

RETURN = r"""
---
before:
  description: The commit that was checked out; empty where there was none.
  returned: success
  type: str
after:
  description: The commit that is, or would be.
  returned: success
  type: str
ref:
  description: The branch, tag or commit that was asked for.
  returned: success
  type: str
kind:
  description: What it is.
  returned: success
  type: str
  choices: [branch, tag, commit]
files:
  description: The number of files that differ between the two; null where that can't be known yet.
  returned: success
  type: int
last:
  description: The last five commits of what is checked out, newest first.
  returned: success
  type: list
  elements: dict
  contains:
    short:
      description: Its number, shortened.
      type: str
    date:
      description: When it was committed (ISO 8601).
      type: str
    subject:
      description: The first line of what it says.
      type: str
lines:
  description: What happened and the last commits, for a person.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.remote_train import git_tree, git_url, live
from ansible.module_utils.remote_train.errors import TrainError
from ansible.module_utils.remote_train.file_names import shown
from ansible.module_utils.remote_train.problems import failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "url": {"type": "str", "required": True, "no_log": False},
            "ref": {"type": "str", "default": ""},
            "allow_dirty": {"type": "bool", "default": False},
            "allowed_signers": {"type": "str"},
        },
        supports_check_mode=True,
        no_log=True,  # a password may stand in the URL, and the host's log would hold it
    )
    given = module.params
    try:
        secret = git_url.parse(given["url"])
        module.no_log_values.update(word for word in (secret.user, secret.password) if word)
        module.no_log_values.update([given["url"]] if secret.has_login else [])
        if not module.check_mode and live.is_held(given["root"]):
            raise TrainError(
                f"A training is running in {given['root']}; a pull would change its files under it.",
                "Wait until it has ended, or stop it.",
            )
        done = git_tree.pull(
            given["root"],
            given["url"],
            given["ref"],
            given["allow_dirty"],
            check=module.check_mode,
            allowed_signers=given["allowed_signers"],
        )
    except TrainError as error:
        module.fail_json(**failure(error))
    for warning in done.warnings:
        module.warn(warning)
    result = {
        "changed": done.changed,
        "before": done.before,
        "after": done.after,
        "ref": done.ref.name,
        "kind": done.ref.kind,
        "files": None if done.files is None else len(done.files),
        "last": [commit._asdict() for commit in done.last],
        "lines": done.told(module.check_mode),
    }
    if module._diff:
        paths = "".join(f"{sign} {shown(name)}\n" for sign, name in done.files or ())
        result["diff"] = {
            "before": f"{done.before or 'nothing'}\n" if done.changed else "",
            "after": f"{done.after}\n{paths}" if done.changed else "",
        }
    module.exit_json(**result)


if __name__ == "__main__":
    main()
