"""The gate's checks of the GPU and its driver, on what ``nvidia-smi -q -x`` told.

What a card doesn't tell (consumer cards print N/A for much of it) is ``unknown`` and stops
nothing. Where the driver doesn't answer, the first check says so and the others are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps

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
    quantity,
)
from .nvidia_smi import Answer, Gpu

#: A card sold as 24 GB shows 22.5 GiB, one sold as 16 GB 15 GiB and a little less free: an
#: expectation counts as met from nine tenths on.
MEMORY_TOLERANCE = 0.10

#: Degrees Celsius below the slowdown at which a card counts as hot before any work.
HOT_MARGIN = 10

#: Where the card names no slowdown threshold: what data-centre cards of the last ten years have.
DEFAULT_SLOWDOWN = 90

#: The reasons that cost speed and aren't the training's own load.
HARDWARE_THROTTLE = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
THROTTLE = (*HARDWARE_THROTTLE, "sw_thermal_slowdown")

NO_GPU = "Rent a machine with an NVIDIA GPU, or set gpu_gate to warn to train without one."
OTHER_MACHINE = "Ask the provider to repair it, or take another machine."
RESET = "Reset the GPU or reboot the machine (a provider's restart does); "

# How to know what went wrong when nvidia-smi gave no XML: a piece of its words or its exit code
# (manual page, "RETURN VALUE"; the codes above 18 are NVML's), what that means, what to do.
_FAILURES: tuple[tuple[str, int, str, str], ...] = (
    (
        "driver/library version mismatch",
        18,
        "the driver in the kernel and its library are of different versions",
        "Reboot the machine; in a container, restart it so that it gets the host's library.",
    ),
    (
        "couldn't communicate with the nvidia driver",
        9,
        "the driver isn't loaded",
        "Reboot the machine, or install the driver again (the kernel may be newer than it); "
        "in a container, start it with its GPUs.",
    ),
    (
        "gpu is lost",
        15,
        "a GPU has fallen off the bus",
        "Reboot the machine; if it comes back, take another one.",
    ),
    (
        "unable to determine the device handle",
        15,
        "a GPU has fallen off the bus",
        "Reboot the machine; if it comes back, take another one.",
    ),
    (
        "no devices were found",
        6,
        "the driver sees no GPU",
        "Check that the machine was rented with a GPU and that the container was given it.",
    ),
    (
        "nvml shared library couldn't be found",
        12,
        "the driver's library is missing",
        "In a container, start it with its GPUs; else install the driver again.",
    ),
    (
        "insufficient permissions",
        4,
        "this user may not ask the driver",
        "Give the user read and write access to /dev/nvidia*.",
    ),
    ("infoROM is corrupted", 14, "the infoROM of a GPU is corrupted", OTHER_MACHINE),
    ("", 8, "a GPU's power cables aren't attached", OTHER_MACHINE),
    ("", 10, "the kernel found an interrupt issue with a GPU", OTHER_MACHINE),
)


def driver(context: Context) -> Verdict:
    """Whether the driver is there and answers.

    Fails when nvidia-smi is missing, doesn't answer in time, can't reach the driver or says
    what can't be read; warns when it answers and complains (a corrupted infoROM, for one).
    """
    answer, expected = context.smi, "nvidia-smi answers"
    if answer is None:
        return Verdict(SKIPPED, "nvidia-smi was not asked")
    if answer.state != "ok":
        seen, action = _no_answer(answer)
        return Verdict(FAIL, seen, expected, action)
    if answer.code:
        meaning, action = _meaning(answer)
        return Verdict(WARN, f"it answers, but {meaning} ({_words(answer)})", expected, action)
    snapshot = answer.snapshot
    if snapshot.driver_version is None:
        return Verdict(UNKNOWN, "it answers, but names no version", expected)
    cuda = f", CUDA {snapshot.cuda_version}" if snapshot.cuda_version else ""
    return Verdict(OK, f"driver {snapshot.driver_version}{cuda}", expected)


def _no_answer(answer: Answer) -> tuple[str, str]:
    """Why there is no answer, and what to do."""
    missing = f"there is no {answer.program} on this machine"
    program = "name its path in gpu_gate_nvidia_smi."
    if answer.state == "failed":
        meaning, action = _meaning(answer)
        return f"{meaning} ({_words(answer)})", action
    if answer.state == "missing" and not answer.text:
        return f"{missing}, so no NVIDIA driver and no GPU", NO_GPU
    table = {
        "missing": (
            f"{missing}, though {answer.text}",
            f"Put nvidia-smi into the image, or {program}",
        ),
        "unusable": (
            f"{answer.program} can't be run ({answer.text})",
            f"Install the driver again, or {program}",
        ),
        "hangs": (
            f"nvidia-smi gave no answer within {answer.seconds:g} s",
            "The driver hangs: reboot the machine; if it comes back, take another one.",
        ),
        "unreadable": (
            f"the answer of nvidia-smi can't be read: {answer.text}",
            "Run nvidia-smi -q -x on the machine and look at what it prints.",
        ),
    }
    return table[answer.state]


def _meaning(answer: Answer) -> tuple[str, str]:
    """What a failed call means, and what to do: by its words, else by its exit code."""
    said = answer.text.lower()
    for piece, _code, meaning, action in _FAILURES:
        if piece and piece.lower() in said:
            return meaning, action
    for _piece, code, meaning, action in _FAILURES:
        if code == answer.code:
            return meaning, action
    return "nvidia-smi failed", "Run nvidia-smi on the machine and look at what it says."


def _words(answer: Answer) -> str:
    code = answer.code if answer.code is not None else 0
    ended = f"killed by signal {-code}" if code < 0 else f"exit {code}"
    return f"{ended}: {answer.text}" if answer.text else ended


GpuCheck = Callable[[Context], Verdict]


def _needs_gpus(function: GpuCheck) -> GpuCheck:
    """Skip a check of the GPUs' fields where there is no GPU to look at."""

    @wraps(function)
    def guarded(context: Context) -> Verdict:
        if context.smi is None or context.smi.state != "ok":
            return Verdict(SKIPPED, "the driver doesn't answer")
        if not context.gpus:
            return Verdict(SKIPPED, "there is no GPU")
        return function(context)

    return guarded


