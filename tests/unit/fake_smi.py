"""Fakes of nvidia-smi as real executables, in every state that the gate has to know."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.unit import smi_documents as docs

CAPABILITIES = "0, 9.0\n"
LINKS = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)\n" + "".join(
    f"\t Link {number}: 26.562 GB/s\n" for number in range(18)
)
NO_LINKS = "GPU 0: NVIDIA L4 (UUID: GPU-1)\n"


def answers(
    folder: Path,
    document: bytes = docs.HEALTHY,
    capabilities: str = CAPABILITIES,
    links: str = LINKS,
) -> str:
    """A fake that answers what the gate asks, and refuses everything else; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "answer.xml").write_bytes(document)
    (folder / "capabilities").write_text(capabilities)
    (folder / "links").write_text(links)
    return script(
        folder,
        f"""case "$*" in
"-q -x") cat {folder}/answer.xml ;;
"--query-gpu=index,compute_cap --format=csv,noheader") cat {folder}/capabilities ;;
"nvlink --status") cat {folder}/links ;;
*) echo "Invalid combination of input arguments: $*"; exit 2 ;;
esac""",
    )


def script(folder: Path, text: str) -> str:
    """A fake that does the same whatever it is asked; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def says(words: str, code: int) -> str:
    """A script that says something and ends with a code."""
    quoted = words.replace("'", "'\\''")
    return f"echo '{quoted}'; exit {code}"


#: How the program behaves when it gives no XML that can be used.
BROKEN: Mapping[str, str] = {
    "hanging": "sleep 300",
    "no driver": says(
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
        "that the latest NVIDIA driver is installed and running.",
        9,
    ),
    "version mismatch": says(
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.127",
        18,
    ),
    "off the bus": says(
        "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the "
        "system to recover this GPU",
        15,
    ),
}


def broken(folder: Path, state: str) -> str:
    """A fake in one of the states of :data:`BROKEN`."""
    return script(folder, BROKEN[state])


#: The documents of machines that answer, in which something is wrong or unusual.
DOCUMENTS: Mapping[str, bytes] = {
    "one lost": docs.document(docs.gpus(2), docs.only(1, docs.lost)),
    "ECC errors": docs.document(docs.put(ecc_errors__volatile__dram_uncorrectable="2")),
    "remap failed": docs.document(docs.put(remapped_rows__remapped_row_failure="Yes")),
    "remap pending": docs.document(docs.put(remapped_rows__remapped_row_pending="Yes")),
    "throttled": docs.document(docs.throttled(hw_slowdown="Active", hw_thermal_slowdown="Active")),
    "foreign processes": docs.document(docs.process(name="/usr/bin/python3", pid=4242)),
    "eight GPUs": docs.document(docs.gpus(8)),
    "MIG": docs.document(docs.mig(2)),
    "truncated": docs.HEALTHY[: len(docs.HEALTHY) // 2],
    "entities": docs.HEALTHY.replace(
        b'SYSTEM "nvsmi_device_v12.dtd">',
        b'SYSTEM "nvsmi_device_v12.dtd" [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]>',
    ).replace(b"<driver_version>550.127.05", b"<driver_version>&b;"),
}
