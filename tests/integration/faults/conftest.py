"""The fixtures of the faults, and the table with what became of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.faults import processes
from tests.integration.faults.direct import Zygote
from tests.integration.faults.lab import STUB_ADAPTER, Lab
from tests.integration.faults.table import FAULTS
from tests.integration.sites import PROJECT, Site

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

_RESULTS: dict[str, tuple[str, float]] = {}


@pytest.fixture
def lab(
    new_site: Callable[..., Site],
    gpu_host: GpuHost,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Lab]:
    """See the class; whatever it has started has ended afterwards."""
    found = Lab(new_site, gpu_host, tmp_path, request.getfixturevalue)
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of two layers."""
    folder = tmp_path_factory.mktemp("tiny") / "base"
    program = PROJECT / "tests/molecule/tiny_base.py"
    command = [sys.executable, str(program), str(folder), str(PROJECT / "examples/tutor")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def trained(
    new_site: Callable[..., Site],
    gpu_host: GpuHost,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Site:
    """A site whose stage was trained by a command, with nothing in its way; to be copied."""
    lab = Lab(new_site, gpu_host, tmp_path_factory.mktemp("trained"), request.getfixturevalue)
    site = lab.stub()
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    lab.check(site, STUB_ADAPTER)
    return site


@pytest.fixture(scope="session")
def undisturbed(
    new_site: Callable[..., Site],
    gpu_host: GpuHost,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Site:
    """A site whose stage was trained by the real training, with nothing in its way."""
    lab = Lab(new_site, gpu_host, tmp_path_factory.mktemp("undisturbed"), request.getfixturevalue)
    site = lab.real()
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    return site


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Trains at once: see zygote.py."""
    found = Zygote()
    try:
        yield found
    finally:
        found.close()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end no process of the suite's lives."""
    yield
    left = {
        pid: line
        for pid, line in processes.of(str(tmp_path_factory.getbasetemp())).items()
        # The host's sshd belongs to a fixture that ends after this one.
        if "sshd" not in line
    }
    processes.kill(*left)
    assert left == {}, "processes of the suite were left"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what became of each fault."""
    _, mark, name = report.nodeid.partition("test_faults.py::test_fault[")
    if not mark:
        return
    name = name.removesuffix("]")
    before, seconds = _RESULTS.get(name, ("", 0.0))
    said: str = report.outcome
    if report.when != "call" and said == "passed":
        said = before
    _RESULTS[name] = (before if before == "failed" else said, seconds + report.duration)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table of the faults that ran, with their results."""
    if not _RESULTS:
        return
    rows = [("no.", "fault", "where", "how", "expected", "result", "s")]
    for number, fault in enumerate(FAULTS, 1):
        if fault.name in _RESULTS:
            result, seconds = _RESULTS[fault.name]
            rows.append(
                (
                    str(number),
                    fault.name,
                    fault.where,
                    fault.how,
                    fault.expected,
                    result,
                    f"{seconds:.1f}",
                )
            )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    terminalreporter.section("faults")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
    terminalreporter.write_line(_summary())


def _summary() -> str:
    """The table's last line: nobody takes a fault that was skipped for one that passed."""
    results = [result for result, _ in _RESULTS.values()]
    parts = [f"{results.count('passed')} of {len(results)} faults ended in the right state"]
    for result in ("failed", "skipped"):
        names = [name for name, (said, _) in _RESULTS.items() if said == result]
        if names:
            parts.append(f"{len(names)} {result}: {', '.join(names)}")
    return "; ".join(parts)
