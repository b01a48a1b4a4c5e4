"""Read the XML of ``nvidia-smi -q -x``, of any driver generation.

The element names are those of NVIDIA's ``nvsmi_device_v11.dtd``, ``v12`` and ``v13``, and this is
the only file that knows them, so that a driver that renames one is a change in one place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

#: Eight GPUs with all their supported clocks are about 0.25 MB.
LARGEST_ANSWER = 32 * 1024 * 1024

# What stands in a field's place when the driver can no longer reach that GPU.
_LOST = ("gpu is lost", "gpu requires reset")
# What stands there when it couldn't read that one field: of a fan or a sensor it means nothing, but
# a GPU whose memory or name can't be read is as good as lost.
_UNREADABLE = ("unknown error", "err!")
_VITAL = (
    "uuid",
    "pci/pci_bus_id",
    *(f"fb_memory_usage/{amount}" for amount in ("total", "used", "free")),
)

_MIB = re.compile(r"(\d+)(?:\.\d+)? *(?:MiB|MB)")
_NUMBER = re.compile(r"(-?\d+)(?:\.\d+)?(?: *(?:C|%|x|W|MHz))?")
_SCHEMA = re.compile(r"<!DOCTYPE\s+nvidia_smi_log\s+SYSTEM\s+[\"'][^\"']*?_(v\d+)\.dtd[\"']")
# What XML 1.0 doesn't allow, and process names can hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SmiError(Exception):
    """The answer of nvidia-smi can't be read; the text says why."""


@dataclass(frozen=True)
class Process:
    """A process that holds a context on a GPU; ``kind`` is C, G, C+G or M+C (MPS).

    nvidia-smi tells no ``user``: it is looked up afterwards, and None where it can't be.
    """

    pid: int | None
    name: str | None
    kind: str | None
    memory_mib: int | None
    user: str | None = None

    @property
    def computes(self) -> bool:
        """Whether it is there to compute: parts of a desktop are G or C+G.

        A kind that isn't told counts as computing.
        """
        return self.kind is None or ("C" in self.kind and "G" not in self.kind)


@dataclass(frozen=True)
class MigDevice:
    """One slice of a GPU in MIG mode."""

    index: int | None
    memory_total_mib: int | None
    memory_free_mib: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU; every field but ``index`` is None where the driver doesn't tell it.

    Memory is in MiB, temperatures in degrees Celsius, ``utilization`` in percent.
    ``pcie_generation_max`` is the most of card and slot together, ``pcie_generation_device`` that
    of the card alone. ``fabric_state`` is told by cards behind an NVSwitch, ``fabric_faults`` are
    what newer ones say is wrong with it.
    ``temperature_margin`` is the distance to the limit, which newer cards give instead of
    absolute thresholds; they slow down when it falls to ``slowdown_margin``.
    ``memory_unrepairable`` and ``repair_pending`` (of a memory channel, of a part of the chip) are
    told by newer drivers. ``ecc_uncorrected`` counts since the driver was loaded (volatile),
    ``throttle`` maps each reason to whether it is active, and ``faults`` holds what stood in
    fields' places when the driver had lost the GPU.
    """

    index: int
    bus_id: str | None = None
    name: str | None = None
    uuid: str | None = None
    architecture: str | None = None
    memory_total_mib: int | None = None
    memory_used_mib: int | None = None
    memory_free_mib: int | None = None
    utilization: int | None = None
    temperature: int | None = None
    temperature_slowdown: int | None = None
    temperature_margin: int | None = None
    slowdown_margin: int | None = None
    ecc_enabled: bool | None = None
    ecc_uncorrected: int | None = None
    ecc_threshold_exceeded: bool | None = None
    memory_unrepairable: bool | None = None
    repair_pending: bool | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    remapped_uncorrected: int | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    throttle: dict[str, bool] | None = None
    pcie_generation: int | None = None
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_generation_device: int | None = None
    performance_state: str | None = None
    fabric_state: str | None = None
    fabric_status: str | None = None
    fabric_faults: tuple[str, ...] = ()
    mig_enabled: bool | None = None
    mig_pending: bool | None = None
    mig_devices: tuple[MigDevice, ...] = ()
    persistence: bool | None = None
    recovery_action: str | None = None
    processes: tuple[Process, ...] | None = None
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """What one call of nvidia-smi told; ``notes`` are lines it printed around its XML."""

    schema: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = ()


def parse(document: bytes) -> Snapshot:
    """Read the XML of ``nvidia-smi -q -x``, of any schema from v11 to v13.

    The document type is accepted and never loaded. A missing field, and one that says N/A, is
    None; it is no error.

    :raises SmiError: when it isn't XML, is cut short, or declares an entity (an entity can
        expand without bound, and nvidia-smi never writes one).
    """
    if len(document) > LARGEST_ANSWER:
        raise SmiError(f"the XML is larger than {LARGEST_ANSWER} bytes")
    text = _NOT_XML.sub("\ufffd", document.decode("utf-8", "replace"))
    text, notes = _cut_out(text)
    root = _tree(text)
    if root.tag != "nvidia_smi_log":
        raise SmiError(f"the XML is a {root.tag}, not an nvidia_smi_log")
    schema = _SCHEMA.search(text)
    gpus = tuple(_gpu(index, element) for index, element in enumerate(root.findall("gpu")))
    return Snapshot(
        schema=schema.group(1) if schema else None,
        # v13 announces kmd_version and cuda_umd_version in place of the other two.
        driver_version=_text(root, "driver_version", "kmd_version"),
        cuda_version=_text(root, "cuda_version", "cuda_umd_version"),
        gpus=gpus,
        notes=notes,
    )


def _cut_out(text: str) -> tuple[str, tuple[str, ...]]:
    """The document alone, and the lines around it: warnings go to the same stream."""
    starts = [at for at in (text.find("<?xml"), text.find("<!DOCTYPE")) if at >= 0]
    start = min(starts) if starts else max(text.find("<nvidia_smi_log"), 0)
    closing = "</nvidia_smi_log>"
    end = text.rfind(closing)
    end = len(text) if end < 0 else end + len(closing)
    around = text[:start].splitlines() + text[end:].splitlines()
    return text[start:end], tuple(line.strip() for line in around if line.strip())


def _tree(text: str) -> Element:
    """The element tree of a document without entities.

    ElementTree's own parser expands entities and hides its expat handlers, so expat is driven
    here; it never loads an external document type unless it is told to.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_arguments: object) -> int:
        raise SmiError("the XML declares or uses an entity, which nvidia-smi never does")

    parser.EntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    parser.SkippedEntityHandler = refuse
    try:
        parser.Parse(text, True)
        return builder.close()
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise SmiError(f"the XML is broken at line {error.lineno} ({reason})") from error


