"""The kernel's log, for the driver's own words about its GPUs (Xid), where it may be read."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import programs

KMSG = "/dev/kmsg"

#: Seconds for each program; together with the rest they stay below what the gate waits.
PROGRAM_TIMEOUT = 5.0

#: A record of /dev/kmsg is at most 8 KiB (Documentation/ABI/testing/dev-kmsg).
_RECORD = 8192

#: ``[  123.456789] text``, as dmesg and ``journalctl -o short-monotonic`` print it.
_STAMPED = re.compile(r"^(?:<\d+>)?\[ *(\d+)\.(\d+)\](?: \S+ kernel:)? ?(.*)$")


@dataclass(frozen=True)
class Line:
    """A line of the log; ``age`` in seconds, None where the line has no time."""

    age: float | None
    text: str


@dataclass(frozen=True)
class KernelLog:
    """The lines in which the driver speaks (NVRM, nvidia-nvswitch), and where they come from.

    ``source`` is empty where the log can't be read; ``reason`` then says why.
    """

    source: str = ""
    lines: tuple[Line, ...] = ()
    reason: str = ""


def read(
    sources: Iterable[str] = ("kmsg", "dmesg", "journal"),
    keep: Callable[[str], bool] | None = None,
) -> KernelLog:
    """The first of the sources that can be read.

    :param keep: which lines are kept; without it, those in which the driver speaks.
    """
    keep = keep or _of_the_driver
    reasons = []
    for name in sources:
        found = _SOURCES[name]()
        if isinstance(found, str):
            reasons.append(found)
        else:
            return KernelLog(name, tuple(line for line in found if keep(line.text)))
    return KernelLog(reason="; ".join(reasons))


def _of_the_driver(text: str) -> bool:
    return "NVRM" in text or "nvidia" in text or "Xid" in text


def _kmsg() -> list[Line] | str:
    """The records in the kernel's ring; a text where it may not be read."""
    try:
        # In a container anything may stand there, a terminal even, which must not become ours.
        descriptor = os.open(KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        return f"{KMSG}: {error.strerror}"
    lines = []
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISCHR(os.fstat(stream.fileno()).st_mode):
            return f"{KMSG}: it is no device"
        while True:
            try:
                record = os.read(stream.fileno(), _RECORD)
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten meanwhile: on with the next
                continue
            except OSError as error:
                return f"{KMSG}: {error.strerror}"
            if not record:
                break
            head, _, text = record.decode("utf-8", "replace").partition(";")
            stamp = head.split(",")[2:3]
            age = None
            if stamp and stamp[0].isdigit():
                age = max(time.monotonic() - int(stamp[0]) / 1e6, 0.0)
            lines.append(Line(age, text.split("\n")[0]))
    # A kernel has always said something; /dev/null, which containers have there, never does.
    return lines or f"{KMSG}: nothing stands there"


def _printed(words: list[str]) -> list[Line] | str:
    """What a program prints of the log."""
    path = shutil.which(words[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/bin:/bin")
    if path is None:
        return f"there is no {words[0]}"
    asked = programs.ask([path, *words[1:]], PROGRAM_TIMEOUT, {"LC_ALL": "C"})
    if asked.state == programs.HANGS:
        return f"{words[0]} gave no answer within {PROGRAM_TIMEOUT:g} s"
    lines = [_line(line) for line in asked.text.splitlines() if not line.startswith("-- ")]
    # journalctl ends well where it may show nothing.
    if asked.state != programs.ENDED or asked.status or not lines:
        said = asked.complaints.splitlines()[:1]
        return f"{words[0]}: {said[0] if said else asked.reason or 'nothing printed'}"[:200]
    return lines


def _line(text: str) -> Line:
    stamped = _STAMPED.match(text)
    if not stamped:
        return Line(None, text)
    at = float(f"{stamped.group(1)}.{stamped.group(2)}")
    return Line(max(time.monotonic() - at, 0.0), stamped.group(3))


_SOURCES: dict[str, Callable[[], list[Line] | str]] = {
    "kmsg": _kmsg,
    "dmesg": lambda: _printed(["dmesg"]),
    "journal": lambda: _printed(
        ["journalctl", "-k", "-b", "-q", "--no-pager", "-o", "short-monotonic"]
    ),
}
