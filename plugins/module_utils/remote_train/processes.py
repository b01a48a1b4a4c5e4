"""A process by number, start time and boot (``live.identity``), so that no other one is hit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import live

_PAUSE = 0.05


def is_process(who: Mapping[str, Any]) -> bool:
    """Whether the process on record still is that process, and not another with its number.

    One that has ended and that nobody has asked for its end is none: in many a container, nobody
    ever does.
    """
    pid, started = who.get("pid"), who.get("start_time")
    if not isinstance(pid, int) or pid <= 1 or started is None:
        return False
    if who.get("boot_id") != live.boot_id() or live.start_time(pid) != started:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False


def send(who: Mapping[str, Any], number: int) -> bool:
    """Send a signal to a process if it is the one on record; whether it was sent.

    The process is held by a descriptor while it is looked at, so that its number can't become
    another's in between (pidfd_open(2), Linux 5.3; before that, or with a Python that was built
    before that, in the microseconds between).
    """
    pid = who.get("pid")
    if not isinstance(pid, int) or pid <= 1:
        return False
    hand_over = getattr(signal, "pidfd_send_signal", None)
    try:
        handle = None if hand_over is None else held(pid)
    except ProcessLookupError:
        return False
    if hand_over is None or handle is None:
        return is_process(who) and _sent(lambda: os.kill(pid, number))
    try:
        return is_process(who) and _sent(lambda: hand_over(handle, number))
    finally:
        os.close(handle)


def held(pid: int) -> int | None:
    """A descriptor that stays with a process, and can be read when that has ended.

    :returns: None where there is no such thing: an older kernel, a Python without it, or a sandbox
        that doesn't let us.
    :raises ProcessLookupError: where there is no such process.
    """
    opens = getattr(os, "pidfd_open", None)
    if opens is None:
        return None
    try:
        return int(opens(pid))
    except ProcessLookupError:
        raise
    except OSError:
        return None


def send_group(who: Mapping[str, Any], number: int) -> bool:
    """The same for a training and what it started: the process group that it leads."""
    if not is_process(who):
        return False
    # Where it leads none, there is no group of this number, and nothing is hit.
    return _sent(lambda: os.killpg(who["pid"], number))


def signal_name(number: int) -> str:
    """A signal in a word; most of the real-time ones have no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _sent(act: Callable[[], None]) -> bool:
    try:
        act()
    except ProcessLookupError:
        return False
    return True


def wait(until: Callable[[], bool], seconds: float) -> bool:
    """Whether something came about within so many seconds."""
    deadline = time.monotonic() + seconds
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def has_the_kernels_numbers() -> bool:
    """Whether processes have the numbers here that the kernel's log calls them by.

    A container has its own: only the first namespace's file has this inode (PROC_PID_INIT_INO).
    """
    try:
        return os.stat("/proc/self/ns/pid").st_ino == 0xEFFFFFFC
    except OSError:
        return False
