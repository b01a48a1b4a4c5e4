"""Kill an apply before any one of its calls that change the disk, as SIGKILL does.

The work is done in a forked process, in which the functions of ``os`` that change anything count
their calls. So every such call is a step, whoever makes it, and none has to be marked in the code.

It is forked from a small process of its own, which this file is the program of: to fork a process
that holds all that tests import takes ten times as long.
"""

import atexit
import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

from remote_train import durable
from remote_train.bundle import apply
from remote_train.bundle_apply import Delivery
from remote_train.offer import unpack
from remote_train.recovery import recover
from remote_train.rollback import rollback

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


def apply_delta(path, root, state):
    """Apply an archive with the offer that lies beside it."""
    offer = unpack(Path(f"{path}.offer").read_text())
    return apply(path, root, state, delivery=Delivery(None, offer))


WORKS = {"apply": apply, "delta": apply_delta, "recover": recover, "rollback": rollback}
FAILED = 70  # the status of a process whose work ended with an exception


def killed_at(step, work, *arguments):
    """Do one of ``WORKS`` in another process and kill it before its ``step``-th change.

    Returns whether it was killed: False when it came to its end before.
    """
    server = _server()
    plain = [one if isinstance(one, int) else str(one) for one in arguments]
    server.stdin.write(json.dumps([step, work, plain]) + "\n")
    server.stdin.flush()
    status = int(server.stdout.readline())
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, f"it failed at or before step {step}; standard error says how"
    return False


def steps():
    """1, 2, 3 and so on, for as long as something is killed; far too many is an error."""
    yield from range(1, 2000)
    raise AssertionError("it doesn't come to an end")


@functools.cache
def _server():
    modules = Path(__file__).resolve().parents[2] / "plugins" / "module_utils"
    server = subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": str(modules)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.communicate)  # at the end of its input, it ends
    return server


def _serve():
    durable._whole = lambda _folder: True
    for line in sys.stdin:
        step, work, arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            status = FAILED
            try:
                _arm(step)
                WORKS[work](*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(os.waitpid(child, 0)[1], flush=True)  # noqa: T201  # the answer


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


if __name__ == "__main__":
    _serve()