def _text(element: Element, *paths: str) -> str | None:
    """The text at the first of ``paths`` that tells something; None for N/A and its kin."""
    for path in paths:
        text = (element.findtext(path) or "").strip()
        plain = text.strip("[]").lower()
        if plain and plain not in ("n/a", "not supported", "insufficient permissions"):
            if "deprecated" in plain or plain in (*_LOST, *_UNREADABLE):
                continue
            return text
    return None


def _number(element: Element, *paths: str) -> int | None:
    """A whole number, its unit left off, fractions cut."""
    text = _text(element, *paths)
    found = _NUMBER.fullmatch(text) if text else None
    return int(found.group(1)) if found else None


def _mib(element: Element, path: str) -> int | None:
    text = _text(element, path)
    found = _MIB.fullmatch(text) if text else None
    return int(found.group(1)) if found else None


def _flag(element: Element, *paths: str) -> bool | None:
    """Whether a switch is on; None for anything that is neither on nor off."""
    text = (_text(element, *paths) or "").lower()
    if text in ("yes", "enabled", "active", "on"):
        return True
    return False if text in ("no", "disabled", "not active", "off") else None


def _any_flag(element: Element, *paths: str) -> bool | None:
    """Whether any of some switches is on; None where none of them is told."""
    known = [flag for flag in (_flag(element, path) for path in paths) if flag is not None]
    return any(known) if known else None


def _gpu(index: int, element: Element) -> Gpu:
    """One ``gpu`` element."""
    link = "pci/pci_gpu_link_info/"
    return Gpu(
        index=index,
        bus_id=_text(element, "pci/pci_bus_id") or element.get("id"),
        name=_text(element, "product_name"),
        uuid=_text(element, "uuid"),
        architecture=_text(element, "product_architecture"),
        memory_total_mib=_mib(element, "fb_memory_usage/total"),
        memory_used_mib=_mib(element, "fb_memory_usage/used"),
        memory_free_mib=_mib(element, "fb_memory_usage/free"),
        utilization=_number(element, "utilization/gpu_util"),
        temperature=_number(element, "temperature/gpu_temp"),
        temperature_slowdown=_number(element, "temperature/gpu_temp_slow_threshold"),
        temperature_margin=_number(element, "temperature/gpu_temp_tlimit"),
        slowdown_margin=_number(element, "temperature/gpu_temp_slow_tlimit_threshold"),
        ecc_enabled=_flag(element, "ecc_mode/current_ecc"),
        ecc_uncorrected=_uncorrected(element.find("ecc_errors/volatile")),
        ecc_threshold_exceeded=_flag(element, "ecc_errors/aggregate/sram_threshold_exceeded"),
        memory_unrepairable=_flag(element, "ecc_errors/unrepairable_memory"),
        repair_pending=_any_flag(
            element, "ecc_errors/channel_repair_pending", "ecc_errors/tpc_repair_pending"
        ),
        remap_pending=_flag(element, "remapped_rows/remapped_row_pending"),
        remap_failed=_flag(element, "remapped_rows/remapped_row_failure"),
        remapped_uncorrected=_number(element, "remapped_rows/remapped_row_unc"),
        retired_pages=_retired(element),
        retirement_pending=_flag(
            element, "retired_pages/pending_retirement", "retired_pages/pending_blacklist"
        ),
        throttle=_throttle(element),
        pcie_generation=_number(element, link + "pcie_gen/current_link_gen"),
        pcie_generation_max=_number(element, link + "pcie_gen/max_link_gen"),
        pcie_width=_number(element, link + "link_widths/current_link_width"),
        pcie_width_max=_number(element, link + "link_widths/max_link_width"),
        pcie_generation_device=_number(element, link + "pcie_gen/max_device_link_gen"),
        performance_state=_text(element, "performance_state"),
        fabric_state=_text(element, "fabric/state"),
        fabric_status=_text(element, "fabric/status"),
        fabric_faults=_fabric_faults(element),
        mig_enabled=_flag(element, "mig_mode/current_mig"),
        mig_pending=_flag(element, "mig_mode/pending_mig"),
        mig_devices=tuple(_mig_device(item) for item in element.findall("mig_devices/mig_device")),
        persistence=_flag(element, "persistence_mode"),
        recovery_action=_recovery(element),
        processes=_processes(element.find("processes")),
        faults=_faults(element),
    )


