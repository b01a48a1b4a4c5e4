"""Tells how far the job is: JSON lines on the descriptor in ``REMOTE_TRAIN_PROGRESS_FD``."""

from __future__ import annotations

import json
import os
import select
from typing import Any

VARIABLE = "REMOTE_TRAIN_PROGRESS_FD"


class Progress:
    """Writes progress to a descriptor, if there is one; never stops the job."""

    def __init__(self, descriptor: int | None = None) -> None:
        """:param descriptor: where to write; None for nowhere."""
        self._descriptor = descriptor

    @classmethod
    def from_environment(cls) -> Progress:
        """The progress that the environment asks for; a value that is no number means none."""
        value = os.environ.get(VARIABLE, "")
        return cls(int(value) if value.isdigit() else None)

    def __call__(self, phase: str, **values: Any) -> None:
        """Write one line. ``phase`` is load, train, evaluate or save.

        It is left out while whoever reads doesn't: a line lost is better than
        a training that waits.
        """
        if self._descriptor is not None and _takes_a_line(self._descriptor):
            self.tell({"phase": phase, **values})

    def tell(self, facts: dict[str, Any]) -> bool:
        """Write one line of other facts, which can't be left out: it waits for who reads.

        :returns: whether there was somebody.
        """
        if self._descriptor is None:
            return False
        line = (json.dumps(facts) + "\n").encode()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError:  # whoever reads may be gone
            return False
        return True


def _takes_a_line(descriptor: int) -> bool:
    """Whether a write would not block: a pipe has room for a page then, see pipe(7)."""
    looking = select.poll()
    looking.register(descriptor, select.POLLOUT)
    return bool(looking.poll(0))
