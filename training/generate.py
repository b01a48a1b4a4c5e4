"""Writes answers: greedy, in batches, each the same as if it were generated alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import transformers

from training.errors import JobError
from training.log import say
from training.memory import cause_of, free, is_out_of_memory

METHOD = "generate: greedy, left-padded, ended answers taken out"
"""How answers are generated, on every accelerator, for the record. Of transformers' two ways the
other, continuous batching (``generate_batch``), took 3.7 times as long on a CPU; where a GPU can be
had to measure it, the rule may become another there."""

BATCH_TOKENS = 32768
"""Tokens of a batch's prompts and longest answers, where no number of answers is asked for: 5 GB of
keys and values for an 8B model, and 50 answers of the example's."""

_COMPACT_BELOW = 3 / 4
"""The share of answers that go on at which the others are taken out. Where answers end early, this
took 1.3 times less processor time than going on with all of them (19 prompts, 4 layers)."""


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
    notes: list[dict[str, str]] | None = None,
) -> list[Answer]:
    """Answers to the prompts, in their order.

    Prompts of like length share a batch and are padded on the left. In float32 the answers are
    those of one prompt at a time; in bfloat16 a near tie may fall otherwise.

    Where memory runs out, batches are halved, down to one prompt.

    :param batch_size: answers that are generated together; 0 for as many as ``BATCH_TOKENS`` hold.
    :param on_batch: called after each batch with the number of answers that are there.
    :param notes: gets what was done about memory that ran out, as warnings.
    :raises JobError: category ``oom``, where even one prompt is too much.
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
    while len(answers) < len(prompts):
        longest = len(prompts[order[len(answers)]]) + max_new_tokens
        size = batch_size or max(1, BATCH_TOKENS // longest)
        batch = order[len(answers) : len(answers) + size]
        try:
            written = _write(model, [prompts[i] for i in batch], config)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            cause = cause_of(error)
        else:
            cause = ""
        if cause:  # only here is the error gone, and with it what its traceback held
            free()
            batch_size = _fewer(len(batch), len(prompts[batch[0]]), cause, notes)
            continue
        for i, ids in zip(batch, written, strict=True):
            answers[i] = _answer(tokenizer, ids, ends)
        if on_batch:
            on_batch(len(answers))
    return [answers[i] for i in range(len(prompts))]


def _write(model: Any, prompts: list[list[int]], config: Any) -> list[list[int]]:
    """What the model writes after each prompt, in tokens; what follows an end means nothing.

    An answer that has ended costs as much as the others until the last of its batch does. So once
    a share of them has, generation stops and goes on with the others, from where their cache is.
    """
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), width), config.pad_token_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows, cache, left = list(range(len(prompts))), None, config.max_new_tokens
    with torch.inference_mode():
        while rows:
            # What a recurrent model keeps of a prompt is nothing to take rows out of.
            ended = _Ended(config.eos_token_id, not getattr(model, "_is_stateful", False))
            written = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                past_key_values=cache,
                generation_config=config,
                max_new_tokens=left,
                return_dict_in_generate=True,
                stopping_criteria=transformers.StoppingCriteriaList([ended]),
            )
            tokens, cache, new = written.sequences, written.past_key_values, ended.steps
            left -= new
            there = ended.which.tolist()
            go_on = [at for at in range(len(rows)) if left and not there[at]]
            for at, row in enumerate(rows):
                if at not in go_on:
                    answers[row] = tokens[at, width:].tolist()
            if go_on:
                kept = torch.tensor(go_on, device=tokens.device)
                cache.batch_select_indices(kept)
                tokens = tokens[kept]
                mask = torch.cat([mask[kept], mask.new_ones((len(kept), new))], dim=1)
            rows = [rows[at] for at in go_on]
    return answers


class _Ended(transformers.StoppingCriteria):  # type: ignore[misc]  # transformers is Any here
    """Knows which answers have ended, and stops all of them when enough have."""

    def __init__(self, ends: list[int], early: bool) -> None:
        """:param early: whether some may still go on then."""
        self.which = torch.zeros(0, dtype=torch.bool)
        self.steps = 0
        self._ends, self._early = ends, early

    def __call__(self, tokens: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        self.steps += 1
        now = torch.isin(tokens[:, -1], torch.tensor(self._ends, device=tokens.device))
        self.which = now if self.steps == 1 else self.which | now
        going = int((~self.which).sum())
        if self._early and going and going <= _COMPACT_BELOW * len(now):
            return torch.ones_like(now)
        return self.which


def _fewer(size: int, tokens: int, cause: str, notes: list[dict[str, str]] | None) -> int:
    """The size of a batch after memory ran out on one of ``size`` prompts."""
    if size == 1:
        raise JobError(
            "oom",
            f"The memory did not suffice for the answer to a single prompt of {tokens} tokens.",
            "Lower max_new_tokens, set use_qlora, or end what else holds memory on the GPU.",
            cause,
        )
    note = {
        "category": "oom",
        "symptom": f"Memory ran out while evaluating: {size // 2} answers are written together"
        f" since ({size} before).",
        "cause": cause,
        "action": f"To start like this, set eval_batch_size to {size // 2}.",
    }
    say(f"warning: {note['symptom']} ({cause})")
    if notes is not None:
        notes.append(note)
    return size // 2


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
