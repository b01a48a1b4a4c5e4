"""Says what went wrong: turns what was raised into a category, a sentence and a hint."""

from __future__ import annotations

import errno

from training.errors import DISK_FULL, SIGNAL, JobError
from training.memory import cause_of, is_out_of_memory

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk that takes no more, of all or of one user."""

_FULL_WORDS = ("No space left on device", "Disk quota exceeded")


class Stopped(BaseException):
    """The job was told to end by a signal."""


def explain(error: BaseException) -> JobError | None:
    """The sentence for an error that comes from outside; None for a defect of ours."""
    if isinstance(error, JobError):
        return error
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        sentence = "The training was stopped by a signal."
        return JobError("ops", sentence, "Start the stage again.", kind=SIGNAL)
    return _explain_system(error, str(error))


def _explain_system(error: BaseException, text: str) -> JobError | None:
    if is_out_of_memory(error):
        return JobError(
            "oom",
            "The memory did not suffice.",
            "Lower max_length or per_device_train_batch_size (raise gradient_accumulation_steps by"
            " as much), lower eval_batch_size if it happened while evaluating, set use_qlora, or"
            " end what else holds memory on the GPU.",
            cause_of(error),
        )
    if getattr(error, "errno", None) in FULL or any(words in text for words in _FULL_WORDS):
        where = getattr(error, "filename", None)
        return JobError(
            "infra",
            f"The disk is full{f' at {where}' if where else ''}.",
            "Free space on the GPU host: old runs, checkpoints, model caches.",
            kind=DISK_FULL,
        )
    if isinstance(error, ImportError):
        return JobError(
            "ops",
            f"The package {error.name or text} can't be imported.",
            "Install training/requirements.txt on the GPU host.",
            text,
        )
    if isinstance(error, PermissionError):
        return JobError(
            "infra", f"{error.filename} may not be written or read.", "Check its owner and mode."
        )
    return None
