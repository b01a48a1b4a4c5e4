"""A whole job, as the controller starts it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.training.conftest import chat, write_chats
from training import report, train
from training.__main__ import main

FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "eval_report_style.json",
    "eval_report_style.md",
    "events.out.tfevents.1",
    "metrics.jsonl",
    "predictions_style.jsonl",
)


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    def start(job: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        path = tmp_path / "job.json"
        path.write_text(json.dumps(job))
        Path(job["result"]).unlink(missing_ok=True)
        status = main([str(path)])
        out = capfd.readouterr()
        return status, json.loads(Path(job["result"]).read_bytes()), out.out + out.err

    return start


def test_train_then_evaluate_again(run: Any, make_job: Any, project: Path) -> None:
    status, result, log = run(make_job())
    assert status == 0, log
    assert result["status"] == "done"
    folder = project / "outputs/adapter/adapter_style"
    assert result["outputs"] == [f"outputs/adapter/adapter_style/{name}" for name in FILES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert not folder.with_name("adapter_style.partial").exists()
    assert set(result["data"]) == {"data/train.jsonl", "data/bench.jsonl"}
    assert result["accelerator"].partition(":")[0] in ("cpu", "cuda")
    assert set(result["seconds"]) == {"load", "train", "evaluate", "save", "checkpoints"}
    assert result["metrics"]["steps"] == 6  # ten chats, four a step, two epochs
    assert result["metrics"]["samples"] == 10
    scores = result["metrics"]["scores"]
    assert scores["key_point_coverage"]["n"] == 1
    assert scores["response_format"]["n"] == 4
    assert scores["refusal_accuracy"]["n"] == 2
    assert "citation_accuracy" not in scores
    assert scores["empty_responses"]["n"] == 4
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record["samples"] for record in records] == [4, 4, 2, 4, 4, 2]
    wanted = (
        "step epoch samples tokens trained_tokens loss learning_rate grad_norm tokens_per_second"
    )
    assert {*wanted.split(), "seconds", "peak_memory_bytes"} == set(records[0])
    report = json.loads((folder / "eval_report_style.json").read_text())
    assert report["scores"] == scores
    assert "| response_format |" in (folder / "eval_report_style.md").read_text()
    answers = [json.loads(x) for x in (folder / "predictions_style.jsonl").read_text().splitlines()]
    assert [answer["id"] for answer in answers] == ["c11", "c12", "c13", "c14"]

    weights = (folder / "adapter_model.safetensors").read_bytes()
    status, again, log = run(make_job(mode="evaluate"))
    assert status == 0, log
    assert [path.name for path in folder.parent.iterdir()] == ["adapter_style"]
    assert again["outputs"] == result["outputs"]
    assert (folder / "adapter_model.safetensors").read_bytes() == weights
    # The adapter that is on the disk answers as the one that was just trained.
    assert again["metrics"]["scores"] == scores
    assert again["metrics"]["train_loss"] == pytest.approx(result["metrics"]["train_loss"])
    assert again["metrics"]["samples"] == 10
    assert again["data"].keys() == {"data/bench.jsonl"}
    later = [json.loads(x) for x in (folder / "predictions_style.jsonl").read_text().splitlines()]
    assert later == answers


def test_the_card_loads_the_adapter_in_two_lines(
    run: Any, make_job: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(make_job(num_train_epochs=0.5))[0] == 0
    card = (project / "outputs/adapter/adapter_style/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "peft"
    assert Path(front["base_model"]).is_dir()
    assert "lora" in front["tags"]
    code = card.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 2
    monkeypatch.chdir(project)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 # the card's own words
    assert names["model"].peft_config["default"].r == 16


def test_progress_is_told_on_the_descriptor(make_job: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(num_train_epochs=1)))
    reader, writer = os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "training", str(path)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "REMOTE_TRAIN_PROGRESS_FD": str(writer)},
        pass_fds=[writer],
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(writer)
    with os.fdopen(reader) as lines:
        told = [json.loads(line) for line in lines]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    phases = list(dict.fromkeys(line["phase"] for line in told))
    assert phases == ["load", "train", "evaluate", "save"]
    steps = [line for line in told if line["phase"] == "train"]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert {"steps", "epoch", "loss", "learning_rate", "tokens_per_second"} <= set(steps[0])
    assert told[-2] == {"phase": "evaluate", "done": 8, "of": 8}  # and of the base model


def test_cut_chats_are_warned_of(run: Any, make_job: Any, project: Path) -> None:
    write_chats(project / "data/train.jsonl", [chat(1), chat(2, "长" * 400), chat(3)])
    _, result, log = run(make_job(num_train_epochs=1))
    (warning,) = result["warnings"]
    assert warning["symptom"] == "1 chats were cut at max_length 128: data/train.jsonl line 2."
    assert warning["category"] == "data"
    assert warning["symptom"] in log
    report = project / "outputs/adapter/adapter_style/eval_report_style.md"
    assert warning["symptom"] in report.read_text()


@pytest.mark.parametrize(
    ("error", "category", "sentence"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate"), "oom", "memory did not suffice"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "infra", "disk is full at /x"),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "ops", "package peft can't"),
        (KeyboardInterrupt(), "ops", "stopped by a signal"),
        (PermissionError(13, "Permission denied", "/x"), "infra", "/x may not be written"),
    ],
)
def test_what_comes_from_outside_is_a_sentence(
    run: Any,
    make_job: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    category: str,
    sentence: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(train, "fit", fail)
    status, result, log = run(make_job())
    assert status == 1
    assert result["status"] == "failed"
    assert result["error"]["category"] == category
    assert sentence in result["error"]["symptom"]
    assert "Traceback" not in log


def test_a_defect_of_ours_keeps_its_traceback(
    run: Any, make_job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", lambda *_: 1 / 0)
    status, result, log = run(make_job())
    assert status == 1
    assert "Traceback" in log
    assert "ZeroDivisionError" in result["error"]["symptom"]


def test_users_mistakes_leave_the_old_adapter_alone(run: Any, make_job: Any, project: Path) -> None:
    folder = project / "outputs/adapter/adapter_style"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"old")
    status, result, log = run(make_job(model_name_or_path="/nowhere"))
    assert status == 1
    assert result["error"]["category"] == "model_download"
    assert "Traceback" not in log
    assert (folder / "adapter_model.safetensors").read_bytes() == b"old"


def test_a_benchmark_is_checked_before_anything_is_loaded(
    run: Any, make_job: Any, project: Path
) -> None:
    write_chats(project / "data/bench.jsonl", [chat(1), chat(2, expected={"key_points": [3]})])
    _, result, _ = run(make_job(model_name_or_path="/nowhere"))
    assert result["error"]["symptom"].startswith("data/bench.jsonl line 2: expected.key_points")


def test_evaluating_needs_an_adapter(run: Any, make_job: Any) -> None:
    _, result, _ = run(make_job(mode="evaluate"))
    assert "There is no adapter at" in result["error"]["symptom"]


def test_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert main([str(tmp_path / "none.json")]) == 2
    assert "can't be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdict", "complaints"),
    [
        ({"response_format": True, "missed": [], "empty": False}, []),
        ({"response_format": False, "missed": [], "empty": False}, ["response_format"]),
        ({"response_format": True, "missed": ["E = 0"], "empty": False}, ["missed: E = 0"]),
        ({"missed": [], "empty": True}, ["empty answer"]),
    ],
)
def test_the_report_complains_of_wrong_answers_alone(verdict, complaints):
    assert report._complaints(verdict) == complaints
    assert report._is_wrong(verdict) == bool(complaints)
