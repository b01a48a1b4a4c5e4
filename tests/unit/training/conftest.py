"""A tiny random model that everything here trains, and a project for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import demo_base

SYSTEM = "你是助教。请按以下标题作答：\n### 结论\n### 推导"


def chat(number: int, answer: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chat of three messages."""
    text = (
        answer
        if answer is not None
        else f"### 结论\n答案是 {number}。\n### 推导\n由定义得 {number}。"
    )
    return {
        "id": f"c{number}",
        "mode": "style",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"第 {number} 题怎么做？"},
            {"role": "assistant", "content": text},
        ],
        "refusal_type": None,
        "meta": {},
        **fields,
    }


def write_chats(path: Path, chats: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(c, ensure_ascii=False) + "\n" for c in chats]
    path.write_text("".join(lines), encoding="utf-8")


def make_base(folder: Path) -> None:
    """A Qwen3 of two layers with random weights, and the demo's tokenizer and chat template."""
    chats = [chat(n)["messages"] for n in range(20)]
    tokenizer = demo_base._tokenizer(chats)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=True,
        initializer_range=0.2,  # large enough that what it attends to shows in what it writes
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_base(folder)
    return folder


@pytest.fixture
def tokenizer(base_folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A training project with ten chats and a benchmark of four samples."""
    root = tmp_path / "project"
    write_chats(root / "data/train.jsonl", [chat(n) for n in range(10)])
    samples = [
        chat(11, expected={"key_points": [{"id": "k1", "text": "答案是11", "aliases": ["11"]}]}),
        chat(12, expected={"should_refuse": False}),
        chat(13, "信息不足，无法回答。", refusal_type="missing_information"),
        chat(14),
    ]
    write_chats(root / "data/bench.jsonl", samples)
    return root


@pytest.fixture
def make_job(project: Path, base_folder: Path, tmp_path: Path) -> Any:
    """Builds a job for the project; its settings may be changed by name."""

    def build(stage: str = "style", mode: str = "train", **settings: Any) -> dict[str, Any]:
        return {
            "schema": 1,
            "stage": stage,
            "run": "run_20260209T093000Z",
            "project_root": str(project),
            "mode": mode,
            "train": ["data/train.jsonl"],
            "evaluate": ["data/bench.jsonl"],
            "adapter_dir": f"outputs/adapter/adapter_{stage}",
            "result": str(tmp_path / "result.json"),
            "settings": {
                "model_name_or_path": str(base_folder),
                "learning_rate": 1e-2,
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_length": 128,
                **settings,
            },
            "evaluation": {"max_new_tokens": 6, "eval_batch_size": 3},
            "provenance": {"fingerprint": "sha256:0"},
        }

    return build
