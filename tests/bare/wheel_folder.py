"""The wheels that a machine without internet trains with, as a person would collect them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.bare.bare_host import CACHE, MissingError

PROJECT = Path(__file__).resolve().parents[2]
BARE_PYTHON = "3.11"
"""The Python of the bare machine."""


def wheel_folder() -> Path:
    """A folder with all that the training needs, in the versions of constraints.txt; kept.

    :raises MissingError: where pip can't have them.
    """
    needed = PROJECT / "training" / "requirements.txt"
    pinned = PROJECT / "constraints.txt"
    name = hashlib.sha256(needed.read_bytes() + pinned.read_bytes()).hexdigest()[:12]
    folder = CACHE / f"wheels-{name}"
    if (folder / ".whole").exists():
        return folder
    command = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--dest", str(folder), "--requirement", str(needed), "--constraint", str(pinned)),
    ]
    if sys.version_info[:2] != (3, 11):
        command += ["--python-version", BARE_PYTHON, "--only-binary", ":all:"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise MissingError(f"pip can't download the training's wheels: {said[0]}")
    (folder / ".whole").touch()
    return folder
