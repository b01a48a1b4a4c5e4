"""Copy a training project with a few chats of each of its files, among them a refusal.

python tests/molecule/small_project.py SOURCE TARGET
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

CHATS = {
    "processed/style_sft_sample.jsonl": 2,
    "processed/style_sft.jsonl": 4,
    "processed/writing_sft.jsonl": 3,
    "eval/style_benchmark.jsonl": 2,
    "eval/writing_benchmark.jsonl": 2,
}
"""How many chats of each file under ``data/training`` are kept."""


def copy(source: Path, target: Path) -> None:
    """Write the small copy; what is not data is copied as it is."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("data", "outputs"))
    kept = {}
    for name, count in CHATS.items():
        lines = (source / "data/training" / name).read_text(encoding="utf-8").splitlines()
        kept[name] = choose(lines, count)
    kept["processed/all_sft.jsonl"] = [
        *kept["processed/style_sft.jsonl"],
        *kept["processed/writing_sft.jsonl"],
    ]
    for name, lines in kept.items():
        path = target / "data/training" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def choose(lines: list[str], count: int) -> list[str]:
    """The first ``count`` lines, the last of them replaced by the first refusal of the file."""
    refusals = [line for line in lines if json.loads(line)["refusal_type"]]
    return [*lines[: count - 1], refusals[0]]


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
