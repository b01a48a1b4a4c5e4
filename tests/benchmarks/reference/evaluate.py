"""The plain reference's evaluation: a process of its own, one prompt at a time.

    python evaluate.py CONFIG.json

It loads the base model and the adapter, asks each sample of the benchmarks and writes the answers
to ``answers``, a line of JSON each. The last line of standard output is JSON: seconds of each
phase.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import PeftModel  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))

import chats  # noqa: E402


def answer(model: Any, prompt: list[int], max_new_tokens: int, end: int, pad: int) -> list[int]:
    """What the model writes after one prompt, greedily, its end token included."""
    tokens = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        written = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=end,
            pad_token_id=pad,
        )
    ids: list[int] = written[0, len(prompt) :].tolist()
    return ids


def main(path: str) -> None:
    """Load, ask, write."""
    imported = time.perf_counter()
    config = json.loads(Path(path).read_text("utf-8"))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config["base"])
    base = transformers.AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, config["adapter"]).eval()
    loaded = time.perf_counter()
    samples = chats.read(config["evaluate"])
    only = config.get("only")
    answers = []
    for sample in samples if only is None else [samples[place] for place in only]:
        ids = answer(
            model,
            chats.prompt(sample, tokenizer),
            config["max_new_tokens"],
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        text = tokenizer.decode(ids, skip_special_tokens=True)
        ended = ids[-1] == tokenizer.eos_token_id
        answers.append({"id": sample.get("id"), "answer": text, "tokens": len(ids), "ended": ended})
    generated = time.perf_counter()
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in answers]
    Path(config["answers"]).write_text("".join(lines), "utf-8")
    seconds = {
        "imports": imported - STARTED,
        "load": loaded - imported,
        "generate": generated - loaded,
    }
    print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
