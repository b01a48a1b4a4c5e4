"""The gate's checks of the machine around the GPU: disks, memory, load, clock.

A failed one stops a run in every mode of the gate: no setting makes a full disk hold a
checkpoint.
"""

from __future__ import annotations

from .gate_model import (
    FAIL,
    HOST,
    OK,
    SKIPPED,
    UNKNOWN,
    WARN,
    Check,
    Context,
    Verdict,
    any_of,
)
from .host_facts import Place
from .memory_need import GIB, MIB

ROOT, MODELS, SHARED = "project_root", "models", "shared memory"
"""The names of the places that single checks look at."""

#: What moves a place to another disk; where files are written is not set one by one.
MOVED_BY = {
    ROOT: "project_root",
    "outputs": "project_root",
    MODELS: "runtime_base or hf_home",
    "temporary files": "TMPDIR",
}

#: A file system with less is full: not even a log can be written.
FULL = 16 * MIB


def _dead(place: Place) -> str:
    """What is said of a place that gives no answer."""
    return f"{place.path} ({place.name}) gives no answer in {place.silent:g} s: a dead mount?"


def disk_writable(context: Context) -> Verdict:
    """Whether every folder that the run writes to can be written to.

    These are project_root, outputs in it, the models' cache and the folder for temporary files.
    """
    expected = "writable, not full"
    bad, actions, unknown = [], [], []
    for place in context.host.places:
        elsewhere = f"set {MOVED_BY.get(place.name, place.name)} to a folder on another disk"
        if place.silent:
            bad.append(_dead(place))
            actions.append(f"Mount it anew, or {elsewhere}.")
        elif place.read_only:
            bad.append(f"the file system of {place.folder} ({place.name}) is read-only")
            actions.append(f"S{elsewhere[1:]}; a disk that became read-only has errors (dmesg).")
        elif place.blocked:
            bad.append(f"{place.blocked} ({place.name})")
            right = (
                "Move away what is there"
                if "not a folder" in place.blocked
                else ("Give this user the right to write there")
            )
            actions.append(f"{right}, or {elsewhere}.")
        elif place.free is not None and place.free < FULL:
            bad.append(f"the file system of {place.folder} ({place.name}) is full")
            actions.append(f"Make room, or {elsewhere}.")
        elif place.read_only is None:
            unknown.append(place.name)
    if bad:
        return Verdict(FAIL, any_of(bad), expected, actions[0])
    if unknown or not context.host.places:
        return Verdict(UNKNOWN, f"not known: {any_of(unknown) or 'nothing looked at'}", expected)
    return Verdict(OK, any_of([place.name for place in context.host.places]), expected)


def disk_free(context: Context) -> Verdict:
    """Whether the disk of project_root has room for the adapters, logs and packages to come."""
    place = context.host.place("outputs") or context.host.place(ROOT)
    need, least = context.disk, context.limits.min_disk_gib * GIB
    estimated = bool(need) and need is not None and need.size > least
    expected = f"{context.limits.min_disk_gib:g} GiB (gpu_gate_min_disk_gib)"
    if need is not None and estimated:
        expected, least = str(need), need.size
    if place is None or place.free is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{place.free / GIB:.1f} GiB free at {place.folder}"
    if place.free < least:
        action = "Make room, or set project_root to a folder on a larger disk"
        action += "." if estimated else f"; or lower {context.limits.setting('min_disk_gib')}."
        return Verdict(FAIL, seen, expected, action)
    return Verdict(OK, seen, expected)


def disk_inodes(context: Context) -> Verdict:
    """Whether that disk can hold more files: it can be full of files with space left."""
    place = context.host.place("outputs") or context.host.place(ROOT)
    least = max(context.limits.min_inodes, context.disk_files)
    estimated = least > context.limits.min_inodes
    expected = f"at least {least} ({'an estimate' if estimated else 'gpu_gate_min_inodes'})"
    if place is None or place.inodes_free is None:
        return Verdict(UNKNOWN, "not known", expected)
    if not place.inodes_total:
        return Verdict(SKIPPED, "this file system has no fixed number of files")
    seen = f"{place.inodes_free} free at {place.folder}"
    if place.inodes_free < least:
        action = "Delete files (caches of small files, mostly), or use another disk"
        action += "." if estimated else f"; or lower {context.limits.setting('min_inodes')}."
        return Verdict(FAIL, seen, expected, action)
    return Verdict(OK, seen, expected)


def disk_models(context: Context) -> Verdict:
    """Whether the disk of the models' cache has room for the base models still to be downloaded."""
    place = context.host.place(MODELS)
    if not context.download:
        why = "the base model is there already" if context.model else "nothing is known to come"
        return Verdict(SKIPPED, why)
    expected = f"{context.download / GIB:.1f} GiB for the weights still to be downloaded"
    if place is None or place.free is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{place.free / GIB:.1f} GiB free at {place.folder}"
    action = "Make room, or name a folder on a larger disk in runtime_base or hf_home."
    if place.free < context.download:
        return Verdict(FAIL, seen, expected, action)
    root = context.host.place("outputs") or context.host.place(ROOT)
    both = context.download + (context.disk.size if context.disk else 0)
    if root and root.device == place.device and place.free < both:
        return Verdict(WARN, f"{seen}, and what else is written goes there too", expected, action)
    return Verdict(OK, seen, expected)


