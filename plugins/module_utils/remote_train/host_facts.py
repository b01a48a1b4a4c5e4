"""Facts of a machine without a GPU in them: its disks, its memory, its load and its clock.

Looking at a folder can hang for ever where it lies on a dead network mount: :func:`look` is for a
child that can be killed (:mod:`killable`).
"""

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

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, not written to


@dataclass(frozen=True)
class Place:
    """A folder that the run writes to, and the file system that it is or will be on.

    ``name`` is what the place is for, ``path`` where it is; ``folder`` is that path or, where it
    isn't there yet, its nearest parent that is. ``blocked`` says why nothing can be put there,
    ``silent`` is for how many seconds the file system gave no answer. Sizes are in bytes, as an
    unprivileged user may use them; None is unknown. ``inodes`` is 0 for both where the file
    system has no fixed number of them (btrfs). ``device`` tells file systems apart.
    """

    name: str
    path: str = ""
    folder: str = ""
    blocked: str = ""
    silent: float = 0.0
    read_only: bool | None = None
    free: int | None = None
    total: int | None = None
    inodes_free: int | None = None
    inodes_total: int | None = None
    device: int | None = None


@dataclass(frozen=True)
class HostFacts:
    """What is known of the machine; None is unknown.

    ``places`` are the folders that the run writes to, ``project_root`` the first of them.
    ``memory`` is what a new process may still take, in bytes; ``load`` the average number of
    processes at work in the last minute, ``cpus`` how many the machine has. ``clock_ahead`` is
    by how many seconds the machine's clock is ahead of the controller's, the way there included;
    ``clock_way`` how many of them that way may have taken.
    """

    places: tuple[Place, ...] = ()
    shared_memory: Place | None = None
    memory: int | None = None
    load: float | None = None
    cpus: int | None = None
    clock_ahead: float | None = None
    clock_way: float = 0.0

    def place(self, name: str) -> Place | None:
        """The place of a name, where it was looked at."""
        return next((place for place in self.places if place.name == name), None)


def look(name: str, path: str) -> Place:
    """The facts of a place; what can't be read is None."""
    try:
        folder = nearest_folder(path)
        system = os.statvfs(folder)
        device = os.stat(folder).st_dev
    except OSError as error:
        blocked = f"{path} can't be looked at ({error.strerror})"
        return Place(name, path, path, blocked)
    return Place(
        name,
        path,
        folder,
        blocked=_blocked(folder, path),
        read_only=bool(system.f_flag & os.ST_RDONLY),
        free=system.f_bavail * system.f_frsize,
        total=system.f_blocks * system.f_frsize,
        inodes_free=system.f_favail,
        inodes_total=system.f_files,
        device=device,
    )


def nearest_folder(path: str) -> str:
    """``path``, or its nearest parent that exists (a broken link counts as missing)."""
    folder = os.path.abspath(path)
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def _blocked(folder: str, path: str) -> str:
    """Why nothing can be created in a folder; empty when it can be."""
    if not stat.S_ISDIR(os.stat(folder).st_mode):
        return f"{folder} is not a folder"
    if os.access(folder, os.W_OK | os.X_OK):
        return ""
    what = "written to" if os.path.abspath(path) == folder else "given new folders"
    return f"{folder} can't be {what} by user id {os.geteuid()}"


def load() -> float | None:
    """The load average of the last minute; None where the system has none."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


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
