"""Trains the adapter: what is needed for it, made ready, and what came of it.

All code that can change the weights is imported from here, and nothing else is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.batching import choose
from training.chats import ChatFile, read_chats
from training.device import THREADS, Device, exactly, set_up
from training.errors import JobError
from training.loop import Loop
from training.masking import Masker
from training.memory import Memory
from training.model import add_adapter, check_model, load_base, load_tokenizer, locate, revision
from training.output_layer import can_be_chunked
from training.seeds import derived_seeds
from training.settings import Settings
from training.state import Keeper
from training.template import ChatTemplate


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The base model, ready to use."""

    model: Any
    tokenizer: Any
    device: Device
    effective: dict[str, Any]
    """What is in force, for the record."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The trained adapter, still on its base model."""

    model: Any
    metrics: dict[str, float]
    """``train_loss`` (mean over all trained tokens), ``steps``, ``samples``, ``train_tokens``."""
    effective: dict[str, Any]
    cut: list[str]
    """File and line of the chats that were cut."""
    dropped: list[str]
    """File and line of the chats of which nothing that is learned was left."""
    notes: list[dict[str, str]]
    """What was done about memory that ran out, and about what can't be repeated, as warnings."""


def micro_batch_tokens(settings: Settings) -> int:
    """Tokens in a micro-batch at most, padding too: what the user said that memory can take."""
    return settings.per_device_train_batch_size * settings.max_length


def load(settings: Settings, root: Path, first: Callable[[Any], None] | None = None) -> Loaded:
    """Load the base model and its tokenizer.

    :param first: is called with the tokenizer before the model is loaded, and may raise.
    :raises JobError: see :mod:`training.model`.
    """
    device = set_up(settings.dtype)
    source = locate(settings, root)
    check_model(source, settings, device)
    tokenizer = load_tokenizer(source, settings)
    if first:
        first(tokenizer)
    base = load_base(source, settings, device)
    effective = {
        "dtype": device.dtype_name,
        "torch_threads": THREADS,
        "base_model_revision": revision(base),
        "chat_template": "default" if ChatTemplate(tokenizer).is_default else "of the model",
        "attention": getattr(base.config, "_attn_implementation", None) or "unknown",
    }
    return Loaded(base, tokenizer, device, effective)


def read_training(root: Path, paths: list[str]) -> list[ChatFile]:
    """The files of chats to train on.

    :raises JobError: category ``data``; names file, line and reason.
    """
    return [read_chats(root, path) for path in paths]


def check_chats(tokenizer: Any, settings: Settings, files: list[ChatFile]) -> None:
    """See that something is left to learn, which the first chat nearly always tells.

    :raises JobError: category ``data``.
    """
    masker = Masker(ChatTemplate(tokenizer), settings.max_length)
    chats = (chat for file in files for chat in file.chats)
    if not any(masker.encode(chat).rows for chat in chats):
        raise _nothing_to_learn(settings, files)


def fit(
    loaded: Loaded,
    settings: Settings,
    files: list[ChatFile],
    on_step: Callable[[dict[str, Any], int], None],
    keeper: Keeper | None = None,
    low_memory: bool = False,
) -> Fitted:
    """Train a new adapter on the chats in ``files``, and on nothing else.

    :param on_step: called after each step with its record (a line of ``metrics.jsonl``) and the
        number of all steps.
    :param keeper: has the state to go on from, if there is one, and is shown each new one.
    :param low_memory: train one sample at a time, with activation checkpointing, from the start.
    :raises JobError: ``data`` for chats that can't be used, ``training_logic`` for a loss that is
        not finite, ``oom`` where even one sample is too much.
    """
    masker = Masker(ChatTemplate(loaded.tokenizer), settings.max_length)
    encoded = [masker.encode(chat) for file in files for chat in file.chats]
    samples = [sample for sample in encoded if sample.rows]
    if not samples:
        raise _nothing_to_learn(settings, files)
    seeds = derived_seeds(settings.seed) | settings.named_seeds
    rows = [row for sample in samples for row in sample.rows]
    batching = choose(loaded, rows)
    chunked = can_be_chunked(loaded.model, rows[0].tokens, loaded.device.where)
    model = add_adapter(loaded.model, settings, seeds["lora_init"])
    memory = Memory(model.get_base_model(), micro_batch_tokens(settings), low_memory)
    try:
        with exactly(loaded.device) as exact, batching.in_use(model.get_base_model()):
            loop = Loop(model, loaded.device, settings, memory, batching, chunked, exact)
            metrics = loop.run(samples, seeds, on_step, keeper)
    finally:
        memory.close()
    return Fitted(
        model=model,
        metrics=metrics,
        effective={
            **loaded.effective,
            "samples_per_step": settings.samples_per_step,
            "micro_batch_tokens": memory.budget,
            "batching": batching.name,
            "cross_entropy": "chunked" if chunked else "plain",
            "deterministic": exact.deterministic,
            "activation_checkpointing": memory.activation_checkpointing,
            "longest_row": max(len(row.tokens) for row in rows),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "seeds": seeds,
        },
        cut=[sample.chat.where for sample in encoded if sample.cut and sample.rows],
        dropped=[sample.chat.where for sample in encoded if not sample.rows],
        notes=memory.notes + exact.notes,
    )


def _nothing_to_learn(settings: Settings, files: list[ChatFile]) -> JobError:
    return JobError(
        "data",
        f"No token of {', '.join(file.path for file in files)} is left to learn"
        f" within max_length {settings.max_length}.",
        "Raise max_length, or shorten what stands before the answers.",
    )
