"""What was seen of a running stage, kept at home: the next command goes on from there.

A convenience and nothing more: where it is lost, or damaged, the log is shown from its beginning.
It is also what is left at home of a stage whose host is never reached again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from typing import Any

from remote_train import live
from remote_train.atomic import write_json

EVERY = 5.0
"""Seconds between two writes: it is on the disk of a laptop, and for hours."""

LAST_LINES = 50
"""How many of the log's last lines it holds."""

NAME = os.path.join("training_sync", "followed.json")
"""Where it lies, under the folder that results come home to."""


class Followed:
    """The record of the stage that is followed.

    :param home: the folder that results come home to.
    """

    def __init__(self, home: str) -> None:
        self._path = os.path.join(os.path.abspath(os.path.expanduser(home)), NAME)
        self._written = 0.0
        self._tail = b""

    def read(self, **which: Any) -> dict[str, Any]:
        """What was seen of the start, or of the run, that is meant; empty where that is nothing."""
        found = live.read_json(self._path)
        offset = found.get("offset")
        if type(offset) is not int or offset < 0:
            return {}
        return found if all(found.get(name) == value for name, value in which.items()) else {}

    def keep(self, status: Mapping[str, Any], offset: int, fresh: bytes, **seen: Any) -> None:
        """Keep what has been seen, if it is time again and can be done."""
        self._tail = (self._tail + fresh)[-64 * 1024 :]
        if self._written and time.monotonic() - self._written < EVERY:
            return
        lines = self._tail.decode("utf-8", "replace").splitlines()[-LAST_LINES:]
        names = ("token", "stage", "run", "log", "host", "started")
        record = {
            "schema": 1,
            **{name: status.get(name) for name in names},
            "offset": offset,
            "at": time.time(),
            **seen,
            "last_lines": lines,
        }
        with contextlib.suppress(OSError, ValueError):
            made = _missing_above(self._path) or self.read().get("made") or []
            write_json(self._path, {**record, "made": made})
        self._written = time.monotonic()

    def forget(self, token: Any) -> None:
        """Remove it: the stage's end has been seen."""
        seen = self.read(token=token)
        if seen:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
                # What was made for it alone goes with it, where nothing is collected; an empty
                # folder that was there before is its owner's.
                made = seen.get("made")
                folder = os.path.dirname(self._path)
                while isinstance(made, list) and folder in made:
                    os.rmdir(folder)
                    folder = os.path.dirname(folder)


def _missing_above(path: str) -> list[str]:
    """The folders above a file that aren't there yet, innermost first."""
    found = []
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return found
