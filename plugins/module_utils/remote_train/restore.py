"""Look whether a run may be given back to a host, and whether it was."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import bundle, kept, live, markers, runs
from .errors import TrainError


def look(root: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """What the host lacks of a run, and which stages stand against it.

    :param digests: SHA-256 by path under the project's root.
    :returns: ``missing`` and ``different`` (paths), and ``done``, the stages that are done there
        with something else.
    :raises TrainError: where a training runs, or something stands in the way.
    """
    if live.is_held(root):
        raise TrainError(
            f"A training is running in {root}; restoring would change its files under it.",
            "Wait for its end, or stop it with playbooks/stop.yml.",
        )
    found = bundle.compare(root, digests)
    return {
        "missing": found["missing"],
        "different": found["different"],
        "done": [
            os.path.basename(name)[: -len(".json")]
            for name in found["different"]
            if os.path.dirname(name) == markers.STAGES and _is_done(root, name)
        ],
    }


def _is_done(root: str, name: str) -> bool:
    """Whether a marker is one of a good end, whose outputs are there."""
    marker, _ = markers.read(root, os.path.basename(name)[: -len(".json")])
    if marker is None or marker.get("status") != "done":
        return False
    return not markers.damaged_outputs(root, marker)


def finish(root: str, run: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """Verify all of a run that was given back, and keep it with the run.

    :returns: ``verified``, the number of files, and ``problems`` of keeping them.
    :raises TrainError: category integrity, where a file is not as it should be.
    """
    found = bundle.compare(root, digests)
    wrong = found["missing"] + found["different"]
    if wrong:
        raise TrainError(
            f"{wrong[0]} is not on the host as it was sent.",
            "Give the same command again.",
            "integrity",
        )
    sync = os.path.join(root, runs.SYNC)
    listed = runs.listed(os.path.join(sync, run, "outputs.sha256")) or {}
    # Copied where a link can't be made; a command of the user's own is not known here.
    problems = kept.fill(sync, run, listed, lambda name: os.path.join(root, name))
    return {"verified": len(digests), "problems": problems}
