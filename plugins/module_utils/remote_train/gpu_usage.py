"""How busy the GPUs are: one short question to nvidia-smi, which may hang or be missing."""

from __future__ import annotations

from typing import Any

from . import nvidia_smi, programs

FIELDS = ("index", "name", "utilization.gpu", "memory.used", "memory.total")
"""What is asked for, as ``nvidia-smi --help-query-gpu`` names it."""

WITHIN = 5.0
"""Seconds that the answer may take."""


def ask(program: str = "nvidia-smi", timeout: float = WITHIN) -> tuple[list[dict[str, Any]], str]:
    """Each GPU, and why there is none to tell of; both are empty where there is no nvidia-smi.

    :returns: ``index``, ``name``, ``utilization`` (percent), ``memory_used_mib`` and
        ``memory_total_mib`` of each, None where the driver doesn't tell; then a phrase.
    """
    path = nvidia_smi.find_program(program)
    if path is None:
        return [], ""
    words = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    asked = programs.ask([path, *words], timeout, {"LC_ALL": "C"})
    if asked.state == "hangs":
        return [], f"nvidia-smi gave no answer in {timeout:g} s"
    if asked.state != "ended" or asked.status != 0:
        said = (asked.complaints or asked.reason or asked.text).splitlines()[:1] or [
            "it gave no reason"
        ]
        return [], f"nvidia-smi failed: {said[0][:200]}"
    return [gpu for line in asked.text.splitlines() if (gpu := _gpu(line))], ""


def _gpu(line: str) -> dict[str, Any] | None:
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) < len(FIELDS) or not cells[0].isdigit():
        return None
    utilization, used, total = (int(cell) if cell.isdigit() else None for cell in cells[-3:])
    return {
        "index": int(cells[0]),
        "name": ", ".join(cells[1:-3]),
        "utilization": utilization,
        "memory_used_mib": used,
        "memory_total_mib": total,
    }
