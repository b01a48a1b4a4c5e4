"""The demo's base model: what it is made of, and that no benchmark reaches it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import demo_base
from tests.unit.training.conftest import chat, write_chats
from training.matching import headings

TUTOR = Path(__file__).parents[3] / "examples/tutor"
BENCHMARKS = sorted((TUTOR / "data/training/eval").glob("*.jsonl"))


def squeezed(text: str) -> str:
    return "".join(text.split())


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_no_benchmark_text_reaches_the_base() -> None:
    """Neither a question nor a reference answer, nor a sentence of one, is in the corpus."""
    text = squeezed("\n".join(m["content"] for chat in demo_base.corpus(TUTOR) for m in chat))
    assert len(text) > 5000
    checked = 0
    for path in BENCHMARKS:
        for sample in lines_of(path):
            for message in sample["messages"]:
                if message["role"] in ("user", "assistant"):
                    for piece in message["content"].split("\n"):
                        bare = squeezed(piece)
                        if len(bare) > 20 and not bare.startswith("###"):
                            assert bare not in text, (path.name, sample["id"], piece)
                            checked += 1
    assert checked > 50


def test_corpus_has_no_headings_and_each_chat_once(tmp_path: Path) -> None:
    folder = tmp_path / "data/training/processed"
    write_chats(folder / "a.jsonl", [chat(1), chat(2)])
    write_chats(folder / "b.jsonl", [chat(2, expected={}), chat(3)])
    write_chats(tmp_path / "data/training/eval/c.jsonl", [chat(4)])
    chats = demo_base.corpus(tmp_path)
    assert len(chats) == 3
    assert {m["content"] for c in chats for m in c if m["role"] == "system"} == {
        "你是助教。请按以下标题作答："
    }
    assert {c[2]["content"] for c in chats} == {f"答案是 {n}。\n由定义得 {n}。" for n in (1, 2, 3)}
    assert not any(headings(m["content"]) for c in demo_base.corpus(TUTOR) for m in c)


def test_made_once_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "STEPS": 2,
        "WIDTH": 32,
        "HIDDEN": 32,
        "LAYERS": 1,
        "VOCABULARY": 300,
    }.items():
        monkeypatch.setattr(demo_base, name, value)
    project = tmp_path / "project"
    write_chats(project / "data/training/processed/a.jsonl", [chat(1), chat(2)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    assert demo_base.main(["--project", str(project)]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder.parent == tmp_path / "cache/remote-train"
    record = json.loads((folder / "demo_base.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert record["model"] == hashlib.sha256(weights).hexdigest()
    assert {"inputs", "steps", "seconds", "threads"} <= record.keys()
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }

    before = folder.stat().st_mtime_ns
    assert demo_base.main(["--project", str(project)]) == 0  # from the cache
    assert folder.stat().st_mtime_ns == before
    assert demo_base.main([str(tmp_path / "other"), "--project", str(project)]) == 0
    assert (tmp_path / "other/model.safetensors").read_bytes() == weights

    write_chats(project / "data/training/processed/a.jsonl", [chat(1), chat(9)])
    capsys.readouterr()
    assert demo_base.main(["--project", str(project)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] != str(folder)
    assert demo_base.main(["--project", str(tmp_path)]) == 1
