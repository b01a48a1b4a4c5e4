"""The gate's checks of what the GPUs are and who uses them: can this training run on them?

What a card doesn't tell (consumer cards print N/A for much of it) is ``unknown`` and stops
nothing. Where the driver doesn't answer, these checks are skipped.
"""

from __future__ import annotations

import re

from .gate_gpus import RESET, label, needs_gpus, usable
from .gate_model import (
    FAIL,
    GPU,
    OK,
    SKIPPED,
    UNKNOWN,
    WARN,
    Check,
    Context,
    Verdict,
    any_of,
    each_once,
    quantity,
)
from .memory_need import GIB
from .smi_xml import Gpu, Process

#: A card sold as 24 GB shows 22.5 GiB, one sold as 16 GB 15 GiB and a little less free: a number
#: that a person asks for counts as met from nine tenths on.
MEMORY_TOLERANCE = 0.10

#: What the architectures can, where the driver doesn't say it of the card: the least of each.
ARCHITECTURES = {
    "Kepler": (3, 0),
    "Maxwell": (5, 0),
    "Pascal": (6, 0),
    "Volta": (7, 0),
    "Turing": (7, 5),
    "Ampere": (8, 0),
    "Ada Lovelace": (8, 9),
    "Hopper": (9, 0),
    "Blackwell": (10, 0),
}

#: The first compute capability with bfloat16 in hardware (Ampere).
BFLOAT16 = (8, 0)


def gpu_count(context: Context) -> Verdict:
    """Whether there are at least as many usable GPUs as the run asks for.

    A GPU that is lost, or in MIG mode without a slice, doesn't count.
    """
    if context.smi is None or context.smi.state != "ok":
        return Verdict(SKIPPED, "the driver doesn't answer")
    wanted = context.limits.gpus
    expected = f"at least {wanted} (gpu_gate_gpus)"
    good = [gpu for gpu in context.gpus if usable(gpu)]
    names = sorted({gpu.name or "of unknown name" for gpu in good})
    seen = quantity(len(good), "usable GPU") + (f" ({any_of(names)})" if names else "")
    if len(good) < len(context.gpus):
        seen += f" of {len(context.gpus)}"
    if len(good) >= wanted:
        return Verdict(OK, seen, expected)
    action = f"Rent a machine with more GPUs, or lower {context.limits.setting('gpus')}."
    if any(gpu.mig_enabled and not gpu.mig_devices for gpu in context.gpus):
        action = "Create a MIG instance or switch MIG off (nvidia-smi -mig 0, as root)."
    return Verdict(FAIL, seen, expected, action)


@needs_gpus
def gpu_state(context: Context) -> Verdict:
    """Whether every GPU is in the driver's reach and needs no reset."""
    expected = "in reach, no reset needed"
    bad = [label(gpu, any_of(list(gpu.faults))) for gpu in context.gpus if gpu.faults]
    bad += [
        label(gpu, f"needs {gpu.recovery_action}")
        for gpu in context.gpus
        if gpu.recovery_action not in (None, "none") and not gpu.faults
    ]
    if bad:
        return Verdict(FAIL, any_of(bad), expected, RESET + "if it stays so, take another one.")
    if all(gpu.recovery_action is None for gpu in context.gpus):
        # Drivers before R525 say nothing of resets; an answer is all there is to go by.
        return Verdict(OK, "in reach", expected)
    return Verdict(OK, "in reach, no reset needed", expected)


def _memory(gpu: Gpu, free: bool) -> int | None:
    """A GPU's memory in MiB; in MIG mode that of its largest slice, which is all a program gets."""
    if gpu.mig_enabled and gpu.mig_devices:
        amounts = [
            slice_.memory_free_mib if free else slice_.memory_total_mib
            for slice_ in gpu.mig_devices
        ]
        return max((amount for amount in amounts if amount is not None), default=None)
    return gpu.memory_free_mib if free else gpu.memory_total_mib


