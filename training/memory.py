"""What is tried next when memory runs out: smaller micro-batches, then activation checkpointing."""

from __future__ import annotations

import gc
import sys
from typing import Any

from training import activations
from training.errors import JobError
from training.log import say

ONE_SAMPLE = 1
"""The token budget of micro-batches of one sample: what is longer than it is one of its own."""

_WORDS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory: you tried to allocate",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the memory of a device or of the machine did not suffice."""
    # By its name: torch may be what could not be imported.
    return (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS))
    )


def cause_of(error: BaseException) -> str:
    """The first line of what an error says, else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def free() -> None:
    """Give back what nothing holds any more. The error that was raised must be gone by now."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


class Memory:
    """How much memory a step takes: its token budget, and whether activations are kept.

    Neither changes how many samples are in an optimizer step.
    """

    def __init__(self, base: Any, budget: int, low: bool) -> None:
        """:param low: start with one sample at a time and activation checkpointing."""
        self.budget = ONE_SAMPLE if low else budget
        """Tokens in a micro-batch at most, padding too."""
        self.activation_checkpointing = False
        self.notes: list[dict[str, str]] = []
        """What was done about memory that ran out, as warnings."""
        self._base = base
        if low:
            self._start_checkpointing()

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint; see :meth:`take`."""
        return {
            "micro_batch_tokens": self.budget,
            "activation_checkpointing": self.activation_checkpointing,
            "notes": self.notes,
        }

    def take(self, saved: dict[str, Any]) -> None:
        """Go on with what a checkpoint says, or with less."""
        self.budget = min(self.budget, saved["micro_batch_tokens"])
        if saved["activation_checkpointing"]:
            self._start_checkpointing()
        self.notes = [*saved["notes"]]

    def reduce(self, step: int, rows: int, tokens: int, longest: int, cause: str) -> None:
        """Take less, after memory ran out on a micro-batch.

        :param rows: in that micro-batch.
        :param tokens: all of its tokens, padding too.
        :param longest: tokens of its longest row.
        :raises JobError: category ``oom``, if there is no less.
        """
        before = self.budget
        if rows > 1:
            while self.budget >= tokens:
                self.budget //= 2
            what = f"micro-batches have at most {self.budget} tokens since ({before} before)"
            action = (
                "To start like this, lower per_device_train_batch_size and raise"
                " gradient_accumulation_steps by as much."
            )
        elif not self.activation_checkpointing and self._start_checkpointing():
            what = "activation checkpointing is on since: slower, and with less memory"
            action = "To start like this, set low_memory."
        else:
            raise _nothing_left(longest, self.activation_checkpointing, cause)
        note = {
            "category": "oom",
            "symptom": f"Memory ran out at step {step}: {what}.",
            "cause": cause,
            "action": action,
        }
        self.notes.append(note)
        say(f"warning: {note['symptom']} The step is done again. ({cause})")

    def close(self) -> None:
        """Leave the base model as it was."""
        if self.activation_checkpointing:
            activations.keep(self._base)

    def _start_checkpointing(self) -> bool:
        """Whether the model can compute activations anew instead of keeping them."""
        self.activation_checkpointing = activations.compute_again(self._base)
        return self.activation_checkpointing


def _nothing_left(tokens: int, checkpointing: bool, cause: str) -> JobError:
    how = "even with activation checkpointing" if checkpointing else "one at a time"
    return JobError(
        "oom",
        f"The memory did not suffice for a chat of {tokens} tokens, {how}.",
        f"Set max_length below {tokens}, lower lora_r, set use_qlora, or end what else holds memory"
        " on the GPU.",
        cause,
    )
