"""The gate's checks of how the GPUs are connected: PCIe, NVLink; and of persistence mode."""

from __future__ import annotations

from .gate_gpus import label, needs_gpus, worst
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
)
from .smi_xml import Gpu

#: States of a GPU's registration with the NVSwitch fabric in which CUDA doesn't start.
NOT_READY = ("in progress", "not started")


@needs_gpus
def gpu_pcie(context: Context) -> Verdict:
    """Whether the PCIe link has the generation and width that card and slot could have.

    An idle card lowers its generation to save power, so the generation that the link can have is
    what counts, and the current one only while the GPU works.
    """
    limits = context.limits

    def judge(gpu: Gpu) -> tuple[str, str]:
        now, most = gpu.pcie_generation, gpu.pcie_generation_max
        width, full = gpu.pcie_width, gpu.pcie_width_max
        if width is None or most is None:
            return UNKNOWN, "not told"
        seen = f"generation {most} x{width}"
        if most < limits.min_pcie_generation or width < limits.min_pcie_width:
            return FAIL, seen
        if full and width < full:
            return WARN, f"{seen}, the card has x{full}"
        if (gpu.utilization or 0) >= 50 and now is not None and now < most:
            return WARN, f"generation {now} at work, {most} is possible"
        if gpu.pcie_generation_device and most < gpu.pcie_generation_device:
            return OK, f"{seen} (the card has {gpu.pcie_generation_device}, the slot less)"
        return OK, seen

    expected = (
        f"generation {limits.min_pcie_generation} x{limits.min_pcie_width} at least "
        "(gpu_gate_min_pcie_generation, gpu_gate_min_pcie_width), all of the card's lanes"
    )
    action = (
        "Expect slower loading and saving; on a machine of your own have the card seated anew. "
        "Clouds often give a card half of its lanes: then silence gpu_pcie."
    )
    verdict = worst(context, judge, expected, action)
    if verdict.result != FAIL:
        return verdict
    action = (
        "Take another machine, or have the card seated anew; or lower "
        f"{limits.setting('min_pcie_generation')} or {limits.setting('min_pcie_width')}."
    )
    return Verdict(FAIL, verdict.seen, expected, action)


@needs_gpus
def gpu_nvlink(context: Context) -> Verdict:
    """Whether the NVLinks are up, where there are any, and the fabric behind them is ready."""
    expected = "the same on all, the fabric ready"
    several = context.limits.gpus > 1
    if several:
        expected += f", for {context.limits.gpus} GPUs (gpu_gate_gpus)"
    trouble = _fabric(context, several, expected)
    if trouble:
        return trouble
    links = context.links
    if not links.told:
        return Verdict(UNKNOWN, "not told", expected)
    counts = {gpu.index: links.active.get(gpu.index, 0) for gpu in context.gpus}
    best = max(counts.values())
    if not best:
        return Verdict(SKIPPED, "no NVLink in use", expected)
    poor = [gpu for gpu in context.gpus if counts[gpu.index] < best]
    if poor:
        seen = any_of([label(gpu, f"{counts[gpu.index]} of {best}") for gpu in poor]) + " links up"
        if any(
            _soldered(gpu) and (links.inactive.get(gpu.index) or gpu.index in links.dark)
            for gpu in poor
        ):
            action = "Expect slow exchange between the GPUs: reboot, or take another machine."
            return Verdict(FAIL if several else WARN, seen, expected, action)
        # Bridges between some of the cards, as they are sold: nothing is broken.
        action = "Choose GPUs that are linked with CUDA_VISIBLE_DEVICES, or expect slow exchange."
        return Verdict(WARN, seen, expected, action) if several else Verdict(OK, seen, expected)
    down = each_once(str(links.inactive.get(gpu.index, 0)) for gpu in context.gpus)
    more = f", {any_of(down)} not in use" if down != ["0"] else ""
    return Verdict(OK, f"{best} up on each{more}", expected)


def _fabric(context: Context, several: bool, expected: str) -> Verdict | None:
    """What is wrong with the NVSwitch fabric; None where nothing is, or there is none."""
    waiting = [
        label(gpu, f"fabric {gpu.fabric_state}, {gpu.fabric_status or 'no status'}")
        for gpu in context.gpus
        if (gpu.fabric_state or "").lower() in NOT_READY
        or (gpu.fabric_status or "success").lower() != "success"
    ]
    if waiting:
        action = (
            "CUDA doesn't start like this: the provider has to start nvidia-fabricmanager, or "
            "reboot the machine."
        )
        return Verdict(FAIL, any_of(waiting), expected, action)
    ill = [
        label(gpu, f"fabric: {any_of(list(gpu.fabric_faults))}")
        for gpu in context.gpus
        if gpu.fabric_faults
    ]
    if not ill:
        return None
    action = "Expect slow exchange between the GPUs, or none: reboot, or take another machine."
    return Verdict(FAIL if several else WARN, any_of(ill), expected, action)


def _soldered(gpu: Gpu) -> bool:
    """Whether all links lead somewhere: behind an NVSwitch, and on the boards called SXM."""
    return gpu.fabric_state is not None or "SXM" in (gpu.name or "")


@needs_gpus
def gpu_persistence(context: Context) -> Verdict:
    """Whether the driver stays loaded while no program uses the GPU (persistence mode).

    Without it each start takes seconds longer, and the counts of memory errors begin anew.
    """
    result = FAIL if context.limits.need_persistence else WARN

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.persistence is None:
            return UNKNOWN, "not told"
        return (OK, "on") if gpu.persistence else (result, "off")

    action = (
        "Switch it on (nvidia-smi -pm 1, as root); in a container that can't, silence this check."
    )
    if context.limits.need_persistence:
        action += " gpu_gate_need_persistence makes it fail."
    return worst(context, judge, "on", action)


CHECKS = (
    Check(
        GPU,
        gpu_pcie,
        "generation or width are below the least",
        "the link is narrower than the card, or slower than it could be at work",
        ("min_pcie_generation", "min_pcie_width"),
    ),
    Check(
        GPU,
        gpu_nvlink,
        "the fabric isn't ready; links of an SXM board are down, and several GPUs are asked for",
        "they are down, and one is asked for; bridges link some cards, and several are asked for",
        ("gpus",),
    ),
    Check(
        GPU,
        gpu_persistence,
        "it is off, and gpu_gate_need_persistence is set",
        "it is off",
        ("need_persistence",),
    ),
)
