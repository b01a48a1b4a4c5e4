"""The gate: a table of checks, what they found, and whether a run stops at it.

A new check is a function from :class:`~remote_train.gate_model.Context` to a verdict, and its
row in the table of its file (``gate_gpu`` or ``gate_host``); nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import gate_gpu, gate_host
from .gate_model import (
    FAIL,
    GPU,
    MODES,
    OFF,
    OK,
    RESULTS,
    SKIPPED,
    STRICT,
    Check,
    Context,
    Finding,
    quantity,
)
from .text_table import text_table

CHECKS: tuple[Check, ...] = (*gate_gpu.CHECKS, *gate_host.CHECKS)
"""Every check of the passive gate, in the order of its table."""


def run_checks(
    context: Context, mode: str = STRICT, checks: Sequence[Check] = CHECKS
) -> list[Finding]:
    """Run every check; under ``off`` those of the GPU are skipped and say why.

    :raises ValueError: for a mode that doesn't exist.
    """
    _known(mode)
    return [
        Finding(check.name, check.scope, SKIPPED, "gpu_gate is off")
        if mode == OFF and check.scope == GPU
        else check.run(context)
        for check in checks
    ]


def judge(findings: Iterable[Finding], mode: str) -> tuple[bool, list[Finding]]:
    """Whether the run stops, and at which findings.

    A failed check of data, disk or packages stops in every mode, a failed check of the GPU in
    ``strict`` alone; ``unknown`` never stops.

    :raises ValueError: for a mode that doesn't exist.
    """
    _known(mode)
    stopping = [
        finding
        for finding in findings
        if finding.result == FAIL and (finding.scope != GPU or mode == STRICT)
    ]
    return bool(stopping), stopping


def _known(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"gpu_gate is {mode!r}, none of {', '.join(MODES)}")


def count_results(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each result; every result is named."""
    counts = dict.fromkeys(RESULTS, 0)
    for finding in findings:
        counts[finding.result] += 1
    return counts


def sentence(stopping: Sequence[Finding]) -> tuple[str, str]:
    """One sentence for what stops the run, and the hint that goes with it; empty for nothing."""
    if not stopping:
        return "", ""
    first = stopping[0]
    others = len(stopping) - 1
    more = f" (and {quantity(others, 'more check')} failed)" if others else ""
    return f"The check {first.check} failed: {first.seen.rstrip('.')}{more}.", first.action


def table(findings: Iterable[Finding], everything: bool = False) -> str:
    """The findings as a text table: those that aren't ok or skipped, or all of them."""
    rows = [
        (finding.check, finding.result, finding.seen, finding.expected, finding.action)
        for finding in findings
        if everything or finding.result not in (OK, SKIPPED)
    ]
    header = ("check", "result", "seen", "expected", "what to do")
    return text_table(header, rows, (20, 7, 44, 28, 44)) if rows else ""
