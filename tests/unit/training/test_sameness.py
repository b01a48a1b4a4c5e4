"""However it is computed, the same is learned; and packed samples never see each other."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.unit.training.conftest import chat, write_chats
from training import batching as batching_module
from training import device as device_module
from training import fit as fit_module
from training import packing
from training.clock import Clock
from training.device import set_up
from training.fit import Fitted, fit, load, read_training
from training.loop import Loop
from training.masking import Masker, Row
from training.micro_batch import MicroBatch, packed, padded
from training.output_layer import Loss
from training.seeds import derived_seeds
from training.settings import read_settings
from training.template import ChatTemplate

LENGTHS = (1, 9, 2, 14, 5, 1, 20, 3, 7, 11)


@pytest.fixture
def project(project: Path) -> Path:
    """With chats whose lengths differ."""
    chats = [chat(n, "### 结论\n" + "答案由定义得出。" * n) for n in LENGTHS]
    write_chats(project / "data/train.jsonl", chats)
    return project


def train(project: Path, base: Path, **changes: Any) -> tuple[list[dict[str, Any]], Fitted]:
    asked = {
        "model_name_or_path": str(base),
        "learning_rate": 1e-2,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "lora_dropout": 0.0,
        "max_length": 128,
    }
    settings = read_settings({**asked, **changes})
    records: list[dict[str, Any]] = []
    files = read_training(project, ["data/train.jsonl"])
    fitted = fit(load(settings, project), settings, files, lambda r, _: records.append(r))
    return records, fitted


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same_weights(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    assert some.keys() == others.keys()
    for name, weight in some.items():
        assert (weight - others[name]).norm() <= 1e-4 * others[name].norm(), name


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in records]


@pytest.mark.parametrize("way", ["packed", "padded"])
def test_together_as_one_by_one(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setitem(batching_module.RULE, "cpu", way)
    sizes: list[int] = []
    real = Loop._backward

    def backward(loop: Loop, part: list[Row], *arguments: Any) -> torch.Tensor:
        sizes.append(len(part))
        return real(loop, part, *arguments)

    monkeypatch.setattr(Loop, "_backward", backward)
    together, fitted = train(project, base_folder, num_train_epochs=1)
    assert fitted.effective["batching"] == way
    assert max(sizes) > 3
    sizes.clear()
    monkeypatch.setattr(fit_module, "micro_batch_tokens", lambda _: 1)
    single, other = train(project, base_folder, num_train_epochs=1)
    assert set(sizes) == {1}
    assert losses(together) == pytest.approx(losses(single), abs=1e-5)
    same_weights(weights(fitted.model), weights(other.model))


def test_the_way_changes_no_step_and_no_learning_rate(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("step", "epoch", "samples", "tokens", "trained_tokens", "learning_rate")
    seen = []
    for way in ("packed", "padded"):
        monkeypatch.setitem(batching_module.RULE, "cpu", way)
        records, _ = train(project, base_folder, num_train_epochs=3)
        seen.append([[record[name] for name in names] for record in records])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 6


def test_accumulation_is_no_other_training(project: Path, base_folder: Path) -> None:
    ways = [
        train(
            project,
            base_folder,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        for size in (1, 8)
    ]
    (eight, one), (once, other) = ways
    assert one.effective["micro_batch_tokens"] < other.effective["micro_batch_tokens"]
    assert losses(eight) == pytest.approx(losses(once), abs=1e-5)
    same_weights(weights(one.model), weights(other.model))


class InOrder(transformers.Trainer):
    """transformers' Trainer, which takes the samples as they come and ends at no odd batch."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def test_as_a_plain_trainer(project: Path, base_folder: Path, tmp_path: Path) -> None:
    """The same samples, in our order, one at a time, with its own loss, optimizer and schedule.

    Its loss of a step is the sum over all trained tokens of the step's batches, divided by their
    number (``num_items_in_batch``): that is what ours is.
    """
    epochs, per_step, rate = 3, 5, 5e-3
    ours, fitted = train(
        project,
        base_folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=per_step,
        learning_rate=rate,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
    )
    trained = weights(fitted.model)

    seeds = derived_seeds(42)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_folder)
    masker = Masker(ChatTemplate(tokenizer), 128)
    (file,) = read_training(project, ["data/train.jsonl"])
    rows = [row for one in file.chats for row in masker.encode(one).rows]
    order = []
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seeds["data_order"] + epoch)
        order += torch.randperm(len(rows), generator=generator).tolist()
    samples = [
        {
            "input_ids": rows[i].tokens,
            "attention_mask": [1] * len(rows[i].tokens),
            "labels": [
                token if learned else -100
                for token, learned in zip(rows[i].tokens, rows[i].learned, strict=True)
            ],
        }
        for i in order
    ]
    base = transformers.AutoModelForCausalLM.from_pretrained(base_folder)
    torch.manual_seed(seeds["lora_init"])
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
    )
    trainer = InOrder(
        model=get_peft_model(base, adapter),
        args=transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=1,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=per_step,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=samples,  # type: ignore[arg-type]
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
    )
    trainer.train()
    theirs = [line for line in trainer.state.log_history if "loss" in line]
    assert len(theirs) == len(ours) == 6
    assert losses(ours) == pytest.approx([line["loss"] for line in theirs], abs=1e-4)
    assert [r["grad_norm"] for r in ours] == pytest.approx(
        [line["grad_norm"] for line in theirs], rel=1e-3
    )
    same_weights(trained, weights(trainer.model))
    assert losses(ours)[-1] < losses(ours)[0] - 0.1


