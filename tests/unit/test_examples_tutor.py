"""The example training project holds what its README says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from training.scores import judge, read_expected

TUTOR = Path(__file__).resolve().parents[2] / "examples" / "tutor"
DATA = TUTOR / "data" / "training"

SAMPLE = "processed/style_sft_sample.jsonl"
STYLE = "processed/style_sft.jsonl"
WRITING = "processed/writing_sft.jsonl"
ALL = "processed/all_sft.jsonl"
STYLE_BENCHMARK = "eval/style_benchmark.jsonl"
WRITING_BENCHMARK = "eval/writing_benchmark.jsonl"

BENCHMARKS = (STYLE_BENCHMARK, WRITING_BENCHMARK)
PARTS = (STYLE, WRITING)
WRITTEN = (SAMPLE, *PARTS, *BENCHMARKS)
SCORED = (SAMPLE, *BENCHMARKS)
"""The sample is scored on the chats that it trains on."""
TRAINED_ON = (SAMPLE, *PARTS, ALL)
FILES = (*WRITTEN, ALL)
MINIMUM = {STYLE: 30, STYLE_BENCHMARK: 11, WRITING: 15, WRITING_BENCHMARK: 6}

REFUSAL_PHRASES = ("不能替你", "无法回答", "不能提供", "信息不足，无法", "超出了我的范围")
SHARED_RUN = 40
"""Characters that a benchmark question and a training question must not have in common."""


def chats(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_bytes().splitlines()]


def text_of(chat: dict[str, Any], role: str) -> str:
    return "\n".join(m["content"] or "" for m in chat["messages"] if m["role"] == role)


def answer(chat: dict[str, Any]) -> str:
    text: str = chat["messages"][-1]["content"]
    return text


def headings(text: str) -> list[str]:
    return re.findall(r"^### .+$", text, re.MULTILINE)


def squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def folded(text: str) -> str:
    return squeezed(text.casefold()).casefold()


def runs(text: str) -> set[str]:
    bare = squeezed(text)
    return {bare[i : i + SHARED_RUN] for i in range(len(bare) - SHARED_RUN + 1)}


@pytest.mark.parametrize("name", FILES)
def test_files_are_plain_lines_of_utf_8(name: str) -> None:
    data = (DATA / name).read_bytes()
    text = data.decode("utf-8")
    assert data.endswith(b"\n")
    assert b"\r" not in data
    assert not text.startswith("\ufeff")
    assert all(line.strip() for line in text.removesuffix("\n").split("\n"))
    escaped = re.findall(r"(?<!\\)(?:\\\\)*\\u[0-9a-fA-F]{4}", text)
    assert not escaped


@pytest.mark.parametrize("name", FILES)
def test_every_line_is_a_chat(name: str) -> None:
    for chat in chats(name):
        assert {"id", "mode", "messages", "refusal_type", "meta"} <= chat.keys()
        assert re.fullmatch(r"[a-z]+(?:-[a-z]+)*-\d{3}", chat["id"])
        assert chat["mode"] in ("style", "writing")
        assert name == ALL or chat["mode"] == Path(name).name.partition("_")[0]
        assert chat["refusal_type"] is None or re.fullmatch(r"[a-z_]+", chat["refusal_type"])
        assert chat["meta"].keys() == {"topic", "level", "source"}
        assert all(isinstance(value, str) and value for value in chat["meta"].values())
        assert chat["meta"]["source"] == "original"
        roles = [message["role"] for message in chat["messages"]]
        assert roles[:2] == ["system", "user"], chat["id"]
        assert roles[-1] == "assistant", chat["id"]
        assert set(roles) <= {"system", "user", "assistant", "tool"}
        assert roles.count("system") == 1
        for message in chat["messages"]:
            if message["content"] is None:
                assert message["role"] == "assistant", chat["id"]
                assert message["tool_calls"], chat["id"]
            else:
                assert message["content"].strip() == message["content"] != "", chat["id"]
        assert answer(chat), chat["id"]


@pytest.mark.parametrize("name", SCORED)
def test_scored_items_say_what_they_expect(name: str) -> None:
    for item in chats(name):
        assert item["type"]
        assert isinstance(item["type"], str)
        expected = item["expected"]
        refused = item["refusal_type"] is not None
        assert expected["should_refuse"] is refused, item["id"]
        assert bool(expected["key_points"]) is not refused, item["id"]
        points = expected["key_points"]
        assert [p["id"] for p in points] == [f"k{i + 1}" for i in range(len(points))]
        for point in points:
            assert folded(point["text"])
            assert point["aliases"]
            assert all(folded(alias) for alias in point["aliases"])


@pytest.mark.parametrize("name", [*PARTS, ALL])
def test_training_chats_expect_nothing(name: str) -> None:
    for chat in chats(name):
        assert not {"expected", "type"} & chat.keys(), chat["id"]


def test_ids_are_unique_over_all_files_but_all_sft() -> None:
    ids = [chat["id"] for name in WRITTEN for chat in chats(name)]
    assert len(ids) == len(set(ids)), sorted({i for i in ids if ids.count(i) > 1})


@pytest.mark.parametrize(("name", "minimum"), MINIMUM.items())
def test_there_are_enough_chats(name: str, minimum: int) -> None:
    assert len(chats(name)) >= minimum


def test_the_sample_is_three_chats() -> None:
    assert len(chats(SAMPLE)) == 3


def test_the_readme_counts_right() -> None:
    rows = re.findall(
        r"^\| `data/training/(\S+)` \| (\d+) \|", (TUTOR / "README.md").read_text("utf-8"), re.M
    )
    assert {name: int(count) for name, count in rows} == {name: len(chats(name)) for name in FILES}


def test_each_mode_has_one_system_prompt() -> None:
    prompts = {(c["mode"], text_of(c, "system")) for name in FILES for c in chats(name)}
    assert sorted(mode for mode, _ in prompts) == ["style", "writing"]


@pytest.mark.parametrize("name", FILES)
def test_answers_have_the_headings_that_are_asked_for(name: str) -> None:
    for chat in chats(name):
        asked = headings(text_of(chat, "system"))
        assert len(asked) == 3
        assert headings(answer(chat)) == asked, chat["id"]
        assert answer(chat).startswith(asked[0]), chat["id"]
        sections = re.split(r"^### .+$", answer(chat), flags=re.MULTILINE)[1:]
        assert all(section.strip() for section in sections), chat["id"]


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_refusals_and_answers(name: str) -> None:
    assert {chat["refusal_type"] is None for chat in chats(name)} == {True, False}


@pytest.mark.parametrize("name", FILES)
def test_refusals_and_only_they_say_so(name: str) -> None:
    for chat in chats(name):
        found = [phrase for phrase in REFUSAL_PHRASES if phrase in answer(chat)]
        assert bool(found) is (chat["refusal_type"] is not None), (chat["id"], found)


def test_the_readme_lists_the_refusal_phrases() -> None:
    listed = re.findall(r"^- (\S+)$", (TUTOR / "README.md").read_text("utf-8"), re.M)
    assert listed == list(REFUSAL_PHRASES)


def test_all_sft_is_style_then_writing() -> None:
    assert (DATA / ALL).read_bytes() == b"".join((DATA / name).read_bytes() for name in PARTS)


def test_the_script_builds_all_sft(tmp_path: Path) -> None:
    shutil.copytree(TUTOR, tmp_path / "tutor")
    built = tmp_path / "tutor" / "data" / "training" / ALL
    built.unlink()
    script = tmp_path / "tutor" / "scripts" / "build_all_sft.py"
    subprocess.run([sys.executable, script], check=True, cwd=tmp_path)
    assert built.read_bytes() == (DATA / ALL).read_bytes()


def test_the_script_refuses_a_part_without_its_last_newline(tmp_path: Path) -> None:
    shutil.copytree(TUTOR, tmp_path / "tutor")
    part = tmp_path / "tutor" / "data" / "training" / STYLE
    part.write_bytes(part.read_bytes().rstrip(b"\n"))
    script = tmp_path / "tutor" / "scripts" / "build_all_sft.py"
    done = subprocess.run([sys.executable, script], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not end with a newline" in done.stderr


@pytest.mark.parametrize("training", TRAINED_ON)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_benchmark_item_is_in_the_training_data(benchmark: str, training: str) -> None:
    told = [m["content"] or "" for chat in chats(training) for m in chat["messages"]]
    messages = [squeezed(text) for text in told]
    for item in chats(benchmark):
        for own in (squeezed(text_of(item, "user")), squeezed(answer(item))):
            assert not [text for text in messages if own in text], item["id"]


@pytest.mark.parametrize("training", TRAINED_ON)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_no_benchmark_question_shares_a_long_run(benchmark: str, training: str) -> None:
    trained = {run for chat in chats(training) for run in runs(text_of(chat, "user"))}
    for item in chats(benchmark):
        assert not runs(text_of(item, "user")) & trained, item["id"]


@pytest.mark.parametrize("name", SCORED)
def test_key_points_are_in_the_reference_answer(name: str) -> None:
    for item in chats(name):
        reference = folded(answer(item))
        for point in item["expected"]["key_points"]:
            names = [point["text"], *point["aliases"]]
            assert any(folded(n) in reference for n in names), (item["id"], point["id"])


@pytest.mark.parametrize("name", SCORED)
def test_key_points_are_not_in_the_question(name: str) -> None:
    """Else an answer that repeats the question would have them."""
    for item in chats(name):
        question = folded(text_of(item, "user"))
        for point in item["expected"]["key_points"]:
            names = [point["text"], *point["aliases"]]
            found = [n for n in names if folded(n) in question]
            assert not found, (item["id"], point["id"], found)


@pytest.mark.parametrize("name", SCORED)
def test_the_scorer_gives_reference_answers_full_marks(name: str) -> None:
    for item in chats(name):
        verdict = judge(read_expected(item), answer(item))
        refused = item["refusal_type"] is not None
        assert not verdict.empty
        assert verdict.key_point_coverage == (None if refused else 1), (item["id"], verdict.missed)
        assert verdict.response_format is True, item["id"]
        assert verdict.refusal_accuracy is True, item["id"]


def whitelisted() -> list[str]:
    text = (TUTOR / "scripts" / "training_sync_whitelist.txt").read_text("utf-8")
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_whitelisted_paths_exist() -> None:
    assert whitelisted()
    for path in whitelisted():
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
        assert (TUTOR / path).exists(), path


@pytest.mark.parametrize("name", FILES)
def test_the_whitelist_covers_the_data(name: str) -> None:
    file = DATA / name
    assert any(file.is_relative_to(TUTOR / path) for path in whitelisted())
