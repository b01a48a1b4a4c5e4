"""Where a training stands between two steps: all that it needs to go on from there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class State:
    """A training after a step. The order of the data comes from the seed, and is not in it."""

    step: int
    """Steps that are done."""
    loss_sum: float
    """Sum of the losses of all tokens trained on."""
    token_sum: int
    memory: dict[str, Any]
    """See :meth:`training.memory.Memory.as_dict`."""
    adapter: Tensors
    """The weights that are trained, by name, on the CPU."""
    optimizer: Tensors
    """The optimizer's, as ``<number of the parameter>.<name>``, on the CPU."""
    random: Tensors
    """Of each generator of random numbers."""


class Keeper(Protocol):
    """Whoever keeps a training's states, such as :class:`training.keeper.Checkpoints`."""

    def resume(self, steps: int, shapes: dict[str, list[int]]) -> State | None:
        """The state to go on from, if one is kept.

        :param steps: the number of all steps.
        :param shapes: of the weights that are trained.
        """

    def after_step(self, step: int, steps: int, state: Callable[[], State]) -> None:
        """A step is done. May raise, to end the training there.

        :param state: makes a copy of the state as it is now.
        """


def random_state() -> Tensors:
    """The state of the CPU's generator and of each CUDA device's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states.update({f"cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())})
    return states


def set_random_state(states: Tensors) -> None:
    """Put the generators back; a device that isn't here any more is left out."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda.{i}" in states:
                torch.cuda.set_rng_state(states[f"cuda.{i}"], i)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """A copy of the optimizer's state on the CPU; empty before its first step."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": copied(value) for i, one in state.items() for name, value in one.items()}


def set_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Put the optimizer's state back."""
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def copied(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, for which the device needs no memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()
