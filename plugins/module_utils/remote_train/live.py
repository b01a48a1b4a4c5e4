"""The training that is running in a project, if one is: its lock and its status.

The lock is a file that the supervisor holds with flock as long as it lives, so the kernel lets
go of it with the process, whatever ended that; what stands in the file says who holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from .atomic import write_json
from .errors import TrainError

FOLDER = "outputs/training_sync/live"
"""Where lock, job, status and result of the running stage lie, under the project root."""

ENDED = ("done", "failed")
"""The states of a stage that nothing is done for any more."""

SETTLED_WITHIN = 5.0
"""Seconds in which who holds the lock must say that it runs, or let go of it after its end."""

TAKEN_WITHIN = 0.5
"""Seconds for which a lock is tried: who looks whether it is held has it for an instant."""


def path(root: str, name: str) -> str:
    """One of the live folder's files: ``lock``, ``job.json``, ``status.json``, ``result.json``."""
    return os.path.join(root, FOLDER, name)


def boot_id() -> str:
    """The kernel's identifier of this boot (Linux, proc(5))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks after boot (field 22 of proc_pid_stat(5))."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return int(stream.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def identity(pid: int) -> dict[str, Any]:
    """Who a process is, beyond its number, which the kernel uses again."""
    return {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": pid,
        "start_time": start_time(pid),
    }


def take(root: str, holder: dict[str, Any]) -> int | None:
    """Take the lock and say who holds it; None where another process has it.

    :returns: the descriptor that holds the lock until it is closed.
    """
    os.makedirs(os.path.join(root, FOLDER), exist_ok=True)
    descriptor = lock_file(path(root, "lock"))
    if descriptor is not None:
        say_holder(root, holder)
    return descriptor


def say_holder(root: str, holder: Mapping[str, Any]) -> None:
    """Say who holds the lock; where that can't be written, nobody is said to."""
    file = path(root, "holder.json")
    try:
        write_json(file, dict(holder))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(file)


def lock_file(file: str) -> int | None:
    """Make a lock's file and take it: the descriptor; None where another process has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def lock(descriptor: int) -> bool:
    """Take the lock of an open file; whether that could be done."""
    patience = time.monotonic() + TAKEN_WITHIN
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > patience:
                return False
            time.sleep(0.01)


def unlock(descriptor: int) -> None:
    """Let go of a lock, also for the processes that have inherited its descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def starting(root: str, wait: bool = True) -> Iterator[bool]:
    """Hold back every other start in ``root`` for as long as this one takes.

    :param wait: for another one to end. Without it, what comes out is whether there was none.

    From looking for a running stage to its supervisor's taking the lock there is time for a
    second start to find nothing and to write its job over the first one's.
    """
    os.makedirs(os.path.join(root, FOLDER), exist_ok=True)
    # The descriptor is not inherited: the supervisor that is started meanwhile outlives us.
    with open(path(root, "start.lock"), "w", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def is_held(root: str) -> bool:
    """Whether a living process holds the lock; nothing is created to find out."""
    return is_locked(path(root, "lock"))


def is_locked(file: str) -> bool:
    """The same for any lock of this kind."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared, so that two who look don't take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_json(file: str) -> dict[str, Any]:
    """The JSON object in ``file``; empty where there is none that can be read."""
    try:
        with open(file, "rb") as stream:
            value = json.loads(stream.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def running(root: str) -> dict[str, Any] | None:
    """Status and holder of the training that runs in ``root`` now, or None.

    The lock is taken before the first status, and let go of after the last one: in between is
    waited for. A lock that stays held without a running stage comes with ``left``, the processes
    that hold it; :func:`require_running` says so.
    """
    deadline = time.monotonic() + SETTLED_WITHIN
    while is_held(root):
        found = {**read_json(path(root, "holder.json")), **read_json(path(root, "status.json"))}
        if found.get("state") == "running":
            return found
        if time.monotonic() > deadline:
            return {**found, "left": lock_holders(root)}
        time.sleep(0.02)
    return None


def lock_holders(root: str) -> list[str]:
    """The processes that hold the lock of ``root`` open."""
    return holders(path(root, "lock"))


def holders(file: str) -> list[str]:
    """The processes that have a lock's file open, as far as this user may see them.

    By their programs' names and their numbers: a command line could hold a secret.
    """
    found = []
    lock = os.stat(file)
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        # Processes come and go while one looks, and some are not ours to look at.
        with contextlib.suppress(OSError):
            if pid != os.getpid() and _has_open(pid, lock):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as stream:
                    found.append(f"{stream.read().strip()} (process {pid})")
    return found


def _has_open(pid: int, file: os.stat_result) -> bool:
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{number}"), file):
                return True
    return False


def require_running(root: str, status: Mapping[str, Any]) -> None:
    """Refuse to follow what :func:`running` gave where no stage runs behind the lock."""
    if status.get("state") == "running":
        return
    left = ", ".join(status.get("left") or ["a process of another user"])
    hint = f"End it there: it holds {path(root, 'lock')}."
    if status.get("state") in ENDED:
        raise TrainError(
            f"The stage {status.get('stage')} has ended, and something that it started is still "
            f"running on the host: {left}.",
            hint,
        )
    raise TrainError(
        f"The lock of {root} is held on the host by {left}, and no stage says that it runs.",
        f"Give the same command again in a minute; if that says the same: {hint}",
    )