def _label(gpu: Gpu, text: str) -> str:
    return f"GPU {gpu.index}: {text}"


def _usable(gpu: Gpu) -> bool:
    """Whether a program could compute on it: in reach, and not in MIG mode without a slice."""
    return not gpu.faults and not (gpu.mig_enabled and not gpu.mig_devices)


def gpu_count(context: Context) -> Verdict:
    """Whether there are at least as many usable GPUs as the run asks for.

    A GPU that is lost, or in MIG mode without a slice, doesn't count.
    """
    if context.smi is None or context.smi.state != "ok":
        return Verdict(SKIPPED, "the driver doesn't answer")
    expected = f"at least {context.gpu_count}"
    usable = [gpu for gpu in context.gpus if _usable(gpu)]
    names = sorted({gpu.name or "of unknown name" for gpu in usable})
    seen = quantity(len(usable), "usable GPU") + (f" ({any_of(names)})" if names else "")
    if len(usable) < len(context.gpus):
        seen += f" of {len(context.gpus)}"
    if len(usable) >= context.gpu_count:
        return Verdict(OK, seen, expected)
    action = "Rent a machine with more GPUs, or lower gpu_gate_gpu_count."
    if any(gpu.mig_enabled and not gpu.mig_devices for gpu in context.gpus):
        action = "Create a MIG instance or switch MIG off (nvidia-smi -mig 0, as root)."
    return Verdict(FAIL, seen, expected, action)


@_needs_gpus
def gpu_state(context: Context) -> Verdict:
    """Whether every GPU is in the driver's reach and needs no reset.

    Fails for a GPU that "is lost" or whose recovery action is a reset or a reboot.
    """
    expected = "in reach, no reset needed"
    bad = [_label(gpu, any_of(list(gpu.faults))) for gpu in context.gpus if gpu.faults]
    bad += [
        _label(gpu, f"needs {gpu.recovery_action}")
        for gpu in context.gpus
        if gpu.recovery_action not in (None, "none") and not gpu.faults
    ]
    if bad:
        return Verdict(FAIL, any_of(bad), expected, RESET + "if it stays, take another one.")
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


def _mostly_taken(gpu: Gpu) -> bool:
    total, free = _memory(gpu, free=False), _memory(gpu, free=True)
    return total is not None and free is not None and free * 2 < total


