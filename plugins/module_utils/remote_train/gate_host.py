"""The gate's checks of everything but the GPU: disk, memory, packages, data files.

A failed one stops a run in every mode of the gate: no setting makes a full disk hold a
checkpoint.
"""

from __future__ import annotations

from .gate_model import (
    DATA,
    FAIL,
    HOST,
    OK,
    PACKAGES,
    SKIPPED,
    UNKNOWN,
    WARN,
    Check,
    Context,
    Verdict,
    any_of,
    quantity,
)
from .pythons import satisfies

GIB = 1024**3

#: A run leaves some hundred files, an environment for the training some ten thousand.
LEAST_INODES = 20_000

#: torch alone takes about half a GiB of memory as it is imported.
LEAST_MEMORY = GIB // 2
ENOUGH_MEMORY = 2 * GIB


def disk_writable(context: Context) -> Verdict:
    """Whether project_root can be written to, or created: no read-only disk, no missing right."""
    host = context.host
    expected = "can be written to"
    if host.read_only:
        seen = f"the file system of {host.folder} is read-only"
        action = "Set project_root to a folder on a disk that can be written to."
        return Verdict(FAIL, seen, expected, action)
    if host.blocked:
        action = "Set project_root to a folder of this user, or give the user that right."
        return Verdict(FAIL, host.blocked, expected, action)
    if host.read_only is None:
        return Verdict(UNKNOWN, "not known", expected)
    return Verdict(OK, host.folder, expected)


def disk_free(context: Context) -> Verdict:
    """Whether the disk of project_root has the space that is asked for."""
    host = context.host
    expected = f"at least {context.min_disk_gib:g} GiB"
    if host.disk_free is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{host.disk_free / GIB:.1f} GiB free at {host.folder}"
    if host.disk_free < context.min_disk_gib * GIB:
        action = "Make room, or set project_root to a folder on a larger disk."
        return Verdict(FAIL, seen, expected, action)
    return Verdict(OK, seen, expected)


def disk_inodes(context: Context) -> Verdict:
    """Whether that disk can hold more files: it can be full of files with space left."""
    host = context.host
    expected = f"at least {LEAST_INODES}"
    if host.inodes_free is None:
        return Verdict(UNKNOWN, "not known", expected)
    if not host.inodes_total:
        return Verdict(SKIPPED, "this file system has no fixed number of files")
    seen = f"{host.inodes_free} free at {host.folder}"
    if host.inodes_free < LEAST_INODES:
        action = "Delete files (caches of small files, mostly), or use another disk."
        return Verdict(FAIL, seen, expected, action)
    return Verdict(OK, seen, expected)


def memory(context: Context) -> Verdict:
    """Whether there is memory to load the training's libraries; a model needs more."""
    available = context.host.memory_available
    expected = f"at least {ENOUGH_MEMORY // GIB} GiB"
    if available is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{available / GIB:.1f} GiB available"
    action = "End other programs, or take a machine with more memory."
    if available < LEAST_MEMORY:
        return Verdict(FAIL, seen, expected, action)
    return (
        Verdict(WARN, seen, expected, action)
        if available < ENOUGH_MEMORY
        else Verdict(OK, seen, expected)
    )


def packages(context: Context) -> Verdict:
    """Whether the training's Python has the packages it needs, in versions that fit.

    Unknown while no such Python is known: provisioning finds or makes one.
    """
    wanted = [f"{name}{bounds}" for name, bounds in context.requirements.items()]
    expected = any_of(wanted, most=6)
    if not context.requirements:
        return Verdict(SKIPPED, "no package is asked for")
    if context.packages is None:
        return Verdict(UNKNOWN, "no Python for the training yet: provisioning sees to it", expected)
    bad, good = [], []
    for name, bounds in context.requirements.items():
        found = context.packages.get(name)
        if found is None:
            bad.append(f"{name} is missing")
        elif not satisfies(found, bounds):
            bad.append(f"{name} is {found}, not {bounds}")
        else:
            good.append(f"{name} {found}")
    if bad:
        action = "Let provisioning install them (--tags provision), or install them by hand."
        return Verdict(FAIL, any_of(bad, most=6), expected, action)
    return Verdict(OK, any_of(good, most=6), expected)


def data_files(context: Context) -> Verdict:
    """Whether every data file of the stages is there, and every line of it a chat."""
    expected = "every line a chat, every id once"
    if not context.data_files:
        return Verdict(SKIPPED, "checked on the controller")
    bad = [report for report in context.data_files if not report.ok]
    if bad:
        shown = [str(problem) for report in bad for problem in report.problems]
        seen = " ".join(shown[:3])
        count = sum(report.problem_count for report in bad)
        if count > 3:
            seen += f" And {count - 3} more."
        return Verdict(FAIL, seen, expected, "Put the file there, or correct the named lines.")
    chats = quantity(sum(report.chats for report in context.data_files), "chat")
    return Verdict(OK, f"{chats} in {quantity(len(context.data_files), 'file')}", expected)


def data_leak(context: Context) -> Verdict:
    """Whether a benchmark asks what the training data answers: its score would mean nothing."""
    expected = "no benchmark's question in the training data"
    if not context.data_files:
        return Verdict(SKIPPED, "checked on the controller")
    if context.leaks:
        seen = " ".join(str(problem) for problem in context.leaks[:3])
        if len(context.leaks) > 3:
            seen += f" And {len(context.leaks) - 3} more."
        return Verdict(FAIL, seen, expected, "Take those chats out of one of the two files.")
    return Verdict(OK, "none", expected)


CHECKS = (
    *(Check(f.__name__, HOST, f) for f in (disk_writable, disk_free, disk_inodes, memory)),
    Check(packages.__name__, PACKAGES, packages),
    *(Check(f.__name__, DATA, f) for f in (data_files, data_leak)),
)
