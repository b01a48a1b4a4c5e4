"""The marker of a stage: the file that says it is done, with what, and what came out.

Design brief, section 7: ``outputs/training_sync/stages/<stage>.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from . import fingerprint
from .atomic import write_json
from .hashing import file_digest

SCHEMA = 1
STAGES = "outputs/training_sync/stages"


def marker_path(root: str, stage: str) -> str:
    """Where the marker of ``stage`` lies under the project's ``root``."""
    return os.path.join(root, STAGES, f"{stage}.json")


def read(root: str, stage: str) -> tuple[dict[str, Any] | None, str]:
    """The marker of ``stage``, or None and why it can't be used; a missing one is no warning."""
    path = marker_path(root, stage)
    try:
        with open(path, "rb") as stream:
            marker = json.loads(stream.read().decode("utf-8"))
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, RecursionError) as error:
        return None, f"The marker {path} can't be read ({error})."
    if not isinstance(marker, dict) or marker.get("schema") != SCHEMA:
        return None, f"The marker {path} is not of schema {SCHEMA}."
    wanted = ("inputs", "evaluation", "outputs", "metrics", "effective")
    if any(not isinstance(marker.get(key), dict) for key in wanted):
        return None, f"The marker {path} lacks one of {', '.join(wanted)}."
    outputs = marker["outputs"].values()
    if not outputs or any(not isinstance(known, dict) for known in outputs):
        return None, f"The marker {path} doesn't list what came out."
    return marker, ""


def write(root: str, stage: str, marker: Mapping[str, Any]) -> None:
    """Write the marker of ``stage``, durable before this returns."""
    write_json(marker_path(root, stage), {"schema": SCHEMA, "stage": stage, **marker})


def outputs_of(root: str, names: list[str]) -> dict[str, dict[str, Any]]:
    """Digest and size of each output file, by its path under ``root``."""
    return {
        name: {
            "sha256": file_digest(os.path.join(root, name), "sha256"),
            "size": os.path.getsize(os.path.join(root, name)),
        }
        for name in sorted(names)
    }


def damaged_outputs(root: str, marker: Mapping[str, Any]) -> list[str]:
    """What is wrong with the outputs that a marker lists: missing, or not the bytes it says."""
    problems = []
    for name, known in sorted(marker["outputs"].items()):
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            problems.append(f"{name} is missing")
        elif os.path.getsize(path) != known.get("size") or file_digest(path, "sha256") != known.get(
            "sha256"
        ):
            problems.append(f"{name} is damaged")
    return problems


def missing_outputs(root: str, marker: Mapping[str, Any]) -> list[str]:
    """The same by a look at names and sizes alone, which costs nothing while a training runs."""
    problems = []
    for name, known in sorted(marker["outputs"].items()):
        path = os.path.join(root, name)
        if not os.path.isfile(path):
            problems.append(f"{name} is missing")
        elif os.path.getsize(path) != known.get("size"):
            problems.append(f"{name} has another size")
    return problems


def judge(
    root: str,
    stage: str,
    inputs: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    ignored: list[str],
    force: bool = False,
    look: Callable[[str, Mapping[str, Any]], list[str]] = damaged_outputs,
) -> dict[str, Any]:
    """What a stage needs today: ``train``, ``evaluate`` or ``skip``, and why.

    :param look: what says which of the outputs are not what the marker lists.
    :returns: ``action``, ``reasons`` (a sentence each) and ``warnings``.
    """
    marker, warning = read(root, stage)
    verdict = {"warnings": [warning] if warning else []}
    reasons = ["force is set"] if force else _unusable(marker, warning)
    if reasons or marker is None:
        return {"action": "train", "reasons": reasons, **verdict}
    today = fingerprint.without(inputs, ignored)
    then = fingerprint.without(marker["inputs"], ignored)
    reasons = fingerprint.difference(then, today) + look(root, marker)
    if reasons:
        return {"action": "train", "reasons": reasons, **verdict}
    overlooked = fingerprint.difference(marker["inputs"], dict(inputs))
    notes = [f"{line} (ignored by fingerprint_ignore)" for line in overlooked]
    reasons = fingerprint.difference(marker["evaluation"], dict(evaluation), "evaluation")
    if marker.get("evaluation_fingerprint") != fingerprint.digest(marker["evaluation"]):
        reasons = reasons or ["its marker's evaluation_fingerprint is not that of its evaluation"]
    if reasons:
        return {"action": "evaluate", "reasons": reasons + notes, **verdict}
    return {"action": "skip", "reasons": ["up to date", *notes], **verdict}


def _unusable(marker: Mapping[str, Any] | None, warning: str) -> list[str]:
    """Why a marker says nothing about today; empty where it does."""
    if marker is None:
        return ["its marker can't be read" if warning else "it has not been trained yet"]
    if marker.get("status") != "done":
        return ["it did not end well"]
    if marker.get("fingerprint") != fingerprint.digest(marker["inputs"]):
        return ["its marker's fingerprint is not that of its inputs"]
    return []
