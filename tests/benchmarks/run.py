"""`make bench`: what the README claims, measured here and now, each as a ratio within one run.

    python tests/benchmarks/run.py [--repeats N] [NAME ...]

Without names, all of them. Seconds differ from machine to machine and from minute to minute; what
is compared is measured in turns, so that both sides meet the same minute. Exit status 1 where a
claim doesn't hold, 2 where it could not be measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(PROJECT / part) for part in (".", "tools", "plugins/module_utils", "plugins/plugin_utils")
]

# After the path is set:
from tests.benchmarks import (  # noqa: E402
    around_stages,
    checkpoints,
    empty_plan,
    four_stages,
    gate,
    large_files,
    many_lines,
    one_change,
    report_page,
    small_files,
    training_alone,
    worker,
)
from tests.benchmarks.rows import WORK, BenchError, Row, say, table  # noqa: E402

MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {
    "large_files": large_files.measure,
    "small_files": small_files.measure,
    "many_lines": many_lines.measure,
    "one_change": one_change.measure,
    "gate": gate.measure,
    "empty_plan": empty_plan.measure,
    "checkpoints": checkpoints.measure,
    "worker": worker.measure,
    "around_stages": around_stages.measure,
    "report_page": report_page.measure,
    "training_alone": training_alone.measure,
    "four_stages": four_stages.measure,
}


def main(arguments: list[str]) -> int:
    """Exit status: 0 all claims hold, 1 one doesn't, 2 something could not be measured."""
    parser = argparse.ArgumentParser(description="Measure what the README claims.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MEASUREMENTS))
    parser.add_argument("--repeats", type=int, default=7, help="turns of each side (default 7)")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown or options.repeats < 1:
        parser.error(f"there is no measurement {sorted(unknown)}" if unknown else "no repeats")
    busy = os.getloadavg()[0]
    if busy > 1:
        say(f"load average {busy:.1f}: others are at work on this machine, so numbers will scatter")
    rows: list[Row] = []
    failed = False
    for name in options.names or MEASUREMENTS:
        WORK.mkdir(parents=True, exist_ok=True)
        try:
            rows += MEASUREMENTS[name](options.repeats)
        except BenchError as error:
            say(f"{name}: {error}")
            failed = True
        finally:
            shutil.rmtree(WORK, ignore_errors=True)
    print(table(rows))
    return 2 if failed else int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
