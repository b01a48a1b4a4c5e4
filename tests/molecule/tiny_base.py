"""Make a base model for the scenario in seconds: random weights, the same every time.

    python tests/molecule/tiny_base.py FOLDER PROJECT

A Qwen3 of two layers with the tokenizer and the chat template of the demo's base model, which
is made of PROJECT's training chats. It has learned nothing; an adapter can be trained on it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import demo_base

SEED = 20240229
HIDDEN = 32


def make(folder: Path, project: Path) -> None:
    """Write the model and its tokenizer into ``folder``."""
    tokenizer = demo_base._tokenizer(demo_base.corpus(project))
    torch.manual_seed(SEED)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HIDDEN // 2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
