"""Writes answers: greedy, in batches, each the same as if it were generated alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model wrote for one prompt."""

    text: str
    """Without special tokens."""
    tokens: int
    """Tokens that were generated, the end-of-turn token included."""
    ended: bool
    """Whether the model ended it; False if it ran into the limit."""


def generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers to the prompts, in their order.

    Prompts of like length share a batch and are padded on the left. In float32 the answers are
    those of one prompt at a time; in bfloat16 a near tie may fall otherwise.

    :param on_batch: called after each batch with the number of answers that are there.
    """
    ends = _end_tokens(model, tokenizer)
    config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
    )
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[i]) for i in batch)
        tokens = torch.full((len(batch), width), tokenizer.pad_token_id)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            tokens[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        with torch.inference_mode():
            written = model.generate(
                input_ids=tokens.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
            )[:, width:].tolist()
        for i, ids in zip(batch, written, strict=True):
            answers[i] = _answer(tokenizer, ids, ends)
        if on_batch:
            on_batch(len(answers))
    return [answers[i] for i in range(len(prompts))]


def _answer(tokenizer: Any, ids: list[int], ends: set[int]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if end is None else ids[: end + 1]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(text, len(kept), end is not None)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those that the base model ships."""
    ends = {tokenizer.eos_token_id}
    shipped = getattr(model.generation_config, "eos_token_id", None)
    ends.update(shipped if isinstance(shipped, list) else [shipped])
    return {end for end in ends if end is not None}
