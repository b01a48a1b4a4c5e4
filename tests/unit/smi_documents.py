"""Documents of nvidia-smi for tests: the healthy one of tests/data, and edits of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

HEALTHY = (Path(__file__).parents[1] / "data" / "nvidia_smi" / "h100_v12.xml").read_bytes()

Edit = Callable[[ET.Element], None]


def document(*edits: Edit, schema: str = "v12") -> bytes:
    """The healthy document after some edits, each of which gets the root."""
    root = ET.fromstring(HEALTHY)  # noqa: S314 - our own file
    for edit in edits:
        edit(root)
    header = (
        f'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_{schema}.dtd">\n'
    )
    return header.encode() + ET.tostring(root)


def put(**values: str) -> Edit:
    """Set fields of every GPU: ``put(temperature__gpu_temp="31 C")``; ``__`` stands for ``/``."""

    def edit(root: ET.Element) -> None:
        for gpu in root.findall("gpu"):
            for name, value in values.items():
                found = gpu.find(name.replace("__", "/"))
                assert found is not None, name
                found.text = value
                for child in list(found):
                    found.remove(child)

    return edit


def drop(*paths: str) -> Edit:
    """Remove fields of every GPU."""

    def edit(root: ET.Element) -> None:
        for gpu in root.findall("gpu"):
            for path in paths:
                parent = gpu.find(f"./{path}/..")
                found = gpu.find(path)
                assert parent is not None, path
                assert found is not None, path
                parent.remove(found)

    return edit


def drop_root(path: str) -> Edit:
    """Remove a field that stands beside the GPUs."""

    def edit(root: ET.Element) -> None:
        found = root.find(path)
        assert found is not None, path
        root.remove(found)

    return edit


def add(parent: str, xml: str) -> Edit:
    """Add an element to a field of every GPU ("." for the GPU itself)."""

    def edit(root: ET.Element) -> None:
        for gpu in root.findall("gpu"):
            found = gpu.find(parent)
            assert found is not None, parent
            found.append(ET.fromstring(xml))  # noqa: S314 - from the tests

    return edit


def gpus(count: int) -> Edit:
    """As many GPUs as that, alike but for their bus."""

    def edit(root: ET.Element) -> None:
        first = root.find("gpu")
        assert first is not None
        root.remove(first)
        for number in range(count):
            gpu = copy.deepcopy(first)
            gpu.set("id", f"00000000:{number:02X}:00.0")
            root.append(gpu)
        root.find("attached_gpus").text = str(count)  # type: ignore[union-attr]

    return edit


def only(index: int, edit: Edit) -> Edit:
    """Apply an edit to one GPU of several."""

    def limited(root: ET.Element) -> None:
        alone = ET.Element("nvidia_smi_log")
        alone.append(root.findall("gpu")[index])
        edit(alone)

    return limited


def process(
    kind: str = "C", name: str = "python", pid: int = 4242, memory: str = "9000 MiB"
) -> Edit:
    """A process on every GPU."""
    return add(
        "processes",
        f"<process_info><gpu_instance_id>N/A</gpu_instance_id><pid>{pid}</pid><type>{kind}</type>"
        f"<process_name>{name}</process_name><used_memory>{memory}</used_memory></process_info>",
    )


def mig(slices: int) -> Edit:
    """MIG mode with some slices of 10 GiB: the card then tells less of itself."""

    def edit(root: ET.Element) -> None:
        put(
            mig_mode__current_mig="Enabled",
            mig_mode__pending_mig="Enabled",
            utilization__gpu_util="N/A",
            remapped_rows="N/A",
            fabric__state="N/A",
            fabric__status="N/A",
        )(root)
        for number in range(slices):
            add(
                "mig_devices",
                f"<mig_device><index>{number}</index><gpu_instance_id>{number}</gpu_instance_id>"
                "<ecc_error_count><volatile_count><sram_uncorrectable>0</sram_uncorrectable>"
                "</volatile_count></ecc_error_count>"
                "<fb_memory_usage><total>9984 MiB</total><used>12 MiB</used><free>9972 MiB</free>"
                "</fb_memory_usage></mig_device>",
            )(root)

    return edit


def throttled(**reasons: str) -> Edit:
    """Set throttle reasons: ``throttled(hw_slowdown="Active")``."""
    return put(
        **{
            f"clocks_event_reasons__clocks_event_reason_{name}": value
            for name, value in reasons.items()
        }
    )


def lost(root: ET.Element) -> None:
    """A GPU that fell off the bus: its live values say so, its name is still told."""
    put(
        fb_memory_usage__total="GPU is lost",
        fb_memory_usage__used="GPU is lost",
        fb_memory_usage__free="GPU is lost",
        utilization__gpu_util="GPU is lost",
        temperature__gpu_temp="GPU is lost",
        temperature__gpu_temp_tlimit="GPU is lost",
        ecc_errors__volatile__dram_uncorrectable="GPU is lost",
        remapped_rows="GPU is lost",
    )(root)


def no_fabric(root: ET.Element) -> None:
    """A card that isn't behind an NVSwitch."""
    put(fabric__state="N/A", fabric__status="N/A")(root)


