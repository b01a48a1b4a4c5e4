"""What each measurement hands in: rows of claim, measured, limit, holds."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
WORK = PROJECT / "build" / "bench"
"""Where measurements put their files: on the disk that the checkout is on, ignored by git."""


Measured = TypeVar("Measured")


class BenchError(Exception):
    """A measurement could not be made."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim, held against what was measured.

    :param limit: what is claimed; None for a row that is only shown.
    :param at_least: whether the limit is a lower one.
    """

    claim: str
    measured: float
    limit: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the claim is true here and now."""
        if self.limit is None:
            return True
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def in_turns(
    sides: Mapping[str, Callable[[], Measured]], repeats: int
) -> dict[str, list[Measured]]:
    """What each side measures, in turns, so that all of them meet the same minute."""
    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    for _turn in range(repeats):
        for name, side in sides.items():
            measured[name].append(side())
    return measured


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of each turn."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def seconds(
    command: Sequence[object],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    must_say: str = "",
) -> float:
    """The wall-clock seconds of a command that must end well and say what it should.

    :raises BenchError: when it doesn't.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd or PROJECT,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    taken = time.perf_counter() - start
    if done.returncode or must_say not in done.stdout:
        said = (done.stdout[-3000:] + done.stderr[-3000:]).strip()
        raise BenchError(
            f"{' '.join(map(str, command))} did not do what is measured (exit status"
            f" {done.returncode}, must say {must_say!r}):\n{said}"
        )
    return taken


def say(text: str) -> None:
    """A line about what goes on, or beside a row."""
    print(f"bench: {text}", flush=True)


def table(rows: Iterable[Row]) -> str:
    """The rows for a person."""
    lines = [f"\n{'claim':<72} {'measured':>9} {'limit':>10}  holds"]
    for row in rows:
        limit = "" if row.limit is None else f"{'>=' if row.at_least else '<='} {row.limit:g}"
        holds = "" if row.limit is None else "yes" if row.holds else "NO"
        lines.append(f"{row.claim:<72} {row.measured:>9.2f} {limit:>10}  {holds}")
    return "\n".join(lines)
