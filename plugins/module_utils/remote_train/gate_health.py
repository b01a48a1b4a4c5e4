"""The gate's checks of the GPUs' health: memory errors, heat, and what the driver complained of."""

from __future__ import annotations

from .gate_gpus import RESET, needs_gpus, worst
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
from .smi_xml import Gpu
from .xid import FATAL, PROGRAM, Xid, bus, find

#: Where the card names no slowdown threshold: what data-centre cards of the last ten years have.
DEFAULT_SLOWDOWN = 90

#: The reasons that cost speed and aren't the training's own load.
HARDWARE_THROTTLE = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
THROTTLE = (*HARDWARE_THROTTLE, "sw_thermal_slowdown")

#: The driver's names of the reasons for a person.
CAUSES = {
    "hw_slowdown": "the hardware",
    "hw_thermal_slowdown": "heat",
    "hw_power_brake_slowdown": "the power supply",
    "sw_thermal_slowdown": "heat",
}


@needs_gpus
def gpu_ecc(context: Context) -> Verdict:
    """Whether memory errors went uncorrected since the driver was loaded.

    Fails from the first on (a weight may be wrong already), and when the card says that its
    SRAM has passed the limit at which NVIDIA replaces it.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.ecc_uncorrected:
            return FAIL, f"{gpu.ecc_uncorrected} uncorrected"
        if gpu.memory_unrepairable:
            return FAIL, "memory that can't be repaired"
        if gpu.ecc_threshold_exceeded:
            return FAIL, "SRAM errors over the limit"
        if gpu.ecc_uncorrected is not None:
            return OK, "0 uncorrected"
        if gpu.ecc_enabled is False:
            return SKIPPED, "ECC is switched off"
        return UNKNOWN, "not told"

    action = RESET + "if they come back, take another machine."
    return worst(context, judge, "0 uncorrected", action, "this card tells no ECC errors")


@needs_gpus
def gpu_row_remap(context: Context) -> Verdict:
    """Whether a memory row waits to be replaced, or couldn't be.

    Ampere and later replace rows; older cards retire pages, see the next check.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        defects = (
            (gpu.remap_failed, "a row couldn't be remapped"),
            (gpu.remap_pending, "a row waits to be remapped"),
            (gpu.repair_pending, "a repair waits for a reset"),
        )
        for there, seen in defects:
            if there:
                return FAIL, seen
        if gpu.remap_failed is not None or gpu.remap_pending is not None:
            return OK, "none pending, none failed"
        if gpu.retired_pages is not None:
            return SKIPPED, "this card retires pages instead"
        if gpu.mig_enabled:
            return SKIPPED, "not told in MIG mode"
        return UNKNOWN, "not told"

    action = RESET + "if a remapping failed, take another machine."
    return worst(
        context, judge, "none pending, none failed", action, "this card tells no remapped rows"
    )


@needs_gpus
def gpu_retired_pages(context: Context) -> Verdict:
    """Whether memory pages wait to be retired, or many are (cards before Ampere).

    NVIDIA replaces a card with 60 of them.
    """
    most = context.limits.max_retired_pages

    def judge(gpu: Gpu) -> tuple[str, str]:
        count = gpu.retired_pages
        retired = f"{count} retired, " if count is not None else ""
        if gpu.retirement_pending:
            return FAIL, f"{retired}a page waits to be retired"
        if count is not None and count >= most:
            return FAIL, f"{count} retired"
        if gpu.retirement_pending is not None:
            return OK, f"{retired}none pending"
        if gpu.remap_failed is not None or gpu.remap_pending is not None:
            return SKIPPED, "this card remaps rows instead"
        if gpu.mig_enabled:
            return SKIPPED, "not told in MIG mode"
        return UNKNOWN, "not told"

    action = RESET + "if more follow, take another machine."
    action += f" The most is gpu_gate_max_retired_pages ({most})."
    expected = f"fewer than {most} (gpu_gate_max_retired_pages), none pending"
    return worst(context, judge, expected, action, "this card tells no retired pages")


