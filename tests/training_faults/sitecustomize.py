"""Faults in a training, brought in from outside: Python imports this by its name from PYTHONPATH.

``REMOTE_TRAIN_TEST_FAULT`` is a JSON object of:

- ``kill_at``: the number of the call of ``os.fsync`` or ``os.replace``, from 1, before which the
  process is killed. A checkpoint makes nine: six files, its folder, the move, the parent folder.
  With ``half`` true, half of the file that is being flushed is gone then.
- ``no_space_at``: the numbers of such calls that fail as on a full disk.
- ``oom_at``: the numbers of the micro-batches, from 1, in whose forward pass memory runs out.
- ``wait_at``: the number of the micro-batch before which the process waits for a signal for long.
"""

import errno
import itertools
import json
import os
import signal
import stat
import sys
import time

VARIABLE = "REMOTE_TRAIN_TEST_FAULT"


def arm(fault):
    """Bring the faults into this process."""
    _arm_disk(fault)
    if "oom_at" in fault or "wait_at" in fault:
        _arm_micro_batches(fault)


def _arm_disk(fault):
    count = itertools.count(1)

    def watched(real):
        def call(*arguments, **options):
            number = next(count)
            if number == fault.get("kill_at"):
                if fault.get("half") and real is fsync:
                    _halve(arguments[0])
                os.kill(os.getpid(), signal.SIGKILL)
            if number in fault.get("no_space_at", []):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    fsync, replace = os.fsync, os.replace
    os.fsync, os.replace = watched(fsync), watched(replace)


def _halve(descriptor):
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        os.ftruncate(descriptor, status.st_size // 2)


def _arm_micro_batches(fault):
    import torch  # noqa: PLC0415  # not before it is needed: it takes seconds

    real, count = torch.nn.functional.cross_entropy, itertools.count(1)

    def call(*arguments, **options):
        number = next(count)
        if number in fault.get("oom_at", []):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB (a test).")
        if number == fault.get("wait_at"):
            time.sleep(60)
        return real(*arguments, **options)

    torch.nn.functional.cross_entropy = call


if os.environ.get(VARIABLE) and "training" in sys.orig_argv:
    arm(json.loads(os.environ[VARIABLE]))
