"""What a person sees of a running stage: one live line, or now and then a plain one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

PLAIN_EVERY = 10.0
"""Seconds between two plain lines, where a line can't be rewritten."""


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(stage: str, progress: Mapping[str, Any], elapsed: float) -> str:
    """One line about a running stage; what isn't known is left out.

    :param elapsed: seconds since the stage started.
    """
    parts = [f"  {stage}"]
    phase = str(progress.get("phase") or "")
    done, of = progress.get("step"), progress.get("steps")
    if phase == "evaluate":
        done, of = progress.get("done"), progress.get("of")
        parts.append(f"answers {done} of {of}" if of else "answering")
    elif phase == "train" and of:
        parts.append(f"step {done} of {of}")
        if isinstance(progress.get("loss"), (int, float)):
            parts.append(f"loss {progress['loss']:.3f}")
        if isinstance(progress.get("tokens_per_second"), (int, float)):
            parts.append(f"{progress['tokens_per_second']:,.0f} tokens/s")
    elif phase:
        parts.append({"load": "loading the model", "save": "saving"}.get(phase, phase))
    else:
        parts.append("running")
    parts.append(f"{duration(elapsed)} elapsed")
    return "  ".join(parts)


class Line:
    """Shows the progress of one stage.

    :param say: shows a line that stays.
    :param rewrite: shows a line in place of the one before it, or None where that can't be done.
    :param prefix: the host's name, where several hosts write; then no line is rewritten.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        rewrite: Callable[[str], None] | None,
        prefix: str = "",
    ) -> None:
        self._say = say
        self._rewrite = None if prefix else rewrite
        self._prefix = f"[{prefix}]" if prefix else ""
        self._last = ""
        self._last_plain = time.monotonic()

    def update(self, text: str) -> None:
        """Show ``text`` in the live line, or as a plain one when it is time again."""
        if text == self._last:
            return
        if self._rewrite:
            self._rewrite(text)
        elif time.monotonic() - self._last_plain >= PLAIN_EVERY:
            self._say(self._prefix + text)
            self._last_plain = time.monotonic()
        self._last = text

    def keep(self, text: str) -> None:
        """Show ``text`` as a line that stays."""
        if self._rewrite and self._last:
            self._rewrite(text)
            self._say("")
        else:
            self._say(self._prefix + text)
        self._last = ""