def _too_small(context: Context, amounts: list[int | None], needed: float) -> bool:
    """Whether fewer GPUs than asked for have ``needed`` MiB.

    Those that don't tell may have it: only what is known to be too small counts against it.
    """
    small = sum(1 for amount in amounts if amount is not None and amount < needed)
    return len(amounts) - small < min(context.limits.gpus, len(amounts))


def _memory_verdict(context: Context, free: bool, action: str) -> Verdict:
    """Whether enough GPUs have what a person asks for, else what the estimate says.

    :param action: what to do; how to ask for less is added here.
    """
    limits, need = context.limits, context.need
    amounts = [_memory(gpu, free) for gpu in context.gpus]
    known = [amount for amount in amounts if amount is not None]
    texts = each_once(f"{amount / 1024:.1f} GiB" for amount in known)
    seen = any_of(texts) + (" free" if free else "")
    if limits.memory_gib:
        expected = f"{limits.memory_gib:g} GiB (gpu_gate_memory_gib)"
        action += f", or lower {limits.setting('memory_gib')}."
        most = least = limits.memory_gib * 1024 * (1 - MEMORY_TOLERANCE)
    elif need:
        expected = f"{need.short} (see gpu_memory)" if free else f"{need} (stage {need.stage})"
        action += (
            "; or set use_qlora, lower max_length or per_device_train_batch_size; or name what is "
            f"enough in gpu_gate_memory_gib, or raise {limits.setting('memory_slack')}."
        )
        size = need.size / GIB * 1024
        least, most = size * (1 - limits.memory_slack), size
    elif context.unsized:
        expected = f"not known: the size of {context.unsized} isn't told by its name"
        return Verdict(UNKNOWN, seen or "not told", expected)
    else:
        expected, least, most = "anything", 0.0, 0.0
    if limits.gpus > 1:
        first, colon, parts = expected.partition(": ")
        expected = f"{first} on each of {limits.gpus} GPUs (gpu_gate_gpus){colon}{parts}"
    if not known:
        return Verdict(UNKNOWN, "not told", expected)
    if _too_small(context, amounts, least):
        return Verdict(FAIL, seen, expected, action)
    if _too_small(context, amounts, most):
        return Verdict(WARN, f"{seen}: it may just not do", expected, action)
    return Verdict(OK, seen, expected)


@needs_gpus
def gpu_memory(context: Context) -> Verdict:
    """Whether as many GPUs as asked for have the memory that model and settings need.

    The need is an estimate, unless ``gpu_gate_memory_gib`` names one.
    """
    return _memory_verdict(context, free=False, action="Rent a larger GPU")


@needs_gpus
def gpu_memory_free(context: Context) -> Verdict:
    """Whether that memory is free."""
    action = "End what holds the memory (nvidia-smi shows it), or restart the machine"
    verdict = _memory_verdict(context, free=True, action=action)
    if verdict.result != OK or not verdict.expected.startswith("anything"):
        return verdict
    pairs = [(_memory(gpu, free=False), _memory(gpu, free=True)) for gpu in context.gpus]
    taken = [1 for total, free in pairs if total and free is not None and free * 2 < total]
    if len(pairs) - len(taken) < min(context.limits.gpus, len(pairs)):
        return Verdict(WARN, verdict.seen, "at least half of it", f"{action}.")
    return verdict


def capability(context: Context, gpu: Gpu) -> tuple[int, int] | None:
    """A GPU's compute capability: what the driver says, else the least of its architecture."""
    return context.capabilities.get(gpu.index) or ARCHITECTURES.get(gpu.architecture or "")


