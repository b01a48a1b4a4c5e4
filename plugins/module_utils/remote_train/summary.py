"""``TRAINING_SUMMARY.md``: what one run did, for a person; and its stages as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .text_table import text_table

SCORES = (
    ("key_point_coverage", "coverage"),
    ("response_format", "format"),
    ("refusal_accuracy", "refusal"),
)
HEADER = (
    *("stage", "state", "samples", "steps", "loss"),
    *(name for _, name in SCORES),
    *("time", "acceptance"),
)


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)


def duration(seconds: Any) -> str:
    """A time for a person, to the second; empty where there is none."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(float(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _score(scores: Mapping[str, Any], name: str) -> str:
    score = scores.get(name)
    return f"{score['value']:.2f} (n={score['n']})" if score else ""


def rows(stages: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The cells of each stage, under :data:`HEADER`."""
    found = []
    for stage in stages:
        metrics = stage["metrics"]
        scores = metrics.get("scores") or {}
        found.append(
            (
                stage["name"],
                stage["state"],
                _number(metrics.get("samples"), "d"),
                _number(metrics.get("steps"), "d"),
                _number(metrics.get("train_loss"), ".3f"),
                *(_score(scores, name) for name, _ in SCORES),
                duration(stage["seconds"]),
                stage["acceptance"],
            )
        )
    return found


def table(stages: list[dict[str, Any]]) -> str:
    """The stages as a text table for the terminal."""
    return text_table(HEADER, rows(stages), (20, 12, 8, 7, 8, 14, 14, 14, 12, 14))


def _markdown_table(header: tuple[str, ...], cells: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *cells]
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped) + "\n"


def render(record: Mapping[str, Any]) -> str:
    """The summary of one run.

    :param record: ``run``, ``host``, ``project_root``, ``started``, ``ended``, ``stages``,
        ``precheck``, ``environment``, ``issues``, ``files`` and ``verdict``, as gather has them.
    """
    stages = record["stages"]
    parts = [
        f"# {record['run']}: {record['verdict']}\n",
        _markdown_table(
            ("", ""),
            [
                ("Host", str(record["host"])),
                ("Project", str(record["project_root"])),
                ("Start", str(record["started"])),
                ("End", str(record["ended"])),
                *((name, str(value)) for name, value in record["environment"].items()),
            ],
        ),
        "## Stages\n",
        _markdown_table(HEADER, rows(stages)),
    ]
    notes = [f"- {s['name']}: {'; '.join(s['reasons'])}" for s in stages if s["reasons"]]
    if notes:
        parts += ["What ran or didn't, and why:\n", "\n".join(notes) + "\n"]
    again = [
        f"- {s['name']}: it took {s['attempts']} attempts; ISSUES.md says why."
        for s in stages
        if isinstance(s.get("attempts"), int) and s["attempts"] > 1
    ]
    if again:
        parts += ["What was tried more than once:\n", "\n".join(again) + "\n"]
    judged = [
        f"- {s['name']}: {'; '.join(s['acceptance_reasons'])}"
        for s in stages
        if s["acceptance_reasons"]
    ]
    if judged:
        parts += ["## Acceptance gate\n", "\n".join(judged) + "\n"]
    parts += ["## GPU gate\n", f"{record['precheck']}\n"]
    count = len(record["issues"])
    parts += ["## Issues\n", f"{count or 'None'}{': see ISSUES.md' if count else ''}.\n"]
    parts += ["## Files\n", "\n".join(f"- {name}" for name in record["files"]) + "\n"]
    parts += ["## What to do next\n", _next(stages, record)]
    return "\n".join(parts)


def _next(stages: list[dict[str, Any]], record: Mapping[str, Any]) -> str:
    failed = [stage["name"] for stage in stages if stage["state"] == "failed"]
    if failed:
        return (
            f"Read the issue of {', '.join(failed)} in ISSUES.md, mend its cause, and give the "
            "same command again: finished stages are not repeated.\n"
        )
    if any(stage["acceptance"] == "failed" for stage in stages):
        return "Scores are below their thresholds: read the answers in predictions_*.jsonl.\n"
    if record["verdict"] != "done":
        return "Give the same command again to go on where it stopped.\n"
    return "Load an adapter as its README.md shows. The same command now finds nothing to do.\n"
