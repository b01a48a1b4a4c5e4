"""Facts of a machine without a GPU in them: its disk and its memory."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

_CGROUP_FILES = (
    # cgroup 2, then cgroup 1: the limit and what is used of it, in bytes.
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
_CGROUP_STAT = ("/sys/fs/cgroup/memory.stat", "/sys/fs/cgroup/memory/memory.stat")


@dataclass(frozen=True)
class HostFacts:
    """Facts of the file system that will hold ``project_root``, and of the memory.

    ``folder`` is project_root or, where it isn't there yet, its nearest parent that is;
    ``blocked`` says why nothing can be put there. Sizes are in bytes, as an unprivileged user
    may use them; None is unknown. ``inodes`` is 0 for both where the file system has no fixed
    number of them (btrfs).
    """

    project_root: str = ""
    folder: str = ""
    blocked: str = ""
    read_only: bool | None = None
    disk_free: int | None = None
    disk_total: int | None = None
    inodes_free: int | None = None
    inodes_total: int | None = None
    memory_available: int | None = None


def gather(project_root: str) -> HostFacts:
    """Read the facts; what can't be read is None."""
    folder = nearest_folder(project_root)
    memory = available_memory()
    try:
        system = os.statvfs(folder)
    except OSError as error:
        blocked = f"{folder} can't be looked at ({error.strerror})"
        return HostFacts(project_root, folder, blocked, memory_available=memory)
    return HostFacts(
        project_root=project_root,
        folder=folder,
        blocked=_blocked(folder, project_root),
        read_only=bool(system.f_flag & os.ST_RDONLY),
        disk_free=system.f_bavail * system.f_frsize,
        disk_total=system.f_blocks * system.f_frsize,
        inodes_free=system.f_favail,
        inodes_total=system.f_files,
        memory_available=memory,
    )


def nearest_folder(path: str) -> str:
    """``path``, or its nearest parent that exists (a broken link counts as missing)."""
    folder = os.path.abspath(path)
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _blocked(folder: str, project_root: str) -> str:
    """Why nothing can be created in a folder; empty when it can be."""
    if not stat.S_ISDIR(os.stat(folder).st_mode):
        return f"{folder} is not a folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    what = "written to" if os.path.abspath(project_root) == folder else "given new folders"
    return f"{folder} can't be {what} by user id {os.geteuid()}"


def available_memory() -> int | None:
    """Bytes that a new process may still take: the machine's, or the container's if less."""
    amounts = [amount for amount in (_meminfo(), _cgroup()) if amount is not None]
    return min(amounts) if amounts else None


def _meminfo(path: str = "/proc/meminfo") -> int | None:
    """``MemAvailable``, in bytes (the file says kB and means KiB)."""
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _cgroup() -> int | None:
    """What the container's limit leaves; None without a limit."""
    for (limit_file, usage_file), stat_file in zip(_CGROUP_FILES, _CGROUP_STAT):
        limit, usage = _read(limit_file).strip(), _read(usage_file).strip()
        if limit.isdigit() and usage.isdigit():
            # Cached file pages count as used there, and are given back when they are needed.
            cached = 0
            for line in _read(stat_file).splitlines():
                name, _, value = line.partition(" ")
                if name in ("inactive_file", "total_inactive_file") and value.isdigit():
                    cached = int(value)
            return max(int(limit) - int(usage) + cached, 0)
    return None


def _read(path: str) -> str:
    """A file's text; empty where it can't be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
