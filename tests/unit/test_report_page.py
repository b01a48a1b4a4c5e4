"""``report.html`` without a browser: what it is drawn from, what it says, what stays harmless."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import string
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.report import charts, choice, facts, figures, page, paired, plots, read, words
from remote_train.errors import TrainError
from tests.unit.report_home import (
    ADAPTERS,
    HOSTILE,
    RUN,
    STYLE,
    THRESHOLDS,
    WRITING,
    Home,
    at,
    full_of,
    with_base,
)

LANGUAGES = sorted(words.TABLES)


class Page(HTMLParser):
    """A page's elements with their attributes, its texts, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag == "section":
            self._section = found["id"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        self.sections[self._section] = self.sections.get(self._section, "") + f"{data} "

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    def series(self) -> Iterator[tuple[str, str, list[list[float] | None]]]:
        """Chart, series and points of all that is drawn."""
        chart = ""
        for _, attributes in self.elements:
            chart = attributes.get("data-chart", chart)
            if "data-series" in attributes:
                yield chart, attributes["data-series"], json.loads(attributes["data-points"])

    def points(self, chart: str, series: str) -> list[list[float] | None]:
        return next(p for c, s, p in self.series() if (c, s) == (chart, series))


def drawn(home: Home, language: str = "en") -> Page:
    return Page(text_of(home, language))


def text_of(home: Home, language: str = "en") -> str:
    home.write()
    return Path(page.write_page(str(home.path), RUN, language)).read_text(encoding="utf-8")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


# Every plotted value is one of the files'


def test_the_loss_that_is_drawn_is_the_loss_of_each_step(home: Home) -> None:
    shown = drawn(home)
    for stage in ADAPTERS:
        steps = home.steps(stage)
        assert shown.points(f"loss:{stage}", "loss") == [[s["step"], s["loss"]] for s in steps]
        mean = shown.points(f"loss:{stage}", "loss_mean")
        half = plots.window(len(steps)) // 2
        for number, (step, value) in enumerate(mean):
            around = [s["loss"] for s in steps[max(0, number - half) : number + half + 1]]
            assert step == number + 1
            assert value == pytest.approx(math.fsum(around) / len(around), rel=1e-12)


def test_scores_are_drawn_with_intervals_thresholds_and_the_base_model(home: Home) -> None:
    with_base(home, "style")
    shown = drawn(home)
    for stage in ADAPTERS:
        scores = {n: s for n, s in home.report(stage)["scores"].items() if "value" in s}
        names = [n for n in choice.SCORES if n in scores or n in THRESHOLDS[stage]]
        rows = {name: -float(number) for number, name in enumerate(names)}
        chart = f"scores:{stage}"
        assert shown.points(chart, "values") == [
            [scores[n]["value"], rows[n]] for n in names if n in scores
        ]
        spans = [[scores[n]["low"], scores[n]["high"]] for n in names if n in scores]
        flat = [p for p in shown.points(chart, "intervals") if p]
        assert [[a[0], b[0]] for a, b in zip(flat[::2], flat[1::2], strict=True)] == spans
        if THRESHOLDS[stage]:
            marks = [p for p in shown.points(chart, "thresholds") if p]
            assert {p[0] for p in marks} == set(THRESHOLDS[stage].values())
    base = home.report("style")["base"]["scores"]
    assert [p[0] for p in shown.points("scores:style", "base")] == [
        base[name]["value"] for name in choice.SCORES if name in base
    ]
    assert "base" not in [
        series for chart, series, _ in shown.series() if chart == "scores:writing"
    ]


def test_the_timeline_holds_each_part_of_each_stage(home: Home) -> None:
    shown = drawn(home)
    for number, stage in enumerate(ADAPTERS, 1):
        record = home.files[f"stage_{stage}.json"]
        for phase in plots.PHASES:
            points = shown.points("timeline", phase)[(number - 1) * 3 : number * 3 - 1]
            assert {p[1] for p in points} == {-number}
            assert points[1][0] - points[0][0] == pytest.approx(record["phases"][phase])
        start = figures.seconds_between(at(0), record["started"])
        assert shown.points("timeline", "start")[(number - 1) * 3][0] == start
    assert [p[0] for p in shown.points("timeline", "issues")] == [20, 95]


def test_speed_and_memory_are_drawn_over_the_seconds_of_training(home: Home) -> None:
    shown = drawn(home)
    steps = home.steps("writing")
    times = [sum(sum(s["seconds"].values()) for s in steps[: n + 1]) for n in range(len(steps))]
    memory = shown.points("memory", "writing")
    assert [p[1] for p in memory] == [s["peak_memory_bytes"] for s in steps]
    assert [p[0] for p in memory] == pytest.approx(times)
    assert [p[0] for p in shown.points("speed", "writing")] == pytest.approx(times)


def test_where_there_is_no_gpu_there_is_no_gpu_memory(tmp_path: Path) -> None:
    shown = drawn(Home(tmp_path, gpu=False))
    assert "memory" not in {chart for chart, _, _ in shown.series()}
    assert "There was no GPU" in shown.sections["speed"]


def test_drawn_places_agree_with_the_axes(home: Home) -> None:
    """The marks of the axes say what a place means; each point stands where its value does."""
    with_base(home, "style")
    text = text_of(home)
    found = 0
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        x, y = axes(svg)
        for group in re.findall(r'<g class="series [^>]*data-points.*?</g>', svg, re.DOTALL):
            points = [
                point for point in json.loads(re.search(r'data-points="(.*?)"', group)[1]) if point
            ]
            places = [pair for path in re.findall(r'd="(.*?)"', group) for pair in pairs(path)]
            places = places or re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', whole_group(svg, group))
            assert len(places) == len(points), group[:200]
            for (value_x, value_y), (place_x, place_y) in zip(points, places, strict=True):
                assert float(place_x) == pytest.approx(x(value_x), abs=0.01)
                assert float(place_y) == pytest.approx(y(value_y), abs=0.01)
                found += 1
    assert found > 1000


def pairs(path: str) -> list[tuple[str, str]]:
    """The places that a path goes through."""
    numbers = re.findall(r"[\d.]+", path)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def whole_group(svg: str, start: str) -> str:
    """A group of dots, each of which is a group itself."""
    return svg[svg.index(start) :].split('<g class="series')[1]


def axes(svg: str) -> tuple[Any, Any]:
    """What turns a value into a place, from two labelled marks of each axis.

    Where labels are names, rows are one apart, and the first one is 0.
    """
    vertical = re.findall(r'd="M([\d.]+) 0\.0+ v[\d.]+"[^>]*/><text[^>]*>([^<]*)<', svg)
    level = re.findall(r'd="M0\.0+ ([\d.]+) h[\d.]+"[^>]*/><text[^>]*>([^<]*)<', svg)
    chart = re.search(r'data-chart="(\w+)', svg)[1]
    unit = 2**30 if chart == "memory" else 1
    longest = 60 if chart == "timeline" else 1  # its marks are minutes
    across = [(number(text) * longest, float(place)) for place, text in vertical]
    if chart in ("scores", "timeline"):
        up = [(-float(row), float(place)) for row, (place, _) in enumerate(level)]
    else:
        up = [(number(text) * unit, float(place)) for place, text in level]
    return line(across), line(up)


def number(text: str) -> float:
    return float(text.replace("\u202f", "").replace("−", "-"))


def line(marks: list[tuple[float, float]]) -> Any:
    (v0, p0), (v1, p1) = marks[0], marks[-1]
    return lambda value: p0 + (value - v0) * (p1 - p0) / (v1 - v0)


def test_a_long_line_keeps_its_highest_and_lowest_points(tmp_path: Path) -> None:
    home = Home(tmp_path, steps=5000)
    steps = home.steps("style")
    steps[3210]["loss"] = 9.5
    points = drawn(home).points("loss:style", "loss")
    assert len(points) <= charts.MOST_POINTS
    assert [3211, 9.5] in points
    assert {tuple(p) for p in points} <= {(s["step"], s["loss"]) for s in steps}


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200),
    st.integers(2, 40),
)
def test_thinning_leaves_only_points_that_are_there_in_their_order(
    values: list[float], most: int
) -> None:
    points = [(float(x), y) for x, y in enumerate(values)]
    left = charts.thinned(points, most)
    assert set(left) <= set(points)
    assert left == sorted(left)
    assert max(y for _, y in left) == max(values)
    assert min(y for _, y in left) == min(values)


