"""Where the time of a step goes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import torch

from training.device import Device

PARTS = ("data", "forward", "backward", "optimizer")


class Clock:
    """Seconds of each part of a step.

    On CUDA they are taken by events on the device's own stream: to wait for the device after each
    part would leave it idle in between. :meth:`seconds` waits for it, once a step.
    """

    def __init__(self, device: Device) -> None:
        self._events = device.where.type == "cuda"
        self._started = time.perf_counter()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._pairs: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """What runs within is ``part`` of the step."""
        if self._events:
            first, last = _event(), _event()
            first.record()
            yield
            last.record()
            self._pairs.append((part, first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds[part] += time.perf_counter() - started

    def seconds(self) -> tuple[dict[str, float], float]:
        """The seconds of each part so far, and of all since the beginning."""
        for part, first, last in self._pairs:
            last.synchronize()
            self._seconds[part] += first.elapsed_time(last) / 1000
        self._pairs = []
        return self._seconds, time.perf_counter() - self._started


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
