"""Keeps a training's states as checkpoints: when, how many, and which one it goes on from."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import (
    Checkpoint,
    DamagedError,
    found,
    read,
    remove,
    size_of,
    write,
)
from training.job import CheckpointRule
from training.log import say
from training.memory import cause_of
from training.metrics import Metrics
from training.state import State
from training.stopping import StopRequest

OWNER = ("fingerprint", "data")
"""The facts that a checkpoint must share with the training that goes on from it."""

COMPUTED_ON = ("device", "dtype", "threads", "versions")
"""The facts that decide, beside these, to which bytes it comes."""


class Checkpoints:
    """The checkpoints of one training; a :class:`training.state.Keeper`."""

    def __init__(
        self,
        rule: CheckpointRule,
        folder: Path,
        facts: dict[str, Any],
        metrics: Metrics,
        stop: StopRequest,
    ) -> None:
        """:param facts: of this training; see ``OWNER`` and ``COMPUTED_ON``."""
        self.resumed_from: list[int] = []
        """The steps that this training was taken up again from, in all attempts."""
        self.seconds = 0.0
        """Spent on writing."""
        self._rule = rule
        self._folder = folder
        self._facts = facts
        self._metrics = metrics
        self._stop = stop
        self._own: list[Path] = []
        self._notes: list[dict[str, str]] = []
        self._unwritten: dict[str, list[int]] = {}
        self._since = time.monotonic()

    @property
    def newest(self) -> Path | None:
        """The last checkpoint that this training could go on from."""
        return self._own[-1] if self._own else None

    @property
    def notes(self) -> list[dict[str, str]]:
        """Warnings, for the result."""
        return self._notes + [
            _note(
                "infra",
                f"No checkpoint could be written at step {', '.join(map(str, steps[:5]))}"
                f"{' and others' if len(steps) > 5 else ''}: {reason}.",
                "A failure before the next one costs the work since the one before.",
            )
            for reason, steps in self._unwritten.items()
        ]

    def resume(self, steps: int, shapes: dict[str, list[int]]) -> State | None:
        """The state of the newest checkpoint that is whole and this training's own."""
        self._stop.obey()
        self._since = time.monotonic()
        for path in found(self._folder):
            try:
                saved = read(path)
            except DamagedError as error:
                self._warn("infra", f"The checkpoint {path.name} was passed over: {error}.")
                continue
            if self._rule.fresh and saved.facts.get("run") != self._facts["run"]:
                say(f"the checkpoint {path.name} was passed over: this run trains anew")
                continue
            reason = self._not_ours(saved, steps, shapes)
            if reason:
                self._warn("ops", f"The checkpoint {path.name} was passed over: {reason}.")
                continue
            self._take(path, saved, steps)
            return saved.state
        return None

    def after_step(self, step: int, steps: int, state: Callable[[], State]) -> None:
        """Write a checkpoint if one is due; end the training if that was asked for."""
        if self._stop.asked:
            say(f"told to stop: after step {step} of {steps}")
        if self._stop.asked or step == steps or self._due(step):
            started = time.monotonic()
            self._write(step, state)
            self._since = time.monotonic()
            self.seconds += self._since - started
        self._stop.obey()

    def _due(self, step: int) -> bool:
        rule = self._rule
        by_steps = rule.steps > 0 and step % rule.steps == 0
        by_time = rule.minutes > 0 and time.monotonic() - self._since >= rule.minutes * 60
        return by_steps or by_time

    def _not_ours(self, saved: Checkpoint, steps: int, shapes: dict[str, list[int]]) -> str:
        """Why this training can't go on from it; empty, if it can."""
        facts = saved.facts
        if any(facts.get(name) != self._facts[name] for name in OWNER):
            return "it is of a training with other inputs"
        if saved.state.step > steps:
            return f"it is of step {saved.state.step}, and there are {steps} steps"
        if {name: [*t.shape] for name, t in saved.state.adapter.items()} != shapes:
            return "its weights don't fit this model"
        return ""

    def _take(self, path: Path, saved: Checkpoint, steps: int) -> None:
        step = saved.state.step
        self._own = [path]
        self.resumed_from += [*saved.facts.get("resumed_from", []), step]
        self._metrics.restore(saved.metrics)
        say(f"resumed at step {step} of {steps} from checkpoint {path}")
        differ = [n for n in COMPUTED_ON if saved.facts.get(n) != self._facts[n]]
        if differ:
            was = ", ".join(f"{n} {saved.facts.get(n)} -> {self._facts[n]}" for n in differ)
            self._warn(
                "ops",
                f"Training goes on from step {step} on another base than before: {was}.",
                "The adapter may differ in its last digits from one that was trained in one go.",
            )

    def _write(self, step: int, state: Callable[[], State]) -> None:
        """Write a checkpoint. That it can't be written ends no training."""
        started = time.monotonic()
        try:
            facts = {**self._facts, "resumed_from": self.resumed_from, "written": time.time()}
            checkpoint = Checkpoint(state(), self._metrics.lines, facts)
            reason = self._unfit(checkpoint)
            if not reason:
                path = write(self._folder, checkpoint)
                self._own = [*(own for own in self._own if own != path), path][-self._rule.keep :]
                self._remove_others()
        except Exception as error:  # of whatever kind: the training is worth more
            reason = getattr(error, "strerror", None) or cause_of(error)
        if reason:
            self._unwritten.setdefault(reason, []).append(step)
            say(f"warning: no checkpoint could be written at step {step}: {reason}.")
        else:
            say(f"checkpoint of step {step} written ({time.monotonic() - started:.2f} s)")

    def _unfit(self, checkpoint: Checkpoint) -> str:
        """Why it should not be written; empty, if it should."""
        if not all(bool(t.isfinite().all()) for t in checkpoint.state.adapter.values()):
            return "the weights are not finite"
        # What comes after it needs room as well: the adapter itself, before all.
        adapter = sum(t.numel() * t.element_size() for t in checkpoint.state.adapter.values())
        need = size_of(checkpoint) + adapter
        if self._room() < need:
            self._remove_others()
        if self._room() < need:
            return f"it needs {need >> 20} MiB on the disk, and {self._room() >> 20} MiB are free"
        return ""

    def _room(self) -> int:
        there = self._folder
        while not os.path.exists(there):
            there = there.parent
        return shutil.disk_usage(there).free

    def _remove_others(self) -> None:
        """Remove what this training doesn't go on from: older ones, damaged ones, others'.

        Where it has none of its own, it has passed over all that there are.
        """
        for path in found(self._folder):
            if path not in self._own:
                try:
                    remove(path)
                except OSError as error:
                    say(f"warning: {path} can't be removed: {error.strerror}.")

    def _warn(self, category: str, symptom: str, action: str = "") -> None:
        say(f"warning: {symptom} {action}".rstrip())
        self._notes.append(_note(category, symptom, action))


def _note(category: str, symptom: str, action: str) -> dict[str, str]:
    return {"category": category, "symptom": symptom, "cause": "", "action": action}
