"""The user's own git on this machine: the one to ask about the user's own project."""

from __future__ import annotations

import subprocess

from remote_train.file_names import to_name
from remote_train.git_program import own_environment


def ask(folder: str, *words: str) -> str:
    """What git says of a folder; empty where it has no answer, or isn't installed.

    Names that are no UTF-8 come as :mod:`remote_train.file_names` keeps them.
    """
    try:
        # S607: found on the PATH, as the user finds it.
        done = subprocess.run(
            ["git", "-C", folder, *words],  # noqa: S607
            capture_output=True,
            env=own_environment(),
            check=False,
        )
    except FileNotFoundError:
        return ""
    return "" if done.returncode else to_name(done.stdout.strip())
