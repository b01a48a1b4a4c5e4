"""What a person sees of a running stage: one line of what is known, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from .progress import duration, size

STEPS_FOR_REMAINING = 3
"""Steps that must have been seen before the remaining time is said."""

WINDOW = 30
"""How many of the last steps that were seen the remaining time is reckoned from."""

WHY = {
    "killed_for_memory": "the system killed it for memory",
    "disk_full": "the disk is full",
    "model_download": "the base model could not be had",
    "signal": "it was killed",
}
"""Why a stage is tried again, by the kind of its failure."""


class StageLine:
    """Makes lines of what the host says of one stage.

    :param stage: its name.
    :param attempts: how often it is tried at the most.
    """

    def __init__(self, stage: str, attempts: int = 1) -> None:
        self.stage = stage
        self._attempts = attempts
        self._phase = ""
        self._seen: float | None = None
        self._beat = 0.0
        self._times: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._pause: Any = None
        self._resumed: Any = None
        self.step: int | None = None
        """The last step of the training that is known."""
        self.steps: int | None = None
        """Of how many."""
        self.loss: float | None = None
        """The last loss that is known."""

    def line(self, status: Mapping[str, Any]) -> str:
        """How far it is; what isn't known is left out."""
        progress = _mapping(status.get("progress"))
        phase = str(progress.get("phase") or "")
        done, of = _counts(progress, phase)
        self._note(phase, done, of, _number(status.get("heartbeat")), progress)
        parts = [f"  {self.stage}", *self._attempt(status)]
        if phase == "evaluate":
            parts.append(
                f"answers {done:.0f} of {of:.0f}" if done is not None and of else "answering"
            )
        elif phase == "train" and done is not None and of:
            parts.append(f"step {done:.0f} of {of:.0f}")
            if self.loss is not None:
                parts.append(f"loss {self.loss:.3f}")
            rate = _number(progress.get("tokens_per_second"))
            if rate is not None:
                parts.append(f"{rate:,.0f} tokens/s")
        else:
            named = {"load": "loading the model", "save": "saving", "": "running"}
            parts.append(named.get(phase, phase))
        parts += _gpu(_mapping(status.get("gpu")), progress)
        parts.append(f"{duration(elapsed(status))} elapsed")
        left = self.remaining(done, of)
        if left is not None:
            parts.append(f"{duration(left)} left")
        return "  ".join(parts)

    def remaining(self, done: float | None, of: float | None) -> float | None:
        """Seconds that the steps of this phase still take; None before some have been seen.

        What was done before a resumed training began, or before anybody looked, has no part in
        it, nor has the time that it took to load the model.
        """
        if done is None or of is None or of < done or len(self._times) < 2:
            return None
        (began, first), (last_at, last) = self._times[0], self._times[-1]
        if last - first < STEPS_FOR_REMAINING:
            return None
        each = (last_at - began) / (last - first)
        return max(0.0, (of - last) * each - (self._beat - last_at))

    def _note(
        self,
        phase: str,
        done: float | None,
        of: float | None,
        beat: float | None,
        progress: Mapping[str, Any],
    ) -> None:
        """Remember when which step was seen, by the host's own clock."""
        if phase == "train" and done is not None:
            self.step, self.steps = int(done), None if of is None else int(of)
        loss = _number(progress.get("loss"))
        if loss is not None:
            self.loss = loss
        if done is None or beat is None:
            return
        # Another phase, another attempt, or a clock that was set back.
        if phase != self._phase or (self._seen or 0) > done or beat < self._beat:
            self._times.clear()
            self._seen = None
        if self._seen is not None and done > self._seen:
            # The first time is when a step ended, not when somebody looked in its middle.
            self._times.append((beat, done))
        self._phase, self._seen, self._beat = phase, done, beat

    def _attempt(self, status: Mapping[str, Any]) -> list[str]:
        number = _number(status.get("attempt"))
        return [f"attempt {number:.0f} of {self._attempts}"] if number and number > 1 else []

    def resumed(self, status: Mapping[str, Any]) -> str | None:
        """A line that stays, where an attempt goes on from a checkpoint; once for each attempt."""
        progress = _mapping(status.get("progress"))
        step, steps = _number(progress.get("resumed_from")), _number(progress.get("steps"))
        which = (status.get("attempt"), step)
        if not step or step < 0 or which == self._resumed:
            return None
        self._resumed = which
        return f"  {self.stage}: goes on at step {step:.0f}" + (f" of {steps:.0f}" if steps else "")

    def news(self, status: Mapping[str, Any]) -> str | None:
        """A line that stays, where the host has begun to wait before another attempt."""
        at, beat = _number(status.get("retry_at")), _number(status.get("heartbeat"))
        pause = (status.get("attempt"), at)
        if at is None or pause == self._pause:
            return None
        self._pause = pause
        number = _number(status.get("attempt")) or 1
        kind = str(status.get("kind") or "unknown")
        wait = max(0.0, at - (beat or at))
        return (
            f"  {self.stage}: attempt {number + 1:.0f} of {self._attempts} in {wait:.0f} s, since "
            f"{WHY.get(kind, kind)}"
        )

    def ended(self, status: Mapping[str, Any]) -> str:
        """How it ended."""
        how = "was stopped after" if status.get("stopped") else f"{status.get('state')} in"
        parts = [f"  {self.stage}  {how} {duration(elapsed(status))}"]
        if self.step is not None and self.steps:
            parts.append(f"step {self.step} of {self.steps}")
        if self.loss is not None:
            parts.append(f"loss {self.loss:.3f}")
        return "  ".join(parts)


def elapsed(status: Mapping[str, Any]) -> float:
    """Seconds from a stage's start to its last sign of life."""
    beat, began = (_number(status.get(name)) for name in ("heartbeat", "started_at"))
    return max(0.0, beat - began) if beat is not None and began is not None else 0.0


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """A finite number of sane size, or None: a host may say anything."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e15 else None


def _counts(progress: Mapping[str, Any], phase: str) -> tuple[float | None, float | None]:
    names = ("done", "of") if phase == "evaluate" else ("step", "steps")
    done, of = (_number(progress.get(name)) for name in names)
    return done, of


def _gpu(gpu: Mapping[str, Any], progress: Mapping[str, Any]) -> list[str]:
    """``GPU 12.3 of 80.0 GB, 97 %``, as far as it is known."""
    used = _number(gpu.get("memory_bytes"))
    total = _number(gpu.get("memory_total_bytes"))
    busy = _number(gpu.get("utilisation"))
    if used is None:
        used = _number(progress.get("memory_bytes"))
    known = []
    if used is not None:
        known.append(f"{size(used)} of {size(total)}" if total else size(used))
    if busy is not None:
        known.append(f"{busy:.0f} %")
    return [f"GPU {', '.join(known)}"] if known else []
