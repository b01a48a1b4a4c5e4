"""The gate: a table of checks, what they found, and whether a run stops at it.

A new check is a function from :class:`~remote_train.gate_model.Context` to a verdict, and its
row in the table of its file; nothing else knows of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from . import gate_data, gate_driver, gate_gpu, gate_health, gate_host, gate_links
from .gate_model import (
    FAIL,
    GPU,
    MODES,
    OK,
    RESULTS,
    SKIPPED,
    STRICT,
    UNKNOWN,
    WARN,
    Check,
    Context,
    Finding,
    Looked,
    any_of,
    left_out,
    quantity,
)
from .text_table import text_table

CHECKS: tuple[Check[Context], ...] = (
    *gate_driver.CHECKS,
    *gate_gpu.CHECKS,
    *gate_health.CHECKS,
    *gate_links.CHECKS,
    *gate_host.CHECKS,
    *gate_data.CHECKS,
)
"""Every check of the passive gate, in the order of its table."""

WIDTHS = (17, 7, 26, 18, 24)
"""The most columns of the table's cells: with the gaps, 100 in all."""


def run_checks(
    context: Context,
    mode: str = STRICT,
    checks: Sequence[Check[Context]] = CHECKS,
    silenced: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Run every check; those of the GPU are skipped, and say why, where no GPU is to be looked at.

    :param silenced: the reasons for which checks are silenced, by name.
    :raises ValueError: for a mode that doesn't exist.
    """
    return run_table(context, mode, checks, silenced or {}, context.limits.gpus)


def run_table(
    context: Looked,
    mode: str,
    checks: Sequence[Check[Looked]],
    silenced: Mapping[str, str],
    gpus: int = 1,
) -> list[Finding]:
    """Run the checks of any table on what they look at, as :func:`run_checks` does.

    :param gpus: how many GPUs the run asks for.
    :raises ValueError: for a mode that doesn't exist.
    """
    _known(mode)
    no_gpu = left_out(mode, gpus)
    return [
        Finding(check.name, check.scope, SKIPPED, no_gpu)
        if no_gpu and check.scope == GPU
        else check.run(context, silenced.get(check.name, ""))
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
    # What an estimate is made of stands in the table, behind a colon.
    wanted = first.expected.split(": ")[0].rstrip(".")
    expected = f"; expected: {wanted}" if wanted else ""
    more = f" (and {quantity(others, 'more check')} failed)" if others else ""
    seen = first.seen.rstrip(".")
    return f"The check {first.check} failed: {seen}{expected}{more}.", first.action


def closing(findings: Sequence[Finding], mode: str, subject: str = "The machine") -> str:
    """One sentence for a gate that lets the run go on; empty where it stops.

    It says how many checks are ok, and names those that warn, and those that fail and stop
    nothing.

    :param subject: what passes.
    """
    if judge(findings, mode)[0]:
        return ""
    counts = count_results(findings)
    well = f"{quantity(counts[OK], 'check')} ok"
    well += f", {counts[UNKNOWN]} unknown" if counts[UNKNOWN] else ""
    warned, failed = (
        [finding.check for finding in findings if finding.result == result]
        for result in (WARN, FAIL)
    )
    parts = []
    if warned:
        parts.append(f"{quantity(len(warned), 'warning')} ({any_of(warned, most=8)})")
    if failed:
        what = quantity(len(failed), "failed check")
        names = any_of(failed, most=8)
        parts.append(f"{what} of the GPU that gpu_gate: {mode} passes over ({names})")
    passes = f"passes with {' and '.join(parts)}" if parts else "passes"
    return f"{subject} {passes}; {well}."


def table(findings: Iterable[Finding], everything: bool = False) -> str:
    """The findings as a text table of at most 100 columns.

    :param everything: all of them; else those that aren't ok or skipped, and those that were
        silenced and would be neither.
    """
    quiet = (OK, SKIPPED)
    rows = [
        (finding.check, finding.result, finding.seen, finding.expected, finding.action)
        for finding in findings
        if everything
        or finding.result not in quiet
        or (finding.silenced and finding.would_be not in quiet)
    ]
    header = ("check", "result", "seen", "expected", "what to do")
    return text_table(header, rows, WIDTHS) if rows else ""