@given(st.floats(-1e9, 1e9), st.just(0.0) | st.floats(1e-9, 1e9), st.integers(2, 9))
def test_an_axis_holds_its_range(low: float, span: float, most: int) -> None:
    axis = charts.ticks(low, low + span, str, most)
    assert axis.low <= low + 1e-6 * max(span, abs(low))
    assert axis.high >= low + span - 1e-6 * max(span, abs(low))
    assert 2 <= len(axis.ticks) <= most + 3


# What it says


def test_the_six_questions_are_answered(home: Home) -> None:
    short = drawn(home).sections["short"]
    assert "4 LoRA adapters for the base model Qwen/Qwen3-8B" in short
    assert "adapter_sample is a trial" in short
    assert "style: 36 chats from style_sft.jsonl" in short
    for question in ("trained", "data", "well", "sure", "wrong", "use"):
        assert words.ENGLISH[f"short_{question}"] in short
    assert "CUDA ran out of memory at step 12." in short
    assert "24 questions" in short
    assert "The acceptance gate fails style" in short


def test_digests_settings_and_what_differs_are_there(home: Home) -> None:
    made = drawn(home).sections["made"]
    report = home.report("style")
    assert report["data"][STYLE].removeprefix("sha256:") in made
    assert "training of style, all" in made
    assert "scoring of writing, all" in made
    rate = made[made.index("learning_rate") : made.index("num_train_epochs")]
    assert rate.split() == ["learning_rate", "0.0001", "0.0001", "0.0002", "0.0001"]
    assert "NVIDIA H100 80GB HBM3" in made
    assert "q_proj, v_proj" in made


