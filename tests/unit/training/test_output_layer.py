"""The loss in chunks of tokens: the same loss and gradients, and never all logits at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.training.test_sameness import losses, model_of, train
from training import fit as fit_module
from training import output_layer
from training.clock import Clock
from training.device import set_up
from training.masking import Row
from training.micro_batch import MicroBatch, packed, padded
from training.output_layer import Loss, can_be_chunked

ROWS = [Row(list(range(3, 3 + n)), [i % 3 > 0 for i in range(n)]) for n in (9, 30, 14)]
TARGETS: list[Any] = ["all-linear", ["q_proj", "lm_head"], ["lm_head"]]


def gradients(
    model: Any, chunked: bool, batch: MicroBatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(7)
    clock = Clock(set_up("float32"))
    loss = Loss(model, chunked, contextlib.nullcontext).backward(batch, 11, clock)
    seconds, _ = clock.seconds()
    assert seconds["forward"] > 0
    assert seconds["backward"] > 0
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def with_adapter(base: Any, targets: Any, dropout: float = 0.0) -> Any:
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, lora_dropout=dropout)
    model = get_peft_model(base.requires_grad_(False), config).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


@pytest.mark.parametrize("targets", TARGETS, ids=str)
@pytest.mark.parametrize("logits", [1, 64 * 5, 64 * 10_000])
def test_in_chunks_as_in_one(monkeypatch: pytest.MonkeyPatch, targets: Any, logits: int) -> None:
    """Against the model's own logits, one after the other, five at a time, all at once."""
    monkeypatch.setattr(output_layer, "CHUNK", logits)
    model = with_adapter(model_of("Qwen3", head_dim=16), targets)
    batch = padded(ROWS, 0)
    loss, plain = gradients(model, False, batch)
    again, chunked = gradients(model, True, batch)
    assert again.item() == pytest.approx(loss.item(), rel=1e-6)
    assert plain.keys() == chunked.keys()
    assert plain
    for name, gradient in plain.items():
        assert torch.allclose(chunked[name], gradient, rtol=1e-4, atol=1e-6), name
    # Against the definition: every learned token's own loss.
    logits_of_all = model(input_ids=batch.tokens).logits.log_softmax(-1)
    own = 0.0
    for i, row in enumerate(ROWS):
        for place in range(1, len(row.tokens)):
            if row.learned[place]:
                own -= logits_of_all[i, place - 1, row.tokens[place]].item()
    assert loss.item() == pytest.approx(own / 11, rel=1e-5)


def test_in_chunks_the_dropout_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped out of the output layer's input is the same forward and backward."""
    monkeypatch.setattr(output_layer, "CHUNK", 64 * 5)
    model = with_adapter(model_of("Qwen3", head_dim=16), ["lm_head"], dropout=0.5)
    batch = packed(ROWS[:1])
    name = next(n for n, p in model.named_parameters() if "lora_B" in n)
    weight = model.get_parameter(name)
    _, found = gradients(model, True, batch)
    direction = torch.randn_like(weight)
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-2 * direction
        ends.append(gradients(model, True, batch)[0].item())
        with torch.no_grad():
            weight -= sign * 1e-2 * direction
    slope = (ends[0] - ends[1]) / 2e-2
    assert (found[name] * direction).sum().item() == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_a_training_in_chunks(
    project: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, targets: Any
) -> None:
    monkeypatch.setattr(output_layer, "CHUNK", 1000)
    # Adam's first steps are as long for a gradient of rounding errors as for any other.
    changes = {"target_modules": targets, "learning_rate": 1e-3}
    chunked, fitted = train(project, base_folder, **changes)
    assert fitted.effective["cross_entropy"] == "chunked"
    monkeypatch.setattr(fit_module, "can_be_chunked", lambda *_: False)
    plain, other = train(project, base_folder, **changes)
    assert other.effective["cross_entropy"] == "plain"
    assert losses(chunked) == pytest.approx(losses(plain), abs=1e-5)


EAGER = {"head_dim": 16, "attn_implementation": "eager"}
MODELS: dict[str, tuple[dict[str, Any], bool]] = {
    "Qwen3": ({"head_dim": 16}, True),
    "Llama": ({}, True),
    "Gemma2": ({**EAGER, "final_logit_softcapping": 30.0}, False),
    # Small logits, which a cap that is a power of two leaves as they are to the last bit.
    "Gemma2 faint": ({**EAGER, "final_logit_softcapping": 32.0, "initializer_range": 1e-5}, False),
    "Gemma2 without": ({**EAGER, "final_logit_softcapping": None}, True),
    "Granite": ({"logits_scaling": 2.0}, False),
    "Cohere": ({"logit_scale": 0.5}, False),
    "Cohere without": ({"logit_scale": 1.0}, True),
    "Lfm2": ({"layer_types": ["conv", "full_attention"]}, True),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_that_do_more_with_their_logits(name: str, dtype: torch.dtype) -> None:
    options, expected = MODELS[name]
    base = model_of(name, **options).to(dtype)
    hooks = len(base.get_output_embeddings()._forward_hooks)
    assert can_be_chunked(base, list(range(3, 20)), torch.device("cpu")) == expected
    assert len(base.get_output_embeddings()._forward_hooks) == hooks


class Largest(TorchDispatchMode):
    """The most elements of a tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


@pytest.mark.parametrize("chunked", [True, False])
def test_the_logits_of_a_large_vocabulary_are_never_there_at_once(
    monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    vocabulary, learned = 150_000, 100
    monkeypatch.setattr(output_layer, "CHUNK", 10 * vocabulary)
    config = transformers.Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    model = with_adapter(transformers.Qwen3ForCausalLM(config), "all-linear")
    tokens = list(range(learned + 1))
    with Largest() as largest:
        gradients(model, chunked, packed([Row(tokens, [True] * len(tokens))]))
    assert largest.elements == (10 if chunked else learned) * vocabulary


def test_the_usual_chunk_is_a_quarter_of_a_gibibyte() -> None:
    assert output_layer.CHUNK * 4 == 2**28
    assert output_layer.CHUNK // 152_000 > 400  # enough rows for a matrix product at full rate
