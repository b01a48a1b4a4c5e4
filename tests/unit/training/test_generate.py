"""Answers in batches are those of one prompt at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training import generate as generate_module
from training.fit import load
from training.generate import generate
from training.model import add_adapter
from training.settings import read_settings


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_equal_single_answers(base_folder: Path, batch_size: int) -> None:
    loaded = load(read_settings({"model_name_or_path": str(base_folder)}), base_folder)
    texts = ["问", "第 3 题怎么做？", "答案是 17。由定义得 17。", "x" * 40, "由定义得"]
    prompts = [loaded.tokenizer(text)["input_ids"] for text in texts]
    single = generate(loaded.model, loaded.tokenizer, prompts, 12, 1)
    seen: list[int] = []
    together = generate(loaded.model, loaded.tokenizer, prompts, 12, batch_size, seen.append)
    assert together == single
    assert seen[-1] == len(prompts)
    assert len({answer.text for answer in single}) > 1
    assert all(answer.tokens == 12 or answer.ended for answer in single)


def test_what_follows_the_end_is_cut(base_folder: Path) -> None:
    loaded = load(read_settings({"model_name_or_path": str(base_folder)}), base_folder)
    prompt = loaded.tokenizer("问")["input_ids"]
    (free,) = generate(loaded.model, loaded.tokenizer, [prompt], 5, 1)
    first = loaded.model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=1, do_sample=False
    )[0, -1].item()
    loaded.model.generation_config.eos_token_id = [first]
    (ended,) = generate(loaded.model, loaded.tokenizer, [prompt], 5, 1)
    assert (free.ended, ended.ended, ended.tokens) == (False, True, 1)


@pytest.fixture(scope="module")
def models(base_folder: Path) -> dict[str, Any]:
    """The base model, and one with an adapter whose matrices are both far from zero."""
    wanted = read_settings({"model_name_or_path": str(base_folder), "lora_r": 4})
    made = {"base": load(wanted, base_folder), "adapter": load(wanted, base_folder)}
    adapted = add_adapter(made["adapter"].model, wanted, 1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    made["adapter"] = dataclasses.replace(made["adapter"], model=adapted)
    for loaded in made.values():
        # Of a random model no answer ends by itself: a twelfth of its words are ends here.
        ends = list(range(0, len(loaded.tokenizer), 12))
        loaded.model.generation_config.eos_token_id = ends
    return made


@pytest.mark.parametrize("which", ["base", "adapter"])
@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(
        st.lists(st.integers(3, 330), min_size=1, max_size=40), min_size=1, max_size=9
    ),
    batch_size=st.integers(0, 9),
    limit=st.integers(1, 20),
)
def test_any_batch_equals_transformers_one_at_a_time(
    models: dict[str, Any], which: str, prompts: list[list[int]], batch_size: int, limit: int
) -> None:
    """Token for token, of which the text says as much: answers that end early included."""
    loaded = models[which]
    answers = generate(loaded.model, loaded.tokenizer, prompts, limit, batch_size)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = loaded.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=limit,
        )[0, len(prompt) :].tolist()
        ends = {*loaded.model.generation_config.eos_token_id, loaded.tokenizer.eos_token_id}
        stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
        assert answer.tokens == stop
        assert answer.ended == (ids[stop - 1] in ends)
        assert answer.text == loaded.tokenizer.decode(ids[:stop], skip_special_tokens=True)


def test_answers_that_have_ended_are_taken_out(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No forward pass computes four times as many rows as are still written."""
    loaded = models["base"]
    prompts = [[n, n + 1, n + 2] for n in range(3, 303, 5)]
    widths: list[int] = []
    forward = type(loaded.model).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        widths.append(len(kwargs["input_ids"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(loaded.model), "forward", counted)
    answers = generate(loaded.model, loaded.tokenizer, prompts, 40, 0)
    lengths = [answer.tokens for answer in answers]
    assert len(widths) == max(lengths)
    for number, width in enumerate(widths):
        going = sum(length > number for length in lengths)
        assert going <= width <= max(going / 0.75, going + 1), (number, going, width)
    assert widths[-1] < widths[0] == len(prompts)


def test_without_a_number_the_budget_of_tokens_says_how_many(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate_module, "BATCH_TOKENS", 60)
    loaded = models["base"]
    seen: list[int] = []
    prompts = [[5] * 10] * 3 + [[6] * 100] + [[7] * 25] * 2
    generate(loaded.model, loaded.tokenizer, prompts, 5, 0, seen.append)
    # One of 105 tokens, which is over it; two of 30; then four of 15, of which three are there.
    assert seen == [1, 3, 6]
