"""Load adapters with peft, as a user would, and see that each of them changes what is said.

    python tests/molecule/load_adapters.py BASE ADAPTER...

Exit status 1 when one of them doesn't load, or leaves the base model's answers as they are.
"""

from __future__ import annotations

import sys

import peft
import torch
import transformers


def main(base: str, folders: list[str]) -> str | None:
    """Compare the logits of one question with each adapter and without."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    question = tokenizer("### 结论", return_tensors="pt")
    idle = []
    for folder in folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        adapted = peft.PeftModel.from_pretrained(model, folder).eval()
        with torch.no_grad():
            with adapted.disable_adapter():
                before = adapted(**question).logits
            after = adapted(**question).logits
        if torch.equal(before, after):
            idle.append(folder)
    return f"{', '.join(idle)} changes nothing" if idle else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