def _memory_verdict(context: Context, free: bool, action: str) -> Verdict:
    """Whether enough GPUs have what is expected of their memory."""
    amounts = [_memory(gpu, free) for gpu in context.gpus]
    known = [amount for amount in amounts if amount is not None]
    seen = any_of([f"{amount / 1024:.1f} GiB" for amount in known]) + (" free" if free else "")
    expected = f"{context.gpu_memory_gib:g} GiB" if context.gpu_memory_gib else "anything"
    if not known:
        return Verdict(UNKNOWN, "not told", expected)
    needed = context.gpu_memory_gib * 1024 * (1 - MEMORY_TOLERANCE)
    # Those that don't tell may have it: only what is known to be too small counts against it.
    too_small = sum(1 for amount in known if amount < needed)
    if len(amounts) - too_small < min(context.gpu_count, len(amounts)):
        return Verdict(FAIL, seen, expected, action)
    return Verdict(OK, seen, expected)


@_needs_gpus
def gpu_memory(context: Context) -> Verdict:
    """Whether as many GPUs as asked for have the memory that is expected of them.

    Cards show less than they are sold with, so nine tenths are enough.
    """
    action = "Rent a larger GPU, or lower gpu_gate_memory_gib if the model needs less."
    return _memory_verdict(context, free=False, action=action)


@_needs_gpus
def gpu_memory_free(context: Context) -> Verdict:
    """Whether that memory is free. Without an expectation, warns when more than half is taken."""
    action = "End what holds the memory (nvidia-smi shows it), or restart the machine."
    verdict = _memory_verdict(context, free=True, action=action)
    if verdict.result != OK or context.gpu_memory_gib:
        return verdict
    taken = [gpu for gpu in context.gpus if _mostly_taken(gpu)]
    if len(context.gpus) - len(taken) < min(context.gpu_count, len(context.gpus)):
        return Verdict(WARN, verdict.seen, "at least half", action)
    return verdict


@_needs_gpus
def gpu_processes(context: Context) -> Verdict:
    """Whether other programs compute on the GPUs already.

    Desktop programs (type G) don't count. Fails when fewer free GPUs are left than the run asks
    for, warns when there are enough others. A container may not see the host's processes: then
    the check of free memory is what tells.
    """
    expected = "none"
    told = [gpu for gpu in context.gpus if gpu.processes is not None]
    busy: dict[int, list[str]] = {}
    for gpu in told:
        for process in gpu.processes or ():
            if process.computes:
                memory = f", {process.memory_mib} MiB" if process.memory_mib is not None else ""
                text = f"pid {process.pid} ({process.name or 'name not told'}{memory})"
                busy.setdefault(gpu.index, []).append(_label(gpu, text))
    if busy:
        seen = any_of([text for texts in busy.values() for text in texts])
        free = len(context.gpus) - len(busy)
        if free < context.gpu_count:
            action = "End them, or wait until they have ended."
            return Verdict(FAIL, seen, expected, action)
        action = "Choose free GPUs with CUDA_VISIBLE_DEVICES."
        return Verdict(WARN, seen, expected, action)
    if not told:
        return Verdict(UNKNOWN, "not told", expected)
    return Verdict(OK, "none", expected)


def _worst(
    context: Context,
    judge: Callable[[Gpu], tuple[str, str]],
    expected: str,
    action: str,
    none_left: str = "not told",
) -> Verdict:
    """One verdict for all GPUs: the worst of theirs, and which GPUs gave it.

    ``judge`` gives a GPU's result and what was seen of it.
    """
    results = [(gpu, *judge(gpu)) for gpu in context.gpus]
    for wanted in (FAIL, WARN):
        bad = [_label(gpu, seen) for gpu, result, seen in results if result == wanted]
        if bad:
            return Verdict(wanted, any_of(bad), expected, action)
    for wanted in (OK, SKIPPED):
        good = _each_once(seen for _gpu, result, seen in results if result == wanted)
        if good:
            return Verdict(wanted, any_of(good), expected)
    return Verdict(UNKNOWN, none_left, expected)


