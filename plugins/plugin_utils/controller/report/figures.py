"""Numbers as the page writes them: alike in every language."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from remote_train.summary import duration

__all__ = ["UNITS", "duration", "fine", "gibibytes", "grouped", "rate", "seconds_between", "signed"]

UNITS = (("h", 3600.0, 10800.0), ("min", 60.0, 180.0), ("s", 1.0, 0.0))
"""Units of time: name, seconds, and from how many seconds on they are used."""

DASH = "–"


def rate(value: float | None) -> str:
    """A score."""
    return DASH if value is None else f"{value:.2f}"


def signed(value: float) -> str:
    """A difference of scores."""
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text in ("+0.00", "−0.00") else text


def fine(value: float | None) -> str:
    """A loss, a probability, a setting: three figures that count."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def grouped(value: float | None) -> str:
    """A count."""
    return DASH if value is None else f"{round(value):,}".replace(",", "\u202f")


def gibibytes(value: float) -> str:
    """Bytes in GiB."""
    return f"{value / 2**30:.3g}"


def unit_for(seconds: Sequence[float]) -> tuple[str, float]:
    """The unit of time that fits the longest of some times: its name and its seconds."""
    longest = max(seconds, default=0.0)
    return next((name, size) for name, size, least in UNITS if longest >= least)


def moment(text: str) -> datetime.datetime | None:
    """A time as the files have it; None where it is none."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def seconds_between(start: str, end: str) -> float | None:
    """Seconds from one time to another; None where one isn't known."""
    first, last = moment(start), moment(end)
    return (last - first).total_seconds() if first and last else None


def day_and_time(text: str) -> str:
    """A time for a reader, in UTC."""
    found = moment(text)
    return found.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if found else DASH
