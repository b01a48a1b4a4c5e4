"""The record of what went wrong: ``issues.jsonl`` for programs, ``ISSUES.md`` for people.

Design brief, section 9. Each side of a run writes its own; collect puts them together.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

CATEGORIES = (
    "infra",
    "data",
    "oom",
    "model_download",
    "training_logic",
    "integrity",
    "ops",
)
SEVERITIES = ("error", "warning")
PHASES = ("plan", "precheck", "sync", "provision", "train", "collect")
"""The steps of a run, as an issue names them."""
FIELDS = (
    "time",
    "phase",
    "stage",
    "category",
    "severity",
    "symptom",
    "cause",
    "action",
    "status",
)


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def make(
    phase: str,
    symptom: str,
    *,
    category: str,
    severity: str = "error",
    stage: str | None = None,
    cause: str = "",
    action: str = "",
    status: str = "open",
) -> dict[str, Any]:
    """One issue.

    :param phase: the step of the run, one of :data:`PHASES`.
    :param symptom: one sentence that says what was seen.
    :raises ValueError: for a phase, category or severity that does not exist.
    """
    if phase not in PHASES:
        raise ValueError(f"no such phase: {phase}")
    if category not in CATEGORIES or severity not in SEVERITIES:
        raise ValueError(f"no such category or severity: {category}, {severity}")
    return {
        "time": now(),
        "phase": phase,
        "stage": stage,
        "category": category,
        "severity": severity,
        "symptom": symptom,
        "cause": cause,
        "action": action,
        "status": status,
    }


def line(issue: Mapping[str, Any]) -> str:
    """One issue as a line of JSON."""
    return json.dumps(dict(issue), ensure_ascii=False)


def append(path: str, issue: Mapping[str, Any]) -> None:
    """Add one issue to a file of lines."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # A name that is no UTF-8 is escaped, as JSON reads it again.
    text = (line(issue) + "\n").encode("utf-8", "backslashreplace")
    with open(path, "a+b") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            cut_off = stream.read(1) != b"\n"
            text = b"\n" + text if cut_off else text
        stream.write(text)


def read(path: str) -> list[dict[str, Any]]:
    """The issues in a file; a line that isn't one (cut off by a crash) is passed over."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            lines = stream.read().split("\n")  # U+2028 and the like end no line of JSON
    except FileNotFoundError:
        return []
    for text in lines:
        try:
            issue = json.loads(text)
        except ValueError:
            continue
        if isinstance(issue, dict) and all(field in issue for field in FIELDS):
            found.append(issue)
    return found


def merge(*sources: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All issues in the order of their times, each once."""
    unique = {
        json.dumps(dict(issue), sort_keys=True, ensure_ascii=False): dict(issue)
        for source in sources
        for issue in source
    }
    return sorted(unique.values(), key=lambda issue: str(issue["time"]))


def add(kept: list[dict[str, Any]], more: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is on record with what isn't yet: the same may have been seen at another time."""
    known = {(issue["phase"], issue["symptom"]) for issue in kept}
    return merge(kept, (one for one in more if (one["phase"], one["symptom"]) not in known))


def settle(found: Iterable[Mapping[str, Any]], done: Iterable[str]) -> list[dict[str, Any]]:
    """What the machine or the way to it did to a stage that is done in the end is open no more.

    :param done: the stages that are done.
    """
    names = set(done)
    return [_settled(one) if one["stage"] in names else dict(one) for one in found]


def _settled(issue: Mapping[str, Any]) -> dict[str, Any]:
    if issue["phase"] != "train" or (issue["category"] != "infra" and issue["status"] == "open"):
        return dict(issue)
    if issue["status"] == "open":
        return {**issue, "status": "handled", "action": ""}
    # What the new attempt was is told; what to do, had it failed as well, is nobody's task now.
    retry = re.match(r"Attempt \d+ of \d+ begins (?:with room|in \S+ s)\.", str(issue["action"]))
    return {**issue, "action": retry.group()} if retry else dict(issue)


def _cause(text: str, phase: str) -> str:
    """A cause of several lines, which are a log's, as a block of code in its list."""
    lines = text.strip("\n").splitlines()
    if phase != "train" or len(lines) < 2:
        return text
    return "\n".join(["last lines of the log:", "", *(f"      {one}" for one in lines), ""])


def render(issues: list[dict[str, Any]]) -> str:
    """``ISSUES.md``: a section each."""
    if not issues:
        return "# Issues\n\nNone: no step of this run warned or failed.\n"
    parts = ["# Issues\n"]
    for number, issue in enumerate(issues, 1):
        where = issue["phase"] + (f", stage {issue['stage']}" if issue["stage"] else "")
        parts.append(f"## {number}. {issue['symptom']}\n")
        rows = [
            ("Time", issue["time"]),
            ("Where", where),
            ("Category", f"{issue['category']} ({issue['severity']})"),
            ("Cause", _cause(str(issue["cause"]), issue["phase"])),
            ("What to do", issue["action"]),
            ("Status", issue["status"]),
        ]
        parts.append("\n".join(f"- {name}: {value}" for name, value in rows if value) + "\n")
    return "\n".join(parts)
