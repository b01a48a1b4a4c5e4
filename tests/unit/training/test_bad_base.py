"""A base model that can't be trained: refused in one sentence, before its weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.training_process import alone
from tests.unit.training.conftest import chat, write_chats
from training.__main__ import Term, _do
from training.progress import Progress


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def encoder(base: Path) -> None:
    transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(base)


def decoder_that_is_none(base: Path) -> None:
    transformers.BertConfig(architectures=["BertLMHeadModel"]).save_pretrained(base)


def translator(base: Path) -> None:
    transformers.T5Config().save_pretrained(base)


def classifier(base: Path) -> None:
    edit(base / "config.json", architectures=["Qwen3ForSequenceClassification"])


def without_end(base: Path) -> None:
    edit(base / "tokenizer_config.json", eos_token=None)


def as_it_is(base: Path) -> None:
    assert (base / "config.json").is_file()


BROKEN: list[tuple[Callable[[Path], None], dict[str, Any], str, str, str]] = [
    (shutil.rmtree, {}, "model_download", "The base model's folder ", "is not there."),
    (encoder, {}, "model_download", "a BertForMaskedLM, no causal language model", ""),
    (decoder_that_is_none, {}, "model_download", "an encoder (bert), no causal", ""),
    (translator, {}, "model_download", "of the type t5, no causal language model", ""),
    (classifier, {}, "model_download", "a Qwen3ForSequenceClassification, no causal", ""),
    (without_end, {}, "ops", "has no end token", "eos_token"),
    (
        as_it_is,
        {"target_modules": ["q_proj", "query"]},
        "ops",
        "target_modules names query, which is no layer",
        "Its layers are down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj,",
    ),
    (as_it_is, {"target_modules": "self_attn"}, "ops", "target_modules names self_attn", "v_proj"),
    (as_it_is, {"max_length": 8}, "data", "No token of data/train.jsonl is left to learn", ""),
    (as_it_is, {"use_qlora": True}, "ops", "use_qlora needs a CUDA GPU", "false"),
    (as_it_is, {"learning_rate": float("nan")}, "ops", "learning_rate is nan; it must be", ""),
]


@pytest.fixture
def broken_job(make_job: Any, base_folder: Path, tmp_path: Path) -> Any:
    """A job on a base whose weights can't be read: who comes to them says something else."""

    def build(change: Callable[[Path], None], settings: dict[str, Any]) -> dict[str, Any]:
        base = tmp_path / "base"
        shutil.copytree(base_folder, base)
        (base / "model.safetensors").write_bytes(b"no weights")
        change(base)
        job: dict[str, Any] = make_job(**{"model_name_or_path": str(base), **settings})
        return job

    return build


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case[0].__name__)
@pytest.mark.parametrize("worker", [False, True])
def test_one_sentence_before_the_weights_are_read(
    broken_job: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    case: tuple[Callable[[Path], None], dict[str, Any], str, str, str],
    worker: bool,
) -> None:
    change, settings, category, sentence, hint = case
    path = tmp_path / "job.json"
    path.write_text(json.dumps(broken_job(change, settings)))
    error = _do(path, Progress(), {} if worker else None, Term())["error"]
    assert error["category"] == category, error
    assert sentence in error["symptom"]
    assert hint in error["symptom"] + error["action"]
    assert "\n" not in error["symptom"] + error["action"]
    assert error["action"]
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


def test_the_weights_are_what_the_others_come_to(broken_job: Any, tmp_path: Path) -> None:
    """With nothing else wrong, it is they that are refused."""
    path = tmp_path / "job.json"
    path.write_text(json.dumps(broken_job(as_it_is, {})))
    error = _do(path, Progress(), None, Term())["error"]
    assert (error["category"], "can't be loaded" in error["symptom"]) == ("model_download", True)


@pytest.mark.training
def test_in_a_process_of_its_own(broken_job: Any, tmp_path: Path) -> None:
    run = alone(broken_job(without_end, {}), tmp_path / "run")
    assert run.wait() == 1
    assert "has no end token" in run.result["error"]["symptom"]
    assert run.log.count("error: ") == 1
    assert "Traceback" not in run.log


@pytest.mark.training
def test_without_a_chat_template_a_default_one_is_used_and_said(
    make_job: Any, base_folder: Path, project: Path, tmp_path: Path
) -> None:
    """With tools and calls, which it writes as well."""
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    (base / "chat_template.jinja").unlink()
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": "算"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "答案是 2。"},
    ]
    write_chats(
        project / "data/train.jsonl",
        [chat(1), {"messages": messages, "tools": [call["function"]]}],
    )
    run = alone(make_job(model_name_or_path=str(base), max_length=512), tmp_path / "run")
    assert run.wait() == 0, run.log
    assert run.result["effective"]["chat_template"] == "default"
    (note,) = run.result["warnings"]
    assert "has no chat template: a default one is used" in note["symptom"]
    assert note["symptom"] in run.log
    card = (project / run.job["adapter_dir"] / "README.md").read_text(encoding="utf-8")
    assert "{%- generation %}" in card
    assert run.metrics[0]["trained_tokens"] > 0