@needs_gpus
def gpu_capability(context: Context) -> Verdict:
    """Whether the GPUs' compute capability is enough, and has the bfloat16 that is asked for."""
    least = context.limits.min_capability
    wanted = {stage["settings"]["dtype"] for stage in context.stages if not stage["command"]}
    expected = f"{least:.1f} or more (gpu_gate_min_capability)"
    expected += ", 8.0 for bfloat16" if "bfloat16" in wanted else ""
    known = [(gpu, capability(context, gpu)) for gpu in context.gpus]
    told = [(gpu, found) for gpu, found in known if found]
    if not told:
        return Verdict(UNKNOWN, "not told", expected)
    shown = each_once(f"{found[0]}.{found[1]}" for _gpu, found in told)
    # Compared as pairs: 10.0 is more than 9.0, and 7.10 would be more than 7.5.
    lowest = (int(least), round(least * 10) % 10)
    poor = [label(gpu, f"{f[0]}.{f[1]}") for gpu, f in told if f < lowest]
    if poor:
        action = (
            "Rent a newer GPU: builds of torch for such old ones are hard to find; where yours has "
            f"one, lower {context.limits.setting('min_capability')}."
        )
        return Verdict(FAIL, any_of(poor), expected, action)
    without = [label(gpu, f"{f[0]}.{f[1]}, no bfloat16") for gpu, f in told if f < BFLOAT16]
    if without and "bfloat16" in wanted:
        action = "Set dtype to auto or float32, or rent a newer GPU (Ampere or later)."
        return Verdict(FAIL, any_of(without), expected, action)
    if without and "auto" in wanted:
        action = "Expect twice the memory and a fraction of the speed: it trains in float32."
        return Verdict(WARN, any_of(without), "8.0 or more for bfloat16", action)
    bfloat16 = "without" if without else "with"
    return Verdict(OK, f"{any_of(shown)}, {bfloat16} bfloat16", expected)


def _process(process: Process) -> str:
    user = f" of {process.user}" if process.user else ""
    memory = f", {process.memory_mib} MiB" if process.memory_mib is not None else ""
    return f"pid {process.pid}{user} ({process.name or 'name not told'}{memory})"


def _free_ones(count: int) -> str:
    return f"{count or 'none'} {'is' if count < 2 else 'are'} free"


@needs_gpus
def gpu_processes(context: Context) -> Verdict:
    """Whether other programs compute on the GPUs already: their pids, users and names.

    Desktop programs (types G and C+G) don't count. A container may not see the host's processes:
    then the check of free memory is what tells.
    """
    expected = "none"
    told = [gpu for gpu in context.gpus if gpu.processes is not None]
    busy: dict[int, list[str]] = {}
    for gpu in told:
        for process in gpu.processes or ():
            if process.computes:
                busy.setdefault(gpu.index, []).append(label(gpu, _process(process)))
    if busy:
        seen = any_of([text for texts in busy.values() for text in texts])
        free = sum(1 for gpu in context.gpus if usable(gpu) and gpu.index not in busy)
        if free < context.limits.gpus:
            action = (
                "End them (kill, or ask their user), or wait until they have ended; "
                f"{_free_ones(free)}, {context.limits.gpus} asked for (gpu_gate_gpus)."
            )
            return Verdict(FAIL, seen, expected, action)
        action = (
            f"Choose free GPUs with CUDA_VISIBLE_DEVICES; {_free_ones(free)}, "
            f"{context.limits.gpus} asked for (gpu_gate_gpus)."
        )
        return Verdict(WARN, seen, expected, action)
    if not told:
        return Verdict(UNKNOWN, "not told", expected)
    return Verdict(OK, "none", expected)


