"""Keeps the base model from one job of a worker to the next, and takes its adapter off between."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from training import activations, fit
from training.log import say
from training.model import locate
from training.settings import Settings


class BaseModel:
    """The base model that was loaded last; of another one than the next job's nothing is kept."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._loaded: fit.Loaded | None = None
        self._as_it_was: tuple[object, ...] = ()

    def load(
        self,
        settings: Settings,
        root: Path,
        first: Callable[[Any], None] | None = None,
    ) -> fit.Loaded:
        """The model and all that belongs to it, as :func:`training.fit.load` gives it.

        :raises JobError: see there.
        """
        key = _key_of(settings, root)
        if self._loaded is None or key != self._key:
            self.drop()
            loaded = fit.load(settings, root, first)
            self._loaded, self._key = loaded, key
            self._as_it_was = _state(loaded.model)
        else:
            say("The base model is still loaded.")
            if first:
                first(self._loaded.tokenizer)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        return self._loaded

    def take_off(self) -> None:
        """Take off what the last job put on. A model that isn't as it was then is let go."""
        if self._loaded is not None and not self._as_before(self._loaded.model):
            say("The base model has changed, so the next stage loads it again.")
            self.drop()
        _free()

    def _as_before(self, model: Any) -> bool:
        try:
            _take_off(model)
            return _state(model) == self._as_it_was
        except Exception:  # of whatever kind: the stage before is done all the same
            return False

    def drop(self) -> None:
        """Let go of the model and its memory."""
        self._loaded, self._key, self._as_it_was = None, (), ()
        _free()


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _key_of(settings: Settings, root: Path) -> tuple[object, ...]:
    source = locate(settings, root)
    folder = Path(source)
    # A folder may be filled anew between two stages.
    stamps = tuple(
        (path.name, path.stat().st_mtime_ns, path.stat().st_size)
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
    )
    modelscope = settings.use_modelscope
    return source, stamps, settings.model_revision, modelscope, settings.dtype, settings.use_qlora


def _take_off(model: Any) -> None:
    """Put the layers that peft has wrapped back into their places."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            inner = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            inner = module.original_module
        else:
            continue
        above, _, own = name.rpartition(".")
        setattr(model.get_submodule(above) if above else model, own, inner)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        model.__dict__.pop(name, None)
    activations.keep(model)
    model.requires_grad_(False)
    model.eval()


def _state(model: Any) -> tuple[object, ...]:
    """What tells whether a model is the one that was loaded: layers, hooks, flags, weights.

    A weight that was written to has another version than before (torch counts).
    """
    modules = tuple(
        (
            name,
            type(module),
            module.training,
            module.__dict__.get("forward") is None,
            bool(getattr(module, "gradient_checkpointing", False)),
            *(len(getattr(module, hooks)) for hooks in _HOOKS),
        )
        for name, module in model.named_modules()
    )
    tensors = tuple(
        (name, tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor._version)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    )
    return modules, tensors


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
