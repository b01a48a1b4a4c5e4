"""Bad inputs end with a sentence that names them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from training import settings as settings_module
from training.chats import read_chats
from training.errors import JobError
from training.job import parse_job, read_job_file
from training.settings import Settings, read_settings

GOOD = {"role": "user", "content": "问"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "line 2 is not JSON"),
        (b'"x"', "line 2 is not a JSON object"),
        (b"\xff", r"line 2 is not UTF-8 \(byte 0\)"),
        ({}, "line 2 has no messages"),
        ({"messages": []}, "line 2 has no messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "whose role is none of system"),
        ({"messages": ["x"]}, "whose role is none of"),
        ({"messages": [{"role": "user", "content": None}]}, "a user message without content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "an? assistant message without"),
        ({"messages": [{"role": "user", "content": [1]}]}, "whose content is not text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "without a function's name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "whose arguments are not an object",
        ),
    ],
)
def test_bad_lines(tmp_path: Path, line: Any, reason: str) -> None:
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    (tmp_path / "x.jsonl").write_bytes(json.dumps({"messages": [GOOD]}).encode() + b"\n" + raw)
    with pytest.raises(JobError, match=rf"x\.jsonl .*{reason}") as caught:
        read_chats(tmp_path, "x.jsonl")
    assert caught.value.category == "data"


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"x\.jsonl can't be read: No such file"):
        read_chats(tmp_path, "x.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b"\n \n")
    with pytest.raises(JobError, match=r"x\.jsonl holds no chat"):
        read_chats(tmp_path, "x.jsonl")


def test_what_is_read_is_what_is_digested(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf\r\n" + json.dumps({"id": 1, "messages": [GOOD]}).encode() + b"\r\n\n"
    (tmp_path / "x.jsonl").write_bytes(data)
    file = read_chats(tmp_path, "x.jsonl")
    assert file.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert [chat.line for chat in file.chats] == [2]


def test_tool_calls_are_brought_into_one_form(tmp_path: Path) -> None:
    function = {"name": "f", "arguments": '{"x": 1}'}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": function}],
    }
    (tmp_path / "x.jsonl").write_text(json.dumps({"messages": [GOOD, message]}))
    (chat,) = read_chats(tmp_path, "x.jsonl").chats
    assert chat.messages[1]["content"] == ""
    assert chat.messages[1]["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"learning_rat": 1}, "settings.learning_rat is not a setting.*mean learning_rate"),
        ({"learning_rate": "1e-4"}, "settings.learning_rate is '1e-4', which is not float"),
        ({"learning_rate": True}, "which is not float"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan; it must be a number above 0"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be a number above 0"),
        ({"learning_rate": 10**400}, "learning_rate is 1000.*, which is not float"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast', which is not float"),
        ({"init_seed": -2}, "init_seed is -2; it must be -1, or from 0"),
        ({"data_seed": 2**63}, "data_seed is 9.*; it must be -1, or from 0"),
        ({"use_dora": 1}, "use_dora is 1, which is not bool"),
        ({"lora_r": 1.5}, "which is not int"),
        ({"use_qlora": 1}, "which is not bool"),
        ({"target_modules": [1]}, "which is not str or list"),
        ({"target_modules": []}, "target_modules is \\[\\]"),
        ({"lora_dropout": 1.0}, "0 up to below 1"),
        ({"lr_scheduler_type": "cosin"}, "one of cosine, linear, constant"),
        ({"dtype": "float16"}, "one of auto, bfloat16, float32"),
        ({"use_qlora": True, "dtype": "float32"}, "false with dtype float32"),
        ({"model_name_or_path": " "}, "a folder or a name"),
    ],
)
def test_bad_settings(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(JobError) as caught:
        read_settings({"model_name_or_path": "m", **changes})
    assert caught.value.category == "ops"
    assert re.search(sentence, f"{caught.value.symptom} {caught.value.action}")


def test_model_is_needed() -> None:
    with pytest.raises(JobError, match=r"settings\.model_name_or_path is missing"):
        read_settings({})


def test_numbers_are_taken_as_declared() -> None:
    settings = read_settings({"model_name_or_path": "m", "num_train_epochs": 3, "learning_rate": 1})
    assert (settings.num_train_epochs, type(settings.num_train_epochs)) == (3.0, float)
    assert settings.samples_per_step == 8


def test_every_setting_says_what_it_is() -> None:
    source = Path(settings_module.__file__).read_text()
    for field in dataclasses.fields(Settings):
        after = source.partition(f"    {field.name}: ")[2].split("\n")[1]
        assert after.strip().startswith('"""'), field.name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schema": 2}, "job.schema is 2"),
        ({"mode": "test"}, "job.mode is 'test'"),
        ({"stage": "../x"}, "job.stage is '../x'"),
        ({"train": []}, "job.train names no file"),
        ({"trane": []}, "job.trane is not a setting"),
        ({"evaluation": {"max_new_tokens": 0}}, "max_new_tokens must be 1 or more"),
        ({"evaluation": {"eval_batch_size": -1}}, "eval_batch_size must be 0 or more"),
        ({"evaluation": {"max_tokens": 1}}, "evaluation.max_tokens is not a setting"),
        ({"settings": 3}, "job.settings is 3"),
        ({"checkpoints": {"keep": 0}}, "checkpoints.keep must be 1 or more"),
        ({"checkpoints": {"minutes": -1}}, "checkpoints.minutes must be 0 or more"),
        ({"checkpoints": {"every": 1}}, "checkpoints.every is not a setting"),
    ],
)
def test_bad_jobs(make_job: Any, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(JobError, match=sentence):
        parse_job({**make_job(), **changes})


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(None, "can't be read"), (b"{", "is not JSON"), (b"[]", "not a JSON object")],
)
def test_bad_job_files(tmp_path: Path, data: bytes | None, sentence: str) -> None:
    path = tmp_path / "job.json"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(JobError, match=sentence):
        read_job_file(path)
