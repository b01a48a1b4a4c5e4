"""TERM ends a training between two steps, so that a checkpoint can be written first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from training.failures import Stopped


class StopRequest:
    """Whether TERM has come."""

    def __init__(self) -> None:
        """It hasn't."""
        self.asked = False

    def obey(self) -> None:
        """End here, if it has come.

        :raises Stopped: then.
        """
        if self.asked:
            raise Stopped


@contextlib.contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """While this lasts, the first TERM only asks; a second one ends the job at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # signals are another thread's business
        return

    def take(*_: object) -> None:
        request.obey()
        request.asked = True  # and no word: it may have come in the middle of writing one

    before = signal.signal(signal.SIGTERM, take)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
    request.obey()