def _uncorrected(volatile: Element | None) -> int | None:
    """Uncorrected errors since the driver was loaded; None where none of the counters counts.

    Ampere and later split SRAM by kind, Turing has one SRAM counter, older cards a double-bit
    total.
    """
    if volatile is None:
        return None
    names = (
        "sram_uncorrectable",
        "sram_uncorrectable_parity",
        "sram_uncorrectable_secded",
        "dram_uncorrectable",
    )
    counts = [_number(volatile, name) for name in names]
    known = [count for count in counts if count is not None]
    return sum(known) if known else _number(volatile, "double_bit/total")


def _retired(element: Element) -> int | None:
    """Memory pages retired for good, both causes together."""
    causes = ("multiple_single_bit_retirement", "double_bit_retirement")
    counts = [_number(element, f"retired_pages/{cause}/retired_count") for cause in causes]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _throttle(element: Element) -> dict[str, bool] | None:
    """Each reason to hold the clocks down, and whether it is active.

    R535 and older (v11, early v12) say ``clocks_throttle_reasons``, later ones
    ``clocks_event_reasons``; some releases have the plural in the fields' names as well.
    """
    for group in ("clocks_event_reasons", "clocks_throttle_reasons"):
        found = element.find(group)
        if found is None:
            continue
        reasons = {}
        for item in found:
            name = re.sub(r"^clocks_(?:event|throttle)_reasons?_", "", item.tag)
            active = _flag(found, item.tag)
            if active is not None:
                reasons[name] = active
        if reasons:
            return reasons
    return None


#: What is told of a sound fabric, by field; drivers from R555 on, of Hopper and later.
_SOUND_FABRIC = {
    "summary": ("healthy",),
    "bandwidth": ("full",),
    "route_recovery_in_progress": ("false",),
    "route_unhealthy": ("false",),
    "access_timeout_recovery": ("false",),
    "incorrect_configuration": ("false", "none"),
}


def _fabric_faults(element: Element) -> tuple[str, ...]:
    """What the fabric's health says beside what it says when all is well."""
    told = ((name, _text(element, f"fabric/health/{name}")) for name in _SOUND_FABRIC)
    return tuple(
        f"{name.replace('_', ' ')} {text}"
        for name, text in told
        if text is not None and text.lower() not in _SOUND_FABRIC[name]
    )


def _recovery(element: Element) -> str | None:
    """What the driver wants done to the GPU ("none", "reset" ...); R560 and later say it so."""
    action = _text(element, "gpu_recovery_action")
    if action is not None:
        return action.lower()
    if _flag(element, "gpu_reset_status/reset_required"):
        return "reset"
    if _flag(element, "gpu_reset_status/drain_and_reset_recommended"):
        return "drain and reset"
    return "none" if _flag(element, "gpu_reset_status/reset_required") is False else None


def _mig_device(element: Element) -> MigDevice:
    return MigDevice(
        index=_number(element, "index"),
        memory_total_mib=_mib(element, "fb_memory_usage/total"),
        memory_free_mib=_mib(element, "fb_memory_usage/free"),
    )


def _processes(group: Element | None) -> tuple[Process, ...] | None:
    """The processes on a GPU; None where the driver doesn't tell (N/A), empty where none is."""
    if group is None or (group.text or "").strip().strip("[]") == "N/A":
        return None
    return tuple(
        Process(
            pid=_number(item, "pid"),
            name=_text(item, "process_name"),
            kind=_text(item, "type"),
            memory_mib=_mib(item, "used_memory"),
        )
        for item in group.findall("process_info")
    )


def _faults(element: Element) -> tuple[str, ...]:
    """What stands in fields' places where the GPU is lost, each once.

    Processes are left out: a process may be named anything.
    """
    vital = {id(found) for path in _VITAL if (found := element.find(path)) is not None}
    skipped = {id(item) for group in element.findall("processes") for item in group.iter()}
    seen: dict[str, None] = {}
    for item in element.iter():
        text = (item.text or "").strip().strip("[]")
        lost = text.lower() in _LOST or (text.lower() in _UNREADABLE and id(item) in vital)
        if lost and id(item) not in skipped:
            seen[text] = None
    return tuple(seen)
