"""How busy the GPU of a stage is, asked now and then beside what the supervisor does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from typing import Any

from . import gpu_usage, nvidia_smi

EVERY = 15.0
"""Seconds from one question to the next: each costs some tens of milliseconds of a core."""

MIB = 1024 * 1024


class Watch:
    """Asks in a thread of its own: nvidia-smi may hang, and the heartbeat must not."""

    def __init__(self, environment: Mapping[str, str], program: str = "nvidia-smi") -> None:
        """:param environment: the training's, which may name the GPUs that it sees."""
        self._program = program
        self._visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        self._thread: threading.Thread | None = None
        self._asked = -EVERY
        self._found: dict[str, int] | None = None

    def look(self) -> dict[str, int] | None:
        """What was found last: ``memory_bytes``, ``memory_total_bytes``, ``utilisation``; or None.

        Asks again where that is due, and waits for nothing.
        """
        alive = self._thread is not None and self._thread.is_alive()
        if not alive and time.monotonic() - self._asked >= EVERY:
            self._asked = time.monotonic()
            if nvidia_smi.find_program(self._program):
                self._thread = threading.Thread(target=self._ask, daemon=True)
                with contextlib.suppress(RuntimeError):  # no more threads: asked again later
                    self._thread.start()
            else:
                self._asked = float("inf")
        return self._found

    def _ask(self) -> None:
        gpus, _ = gpu_usage.ask(self._program)
        self._found = of(gpus, self._visible)


def of(gpus: list[dict[str, Any]], visible: str) -> dict[str, int] | None:
    """The first GPU that a program sees, which is the one that our own training uses.

    :param visible: CUDA_VISIBLE_DEVICES; a name that is no number is taken for the first.
    """
    first = visible.split(",", maxsplit=1)[0].strip()
    index = int(first) if first.isdigit() else None
    for gpu in gpus:
        if index in (None, gpu["index"]):
            found = {
                "memory_bytes": gpu["memory_used_mib"],
                "memory_total_bytes": gpu["memory_total_mib"],
            }
            told = {name: value * MIB for name, value in found.items() if value is not None}
            if gpu["utilization"] is not None:
                told["utilisation"] = gpu["utilization"]
            return told or None
    return None