def _each_once(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


@_needs_gpus
def gpu_ecc(context: Context) -> Verdict:
    """Whether memory errors went uncorrected since the driver was loaded.

    Fails from the first on (a weight may be wrong already), and when the card says that its
    SRAM has passed the limit at which NVIDIA replaces it.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.ecc_uncorrected:
            return FAIL, f"{gpu.ecc_uncorrected} uncorrected"
        if gpu.ecc_threshold_exceeded:
            return FAIL, "SRAM errors over the limit"
        if gpu.ecc_uncorrected is not None:
            return OK, "0 uncorrected"
        if gpu.ecc_enabled is False:
            return SKIPPED, "ECC is switched off"
        return UNKNOWN, "not told"

    action = RESET + "if they come back, take another machine."
    return _worst(context, judge, "0 uncorrected", action, "this card tells no ECC errors")


@_needs_gpus
def gpu_row_remap(context: Context) -> Verdict:
    """Whether a memory row waits to be replaced (needs a reset) or couldn't be (a defect).

    Ampere and later replace rows; older cards retire pages, see the next check.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.remap_failed:
            return FAIL, "a row couldn't be remapped"
        if gpu.remap_pending:
            return FAIL, "a row waits to be remapped"
        if gpu.remap_failed is not None or gpu.remap_pending is not None:
            return OK, "none pending, none failed"
        if gpu.retired_pages is not None:
            return SKIPPED, "this card retires pages instead"
        return UNKNOWN, "not told"

    action = RESET + "if a remapping failed, take another machine."
    return _worst(
        context, judge, "none pending, none failed", action, "this card tells no remapped rows"
    )


@_needs_gpus
def gpu_retired_pages(context: Context) -> Verdict:
    """Whether a memory page waits to be retired (cards before Ampere); needs a reset."""

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.retirement_pending:
            return FAIL, "a page waits to be retired"
        if gpu.retirement_pending is not None:
            count = f"{gpu.retired_pages} retired, " if gpu.retired_pages is not None else ""
            return OK, f"{count}none pending"
        if gpu.remap_failed is not None or gpu.remap_pending is not None:
            return SKIPPED, "this card remaps rows instead"
        return UNKNOWN, "not told"

    action = RESET + "if more follow, take another machine."
    return _worst(context, judge, "none pending", action, "this card tells no retired pages")


@_needs_gpus
def gpu_throttle(context: Context) -> Verdict:
    """Whether something holds the clocks down: heat, or the power supply.

    Idle clocks and the software's power cap are as they should be. Warns on a GPU at work; on an
    idle one nothing but a defect can be the reason for a hardware slowdown, so that fails.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.throttle is None:
            return UNKNOWN, "not told"
        active = [name for name in THROTTLE if gpu.throttle.get(name)]
        if not active:
            return OK, "none"
        idle = gpu.utilization == 0 and not any(p.computes for p in gpu.processes or ())
        if idle and any(name in HARDWARE_THROTTLE for name in active):
            return FAIL, f"{any_of(active)}, and nothing runs on it"
        return WARN, any_of(active)

    action = "Expect a fraction of the speed: take another machine if it stays."
    return _worst(context, judge, "none", action)


@_needs_gpus
def gpu_temperature(context: Context) -> Verdict:
    """Whether a GPU is so hot that it slows down (fails), or close to it (warns).

    The threshold is the card's own: an absolute one, or the margin that newer cards give.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.temperature is None:
            return UNKNOWN, "not told"
        if gpu.temperature_slowdown is not None:
            left = gpu.temperature_slowdown - gpu.temperature
        elif gpu.temperature_margin is not None:
            left = gpu.temperature_margin - (gpu.slowdown_margin or 0)
        else:
            left = DEFAULT_SLOWDOWN - gpu.temperature
        seen = f"{gpu.temperature} °C"
        if left <= 0:
            return FAIL, seen
        return (WARN if left <= HOT_MARGIN else OK), seen

    action = "Wait until it has cooled down; if it stays hot, take another machine."
    return _worst(context, judge, f"over {HOT_MARGIN} °C below its slowdown", action)


CHECKS = tuple(
    Check(function.__name__, GPU, function)
    for function in (
        driver,
        gpu_count,
        gpu_state,
        gpu_memory,
        gpu_memory_free,
        gpu_processes,
        gpu_ecc,
        gpu_row_remap,
        gpu_retired_pages,
        gpu_throttle,
        gpu_temperature,
    )
)
