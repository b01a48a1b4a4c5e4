"""``report.html`` shows what the evaluation really writes, field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from controller.report import figures, page
from tests.unit.report_home import RUN, Home
from tests.unit.training.conftest import chat, write_chats
from training import stage
from training.job import parse_job
from training.progress import Progress


@pytest.fixture
def real(make_job: Any, project: Path, tmp_path: Path) -> Home:
    """A run whose reports and answers of style and all come from the training itself."""
    home = Home(tmp_path / "home", questions=4, steps=3)
    write_chats(project / "data/second.jsonl", [chat(n) for n in (31, 32)])
    for name, files in (("style", ["data/bench.jsonl"]), ("all", ["data/bench.jsonl"])):
        job = make_job(name, num_train_epochs=0.5)
        job["evaluate"] = files if name == "style" else [*files, "data/second.jsonl"]
        job["adapter_dir"] = home.adapter(name, "x")[:-2]
        stage.run(parse_job(job), Progress(None))
        folder = project / job["adapter_dir"]
        report = json.loads((folder / f"eval_report_{name}.json").read_bytes())
        home.files[f"eval_report_{name}.json"] = report
        home.row(name)["metrics"]["scores"] = report["scores"]
        for file in (f"eval_report_{name}.json", f"predictions_{name}.jsonl"):
            home.outputs[home.adapter(name, file)] = (folder / file).read_bytes()
    home.write()
    return home


def test_the_base_model_stands_beside_both_adapters(real: Home) -> None:
    text = Path(page.write_page(str(real.path), RUN, "en")).read_text("utf-8")
    use = text.partition('id="use"')[2].partition('id="scores"')[0]
    for benchmark in ("bench", "second"):
        table = use.partition(f"<h3>{benchmark}</h3>")[2].partition("</table>")[0]
        (row,) = [line for line in table.split("<tr") if "base model" in line]
        base = real.report("all")["base"]["by_file"][f"data/{benchmark}.jsonl"]["scores"]
        assert f"<b>{figures.rate(base['response_format']['value'])}</b>" in row
    assert "adapter_style against adapter_multitask" in use or (
        "adapter_multitask against adapter_style" in use
    )
    scores = text.partition('id="scores"')[2].partition('id="answers"')[0]
    against = real.report("style")["against_base"]["response_format"]
    gain = f"{figures.signed(against['difference'])}, p = {figures.fine(against['p'])}"
    assert gain in scores.partition('data-stage="style"')[2].partition("</article>")[0]
    for name in ("not refused, though to refuse", "refused, though to answer"):
        assert f"{name}: " in scores


def test_worst_answers_stand_beside_what_was_asked_and_expected(real: Home) -> None:
    text = Path(page.write_page(str(real.path), RUN, "en")).read_text("utf-8")
    answers = text.partition('id="answers"')[2].partition('id="course"')[0]
    assert "第 11 题怎么做？" in answers
    assert "答案是11" in answers
    assert "<li" in answers
    assert "结论" in answers
    style = answers.partition("adapter_style")[2].partition("</details>")[0]
    assert "What else was expected stands in" not in style


def test_every_score_has_its_interval_on_the_page(real: Home) -> None:
    text = Path(page.write_page(str(real.path), RUN, "en")).read_text("utf-8")
    panel = text.partition('data-stage="all"')[2].partition("</article>")[0]
    for score in real.report("all")["scores"].values():
        if "value" in score:
            assert f"{figures.rate(score['low'])}–{figures.rate(score['high'])}" in panel
