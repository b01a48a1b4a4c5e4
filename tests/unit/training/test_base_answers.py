"""The base model's scores beside an adapter's, and its answers kept from stage to stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.tuners_utils import BaseTunerLayer

from tests.unit.training.conftest import chat, write_chats
from training import base_answers, evaluate, fit, report, stage
from training.generate import generate
from training.job import parse_job
from training.paired import sign_test
from training.progress import Progress
from training.template import ChatTemplate


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """For each time a model was asked: whether it had its adapter, and how many samples."""
    found: list[tuple[bool, int]] = []

    def spy(model: Any, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> Any:
        layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        found.append((not layers[0].disable_adapters, len(prompts)))
        return generate(model, tokenizer, prompts, *rest)

    monkeypatch.setattr(evaluate, "generate", spy)
    return found


def do(job: dict[str, Any]) -> dict[str, Any]:
    stage.run(parse_job(job), Progress(None))
    folder = Path(job["project_root"]) / job["adapter_dir"]
    name = job["stage"]
    lines = (folder / f"predictions_{name}.jsonl").read_text("utf-8").splitlines()
    return {
        "report": json.loads((folder / f"eval_report_{name}.json").read_bytes()),
        "markdown": (folder / f"eval_report_{name}.md").read_text("utf-8"),
        "answers": [json.loads(line) for line in lines],
        "weights": (folder / "adapter_model.safetensors").read_bytes(),
    }


def kept(project: Path) -> list[Path]:
    return sorted((project / base_answers.FOLDER).iterdir())


def test_the_base_answers_as_it_does_alone(make_job: Any, project: Path, asked: Any) -> None:
    done = do(make_job())
    job = parse_job(make_job())
    loaded = fit.load(job.settings, project)
    files, _ = evaluate.read_benchmarks(project, job.evaluate)
    prompts = [ChatTemplate(loaded.tokenizer).prompt(one) for one in files[0].chats]
    alone = generate(loaded.model, loaded.tokenizer, prompts, 6, 3)
    assert [one["base"]["answer"] for one in done["answers"]] == [one.text for one in alone]
    assert [one["base"]["answer_tokens"] for one in done["answers"]] == [o.tokens for o in alone]
    assert [one["answer"] for one in done["answers"]] != [one.text for one in alone]
    assert asked == [(True, 4), (False, 4)]


def test_report_and_predictions_carry_the_base(make_job: Any) -> None:
    done = do(make_job())
    scores, base = done["report"]["scores"], done["report"]["base"]["scores"]
    assert base.keys() == scores.keys()
    against = done["report"]["against_base"]
    assert set(against) == {name for name, one in scores.items() if "value" in one}
    for name, test in against.items():
        gain = scores[name]["value"] - base[name]["value"]
        assert test["difference"] == pytest.approx(gain)
        assert test["n"] == scores[name]["n"]
    form = against["response_format"]
    pairs = [
        (one["verdict"]["response_format"], one["base"]["verdict"]["response_format"])
        for one in done["answers"]
    ]
    assert form["better"] == sum(a and not b for a, b in pairs)
    assert form["p"] == sign_test(form["better"], form["worse"])
    place = "data/bench.jsonl"
    assert done["report"]["by_file"] == {place: {"scores": scores}}
    assert done["report"]["base"]["by_file"] == {place: {"scores": base}}
    assert "| base model | difference | p |" in done["markdown"]
    first, refused = done["answers"][0], done["answers"][2]
    assert [one["role"] for one in first["prompt"]] == ["system", "user"]
    assert first["expected"] == {
        "headings": ["结论", "推导"],
        "key_points": [{"text": "答案是11", "aliases": ["11"]}],
        "reference": chat(11)["messages"][2]["content"],
    }
    assert refused["expected"]["should_refuse"] is True
    ends = {one["ended_by"] for one in done["answers"]}
    assert ends <= {"end token", "max_new_tokens"}
    assert all(one["ended"] == (one["ended_by"] == "end token") for one in done["answers"])


def test_the_base_is_asked_once(make_job: Any, project: Path, asked: Any) -> None:
    first = do(make_job())
    (file,) = kept(project)
    stamp = file.stat().st_mtime_ns
    again = do(make_job(mode="evaluate"))
    other = do(make_job("writing", learning_rate=1e-3))
    assert asked == [(True, 4), (False, 4), (True, 4), (True, 4)]
    assert kept(project) == [file]
    assert file.stat().st_mtime_ns == stamp
    assert again["report"]["base"] == first["report"]["base"] == other["report"]["base"]
    assert again["weights"] == first["weights"]


@pytest.mark.parametrize("change", ["benchmark", "limit", "scorer", "base"])
def test_what_makes_the_base_answer_again(
    make_job: Any,
    project: Path,
    base_folder: Path,
    asked: Any,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """A changed scorer judges the kept answers anew, without a single one generated."""
    first = do(make_job())
    del asked[:]
    job = make_job(mode="evaluate")
    if change == "benchmark":
        write_chats(project / "data/bench.jsonl", [chat(11), chat(15)])
    elif change == "limit":
        job["evaluation"]["max_new_tokens"] = 5
    elif change == "base":
        job["provenance"]["base_model"] = "sha256:another"
    else:
        real = evaluate.judge
        harsh = lambda *given: dataclasses.replace(real(*given), response_format=False)  # noqa: E731
        monkeypatch.setattr(evaluate, "judge", harsh)
    done = do(job)
    assert [had for had, _ in asked] == [True] + [False] * (change != "scorer")
    assert done["weights"] == first["weights"]
    if change == "scorer":
        assert done["report"]["base"]["scores"]["response_format"]["value"] == 0


def flip(content: bytes) -> bytes:
    at = content.index(b'"tokens": ') + len(b'"tokens": ')
    return content[:at] + b"9" + content[at + 1 :]


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        lambda content: content[: len(content) // 2],
        lambda _: b"",
        lambda _: b"[]",
        lambda _: b'{"answers": [{"text": "x"}]}',
        lambda _: b"\xff",
    ],
)
def test_what_is_damaged_is_not_believed(
    make_job: Any, project: Path, asked: Any, harm: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = do(make_job(num_train_epochs=0.5))
    (file,) = kept(project)
    good = file.read_bytes()
    file.write_bytes(harm(good))
    assert file.read_bytes() != good
    del asked[:]
    again = do(make_job(mode="evaluate"))
    assert asked == [(True, 4), (False, 4)]
    assert "damaged" in capsys.readouterr().out
    assert again["report"]["base"] == first["report"]["base"]
    assert file.read_bytes() == good


def test_another_benchmarks_answers_under_its_name_are_not_believed(
    make_job: Any, project: Path, asked: Any
) -> None:
    do(make_job(num_train_epochs=0.5))
    (one,) = kept(project)
    write_chats(project / "data/bench.jsonl", [chat(n) for n in range(21, 25)])
    do(make_job(mode="evaluate"))
    (other,) = {*kept(project)} - {one}
    other.write_bytes(one.read_bytes())
    del asked[:]
    do(make_job(mode="evaluate"))
    assert asked == [(True, 4), (False, 4)]


def test_what_cannot_be_kept_costs_nothing_else(
    make_job: Any, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / base_answers.FOLDER).parent.mkdir(parents=True)
    (project / base_answers.FOLDER).write_text("in the way")
    assert "scores" in do(make_job(num_train_epochs=0.5))["report"]["base"]
    assert "are not kept" in capsys.readouterr().out


def test_two_benchmarks_are_kept_apart(make_job: Any, project: Path, asked: Any) -> None:
    do(make_job(num_train_epochs=0.5))
    write_chats(project / "data/second.jsonl", [chat(n) for n in (31, 32)])
    job = make_job("all", num_train_epochs=0.5)
    job["evaluate"] = ["data/bench.jsonl", "data/second.jsonl"]
    del asked[:]
    done = do(job)
    assert asked == [(True, 6), (False, 2)]
    assert [one["n"] for one in _of(done, "response_format")] == [4, 2]
    assert done["report"]["scores"]["response_format"]["n"] == 6
    assert "## data/second.jsonl" in done["markdown"]


def _of(done: dict[str, Any], score: str) -> list[Any]:
    return [one["scores"][score] for one in done["report"]["base"]["by_file"].values()]


def test_it_can_be_left_out(make_job: Any, project: Path, asked: Any) -> None:
    job = make_job(num_train_epochs=0.5)
    job["evaluation"]["score_base"] = False
    done = do(job)
    assert asked == [(True, 4)]
    assert not {"base", "against_base"} & done["report"].keys()
    assert not (project / base_answers.FOLDER).exists()


def test_only_the_newest_are_kept(
    make_job: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_answers, "KEEP", 2)
    do(make_job(num_train_epochs=0.5))
    for limit in (5, 4):
        job = make_job(mode="evaluate")
        job["evaluation"]["max_new_tokens"] = limit
        do(job)
    keys = [json.loads(file.read_bytes())["key"] for file in kept(project)]
    assert {key["generation"]["max_new_tokens"] for key in keys} == {4, 5}


@pytest.mark.parametrize("there", [True, False])
def test_a_missing_library_is_said(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr("training.scores._CHRF", (lambda *_: 0.5) if there else None)
    done = do(make_job(num_train_epochs=0.5))
    assert ("chrf" in done["report"]["scores"]) is there
    assert ("sacrebleu isn't installed" in done["markdown"]) is not there
    assert report.reference.version() == done["report"]["evaluation"]["sacrebleu"]
