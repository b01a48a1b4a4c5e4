"""Writes all_sft.jsonl: the chats of style_sft.jsonl, then those of writing_sft.jsonl."""

from __future__ import annotations

from pathlib import Path

PARTS = ("style_sft.jsonl", "writing_sft.jsonl")


def build(folder: Path) -> Path:
    """Join the parts in ``folder`` byte for byte, and return the file that was written.

    :raises SystemExit: a part lacks its last newline, so that two chats would share one line.
    """
    joined = b""
    for name in PARTS:
        part = (folder / name).read_bytes()
        if not part.endswith(b"\n"):
            raise SystemExit(f"{folder / name} does not end with a newline.")
        joined += part
    target = folder / "all_sft.jsonl"
    target.write_bytes(joined)
    return target


if __name__ == "__main__":
    build(Path(__file__).resolve().parents[1] / "data" / "training" / "processed")
