"""A log as it comes, in lines that are harmless to a terminal."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

LONGEST = 64 * 1024
"""Characters after which a line is shown though it hasn't ended."""

_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
"""Colours, cursor movements and window titles (ECMA-48, sections 5.4 and 5.6)."""


def plain(line: str) -> str:
    """One line as a terminal would leave it: the last turn of a progress bar, without colours.

    What else it has of control characters is left to whoever shows it.
    """
    turns = [turn for turn in _ESCAPE.sub("", line).split("\r") if turn]
    return turns[-1].expandtabs(8) if turns else ""


class LogLines:
    """Takes bytes as they come, and shows each line when it is whole.

    :param show: shows one line to the person; makes control characters harmless.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def take(self, chunk: bytes) -> None:
        """Show the lines that end in ``chunk``, and keep the rest for the next one."""
        *lines, self._rest = (self._rest + self._decoder.decode(chunk)).split("\n")
        for line in lines:
            self._show(plain(line))
        if len(self._rest) > LONGEST:
            # Of a progress bar that has no line ends, the last turn is what counts.
            self._show(plain(self._rest))
            self._rest = ""

    def end(self) -> None:
        """Show what stands there without a line end."""
        self._rest += self._decoder.decode(b"", final=True)
        if self._rest:
            self._show(plain(self._rest))
        self._rest = ""