def absolute(slowdown: int) -> Edit:
    """Temperature thresholds in degrees, as all cards before Hopper and Ada have them."""

    def edit(root: ET.Element) -> None:
        put(temperature__gpu_temp_tlimit="N/A")(root)
        drop("temperature/gpu_temp_slow_tlimit_threshold")(root)
        add(
            "temperature",
            f"<gpu_temp_slow_threshold>{slowdown} C</gpu_temp_slow_threshold>",
        )(root)

    return edit


def a100_pcie(root: ET.Element) -> None:
    """An A100 PCIe: PCIe 4, rows that are remapped, temperatures in degrees."""
    no_fabric(root)
    put(
        product_name="NVIDIA A100 80GB PCIe",
        product_architecture="Ampere",
        pci__pci_gpu_link_info__pcie_gen__max_link_gen="4",
        pci__pci_gpu_link_info__pcie_gen__current_link_gen="4",
        pci__pci_gpu_link_info__pcie_gen__max_device_link_gen="4",
        fb_memory_usage__total="81920 MiB",
        fb_memory_usage__free="81050 MiB",
    )(root)
    absolute(92)(root)


def l4(root: ET.Element) -> None:
    """An L4: 24 GB, no NVLink; idle, so on PCIe generation 1."""
    no_fabric(root)
    put(
        product_name="NVIDIA L4",
        product_architecture="Ada Lovelace",
        performance_state="P8",
        mig_mode__current_mig="N/A",
        mig_mode__pending_mig="N/A",
        gpu_reset_status__drain_and_reset_recommended="N/A",
        pci__pci_gpu_link_info__pcie_gen__max_link_gen="4",
        pci__pci_gpu_link_info__pcie_gen__current_link_gen="1",
        pci__pci_gpu_link_info__pcie_gen__max_device_link_gen="4",
        pci__pci_gpu_link_info__link_widths__max_link_width="16x",
        pci__pci_gpu_link_info__link_widths__current_link_width="16x",
        fb_memory_usage__total="23034 MiB",
        fb_memory_usage__free="22563 MiB",
    )(root)


def consumer(root: ET.Element) -> None:
    """A consumer card: no ECC, no remapping, no MIG, no reset status, much N/A; a desktop on it."""
    no_fabric(root)
    for scope in ("volatile", "aggregate"):
        for gpu in root.findall("gpu"):
            group = gpu.find(f"ecc_errors/{scope}")
            assert group is not None
            for counter in group:
                counter.text = "N/A"
    put(
        product_name="NVIDIA GeForce RTX 4090",
        product_architecture="Ada Lovelace",
        performance_state="P8",
        pci__pci_gpu_link_info__pcie_gen__max_link_gen="4",
        pci__pci_gpu_link_info__pcie_gen__current_link_gen="1",
        pci__pci_gpu_link_info__pcie_gen__max_device_link_gen="4",
        mig_mode__current_mig="N/A",
        mig_mode__pending_mig="N/A",
        ecc_mode__current_ecc="N/A",
        remapped_rows="N/A",
        gpu_reset_status__drain_and_reset_recommended="N/A",
        fb_memory_usage__total="24564 MiB",
        fb_memory_usage__free="23631 MiB",
    )(root)
    process(kind="G", name="/usr/lib/xorg/Xorg", memory="200 MiB")(root)


