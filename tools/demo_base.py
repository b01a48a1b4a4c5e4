#!/usr/bin/env python3
"""Make the demo's base model: small, from scratch, the same every time.

``demo_base.py [OUT_DIR] --project examples/tutor`` writes a Qwen3 of some 4 million parameters
that has read the project's training chats, without their ``###`` headings, and nothing else: no
benchmark reaches it. It answers in the tone of the chats and without the headings; those are what
an adapter has to teach it, in minutes on two processor cores.

The model is kept in a cache and made anew only if this script, the chats, or the packages differ.
The last line of standard output is its folder.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SEED = 20240229
THREADS = 2
STEPS = 760
ROWS = 1
WIDTH = 512
PEAK = 2e-3
VOCABULARY = 3072
LAYERS = 4
HIDDEN = 256

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CALL = ("<tool_call>", "</tool_call>")

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n可用的工具：' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}
            {{- message.content or '' }}
            {%- for call in message.tool_calls or [] %}
                {%- set function = call.function or call %}
                {{- '<tool_call>\\n' }}
                {{- {'name': function.name, 'arguments': function.arguments} | tojson }}
                {{- '\\n</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>' }}
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- (message.content or '') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_HEADING = re.compile(r"^ {0,3}#{3}[ \t].*(?:\n|\Z)", re.MULTILINE)


def corpus(project: Path) -> list[list[dict[str, Any]]]:
    """The messages of all training chats of a project, each chat once, without ``###`` headings.

    Read are the files in ``data/training/processed`` alone.

    :raises FileNotFoundError: if there is none.
    """
    files = sorted((project / "data/training/processed").glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{project} has no data/training/processed/*.jsonl")
    seen: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip():
                messages = [_without_headings(m) for m in json.loads(line)["messages"]]
                key = json.dumps(messages, ensure_ascii=False, sort_keys=True)
                seen.setdefault(key, messages)
    # By their text: that a chat stands in two files, or where, makes no difference.
    return [seen[key] for key in sorted(seen)]


def _without_headings(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": _HEADING.sub("", message.get("content") or "").rstrip("\n")}


def inputs_digest(chats: list[list[dict[str, Any]]]) -> str:
    """The digest of all that the model is made of: this script, the chats, the packages."""
    packages = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")
    }
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(json.dumps([chats, packages], ensure_ascii=False, sort_keys=True).encode())
    return digest.hexdigest()


def is_current(folder: Path, digest: str) -> bool:
    """Whether the folder holds the model that ``digest`` asks for."""
    try:
        return bool(json.loads((folder / "demo_base.json").read_bytes())["inputs"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(folder: Path, chats: list[list[dict[str, Any]]], digest: str) -> None:
    """Train the model and write its folder, whole or not at all."""
    import torch  # noqa: PLC0415 # not needed where the cache has the model

    started = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = _tokenizer(chats)
    model = _model(tokenizer)
    loss = _train(model, _packed(tokenizer, chats))
    seconds = time.perf_counter() - started
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        written = Path(temporary) / "model"
        model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        record = {
            "inputs": digest,
            "model": hashlib.sha256((written / "model.safetensors").read_bytes()).hexdigest(),
            "parameters": model.num_parameters(),
            "steps": STEPS,
            "loss": round(loss, 4),
            "seconds": round(seconds, 1),
            "threads": THREADS,
        }
        text = json.dumps(record, indent=2)
        (written / "demo_base.json").write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        written.rename(folder)
    print(text)


def _tokenizer(chats: list[list[dict[str, Any]]]) -> Any:
    import tokenizers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    transformers.utils.logging.disable_progress_bar()

    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    # Digits one by one: numbers are read off, not learned by heart.
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((m["content"] for chat in chats for m in chat), trainer)
    raw.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in CALL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def _model(tokenizer: Any) -> Any:
    import transformers  # noqa: PLC0415

    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=HIDDEN // 4,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return transformers.Qwen3ForCausalLM(config)


def _packed(tokenizer: Any, chats: list[list[dict[str, Any]]]) -> Any:
    """Rows of ``WIDTH`` tokens for all steps: the chats, end to end, in a new order each time."""
    import torch  # noqa: PLC0415

    encoded = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]
    wanted = STEPS * ROWS * WIDTH
    stream: list[int] = []
    while len(stream) < wanted:
        for i in torch.randperm(len(encoded)).tolist():
            stream += encoded[i]
    return torch.tensor(stream[:wanted]).view(STEPS, ROWS, WIDTH)


def _train(model: Any, rows: Any) -> float:
    """Next-token training over all steps; returns the last loss."""
    import torch  # noqa: PLC0415

    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.01)
    warmup = 10
    model.train()
    value = 0.0
    for step in range(STEPS):
        rate = min((step + 1) / warmup, (STEPS - step) / (STEPS - warmup))
        optimizer.param_groups[0]["lr"] = PEAK * rate
        loss = model(input_ids=rows[step], labels=rows[step], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}/{STEPS}  loss {value:.3f}", flush=True)
    model.eval()
    return value


def default_folder(digest: str) -> Path:
    """Where the model is kept if no folder is named."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "remote-train" / f"demo-base-{digest[:12]}"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 if the project has no training chats."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out_dir", nargs="?", type=Path, help="default: in the user's cache")
    parser.add_argument("--project", type=Path, default=Path("examples/tutor"))
    options = parser.parse_args(arguments)
    try:
        chats = corpus(options.project)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    digest = inputs_digest(chats)
    folder = options.out_dir or default_folder(digest)
    if not is_current(folder, digest):
        make(folder, chats, digest)
    print(folder.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
