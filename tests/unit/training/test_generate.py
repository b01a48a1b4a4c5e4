"""Answers in batches are those of one prompt at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.fit import load
from training.generate import generate
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
