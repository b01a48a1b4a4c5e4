"""How long `report.html` takes for a run with 5,000 answers, from files to file.

Seconds of this process's own work, so that others at work on the machine don't count.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from controller.report.page import write_page
from tests.benchmarks.rows import Row
from tests.unit.report_home import RUN, Home

ANSWERS, SECONDS = 5000, 2.0


def measure(repeats: int) -> list[Row]:
    """The median; the multitask stage alone has answered all questions."""
    with tempfile.TemporaryDirectory(prefix="remote-train-bench-") as name:
        home = Home(Path(name), questions=ANSWERS // 2, steps=1000)
        home.write()
        taken = [_once(home) for _ in range(repeats)]
    return [Row("report.html of 5,000 answers: seconds", statistics.median(taken), SECONDS)]


def _once(home: Home) -> float:
    started = time.process_time()
    write_page(str(home.path), RUN, "en")
    return time.process_time() - started