@needs_gpus
def gpu_throttle(context: Context) -> Verdict:
    """Whether something holds the clocks down: heat, or the power supply.

    Idle clocks and the software's power cap are as they should be. On an idle GPU nothing but a
    defect can be the reason for a hardware slowdown.
    """

    def judge(gpu: Gpu) -> tuple[str, str]:
        if gpu.throttle is None:
            return UNKNOWN, "not told"
        active = [name for name in THROTTLE if gpu.throttle.get(name)]
        if not active:
            return OK, "nothing"
        told = any_of([f"{CAUSES[name]} ({name})" for name in active])
        idle = gpu.utilization == 0 and not any(p.computes for p in gpu.processes or ())
        if idle and any(name in HARDWARE_THROTTLE for name in active):
            return FAIL, f"{told}, and nothing runs on it"
        return WARN, told

    action = (
        "Expect a fraction of the speed: look again in a minute; if it stays, take another machine."
    )
    return worst(context, judge, "nothing holds the clocks down", action)


@needs_gpus
def gpu_temperature(context: Context) -> Verdict:
    """Whether a GPU is so hot that it slows down, or close to it.

    The threshold is the card's own: an absolute one, or the margin that newer cards give.
    """
    close = context.limits.hot_margin

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
            return FAIL, f"{seen}, at its slowdown"
        if left <= close:
            return WARN, f"{seen}, {left} °C below its slowdown"
        return OK, seen

    action = "Wait until it has cooled down; if it stays hot, take another machine."
    expected = f"over {close} °C below its slowdown (gpu_gate_hot_margin)"
    return worst(context, judge, expected, action)


def gpu_xid(context: Context) -> Verdict:
    """Whether the driver wrote of broken hardware into the kernel's log (Xid messages).

    The log is read whatever the driver does, since a dead one wrote why. Messages of GPUs that
    aren't this machine's are passed over, unless one is missing: a container sees its host's log.
    Programs' own faults are counted, and are no finding. What is older than
    ``gpu_gate_xid_hours`` warns at most: the GPU may have been reset since.
    """
    hours = context.limits.xid_hours
    expected = f"no fault of hardware in {hours:g} h (gpu_gate_xid_hours)"
    if not context.kernel.source:
        reason = context.kernel.reason or "not looked at"
        return Verdict(UNKNOWN, f"the kernel's log can't be read ({reason})", expected)
    ours = {bus(gpu.bus_id) for gpu in context.gpus if gpu.bus_id}
    if len(context.gpus) < context.limits.gpus:
        ours = set()  # the one that is missing may be the one that is written of
    found = [x for x in find(context.kernel.lines) if x.switch or not ours or x.bus in ours]
    limit = hours * 3600
    # A switch may serve other containers of the host, and no message says whose GPUs it serves.
    fatal = [x for x in found if x.severity == FATAL and not x.switch]
    bad = [x for x in fatal if x.age is None or x.age <= limit]
    doubtful = [x for x in found if x.severity != PROGRAM and x not in bad]
    action = RESET + "if it comes again, take another machine."
    if bad:
        return Verdict(FAIL, _listed(context, bad), expected, action)
    if doubtful:
        return Verdict(WARN, _listed(context, doubtful), expected, action)
    more = f", {quantity(len(found), 'fault')} of programs" if found else ""
    return Verdict(OK, f"none{more} ({context.kernel.source})", expected)


def _listed(context: Context, messages: list[Xid]) -> str:
    """Messages for a person: the last first, one line for those that are alike."""
    places = {bus(gpu.bus_id): f"GPU {gpu.index}" for gpu in context.gpus if gpu.bus_id}
    texts = []
    for message in reversed(messages):
        kind = "SXid" if message.switch else "Xid"
        place = places.get(message.bus, message.bus)
        texts.append(f"{place}: {kind} {message.number}, {message.meaning}")
    last = messages[-1].age
    ago = "" if last is None else f" (the last {_ago(last)} ago)"
    return any_of(each_once(texts), most=3) + ago


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


CHECKS = (
    Check(
        GPU,
        gpu_ecc,
        "a memory error went uncorrected, memory can't be repaired, or the SRAM's errors are over "
        "NVIDIA's limit",
    ),
    Check(GPU, gpu_row_remap, "a row waits to be replaced or repaired, or couldn't be"),
    Check(
        GPU,
        gpu_retired_pages,
        "a page waits to be retired, or too many are",
        limits=("max_retired_pages",),
    ),
    Check(
        GPU,
        gpu_throttle,
        "the hardware slows an idle GPU down",
        "heat or power slows a working one down",
    ),
    Check(
        GPU,
        gpu_temperature,
        "it is at its slowdown temperature",
        "it is close to it",
        ("hot_margin",),
    ),
    Check(
        GPU,
        gpu_xid,
        "a fatal one of these GPUs is recent",
        "a fatal one is older or of an NVSwitch, or a serious one is there",
        ("xid_hours",),
    ),
)
