"""What the gate's checks of single GPUs share: one verdict out of those of all cards."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

from .gate_model import (
    FAIL,
    OK,
    SKIPPED,
    UNKNOWN,
    WARN,
    Context,
    Function,
    Verdict,
    any_of,
    each_once,
)
from .smi_xml import Gpu

RESET = (
    "Reboot the machine (a provider's restart does), or reset the GPU (nvidia-smi -r, as root); "
)


def needs_gpus(function: Function) -> Function:
    """Skip a check of the GPUs where there is none to look at."""

    @wraps(function)
    def guarded(context: Context) -> Verdict:
        if context.smi is None or context.smi.state != "ok":
            return Verdict(SKIPPED, "the driver doesn't answer")
        if not context.gpus:
            return Verdict(SKIPPED, "there is no GPU")
        return function(context)

    return guarded


def label(gpu: Gpu, text: str) -> str:
    """``GPU 0: ...``."""
    return f"GPU {gpu.index}: {text}"


def usable(gpu: Gpu) -> bool:
    """Whether a program could compute on it: in reach, and not in MIG mode without a slice."""
    return not gpu.faults and not (gpu.mig_enabled and not gpu.mig_devices)


def worst(
    context: Context,
    judge: Callable[[Gpu], tuple[str, str]],
    expected: str,
    action: str,
    none_left: str = "not told",
) -> Verdict:
    """One verdict for all GPUs: the worst of theirs, and which GPUs gave it.

    :param judge: gives a GPU's result and what was seen of it.
    :param none_left: what is said where no card tells anything.
    """
    results = [(gpu, *judge(gpu)) for gpu in context.gpus]
    for wanted in (FAIL, WARN):
        bad = [label(gpu, seen) for gpu, result, seen in results if result == wanted]
        if bad:
            return Verdict(wanted, any_of(bad), expected, action)
    for wanted in (OK, SKIPPED):
        good = each_once(seen for _gpu, result, seen in results if result == wanted)
        if good:
            return Verdict(wanted, any_of(good), expected)
    return Verdict(UNKNOWN, none_left, expected)
