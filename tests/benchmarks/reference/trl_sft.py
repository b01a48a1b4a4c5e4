"""TRL's SFTTrainer with packing, on the chats that the other sides train on.

    python trl_sft.py CONFIG.json

Tokens and labels are made as for the plain reference; packing, collating, the loss and the rest are
TRL's. Its own default of activation checkpointing is switched off, since memory doesn't ask for it
here, and ours has none either. The last line of standard output is JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

sys.path.insert(0, str(Path(__file__).parent))

import chats


def main(path: str) -> None:
    """Train; say how long it took and how many tokens that were."""
    config = json.loads(Path(path).read_text("utf-8"))
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(config["base"])
    model = transformers.AutoModelForCausalLM.from_pretrained(config["base"], dtype=torch.float32)
    samples = [chats.encode(chat, tokenizer) for chat in chats.read(config["train"])]
    tokens = sum(len(sample["input_ids"]) for sample in samples)
    # As many tokens in an optimizer step as the other sides have on average.
    per_step = tokens * config["samples_per_step"] / len(samples)
    torch.manual_seed(config["lora_seed"])
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(samples),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config["lora_r"],
            lora_alpha=config["lora_alpha"],
            lora_dropout=config["lora_dropout"],
            target_modules="all-linear",
        ),
        args=SFTConfig(
            output_dir=config["output"],
            max_length=config["max_length"],
            packing=True,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=max(1, round(per_step / config["max_length"])),
            num_train_epochs=config["num_train_epochs"],
            learning_rate=config["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            gradient_checkpointing=False,
            bf16=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=config["dropout_seed"],
        ),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "seconds": {"train": seconds},
        "losses": [entry["loss"] for entry in entries],
        "tokens": round(entries[-1]["num_tokens"]),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
