"""Processes that the tests started: found, killed with all that they started, and looked for."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def state(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the state on; empty where there is no such process."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return text.rpartition(")")[2].split()
    return []


def lives(pid: int) -> bool:
    """Whether a process runs: a zombie doesn't."""
    return state(pid)[:1] not in ([], ["Z"], ["X"])


def below(pid: int) -> list[int]:
    """All that a process started, and that they started, whatever session they are in."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := state(int(name))):
            parents.setdefault(int(fields[1]), []).append(int(name))
    found, waiting = [], [pid]
    while waiting:
        waiting += (children := parents.get(waiting.pop(), []))
        found += children
    return found


def kill(*pids: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to processes; those that have ended are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_tree(pid: int) -> None:
    """Kill a process and all that it started; they are held first, so that none gets away."""
    if pid != os.getpid():
        kill(pid, number=signal.SIGSTOP)
    kill(*below(pid), pid)


def of(text: str) -> dict[int, str]:
    """The processes whose command line or working folder holds ``text``.

    This one is none of them, and neither is what it was started by. The master of ssh
    connections, which stays for a minute on purpose, is none.
    """
    found, ours, parent = {}, set(), os.getpid()
    while parent:
        ours.add(parent)
        parent = int((state(parent) or ["", "0"])[1])
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in ours or not lives(int(name)):
            continue
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
            command = line.decode("utf-8", "replace").strip()
            if command.startswith("ssh: ") and command.endswith("[mux]"):
                continue
            if text in command or text in os.readlink(f"/proc/{name}/cwd"):
                found[int(name)] = command
    return found
