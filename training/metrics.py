"""Writes ``metrics.jsonl``, a line a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.log import say


class Metrics:
    """The file's lines. One that the disk doesn't take ends no training: it is written later."""

    def __init__(self, path: Path) -> None:
        """:param path: the file, which is not there yet."""
        self.lines: list[str] = []
        self._path = path
        self._whole = True

    def restore(self, lines: list[str]) -> None:
        """Begin with the lines of an earlier attempt."""
        self.lines = [*lines]
        self._write("".join(lines))

    def add(self, record: dict[str, Any]) -> None:
        """Write the record of a step."""
        line = json.dumps(record) + "\n"
        self.lines.append(line)
        self._write(line)

    def finish(self) -> None:
        """Make the file whole, if it isn't.

        :raises OSError: if the disk still doesn't take it.
        """
        if not self._whole:
            self._path.write_text("".join(self.lines), encoding="utf-8")

    def _write(self, text: str) -> None:
        try:
            # Unbuffered, so that what fails is known here, and isn't tried again by itself.
            with self._path.open("ab", buffering=0) as file:
                self._whole &= file.write(text.encode()) == len(text.encode())
        except OSError as error:
            if self._whole:
                say(
                    f"warning: {self._path.name} can't be written: {error.strerror}. It is tried"
                    " again after the last step."
                )
            self._whole = False
