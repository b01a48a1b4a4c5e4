"""Work divided between processes, where threads would only wait for the interpreter's lock.

Their results come back in order, through pipes, in marshal's form: fast, and with nothing in it
that could run. A process that ends too early is no error: its part is done here then.
"""

from __future__ import annotations

import gc
import marshal
import os
import struct
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any, Callable, Generic, TypeVar

Block = TypeVar("Block")

_LENGTH = struct.Struct("<Q")


def possible() -> bool:
    """Whether this process has no thread but one, so that forking it is safe; Linux only."""
    with suppress(OSError):
        for _turn in range(10):
            if len(os.listdir("/proc/self/task")) == 1:
                return True
            if threading.active_count() > 1:
                break
            time.sleep(0.001)  # the kernel takes a moment longer to end one than Python
    return False


def each(
    work: Callable[[Block], Any], blocks: Sequence[Block], count: int
) -> Generator[Any, None, None]:
    """What ``work`` makes of each block, in their order.

    :param work: gives what marshal takes; must not depend on what it did before.
    :param count: processes. Each has every ``count``-th block, and is a few results ahead at most.
    """
    workers = [_Worker(work, blocks[place::count]) for place in range(min(count, len(blocks)))]
    try:
        for place, block in enumerate(blocks):
            result = workers[place % count].result()
            yield work(block) if result is None else result
    finally:
        for worker in workers:
            worker.close()
        for worker in workers:
            worker.wait()


class _Worker(Generic[Block]):
    """A process that goes through some blocks."""

    def __init__(self, work: Callable[[Block], Any], blocks: Sequence[Block]) -> None:
        reading, writing = os.pipe()
        self._stream = open(reading, "rb")  # noqa: SIM115 - closed by close()
        try:
            self._process = os.fork()
        except OSError:  # too many processes, or no memory for one
            self._process = -1
        if self._process == 0:
            status = 1
            try:
                self._stream.close()
                gc.disable()  # it would write to memory that is shared until then
                with open(writing, "wb") as stream:
                    for block in blocks:
                        content = marshal.dumps(work(block))
                        stream.write(_LENGTH.pack(len(content)))
                        stream.write(content)
                        stream.flush()
                status = 0
            finally:
                os._exit(status)  # without what the parent does at its end
        os.close(writing)

    def result(self) -> Any:
        """What became of the next block; None when the process is gone."""
        with suppress(struct.error, EOFError, ValueError):
            (length,) = _LENGTH.unpack(self._stream.read(_LENGTH.size))
            content = self._stream.read(length)
            if len(content) == length:
                return marshal.loads(content)  # noqa: S302 - from a child of this process
        return None

    def close(self) -> None:
        """Let the process end, if it hasn't: its next result goes nowhere."""
        self._stream.close()

    def wait(self) -> None:
        """Wait for its end."""
        if self._process > 0:
            with suppress(ChildProcessError):
                os.waitpid(self._process, 0)
