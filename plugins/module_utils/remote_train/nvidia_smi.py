"""Ask ``nvidia-smi -q -x`` once and read its answer, whatever state the driver is in.

:func:`ask` runs the program and never hangs; :func:`parse` reads its XML. The element names are
those of NVIDIA's ``nvsmi_device_v11.dtd``, ``v12`` and ``v13`` and this is the only file that
knows them, so that a driver that renames one is a change in one place. The exit codes are those
of the nvidia-smi manual page, section "RETURN VALUE".
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

#: Seconds that the program may take. A healthy driver without persistence mode needs up to
#: about ten on a machine with eight GPUs.
DEFAULT_TIMEOUT = 20.0

#: Where images put the program without putting it on the PATH of a non-login shell.
EXTRA_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/usr/lib/wsl/lib")

#: Where the kernel's part of the driver shows that it is loaded.
DRIVER_IN_KERNEL = "/proc/driver/nvidia/version"

#: Eight GPUs with all their supported clocks are about 0.25 MB.
LARGEST_ANSWER = 32 * 1024 * 1024

# What stands in a field's place when the driver can no longer reach that GPU.
_FAULTS = ("gpu is lost", "gpu requires reset", "unknown error", "err!")

_MIB = re.compile(r"(\d+)(?:\.\d+)? *(?:MiB|MB)")
_NUMBER = re.compile(r"(-?\d+)(?:\.\d+)?(?: *(?:C|%|x|W|MHz))?")
_SCHEMA = re.compile(r"<!DOCTYPE\s+nvidia_smi_log\s+SYSTEM\s+[\"'][^\"']*?_(v\d+)\.dtd[\"']")
# What XML 1.0 doesn't allow, and process names can hold.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class SmiError(Exception):
    """The answer of nvidia-smi can't be read; the text says why."""


@dataclass(frozen=True)
class Process:
    """A process that holds a context on a GPU; ``kind`` is C, G, C+G or M+C (MPS)."""

    pid: int | None
    name: str | None
    kind: str | None
    memory_mib: int | None

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
    ``temperature_margin`` is the distance to the limit, which newer cards give instead of
    absolute thresholds; they slow down when it falls to ``slowdown_margin``.
    ``ecc_uncorrected`` counts since the driver was loaded (volatile), ``throttle`` maps each
    reason to whether it is active, and ``faults`` holds what stood in fields' places when the
    driver had lost the GPU.
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
    mig_enabled: bool | None = None
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


@dataclass(frozen=True)
class Answer:
    """How a call of nvidia-smi went.

    ``state`` is ``ok``, or why there is no snapshot: ``missing`` (no such program; ``text`` says
    so where the driver is loaded all the same), ``unusable`` (it can't be run), ``hangs``,
    ``failed`` (``code`` and ``text`` say how) or ``unreadable`` (``text`` says why its XML can't
    be read). ``seconds`` is the limit for ``hangs``. A call can be ``ok`` with a ``code``: a
    corrupted infoROM gives XML and exit 14.
    """

    state: str
    program: str = ""
    code: int | None = None
    text: str = ""
    seconds: float = 0.0
    snapshot: Snapshot = field(default_factory=Snapshot)


def find_program(program: str) -> str | None:
    """The path of ``program``, also where a non-login PATH doesn't reach; None when missing."""
    found = shutil.which(program)
    if found is None and os.sep not in program:
        found = shutil.which(program, path=os.pathsep.join(EXTRA_FOLDERS))
    return found


def ask(program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT) -> Answer:
    """Run ``program -q -x``, for at most ``timeout`` seconds, and read what it says.

    Never raises for what the program does or is, and never waits longer than two seconds over
    the limit: the program and its children are killed, and one that can't be killed (stuck in
    the driver) is left behind.
    """
    path = find_program(program)
    if path is None:
        loaded = "the driver is loaded" if os.path.exists(DRIVER_IN_KERNEL) else ""
        return Answer(state="missing", program=program, text=loaded)
    try:
        process = subprocess.Popen(
            [path, "-q", "-x"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # its own process group, so that its children go with it
        )
    except OSError as error:
        return Answer(state="unusable", program=path, text=error.strerror or str(error))
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        return Answer(state="hangs", program=path, seconds=timeout)
    return _read(path, process.returncode, output, complaint)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group, and don't wait for what the kernel won't let go."""
    # Gone already, or a set-uid program that isn't ours to kill: nothing more can be done.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read(path: str, code: int, output: bytes, complaint: bytes) -> Answer:
    """The answer behind an exit code and two streams."""
    said = _first_lines(output + b"\n" + complaint)
    if b"<nvidia_smi_log" not in output:
        if code == 0:
            return Answer("unreadable", path, code, f"it printed no XML but: {said or 'nothing'}")
        return Answer("failed", path, code, said)
    try:
        snapshot = parse(output)
    except SmiError as error:
        return Answer("unreadable", path, code, str(error))
    return Answer("ok", path, code, _first_lines(complaint), snapshot=snapshot)


def _first_lines(output: bytes, lines: int = 3, longest: int = 300) -> str:
    """The first lines that say something, as one line."""
    text = output.decode("utf-8", "replace")
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(said[:lines])[:longest]


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
            if "deprecated" in plain or plain in _FAULTS:
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
        mig_enabled=_flag(element, "mig_mode/current_mig"),
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
    """What stands in fields' places instead of values, each once.

    Processes are left out: a process may be named anything.
    """
    skipped = {id(item) for group in element.findall("processes") for item in group.iter()}
    seen: dict[str, None] = {}
    for item in element.iter():
        text = (item.text or "").strip().strip("[]")
        if text.lower() in _FAULTS and id(item) not in skipped:
            seen[text] = None
    return tuple(seen)
