"""Kill what is at work before any one of its calls that change the disk, as SIGKILL does.

The work is done in a forked process, in which the functions of ``os`` that change anything count
their calls. So every such call is a step, whoever makes it, and none has to be marked in the code.
"""

import functools
import itertools
import os
import signal
import traceback

CHANGING = (
    "chmod",
    "fchmod",
    "fsync",
    "link",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "unlink",
    "utime",
    "write",
)
WRITING = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class FailedError(AssertionError):
    """The work ended with an exception of its own, which is on standard error."""


def killed_at(step, work):
    """Do ``work()`` in another process and kill it before its ``step``-th change.

    Returns whether it was killed: False when it came to its end before.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            _arm(step)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    if status:
        raise FailedError(f"it failed at or before step {step}")
    return False


def steps():
    """1, 2, 3 and so on, for as long as something is killed; far too many is an error."""
    yield from range(1, 2000)
    raise AssertionError("it doesn't come to an end")


def _arm(step):
    count = itertools.count(1)

    def watch(name, real):
        @functools.wraps(real)
        def counted(*arguments, **options):
            flags = arguments[1] if name == "open" and len(arguments) > 1 else WRITING
            if flags & WRITING and next(count) == step:
                if name == "write":  # half of it has come to the disk
                    real(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "fsync":  # what it is for is another test's business, and it takes time
                return None
            return real(*arguments, **options)

        return counted

    for name in CHANGING:
        setattr(os, name, watch(name, getattr(os, name)))