def test_an_issue_has_symptom_cause_and_what_to_do_the_gravest_first(home: Home) -> None:
    shown = drawn(home).sections["issues"]
    first, second = shown.index("CUDA ran out"), shown.index("gpu_throttle")
    assert first < second
    assert "the micro-batch was too large" in shown
    assert "Watch the temperature." in shown


def test_a_score_the_benchmark_can_not_give_is_absent_and_not_nought(home: Home) -> None:
    shown = drawn(home)
    assert "absent: the benchmark has no question for it" in shown.sections["scores"]
    assert "all: add questions to the benchmark that citations" in shown.sections["next"]


def test_the_worst_answers_stand_beside_what_was_expected(home: Home) -> None:
    worst = home.predictions("style")[5]
    worst["answer"] = ""
    worst["verdict"] = {
        "key_point_coverage": 0.0,
        "response_format": False,
        "refusal_accuracy": False,
        "missed": ["E = σ/ε₀"],
        "empty": True,
    }
    shown = drawn(home).sections["answers"]
    assert shown.index(worst["id"]) == min(
        shown.index(p["id"]) for p in home.predictions("style") if p["id"] in shown
    )
    assert "(empty)" in shown
    assert "用高斯定理推导" in shown
    assert "An answer, not a refusal." in shown


def test_the_worst_answers_need_no_prompt_and_no_expectation(home: Home) -> None:
    """Older files don't have them."""
    for stage in ADAPTERS:
        for prediction in home.predictions(stage):
            del prediction["prompt"], prediction["expected"]
    shown = drawn(home).sections["answers"]
    assert f"stands in {STYLE}, line" in shown
    assert "Question" not in shown


def test_adapters_of_other_runs_are_not_counted(home: Home) -> None:
    for stage in ("sample", "style", "all"):
        home.row(stage).update(state="left out")
    assert "One LoRA adapter for the base model" in drawn(home).sections["short"]