def older(root: ET.Element) -> None:
    """What v11 (drivers up to R535) says in other words; the document's name is set apart."""
    for gpu in root.findall("gpu"):
        for element in gpu.iter():
            element.tag = element.tag.replace("clocks_event_", "clocks_throttle_")
            if element.tag == "gpu_power_readings":
                element.tag = "power_readings"
    drop(
        "gpu_reset_status",
        "fabric",
        "pci/pci_gpu_link_info/pcie_gen/device_current_link_gen",
        "pci/pci_gpu_link_info/pcie_gen/max_device_link_gen",
        "pci/pci_gpu_link_info/pcie_gen/max_host_link_gen",
    )(root)
    one_sram_counter(root)


def one_sram_counter(root: ET.Element) -> None:
    """Errors of SRAM in one number, and no limit of it: drivers up to R535, and Turing."""
    for gpu in root.findall("gpu"):
        for scope in ("volatile", "aggregate"):
            group = gpu.find(f"ecc_errors/{scope}")
            assert group is not None
            for counter in list(group):
                if counter.tag == "sram_uncorrectable_parity":
                    counter.tag = "sram_uncorrectable"
                elif counter.tag in ("sram_uncorrectable_secded", "sram_threshold_exceeded"):
                    group.remove(counter)


def newer(root: ET.Element) -> None:
    """What v13 (drivers from R575) says in other words."""
    drop("gpu_reset_status")(root)
    add(".", "<gpu_recovery_action>None</gpu_recovery_action>")(root)
    put(
        display_mode="Requested functionality has been deprecated",
        gpu_power_readings__power_state="Requested functionality has been deprecated",
    )(root)
    counters = "".join(
        f"<clocks_event_reasons_counters_{name}>0 us</clocks_event_reasons_counters_{name}>"
        for name in ("sw_power_cap", "sync_boost", "hw_therm_slowdown", "hw_power_brake")
    )
    add(".", f"<clocks_event_reasons_counters>{counters}</clocks_event_reasons_counters>")(root)
    add(".", "<power_smoothing>Insufficient Permissions</power_smoothing>")(root)
    add("remapped_rows", "<remapped_row_unc_inactive>0</remapped_row_unc_inactive>")(root)
    add("ecc_errors", "<channel_repair_pending>No</channel_repair_pending>")(root)
    add("ecc_errors", "<tpc_repair_pending>No</tpc_repair_pending>")(root)
    add("ecc_errors", "<unrepairable_memory>No</unrepairable_memory>")(root)


def announced(root: ET.Element) -> None:
    """The names that the schema v13 announces for later drivers."""
    for old, new in (("driver_version", "kmd_version"), ("cuda_version", "cuda_umd_version")):
        found = root.find(old)
        assert found is not None
        found.tag = new


def between(root: ET.Element) -> None:
    """What R560 to R570 (v12) say twice: the old field is there, and says that it is deprecated."""
    old = "Requested functionality has been deprecated"
    put(
        gpu_reset_status__reset_required=old,
        gpu_reset_status__drain_and_reset_recommended=old,
    )(root)
    add(".", "<gpu_recovery_action>None</gpu_recovery_action>")(root)


def turing(root: ET.Element) -> None:
    """A Tesla T4, a card before Ampere: pages are retired, no row is remapped, no bfloat16."""
    no_fabric(root)
    older(root)
    put(
        product_name="Tesla T4",
        product_architecture="Turing",
        mig_mode__current_mig="N/A",
        mig_mode__pending_mig="N/A",
        pci__pci_gpu_link_info__pcie_gen__max_link_gen="3",
        pci__pci_gpu_link_info__pcie_gen__current_link_gen="3",
        remapped_rows="N/A",
        retired_pages__multiple_single_bit_retirement__retired_count="1",
        retired_pages__double_bit_retirement__retired_count="2",
        retired_pages__pending_blacklist="No",
        retired_pages__pending_retirement="No",
    )(root)
    absolute(93)(root)
