"""Activation checkpointing: activations are computed again in the backward pass, and not kept."""

from __future__ import annotations

from typing import Any

_NAMES = ("activation_checkpointing", "gradient_checkpointing")
"""What transformers calls it, and what it called it up to its first 5."""


def compute_again(model: Any) -> bool:
    """Begin with it; False where the model can't."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        return False
    # What the backward pass computes again drops out what the forward pass dropped out:
    # torch's checkpoint keeps the random state by itself.
    getattr(model, f"{_name(model)}_enable")({"use_reentrant": False})
    return True


def keep(model: Any) -> None:
    """End it, and what it has put on the embeddings."""
    name = _name(model)
    if hasattr(model, f"{name}_disable") and getattr(model, f"is_{name}", True):
        getattr(model, f"{name}_disable")()
    if hasattr(model, "_require_grads_hook") or hasattr(model, "_require_grads_hooks"):
        model.disable_input_require_grads()


def _name(model: Any) -> str:
    return next((name for name in _NAMES if hasattr(model, f"{name}_disable")), _NAMES[-1])