def test_a_failed_run_says_what_to_do(home: Home) -> None:
    home.files["run.json"]["verdict"] = "failed"
    home.row("style").update(state="failed", error={"symptom": "The loss is nan at step 3."})
    home.row("writing").update(state="not reached")
    shown = drawn(home)
    assert "Read the issues of style" in shown.sections["next"]
    assert "it goes on with writing" in shown.sections["next"]
    assert "The loss is nan at step 3." in shown.sections["course"]
    assert "finds nothing to do" not in shown.sections["next"]


def test_a_record_that_the_controller_alone_has_left_is_a_page_too(tmp_path: Path) -> None:
    folder = tmp_path / "training_sync" / RUN
    folder.mkdir(parents=True)
    line = {"severity": "error", "symptom": "The host is gone.", "time": at(5)}
    (folder / "issues.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    shown = Page(Path(page.write_page(str(tmp_path), RUN, "en")).read_text(encoding="utf-8"))
    assert "The host is gone." in shown.sections["short"]
    assert "No adapter came home" in shown.sections["short"]
    assert "nothing on this page was verified" in "".join(shown.texts)


# Which adapter


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (8, 2, 2 * (1 + 10 + 45) / 1024)],
)
def test_the_sign_test_on_cases_worked_by_hand(better: int, worse: int, p: float) -> None:
    assert paired.sign_test(better, worse) == pytest.approx(p)
    assert paired.sign_test(worse, better) == pytest.approx(p)


def test_the_sign_test_takes_a_large_benchmark() -> None:
    assert paired.sign_test(2600, 2400) == pytest.approx(0.00487, rel=0.01)
    assert paired.sign_test(5000, 0) == 0.0


def decide(home: Home, style: float, multitask: float) -> None:
    """Make the first so many of a hundred answers of each right, and all gates pass."""
    for stage, share in (("style", style), ("all", multitask)):
        right = 0
        for one in home.predictions(stage):
            is_right = one["file"] == WRITING or one["line"] <= 100 * share
            right += is_right and one["file"] == STYLE
            one["verdict"] = {"response_format": is_right, "missed": [], "empty": False}
        score = {"value": right / 100, "n": 100, "low": 0.0, "high": 1.0}
        home.report(stage)["scores"] = {"response_format": score}
    for stage in ADAPTERS:
        home.row(stage)["acceptance"] = "passed"


@pytest.mark.parametrize(
    ("style", "multitask", "says"),
    [
        (0.9, 0.5, "adapter_style (mean 0.90). It is better than adapter_multitask (0.50) by more"),
        (0.5, 0.9, "adapter_multitask (mean 0.90). It is better than adapter_style (0.50) by more"),
        (0.52, 0.5, "adapter_style (mean 0.52). Its lead over adapter_multitask (0.50) may be"),
    ],
)
def test_the_better_adapter_is_named_and_how_sure_that_is(
    tmp_path: Path, style: float, multitask: float, says: str
) -> None:
    home = Home(tmp_path, questions=100)
    decide(home, style, multitask)
    short = drawn(home).sections["short"]
    assert f"For style_benchmark: {says}" in short
    assert ("it can serve for everything" in short) == (style - multitask < 0.1)


def test_what_fails_its_gate_comes_after_what_passes(tmp_path: Path) -> None:
    home = Home(tmp_path, questions=100)
    decide(home, 0.9, 0.5)
    home.row("style")["acceptance"] = "failed"
    short = drawn(home).sections["short"]
    assert "adapter_multitask (mean 0.50) rather than adapter_style (0.90)" in short


def test_an_adapter_with_an_empty_answer_is_not_advised(tmp_path: Path) -> None:
    home = Home(tmp_path, questions=100)
    decide(home, 0.9, 0.5)
    home.predictions("style")[0]["verdict"]["empty"] = True
    short = drawn(home).sections["short"]
    assert "For style_benchmark: adapter_multitask" in short
    for one in home.predictions("all"):
        one["verdict"]["empty"] = True
    shown = drawn(home)
    assert "gave 1 empty answers: don't use it" in shown.sections["short"]