# The canary.


@contextlib.contextmanager
def as_it_is(model: Any) -> Iterator[dict[str, Any]]:
    with packing.packing(model.get_base_model()):
        yield {}


@contextlib.contextmanager
def with_transformers_mask(_: Any) -> Iterator[dict[str, Any]]:
    """transformers' own way, which is right too: no mask and no cache."""
    yield {}


@contextlib.contextmanager
def with_a_cache(_: Any) -> Iterator[dict[str, Any]]:
    yield {"use_cache": True}


@contextlib.contextmanager
def with_a_mask_of_ones(_: Any) -> Iterator[dict[str, Any]]:
    yield {"attention_mask": True}


@contextlib.contextmanager
def as_one_row(model: Any) -> Iterator[dict[str, Any]]:
    with packing.packing(model.get_base_model()):
        yield {"one_row": True}


@pytest.mark.parametrize(
    ("way", "apart"),
    [
        (as_it_is, True),
        (with_transformers_mask, True),
        (with_a_cache, False),
        (with_a_mask_of_ones, False),
        (as_one_row, False),
    ],
)
def test_packed_samples_never_see_each_other(
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Any], contextlib.AbstractContextManager[dict[str, Any]]],
    apart: bool,
) -> None:
    """The first sample is changed: not a bit may change in the losses and gradients of the others.

    The last three ways let them see each other, and are found out.
    """
    device = set_up("float32")
    base = transformers.AutoModelForCausalLM.from_pretrained(base_folder).requires_grad_(False)
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # else the adapter has no gradient but there
            torch.nn.init.normal_(weight, std=0.1)
    draw = torch.Generator().manual_seed(1)
    size = base.config.vocab_size

    def row(length: int, learned: bool) -> Row:
        tokens = torch.randint(size, (length,), generator=draw).tolist()
        return Row(tokens, [learned] * length)

    # The changed one isn't learned, so that all losses and gradients are the others'.
    first, changed, *others = row(30, False), row(30, False), row(40, True), row(25, True)

    def step(rows: list[Row]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        with way(model) as options:
            batch = packed(rows)
            if options.pop("one_row", None):
                batch = dataclasses.replace(batch, lengths=[sum(batch.lengths)])
            if "attention_mask" in options:
                options["attention_mask"] = torch.ones_like(batch.tokens)
            inputs = {**batch.inputs, **options}
            with monkeypatch.context() as patch, packing.rows_of(batch):
                patch.setattr(MicroBatch, "inputs", inputs)
                learned = len(batch.goals)
                loss = Loss(model, True, contextlib.nullcontext).backward(
                    batch, learned, Clock(device)
                )
        return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    loss, gradients = step([first, *others])
    again, same = step([first, *others])
    assert torch.equal(loss, again)
    assert all(torch.equal(g, same[n]) for n, g in gradients.items())
    other, moved = step([changed, *others])
    assert torch.equal(loss, other) == apart
    assert all(torch.equal(g, moved[n]) for n, g in gradients.items()) == apart
    if apart:
        alone = [step([one]) for one in others]
        counts = [len(one.tokens) - 1 for one in others]
        mean = sum(value * n for (value, _), n in zip(alone, counts, strict=True)) / sum(counts)
        assert loss.item() == pytest.approx(float(mean), abs=1e-5)
    else:
        assert abs(loss - other) > 1e-4  # by far more than rounding


def test_padded_and_packed_batches_hold_the_same() -> None:
    rows = [
        Row([5, 6, 7, 8], [True, False, True, True]),
        Row([9, 4], [False, True]),
        Row([3, 3, 3], [False, False, True]),
    ]
    apart, together = padded(rows, 0), packed(rows)
    assert apart.tokens.tolist() == [[5, 6, 7, 8], [9, 4, 0, 0], [3, 3, 3, 0]]
    assert together.tokens.tolist() == [[5, 6, 7, 8, 9, 4, 3, 3, 3]]
    assert together.position_ids is not None
    assert together.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert together.lengths == [4, 2, 3]
    for batch in (apart, together):
        assert batch.goals.tolist() == [7, 8, 4, 3]
        flat = batch.tokens.flatten()
        assert flat[batch.before].tolist() == [6, 7, 9, 3]
        kept = batch.tokens[:, batch.columns].flatten()
        assert kept[batch.among_columns].tolist() == [6, 7, 9, 3]


MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "Qwen3": ({"head_dim": 16}, True),
    "Llama": ({}, True),
    "GPTNeoX": ({}, True),
    "Mistral": ({"sliding_window": 20}, False),
    "Mistral wide": ({"sliding_window": 40}, True),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, False),  # a convolution over all
    "Gemma2": ({"head_dim": 16, "attn_implementation": "eager"}, False),
}