def shared_memory(context: Context) -> Verdict:
    """Whether /dev/shm, through which processes of one training exchange data, has room."""
    place, limits = context.host.shared_memory, context.limits
    expected = f"at least {limits.warn_shm_mib:g} MiB free (gpu_gate_warn_shm_mib)"
    action = "Start the container with a larger one (--shm-size), or make room in it"
    lower = f"; or lower {limits.setting('min_shm_mib')}."
    if place is None:
        return Verdict(UNKNOWN, "not known", expected)
    broken = _dead(place) if place.silent else ""
    if not broken and (place.folder != place.path or place.blocked or place.read_only):
        why = place.blocked or ("it is read-only" if place.read_only else "there is none")
        broken = f"{place.path}: {why}"
    if broken:
        return Verdict(FAIL, broken, expected, f"{action}.")
    if place.free is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{place.free / MIB:.0f} MiB free"
    if place.free < limits.min_shm_mib * MIB:
        return Verdict(FAIL, seen, expected, action + lower)
    if place.free < limits.warn_shm_mib * MIB:
        return Verdict(WARN, seen, expected, f"{action}.")
    return Verdict(OK, seen, expected)


def memory(context: Context) -> Verdict:
    """Whether there is memory to load the training's libraries; weights go to the GPU in parts."""
    available, limits = context.host.memory, context.limits
    expected = f"at least {limits.warn_memory_gib:g} GiB (gpu_gate_warn_memory_gib)"
    if available is None:
        return Verdict(UNKNOWN, "not known", expected)
    seen = f"{available / GIB:.1f} GiB available"
    action = "End other programs, or take a machine with more memory"
    if available < limits.min_memory_gib * GIB:
        action += f"; or lower {limits.setting('min_memory_gib')}."
        return Verdict(FAIL, seen, expected, action)
    if available < limits.warn_memory_gib * GIB:
        return Verdict(WARN, seen, expected, f"{action}.")
    return Verdict(OK, seen, expected)


def load(context: Context) -> Verdict:
    """Whether others keep the processors busy (load average of a minute, per processor)."""
    host, limits = context.host, context.limits
    expected = f"at most {limits.warn_load:g} per processor (gpu_gate_warn_load)"
    if host.load is None or not host.cpus:
        return Verdict(UNKNOWN, "not known", expected)
    each = host.load / host.cpus
    seen = f"{each:.1f} per processor ({host.load:.1f} on {host.cpus})"
    action = "See with top what works there; wait, or take a machine that isn't shared so much"
    if each > limits.max_load:
        return Verdict(FAIL, seen, expected, f"{action}; or raise {limits.setting('max_load')}.")
    if each > limits.warn_load:
        return Verdict(WARN, seen, expected, f"{action}.")
    return Verdict(OK, seen, expected)


def clock(context: Context) -> Verdict:
    """Whether the machine's clock agrees with the controller's.

    With a wrong one, certificates count as expired and times in logs and records mislead. The way
    to the machine takes some seconds, which look as if its clock were ahead.
    """
    limits, ahead = context.limits, context.host.clock_ahead
    expected = f"within {limits.warn_clock_skew:g} s of the controller's (gpu_gate_warn_clock_skew)"
    if ahead is None:
        return Verdict(SKIPPED, "the controller's time isn't known")
    seen = f"{abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
    action = "Set the clock that is wrong, here or there (chronyd or systemd-timesyncd does)"
    if abs(ahead) > limits.max_clock_skew:
        action += f"; or raise {limits.setting('max_clock_skew')}."
        return Verdict(FAIL, seen, expected, action)
    if abs(ahead) > limits.warn_clock_skew:
        return Verdict(WARN, seen, expected, f"{action}.")
    return Verdict(OK, seen, expected)


CHECKS = (
    Check(
        HOST,
        disk_writable,
        "one gives no answer, is read-only, is full, or the user may not write there",
    ),
    Check(
        HOST,
        disk_free,
        "there is less than the estimate, or than gpu_gate_min_disk_gib if that is more",
        limits=("min_disk_gib",),
    ),
    Check(HOST, disk_inodes, "fewer files can be added", limits=("min_inodes",)),
    Check(
        HOST,
        disk_models,
        "there is less than the weights take",
        "it is also the disk of project_root, and has no room for all that is written",
    ),
    Check(
        HOST,
        shared_memory,
        "it is missing, can't be written to, or nearly full",
        "there is little",
        ("min_shm_mib", "warn_shm_mib"),
    ),
    Check(
        HOST,
        memory,
        "less is available",
        "little is available",
        ("min_memory_gib", "warn_memory_gib"),
    ),
    Check(HOST, load, "it is extreme", "it is high", ("max_load", "warn_load")),
    Check(
        HOST,
        clock,
        "it is off by more than the most",
        "it is off by more than the way there explains",
        ("max_clock_skew", "warn_clock_skew"),
    ),
)
