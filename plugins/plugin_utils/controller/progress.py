"""What a person sees of something that takes a while: a live line, or now and then a plain one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

PLAIN_EVERY = 10.0
"""Seconds between two plain lines, where a line can't be rewritten."""


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


SHOWN_AFTER = 2.0
"""Seconds that something counted in bytes takes, before its progress is shown."""


_UNITS = (("kB", 10**3), ("MB", 10**6), ("GB", 10**9))


def size(count: float) -> str:
    """Bytes for a person, in decimal units: ``12.3 MB``."""
    if count < 999.5:  # what would be rounded up to 1000 has the next unit
        return f"{count:.0f} bytes"
    unit, scale = next(
        ((unit, scale) for unit, scale in _UNITS if count < 999.95 * scale), _UNITS[-1]
    )
    return f"{count / scale:,.1f} {unit}"


class Meter:
    """Shows how far something is that is counted in bytes, once it takes over two seconds.

    :param line: where it is shown.
    :param what: what is being done, as ``project: sending``.
    :param total: bytes in all.
    :ivar skipped: bytes that were there already.
    """

    def __init__(self, line: Line, what: str, total: int) -> None:
        self._line = line
        self._what = what
        self._total = total
        self._done = 0
        self.skipped = 0
        self._began = time.monotonic()

    def skip(self, count: int) -> None:
        """Count bytes that are there already, which say nothing of the rate."""
        self._done += count
        self.skipped += count

    def add(self, count: int) -> None:
        """Count bytes, and show it when it is time."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Say how many bytes are done by now, and show it when it is time."""
        self._done = done
        if self.seconds >= SHOWN_AFTER:
            self._line.update(
                f"  {self._what} {size(self._done)} of {size(self._total)}, {self.rate}"
            )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    @property
    def rate(self) -> str:
        """Bytes a second, for a person."""
        return f"{size((self._done - self.skipped) / max(self.seconds, 1e-3))}/s"

    @contextlib.contextmanager
    def watching(self, measure: Callable[[], int]) -> Iterator[None]:
        """While something runs that can't be asked, see by ``measure`` how far it is."""

        def look() -> None:
            with contextlib.suppress(OSError):
                self.reach(measure())

        with _meanwhile(look, 0.5, 0.5):
            yield


@contextlib.contextmanager
def waiting(line: Line, text: str) -> Iterator[None]:
    """While the host is at work and says nothing, show for how long, after two seconds."""
    began = time.monotonic()

    def show() -> None:
        line.update(f"  {text}, {duration(time.monotonic() - began)}")

    try:
        with _meanwhile(show, SHOWN_AFTER, 1.0):
            yield
    finally:
        line.clear()


@contextlib.contextmanager
def _meanwhile(act: Callable[[], None], first: float, then: float) -> Iterator[None]:
    """Act now and then, beside what is done in here.

    :param first: seconds before the first time.
    :param then: seconds between two times.
    """
    over = threading.Event()

    def again() -> None:
        pause = first
        while not over.wait(pause):
            act()
            pause = then

    beside = threading.Thread(target=again, daemon=True)
    beside.start()
    try:
        yield
    finally:
        over.set()
        beside.join()


def _one_line(text: str) -> str:
    """``text`` on one line: a host could fake lines with what it says."""
    return " ".join(text.splitlines())


class Line:
    """Shows the progress of one stage, or of one transfer.

    :param say: shows a line that stays.
    :param rewrite: shows a line in place of the one before it, or None where that can't be done.
    :param prefix: the host's name, where several hosts write; then no line is rewritten.
    :param first_after: seconds before the first plain line.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        rewrite: Callable[[str], None] | None,
        prefix: str = "",
        first_after: float = PLAIN_EVERY,
    ) -> None:
        self._say = say
        self._rewrite = None if prefix else rewrite
        self._prefix = f"[{prefix}]" if prefix else ""
        self._last = ""
        self._last_plain = time.monotonic() - PLAIN_EVERY + first_after

    @property
    def live(self) -> bool:
        """Whether there is a line that is rewritten."""
        return self._rewrite is not None

    def update(self, text: str) -> None:
        """Show ``text`` in the live line, or as a plain one when it is time again."""
        text = _one_line(text)
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
        text = _one_line(text)
        self.clear()  # what stays is shown whole, however wide the terminal is
        self._say(self._prefix + text)

    def clear(self) -> None:
        """Take the live line away: what others show next begins at its left."""
        if self._rewrite and self._last:
            self._rewrite("")
        self._last = ""
