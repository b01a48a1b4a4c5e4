"""What the training computes on: the device, its number format, its threads."""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import sys

import torch

from training.errors import JobError

THREADS = 2
"""Threads of torch on the CPU. A constant: their number changes the bytes of a trained model."""


@dataclasses.dataclass(frozen=True)
class Device:
    """The device in use."""

    where: torch.device
    dtype: torch.dtype
    """Number format of the base model's weights."""
    accelerator: str
    """In words: ``cuda: NVIDIA H100`` or ``cpu: AMD EPYC``."""

    @property
    def dtype_name(self) -> str:
        """The number format without torch's own prefix, such as ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def peak_memory(self) -> int:
        """The most memory that was in use so far, in bytes: the GPU's, else this process's."""
        if self.where.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def synchronize(self) -> None:
        """Wait until the device has done all its work, so that a clock says something."""
        if self.where.type == "cuda":
            torch.cuda.synchronize()


def set_up(dtype: str) -> Device:
    """Choose the device and make torch's results repeatable on it.

    :param dtype: ``auto``, ``bfloat16`` or ``float32``.
    :raises JobError: category ``ops``, for bfloat16 on a GPU without it.
    """
    # cuBLAS reads it when it starts, and is repeatable only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(THREADS)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # of a job that this process did before
        name = torch.cuda.get_device_name()
        has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
        if dtype == "bfloat16" and not has_bfloat16:
            raise JobError("ops", f"{name} has no bfloat16.", "Set dtype to auto or float32.")
        wanted = torch.bfloat16 if has_bfloat16 and dtype != "float32" else torch.float32
        return Device(torch.device("cuda", 0), wanted, f"cuda: {name}")
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return Device(torch.device("cpu"), wanted, f"cpu: {_processor()}")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