def test_an_adapter_that_its_base_model_beats_is_not_advised(home: Home) -> None:
    with_base(home, "writing", worse=-0.2)
    home.row("all")["acceptance"] = "failed"
    home.row("writing")["acceptance"] = "passed"
    assert "base model alone does better than adapter_writing" in drawn(home).sections["short"]


def test_a_trial_alone_is_no_adapter_to_use(home: Home) -> None:
    home.files["run.json"]["stages"] = [home.row("sample")]
    assert "None. What was trained is a trial" in drawn(home).sections["short"]


# What it is drawn from


def test_a_file_of_a_later_run_is_not_shown_as_this_ones(home: Home) -> None:
    home.write()
    later = home.path / "adapter/adapter_style/metrics.jsonl"
    later.write_text('{"step": 1, "loss": 77.0}\n', encoding="utf-8")
    text = Path(page.write_page(str(home.path), RUN, "en")).read_text(encoding="utf-8")
    charts_there = {chart for chart, _, _ in Page(text).series()}
    assert "loss:style" not in charts_there
    assert "loss:writing" in charts_there
    assert "outputs/adapter/adapter_style/metrics.jsonl" in text
    assert "77" not in "".join(Page(text).sections["loss"])


@pytest.mark.parametrize("name", ["run.json", "eval_report_style.json", "issues.jsonl"])
def test_a_flipped_byte_in_the_runs_folder_is_not_shown(home: Home, name: str) -> None:
    home.write()
    path = home.folder / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    found = read.read_run(str(home.path), RUN)
    assert found.left_out == [name]
    assert name in page.page_of(found, "en")


def test_the_page_itself_is_in_no_list(home: Home) -> None:
    home.write()
    page.write_page(str(home.path), RUN, "en")
    listed = (home.folder / "SHA256SUMS").read_text(encoding="utf-8")
    assert "report.html" not in listed
    again = read.read_run(str(home.path), RUN)
    assert again.left_out == []


@pytest.mark.parametrize("name", ["run_x", "", "../..", "run_20200101T000000Z"])
def test_a_run_that_is_not_there_is_an_error_that_names_those_that_are(
    home: Home, name: str
) -> None:
    home.write()
    with pytest.raises(TrainError) as caught:
        page.write_page(str(home.path), name, "en")
    assert RUN in caught.value.hint


def test_a_stage_of_a_hostile_name_reads_no_file(home: Home) -> None:
    row = {**home.row("style"), "name": "../../../../etc/passwd"}
    home.files["run.json"]["stages"].append(row)
    home.files["run.json"]["stages"].append({**row, "name": "a\0b"})
    home.write()
    assert [stage.name for stage in read.read_run(str(home.path), RUN).stages] == list(ADAPTERS)


def test_an_adapter_folder_elsewhere_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "training_sync" / RUN
    folder.mkdir(parents=True)
    row = {"name": "style", "state": "done", "adapter_dir": "../../../etc"}
    (folder / "run.json").write_text(json.dumps({"stages": [row]}), encoding="utf-8")
    (stage,) = read.read_run(str(tmp_path), RUN).stages
    assert stage.adapter == ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "value", "n", "scores", "data", "verdict", "seconds", "style"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_files_of_any_form_give_a_page(tmp_path_factory: Any, data: Any) -> None:
    """Any value in a file may be anything; the page then says less, and is drawn all the same."""
    home = Home(tmp_path_factory.mktemp("any"), questions=2, steps=3)
    name = data.draw(st.sampled_from(sorted(home.files)))
    content = home.files[name]
    target = content[0] if isinstance(content, list) else content
    if isinstance(target, dict):
        if name == "run.json" and data.draw(st.booleans()):
            target = target["stages"][1]
        for key in data.draw(st.lists(st.sampled_from(sorted(target)), max_size=3)):
            target[key] = data.draw(JSON)
    shown = drawn(home)
    assert shown.sections["short"]


