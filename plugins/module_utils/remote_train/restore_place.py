"""Where the state of a restore lies on the host while it is applied."""

from __future__ import annotations

import os

from . import runs

FOLDER = f"{runs.SYNC}/restored"
"""Under the project's root; a folder in it for each run, which goes when the run is there."""


def interrupted(root: str) -> list[str]:
    """The folders of restores that did not come to their end, under the root."""
    try:
        return [f"{FOLDER}/{name}" for name in sorted(os.listdir(os.path.join(root, FOLDER)))]
    except (FileNotFoundError, NotADirectoryError):
        return []
