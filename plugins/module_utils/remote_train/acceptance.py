"""The acceptance gate: a stage's scores against its thresholds.

Design brief, section 8: it judges and stops nothing. A threshold on a score that the benchmark
can't give fails the strict gate, and says what the benchmark lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LACKS = {
    "key_point_coverage": "no sample with key points",
    "response_format": "no sample whose system prompt asks for headings",
    "refusal_accuracy": "no sample that says whether to refuse",
    "citation_accuracy": "no sample with citations",
    "tool_call_accuracy": "no sample with tool calls",
}
"""What a benchmark without a score lacks."""


def judge(
    scores: Mapping[str, Any], thresholds: Mapping[str, float], mode: str
) -> tuple[str, list[str]]:
    """The verdict on a stage's scores, and why it fails.

    An adapter with any empty answer fails whatever its averages are.

    :param mode: ``strict``, ``warn`` or ``off``.
    :returns: ``passed``, ``failed``, ``no thresholds`` or ``off``, and a phrase for each reason.
    """
    if mode == "off":
        return "off", []
    reasons = []
    empty = scores.get("empty_responses") or {}
    if thresholds and empty.get("count"):
        reasons.append(f"{empty['count']} of {empty.get('n')} answers are empty")
    for name, wanted in sorted(thresholds.items()):
        score = scores.get(name)
        if not score:
            reasons.append(
                f"{name} is absent: the benchmark has {LACKS.get(name, 'nothing for it')}"
            )
        elif score["value"] < wanted:
            reasons.append(f"{name} {score['value']:.2f} is below {wanted:.2f}")
    if not thresholds:
        return "no thresholds", []
    return ("failed" if reasons else "passed"), reasons