def model_of(name: str, **options: Any) -> Any:
    kind, implementation = name.partition(" ")[0], options.pop("attn_implementation", "sdpa")
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=implementation,
        **{"initializer_range": 0.2, **options},
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", MODELS)
def test_which_models_are_packed(name: str) -> None:
    options, expected = MODELS[name]
    base = model_of(name, **options)
    before = base.config._attn_implementation
    rows = [Row(list(range(3, 3 + n)), [True] * n) for n in (9, 30, 12)]
    assert packing.keeps_apart(base, rows, torch.device("cpu")) == expected
    assert base.config._attn_implementation == before


def test_a_row_beyond_the_window_is_refused() -> None:
    batch = packed([Row(list(range(n)), [True] * n) for n in (9, 12)])
    with packing.rows_of(batch):
        packing._attention.no_mask(local_size=12)
        with pytest.raises(ValueError, match="longer than the window"):
            packing._attention.no_mask(local_size=11)


def test_a_model_that_mixes_packed_rows_is_padded(
    project: Path,
    base_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(packing, "INSTEAD_OF", "eager")
    _, fitted = train(project, base_folder, num_train_epochs=0.5)
    assert fitted.effective["batching"] == "padded"
    assert "does not keep packed chats apart" in capsys.readouterr().out


def test_the_attention_is_the_models_own_again(project: Path, base_folder: Path) -> None:
    _, fitted = train(project, base_folder, num_train_epochs=0.5)
    assert fitted.effective["batching"] == "packed"
    assert fitted.model.get_base_model().config._attn_implementation == "sdpa"


def test_what_can_not_be_repeated_exactly_is_said(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that torch refuses in strict mode: the step is done again without it."""
    records, fitted = train(project, base_folder, lora_dropout=0.3)
    assert fitted.effective["deterministic"] is True
    real = Loss.backward

    def backward(loss: Loss, *arguments: Any) -> torch.Tensor:
        value = real(loss, *arguments)
        if torch.is_deterministic_algorithms_warn_only_enabled():
            return value
        raise RuntimeError("histc_cuda does not have a deterministic implementation, but you set")

    monkeypatch.setattr(Loss, "backward", backward)
    strict = torch.use_deterministic_algorithms
    monkeypatch.setattr(
        device_module.Exact, "__init__", _strictly(device_module.Exact.__init__, strict)
    )
    again, other = train(project, base_folder, lora_dropout=0.3)
    assert losses(again) == losses(records)
    assert other.effective["deterministic"] is False
    (note,) = other.notes
    assert "may give other bytes" in note["symptom"]
    assert "histc_cuda" in note["cause"]
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def _strictly(real: Any, strict: Any) -> Any:
    def init(exact: Any) -> None:
        real(exact)
        strict(True, warn_only=False)  # as on a GPU

    return init
