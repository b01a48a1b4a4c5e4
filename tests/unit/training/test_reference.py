"""The plain reference of `make bench` does the same work as ours: chats, masks, order, losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import demo_base
from tests.benchmarks import demo_job, plain
from tests.benchmarks.reference import chats as reference_chats
from tests.unit.training.test_fit import train
from training.chats import read_chats
from training.masking import Masker
from training.settings import Settings
from training.template import ChatTemplate

TUTOR = demo_job.TUTOR
FILES = sorted(str(path.relative_to(TUTOR)) for path in TUTOR.glob("data/training/*/*.jsonl"))


@pytest.fixture(scope="module")
def real_tokenizer() -> Any:
    """The demo's, trained on the example's own chats."""
    return demo_base._tokenizer(demo_base.corpus(TUTOR))


@pytest.mark.parametrize("file", FILES)
def test_its_tokens_labels_and_prompts_are_ours(file: str, real_tokenizer: Any) -> None:
    template = ChatTemplate(real_tokenizer)
    masker = Masker(template, 4096)
    ours = read_chats(TUTOR, file).chats
    theirs = reference_chats.read([str(TUTOR / file)])
    assert len(ours) == len(theirs) > 0
    for chat, other in zip(ours, theirs, strict=True):
        (row,) = masker.encode(chat).rows
        encoded = reference_chats.encode(other, real_tokenizer)
        assert encoded["input_ids"][: len(row.tokens)] == row.tokens
        learned = [label != -100 for label in encoded["labels"]]
        assert learned[: len(row.learned)] == row.learned
        assert not any(learned[len(row.learned) :])
        assert reference_chats.prompt(other, real_tokenizer) == template.prompt(chat)


@pytest.mark.training
@pytest.mark.parametrize("epochs", [1, 2, 0.5])
def test_its_losses_are_ours(
    project: Path, base_folder: Path, tmp_path: Path, epochs: float
) -> None:
    records, _ = train(project, base_folder, num_train_epochs=epochs)
    settings = {
        "learning_rate": 1e-2,
        "num_train_epochs": epochs,
        "lora_dropout": 0.0,
        "max_length": 128,
    }
    config = plain.training(
        str(base_folder), [project / "data/train.jsonl"], 10, settings, tmp_path / "plain"
    )
    result = plain.run("train", config, tmp_path)
    assert len(result["losses"]) == len(records) > 0
    assert result["losses"] == pytest.approx([r["loss"] for r in records], abs=1e-4)
    assert result["trained_tokens"] == sum(r["trained_tokens"] for r in records)


def test_the_order_holds_each_sample_once_an_epoch() -> None:
    settings = Settings("base", num_train_epochs=2.5, gradient_accumulation_steps=4)
    order = plain.order(10, settings, seed=7)
    assert [sorted(epoch) for epoch in order] == [list(range(10))] * 3
    assert order[0] != order[1]


def test_a_base_without_end_ends_with_its_padding(base_folder: Path, tmp_path: Path) -> None:
    folder = Path(demo_job.without_end(str(base_folder), tmp_path / "endless"))
    tokens = json.loads((folder / "tokenizer_config.json").read_bytes())
    generation = json.loads((folder / "generation_config.json").read_bytes())
    assert tokens["eos_token"] == demo_base.PAD
    assert generation["eos_token_id"] == generation["pad_token_id"] == 0
    before = json.loads((base_folder / "generation_config.json").read_bytes())
    assert before["eos_token_id"] != 0  # the original is as it was
