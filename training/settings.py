"""All settings that change the weights, each with its default; checked at the start."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from training.errors import JobError
from training.fields import build

SCHEDULERS = ("cosine", "linear", "constant")
DTYPES = ("auto", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is asked for. What came of it is recorded as ``effective``."""

    model_name_or_path: str
    """The base model: a folder (absolute, or under the project's root), or a name on the hub."""
    model_revision: str = "main"
    """Branch, tag or commit of a model from the hub; of no effect for a folder."""
    use_modelscope: bool = False
    """Load the base model from ModelScope instead of the Hugging Face hub."""
    learning_rate: float = 1e-4
    """The highest learning rate, reached after the warm-up."""
    num_train_epochs: float = 4
    """How often each chat is trained on; a fraction ends within an epoch."""
    per_device_train_batch_size: int = 1
    """Chats of ``max_length`` that fit into memory at once (see ``fit.micro_batch_tokens``)."""
    gradient_accumulation_steps: int = 8
    """Times ``per_device_train_batch_size`` it is the number of chats in an optimizer step."""
    max_length: int = 2048
    """Tokens of a chat that are trained on; longer ones are cut, at a turn where possible."""
    target_modules: str | list[str] = "all-linear"
    """Layers that get an adapter: names, or ``all-linear`` for all but the output layer."""
    lora_r: int = 16
    """Rank of the adapter's matrices."""
    lora_alpha: int = 32
    """Scale of the adapter: its output is multiplied by ``lora_alpha / lora_r``."""
    lora_dropout: float = 0.05
    """Share of the adapter's inputs that is dropped while training, 0 up to below 1."""
    use_rslora: bool = False
    """Scale the adapter by ``lora_alpha / sqrt(lora_r)`` instead, which high ranks need."""
    use_dora: bool = False
    """Learn the length of each weight's column beside its direction (DoRA): slower."""
    use_qlora: bool = False
    """Hold the base model in 4 bits (needs CUDA and bitsandbytes)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_ratio: float = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    lr_scheduler_type: str = "cosine"
    """What the learning rate does after the warm-up: ``cosine``, ``linear`` or ``constant``."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    seed: int = 42
    """All random numbers come from it: data order, first adapter weights, dropout."""
    data_seed: int = -1
    """Seed of the data order by itself; -1 for one that is derived from ``seed``."""
    init_seed: int = -1
    """Seed of the first adapter weights by itself; -1 as above."""
    dropout_seed: int = -1
    """Seed of the dropout by itself; -1 as above."""
    dtype: str = "auto"
    """``bfloat16``, ``float32``, or ``auto``: the first where the hardware has it. There is no
    float16: it needs loss scaling, which is one more thing to go wrong on cards of 2018."""

    @property
    def samples_per_step(self) -> int:
        """Chats in one optimizer step, whatever the micro-batches are."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def named_seeds(self) -> dict[str, int]:
        """The seeds that are named by themselves, by their purpose in :mod:`training.seeds`."""
        named = {
            "data_order": self.data_seed,
            "lora_init": self.init_seed,
            "dropout": self.dropout_seed,
        }
        return {purpose: seed for purpose, seed in named.items() if seed >= 0}


def read_settings(values: object) -> Settings:
    """The settings of a job.

    :raises JobError: category ``ops``; names the field and what it may be.
    """
    settings = build(Settings, values, "settings")
    for name, good, what in _rules(settings):
        if not good:
            value = getattr(settings, name)
            raise JobError(
                "ops", f"settings.{name} is {value!r}; it must be {what}.", f"Correct {name}."
            )
    return settings


def _rules(s: Settings) -> list[tuple[str, bool, str]]:
    modules: Any = s.target_modules
    return [
        ("model_name_or_path", bool(s.model_name_or_path.strip()), "a folder or a name"),
        ("learning_rate", 0 < s.learning_rate < math.inf, "a number above 0"),
        ("num_train_epochs", 0 < s.num_train_epochs < math.inf, "a number above 0"),
        ("per_device_train_batch_size", s.per_device_train_batch_size >= 1, "1 or more"),
        ("gradient_accumulation_steps", s.gradient_accumulation_steps >= 1, "1 or more"),
        ("max_length", s.max_length >= 8, "8 or more tokens"),
        ("target_modules", bool(modules), "all-linear or a list of layer names"),
        ("lora_r", s.lora_r >= 1, "1 or more"),
        ("lora_alpha", s.lora_alpha >= 1, "1 or more"),
        ("lora_dropout", 0 <= s.lora_dropout < 1, "0 up to below 1"),
        ("weight_decay", 0 <= s.weight_decay < math.inf, "0 or more"),
        ("warmup_ratio", 0 <= s.warmup_ratio < 1, "0 up to below 1"),
        ("lr_scheduler_type", s.lr_scheduler_type in SCHEDULERS, f"one of {', '.join(SCHEDULERS)}"),
        ("max_grad_norm", 0 <= s.max_grad_norm < math.inf, "0 or more"),
        ("seed", 0 <= s.seed < 2**63, "from 0 up to below 2^63"),
        *(
            (name, -1 <= getattr(s, name) < 2**63, "-1, or from 0 up to below 2^63")
            for name in ("data_seed", "init_seed", "dropout_seed")
        ),
        ("dtype", s.dtype in DTYPES, f"one of {', '.join(DTYPES)}"),
        (
            "use_qlora",
            not (s.use_qlora and s.dtype == "float32"),
            "false with dtype float32: 4-bit weights are computed with in bfloat16",
        ),
    ]
