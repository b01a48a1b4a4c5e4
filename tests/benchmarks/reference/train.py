"""The plain reference: what people train an adapter with today, one process a stage.

    python train.py CONFIG.json

transformers' Trainer and peft as their documentation shows them, batch 1, accumulated, with
activation checkpointing. It imports nothing of this project. What differs from the shortest such
script is what makes it comparable: the order of the samples is given, and the learning rate
follows the schedule that the other side has.

The last line of standard output is JSON: seconds of each phase, losses, tokens.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import math  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

import chats  # noqa: E402


class GivenOrder(torch.utils.data.Sampler):  # type: ignore[type-arg]
    """Goes through the samples in the order that is given for each epoch."""

    def __init__(self, order: list[list[int]]) -> None:
        self.order = order
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer calls it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(self.order[self.epoch])

    def __len__(self) -> int:
        return len(self.order[0])


class PlainTrainer(transformers.Trainer):
    """The Trainer with a given order and a given learning rate."""

    def __init__(self, *, order: list[list[int]], rate: Any, **options: Any) -> None:
        super().__init__(**options)
        self._order = order
        self._rate = rate

    def _get_train_sampler(self, _dataset: Any = None) -> Any:
        return GivenOrder(self._order)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's own, from another formula."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: self._rate(step, num_training_steps)
        )
        return self.lr_scheduler


def cosine(step: int, steps: int, warmup_ratio: float = 0.03) -> float:
    """The share of the peak: up in equal parts, then half a cosine."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Tensors of a batch of one sample."""
    (sample,) = batch
    return {name: torch.tensor([values]) for name, values in sample.items()}


def add_adapter(model: Any, config: dict[str, Any]) -> Any:
    """The model with a new LoRA adapter on all linear layers."""
    torch.manual_seed(config["lora_seed"])
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config["lora_dropout"],
        target_modules="all-linear",
    )
    return get_peft_model(model, lora)


def fit(
    model: Any, samples: list[dict[str, list[int]]], config: dict[str, Any]
) -> tuple[Any, float]:
    """Train ``model``, which has its adapter, on ``samples``; the Trainer, and its seconds.

    :param config: ``learning_rate``, ``num_train_epochs``, ``gradient_accumulation_steps``,
        ``order`` (a list of indices an epoch), ``output``, ``dropout_seed``.
    """
    trainer = PlainTrainer(
        model=model,
        train_dataset=samples,
        data_collator=collate,
        order=config["order"],
        rate=cosine,
        args=transformers.TrainingArguments(
            output_dir=config["output"],
            per_device_train_batch_size=1,
            gradient_accumulation_steps=config["gradient_accumulation_steps"],
            num_train_epochs=config["num_train_epochs"],
            learning_rate=config["learning_rate"],
            activation_checkpointing=True,
            activation_checkpointing_kwargs={"use_reentrant": False},
            bf16=torch.cuda.is_available(),
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            seed=config["dropout_seed"],
        ),
    )
    started = time.perf_counter()
    trainer.train()
    return trainer, time.perf_counter() - started


def _trained(config: dict[str, Any], steps: int) -> list[int]:
    """The samples that so many steps have trained on; an epoch's last step may be smaller."""
    size = config["gradient_accumulation_steps"]
    parts = [
        epoch[at : at + size] for epoch in config["order"] for at in range(0, len(epoch), size)
    ]
    return [place for part in parts[:steps] for place in part]


def main(path: str) -> None:
    """Load, train, save; say what it took."""
    imported = time.perf_counter()
    config = json.loads(Path(path).read_text("utf-8"))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config["base"])
    model = transformers.AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    loaded = time.perf_counter()
    samples = [chats.encode(chat, tokenizer) for chat in chats.read(config["train"])]
    trainer, fit_seconds = fit(add_adapter(model, config), samples, config)
    trained = time.perf_counter()
    trainer.save_model(config["output"])
    tokenizer.save_pretrained(config["output"])
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    order = _trained(config, len(losses))
    result = {
        "seconds": {
            "imports": imported - STARTED,
            "load": loaded - imported,
            "train": trained - loaded,
            "save": time.perf_counter() - trained,
        },
        "fit_seconds": fit_seconds,
        "losses": losses,
        "tokens": sum(len(samples[place]["input_ids"]) for place in order),
        "trained_tokens": sum(
            label != -100 for place in order for label in samples[place]["labels"][1:]
        ),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
