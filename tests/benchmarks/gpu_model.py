"""What `make bench-gpu` measures on: a random model, a tokenizer, chats of random words."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from training.device import Device

TUTOR = Path(__file__).resolve().parents[2] / "examples" / "tutor" / "data" / "training"
TOKENS_PER_CHARACTER = 0.7
"""What tokenizers of models of this kind make of Chinese text, roughly."""

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|> {% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }} <|im_end|>{% endgeneration %}"
    "{% else %}{{ message.content }} <|im_end|> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> {% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, and how much is done with it."""

    name: str
    needs_cuda: bool
    config: dict[str, Any]
    matrix: int
    """Rows of the square matrices by which the chip's rate is measured."""
    chats: int
    per_step: int
    """Chats in an optimizer step."""
    batch: int
    """``per_device_train_batch_size``."""
    max_length: int
    plain_steps: int
    """Steps of the plain reference."""
    prompts: int
    alone: int
    """Prompts that are asked one at a time."""
    eval_batch: int
    max_new_tokens: int


SHAPES = {
    "8b": Shape(
        name="8b",
        needs_cuda=True,
        config={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": False,
            "rope_theta": 1000000.0,
        },
        matrix=8192,
        chats=480,
        per_step=16,
        batch=2,
        max_length=2048,
        plain_steps=4,
        prompts=256,
        alone=3,
        eval_batch=128,
        max_new_tokens=128,
    ),
    "tiny": Shape(
        name="tiny",
        needs_cuda=False,
        config={
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "tie_word_embeddings": False,
        },
        matrix=128,
        chats=12,
        per_step=4,
        batch=2,
        max_length=2048,
        plain_steps=2,
        prompts=6,
        alone=2,
        eval_batch=4,
        max_new_tokens=4,
    ),
}


def tokenizer(shape: Shape) -> Any:
    """One whose tokens are words, ``t3`` to the last of the vocabulary."""
    words = [PAD, START, END, *(f"t{i}" for i in range(3, shape.config["vocab_size"]))]
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=PAD)
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )


def model(shape: Shape, device: Device) -> Any:
    """The model, made where it is used, frozen."""
    config = transformers.Qwen3Config(
        **shape.config, eos_token_id=2, pad_token_id=0, bos_token_id=None
    )
    torch.manual_seed(0)
    with device.where:
        made = transformers.AutoModelForCausalLM.from_config(config, dtype=device.dtype)
    return made.requires_grad_(False)


def weights(adapted: Any) -> tuple[int, int, int]:
    """Weights of the linear layers inside, of the output layer, and of the adapter."""
    last = adapted.get_output_embeddings()
    adapters = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    linear = sum(
        module.weight.numel()
        for module in adapted.modules()
        if isinstance(module, torch.nn.Linear) and module is not last
    )
    return linear - adapters, last.weight.numel(), adapters


def _drawn(name: str) -> list[tuple[int, int]]:
    """Tokens before the last answer, and in it, of each chat of the example's files."""
    pairs = []
    for path in sorted(TUTOR.glob(name)):
        for line in path.read_text(encoding="utf-8").splitlines():
            turns = [message.get("content") or "" for message in json.loads(line)["messages"]]
            sizes = [round(TOKENS_PER_CHARACTER * len(text)) for text in turns]
            pairs.append((max(1, sum(sizes[:-1])), max(1, sizes[-1])))
    return pairs


def _words(shape: Shape, count: int, source: random.Random) -> str:
    return " ".join(f"t{source.randrange(3, shape.config['vocab_size'])}" for _ in range(count))


def write_chats(path: Path, shape: Shape, source: random.Random) -> None:
    """Chats of random words, as long as the example's are."""
    pairs = _drawn("processed/all_sft.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(shape.chats):
            before, answer = source.choice(pairs)
            messages = [
                {"role": "user", "content": _words(shape, before, source)},
                {"role": "assistant", "content": _words(shape, answer, source)},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def encoded(path: Path, words: Any) -> list[dict[str, list[int]]]:
    """The chats as the plain reference takes them."""
    samples = []
    for line in path.read_text(encoding="utf-8").splitlines():
        both = words.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True
        )
        pairs = zip(both["input_ids"], both["assistant_masks"], strict=True)
        labels = [token if learned else -100 for token, learned in pairs]
        samples.append({"input_ids": both["input_ids"], "labels": labels})
    return samples


def lengths(path: Path) -> list[int]:
    """Tokens of each chat: its words, and four marks."""
    chats = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [sum(len(m["content"].split()) + 2 for m in chat["messages"]) for chat in chats]


def prompts(shape: Shape, source: random.Random) -> list[list[int]]:
    """Prompts as long as those of the example's benchmarks."""
    sizes = [before for before, _ in _drawn("eval/*.jsonl")]
    return [
        [source.randrange(3, shape.config["vocab_size"]) for _ in range(source.choice(sizes))]
        for _ in range(shape.prompts)
    ]
