"""What goes wrong in a training of the tests: loaded by trainer_hook.

It acts in ``python -m training`` alone, through hooks that PyTorch offers to everybody, and does
what ``faults.json`` beside the environment says: a list of objects, each with

    id          a name: what has happened once doesn't happen again, whatever process comes next
    step        the optimizer step of this process in which it happens, 1 is the first
    do          a signal's name for this process, "oom", "nan", "hold" or "fill"
    when        for oom: "forward" (before the micro-batch) or "backward" (after its gradients)
    micro       for oom: the micro-batch of the step, 1 is the first
    above       for oom, in place of step: each micro-batch of more tokens than this
    path        for hold: wait while this file exists; for fill: fill the disk with this file
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from fill import fill
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook


class Faults:
    """Counts steps and micro-batches, and does what is due."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.step = 1
        self.micro = 0

    def wanted(self) -> list[dict[str, Any]]:
        with contextlib.suppress(OSError, ValueError):
            return list(json.loads((self.place / "faults.json").read_text(encoding="utf-8")))
        return []

    def once(self, fault: dict[str, Any]) -> bool:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.place / f"done.{fault['id']}", os.O_CREAT | os.O_EXCL))
            return True
        return False

    def before_forward(self, module: Any, inputs: Any) -> None:
        if not (isinstance(module, torch.nn.Embedding) and torch.is_grad_enabled()):
            return
        if torch._C._current_autograd_node() is not None:
            return  # activation checkpointing computes it again
        self.micro += 1
        tokens = inputs[0].numel() if inputs else 0
        for fault in self.wanted():
            if fault["do"] == "oom" and fault.get("when") == "forward":
                if "above" in fault and tokens > fault["above"]:
                    raise out_of_memory(tokens)
                if self._now(fault) and self.once(fault):
                    raise out_of_memory(tokens)

    def after_backward(self) -> None:
        for fault in self.wanted():
            due = fault["do"] == "oom" and fault.get("when") == "backward" and self._now(fault)
            if due and self.once(fault):
                raise out_of_memory(0)

    def _now(self, fault: dict[str, Any]) -> bool:
        return (fault.get("step"), fault.get("micro", 1)) == (self.step, self.micro)

    def after_step(self, optimizer: Any) -> None:
        ended, self.step, self.micro = self.step, self.step + 1, 0
        for fault in self.wanted():
            if fault.get("step") == ended and fault["do"] != "oom" and self.once(fault):
                self.act(fault, optimizer)

    def act(self, fault: dict[str, Any], optimizer: Any) -> None:
        if fault["do"] == "hold":
            deadline = time.monotonic() + 200
            while os.path.exists(fault["path"]) and time.monotonic() < deadline:
                time.sleep(0.01)
        elif fault["do"] == "fill":
            fill(fault["path"])
        elif fault["do"] == "nan":
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))
        else:
            os.kill(os.getpid(), getattr(signal, fault["do"]))


def out_of_memory(tokens: int) -> Exception:
    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {tokens} tokens (test).")


def install(place: Path) -> None:
    """Hang the hooks into PyTorch.

    :param place: the folder of ``faults.json``.
    """
    faults = Faults(place)
    register_module_forward_pre_hook(faults.before_forward)
    register_optimizer_step_post_hook(lambda optimizer, *_: faults.after_step(optimizer))
    backward = torch.Tensor.backward

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        backward(self, *arguments, **options)
        faults.after_backward()

    torch.Tensor.backward = counted  # type: ignore[method-assign]
