"""What the training computes on: the device, its number format, its threads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import resource
import sys
from collections.abc import Iterator

import torch

from training.errors import JobError
from training.log import say

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


def set_up(dtype: str) -> Device:
    """Choose the device and make torch's results repeatable on it.

    :param dtype: ``auto``, ``bfloat16`` or ``float32``.
    :raises JobError: category ``ops``, for bfloat16 on a GPU without it.
    """
    # cuBLAS reads it when it starts, and is repeatable only with it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would fill each new tensor before it is written: a twentieth of a step, for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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


class Exact:
    """Whether each operation of the training has to be one that can be repeated bit by bit."""

    def __init__(self) -> None:
        self.deterministic = True
        self.notes: list[dict[str, str]] = []
        """What was given up, as warnings."""

    def is_refused(self, error: BaseException) -> bool:
        """Whether ``error`` says that an operation can't be repeated bit by bit on this device."""
        return self.deterministic and "deterministic" in str(error)

    def give_up(self, cause: str) -> None:
        """Go on without."""
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.deterministic = False
        note = {
            "category": "training_logic",
            "symptom": "The same training again may give other bytes: an operation of this model"
            " can't be repeated exactly on this device.",
            "cause": cause,
            "action": "Use another version of torch or another model, if that matters.",
        }
        self.notes.append(note)
        say(f"warning: {note['symptom']} ({cause})")


@contextlib.contextmanager
def exactly(device: Device) -> Iterator[Exact]:
    """Within, results are the same each time, or it is said that they are not.

    On a GPU a warning is not enough: with ``warn_only`` torch's attention computes its gradients in
    another order each time. On a CPU all that is used here is repeatable. Generation isn't held to
    it: it may use operations that have no such form, and its results are text.
    """
    torch.use_deterministic_algorithms(True, warn_only=device.where.type != "cuda")
    try:
        yield Exact()
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