# Hostile text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_stays_text(tmp_path: Path, text: str) -> None:
    clean = drawn(Home(tmp_path / "clean"))
    source = text_of(full_of(Home(tmp_path / "hostile"), text))
    shown = Page(source)
    assert shown.tags() == clean.tags() | {"br"}
    attributes = {name for _, found in shown.elements for name in found}
    assert attributes == {name for _, found in clean.elements for name in found}
    assert not [name for name in attributes if name.startswith("on")]
    assert facts.clean(text) in "".join(shown.texts)
    assert not set(source) & {*map(chr, range(9)), "\x1b", "\u202e", "\u2066", "\x7f"}


def test_names_of_files_and_adapters_are_text_too(home: Home) -> None:
    name = "<iframe onload=alert(1)>'\".jsonl"
    for stage in ("style", "all"):
        for one in home.predictions(stage):
            one["file"] = name if one["file"] == STYLE else one["file"]
        report = home.report(stage)
        report["data"] = {name if f == STYLE else f: d for f, d in report["data"].items()}
    shown = drawn(home)
    assert "iframe" not in shown.tags()
    assert name.removesuffix(".jsonl") in shown.sections["use"]


@given(st.text())
def test_cleaning_leaves_nothing_that_hides_or_reorders(text: str) -> None:
    left = facts.clean(text)
    assert len(left) == len(text)
    left.encode("utf-8")
    assert all(sign in "\n\t" or ord(sign) >= 0x20 for sign in left)
    kept = string.printable.replace("\x0b", "").replace("\x0c", "").replace("\r", "")
    assert facts.clean(kept) == kept


def test_nothing_but_its_own_style_may_load_or_run(home: Home) -> None:
    source = text_of(home)
    shown = Page(source)
    assert not shown.tags() & {"script", "img", "iframe", "link", "object", "embed", "base", "form"}
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for t, a in shown.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "url(" not in style
    for _, attributes in shown.elements:
        assert "style" not in attributes
        assert attributes.get("href", "#").startswith("#")
        assert not set(attributes) & {"src", "srcset", "xlink:href", "action"}
    named = {a["id"] for _, a in shown.elements if "id" in a}
    assert {a["href"][1:] for t, a in shown.elements if t == "a"} <= named


# Languages


def test_both_languages_have_the_same_words_with_the_same_values() -> None:
    assert set(words.CHINESE) == set(words.ENGLISH)

    def names(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    for key, text in words.ENGLISH.items():
        assert names(words.CHINESE[key]) == names(text), key
        assert bool(words.CHINESE[key]) == bool(text), key


def test_every_word_is_used() -> None:
    folder = Path(page.__file__).parent
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in folder.iterdir()
        if path.suffix in (".py", ".j2") and path.name != "words.py"
    )
    families = ("verdict", "state", "acceptance", "severity", "result", "wrong", "phase", "unit")
    for key in words.ENGLISH:
        family = key.split("_")[0]
        known = key in choice.SCORES or key.removesuffix("_means") in choice.SCORES
        assert known or family in families or re.search(rf"['\"]{key}['\"]", source), key


def test_numbers_are_the_same_in_both_languages(home: Home) -> None:
    with_base(home, "style")
    pages = [drawn(home, language) for language in LANGUAGES]
    english, chinese = (list(p.series()) for p in pages)
    assert english == chinese
    first, second = (
        sorted(re.findall(r"\d+(?:[.]\d+)?", " ".join(shown.texts))) for shown in pages
    )
    assert first == second


def test_the_chinese_page_is_chinese(home: Home) -> None:
    shown = drawn(home, "zh")
    assert ("html", {"lang": "zh-CN"}) in shown.elements
    assert "该用哪个适配器" in shown.sections["use"]
    assert "Which adapter" not in "".join(shown.texts)


def test_an_unknown_state_is_shown_as_it_is(home: Home) -> None:
    home.row("style")["state"] = "paused"
    assert "paused" in drawn(home).sections["course"]


# Time


def test_a_report_of_5000_items_takes_under_2_seconds(tmp_path: Path) -> None:
    home = Home(tmp_path, questions=2500, steps=1000)
    home.write()
    assert len(home.predictions("all")) == 5000
    started = time.process_time()
    path = page.write_page(str(home.path), RUN, "en")
    assert time.process_time() - started < 2
    assert os.path.getsize(path) < 2 << 20