@needs_gpus
def gpu_mig(context: Context) -> Verdict:
    """Whether the GPUs are whole, or cut into slices (MIG), of which a program gets one."""
    expected = "off"
    sliced = [gpu for gpu in context.gpus if gpu.mig_enabled]
    action = "Switch MIG off (nvidia-smi -mig 0, as root), or ask the provider for a whole GPU."
    empty = [label(gpu, "MIG is on, without a slice") for gpu in sliced if not gpu.mig_devices]
    if empty:
        return Verdict(FAIL, any_of(empty), expected, action)
    changing = [
        label(gpu, "changes at the next reset")
        for gpu in context.gpus
        if gpu.mig_pending is not None and gpu.mig_pending != gpu.mig_enabled
    ]
    seen = [label(gpu, f"MIG is on, {quantity(len(gpu.mig_devices), 'slice')}") for gpu in sliced]
    if sliced and context.limits.gpus > 1:
        expected = f"off, for {context.limits.gpus} GPUs (gpu_gate_gpus)"
        return Verdict(FAIL, any_of(seen), expected, action)
    if sliced or changing:
        return Verdict(WARN, any_of(seen + changing), expected, action)
    if all(gpu.mig_enabled is None for gpu in context.gpus):
        return Verdict(SKIPPED, "these cards have no MIG", expected)
    return Verdict(OK, "off", expected)


@needs_gpus
def gpu_torch_build(context: Context) -> Verdict:
    """Whether the CUDA that torch was built for is one that the driver can run.

    By the version's tag (``2.13.0+cu126``); a build without one says it itself, in the active gate.
    """
    expected = "a CUDA of the driver's generation"
    version = (context.packages or {}).get("torch")
    driver = context.smi.snapshot.cuda_version if context.smi else None
    if not version or "torch" not in context.requirements:
        return Verdict(SKIPPED, "no torch of a Python for the training is known yet", expected)
    built = re.search(r"\+(?:cu(\d+)(\d)|(cpu))\b", version)
    newest = re.match(r"(\d+)\.(\d+)", driver or "")
    if not built:
        return Verdict(SKIPPED, f"torch {version} names no CUDA", expected)
    if built.group(3):
        action = "Name a Python whose torch has CUDA with provision_python, or take another image."
        return Verdict(FAIL, f"torch {version} is built without CUDA", expected, action)
    if not newest:
        return Verdict(UNKNOWN, "the driver names no CUDA", expected)
    wants = (int(built.group(1)), int(built.group(2)))
    has = (int(newest.group(1)), int(newest.group(2)))
    seen = f"torch {version}, driver up to CUDA {has[0]}.{has[1]}"
    action = "Take a torch built for an older CUDA, or a machine with a newer driver."
    if wants[0] > has[0]:
        # With NVIDIA's forward compatibility package it works all the same: the active gate asks.
        return Verdict(WARN, seen, expected, action)
    # Within one generation newer builds run on older drivers ("CUDA minor version compatibility").
    return Verdict(OK, seen, expected)


CHECKS = (
    Check(
        GPU,
        gpu_count,
        "fewer usable GPUs than the run asks for",
        limits=("gpus",),
    ),
    Check(GPU, gpu_state, "a GPU is lost, or needs a reset"),
    Check(
        GPU,
        gpu_memory,
        "fewer GPUs than asked for have the memory, the estimate's slack taken off",
        "it is less than the estimate by less than the slack",
        ("memory_gib", "memory_slack", "gpus"),
    ),
    Check(
        GPU,
        gpu_memory_free,
        "fewer have it free, the slack taken off",
        "less by less than the slack; nothing is asked for, and more than half is taken",
        ("memory_gib", "memory_slack", "gpus"),
    ),
    Check(
        GPU,
        gpu_capability,
        "it is lower, or dtype is bfloat16 and the card has none (below 8.0)",
        "dtype is auto and the card has no bfloat16",
        ("min_capability",),
    ),
    Check(
        GPU,
        gpu_processes,
        "so many GPUs are taken that too few are free",
        "enough are free",
        ("gpus",),
    ),
    Check(
        GPU,
        gpu_mig,
        "MIG is on without a slice, or with slices where several GPUs are asked for",
        "it is on: one slice is all that a program gets; or it changes at the next reset",
        ("gpus",),
    ),
    Check(
        GPU,
        gpu_torch_build,
        "torch is built without CUDA",
        "torch is built for a newer generation of CUDA; the active gate knows whether it works",
    ),
)
