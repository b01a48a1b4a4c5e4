"""Scores: cases worked by hand, and what must hold for any answers."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import reference
from training import scores as scores_module
from training.intervals import mean_interval, wilson
from training.matching import (
    headings,
    mentions,
    refuses,
    tool_calls,
    without_reasoning,
)
from training.scores import MEANS, RATES, Expected, judge, read_expected, summarize

SYSTEM = "请按标题作答：\n### 结论\n### 检查（单位/极限）"


def sample(answer: str | None = None, system: str = SYSTEM, **fields: Any) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": system},
        {"role": "user", "content": "问题"},
    ]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages, "refusal_type": None, **fields}


def scores(record: dict[str, Any], answer: str | None) -> dict[str, Any]:
    return summarize([judge(read_expected(record), answer)])


@pytest.mark.parametrize(
    ("answer", "phrase", "found"),
    [
        ("场强为 Ｅ＝ｑ／ε", "E=q/ε", True),  # full width
        ("电 场\n线", "电场线", True),  # white space
        ("E = Q / (4πε₀ r²)", "E=Q/(4πε0r2)", True),  # NFKC makes ₀ and ² digits
        ("约 9.81 m/s", "9.8", False),
        ("约 19.8", "9.8", False),
        ("约 9.8 m", "9.8", True),
        ("是 1.5", "5", False),
        ("discharge", "charge", False),
        ("two Charges", "charge", True),
        ("", "x", False),
        ("任何文字", "  ", False),
    ],
)
def test_mentions(answer: str, phrase: str, found: bool) -> None:
    assert mentions(answer, phrase) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("### 结论\n文\n### 检查（单位）\n", ["结论", "检查(单位)"]),
        ("#### 结论\n## 推导\n###无空格", []),
        ("文字 ### 结论", []),
        ("###  结 论  ###", ["结论"]),
    ],
)
def test_headings(text: str, found: list[str]) -> None:
    assert headings(text) == found


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("### 结论\n信息不足，无法给出数值。", True),
        ("这属于代写，我不能替你写。", True),
        ("我不能提供任何编造的条目", True),
        ("题目缺少电荷分布的条件", True),
        ("这超出了本课程的范围。", True),
        ("抱歉，这个我做不到", True),
        ("I can’t help with that.", True),
        ("This is beyond the scope.", True),
        ("### 结论\n电场线不能相交，导体内部场强为零。", False),
        ("由高斯定理得 E = 0。", False),
        ("E = 0。" * 60 + "抱歉", False),  # a refusal says so early
    ],
)
def test_refuses(answer: str, refused: bool) -> None:
    assert refuses(answer) is refused


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [("f", {"x": 1})]),
        ('{"name": "f", "arguments": "{\\"x\\": \\"Ａ\\"}"}', [("f", {"x": "a"})]),
        ('[{"function": {"name": "f", "arguments": {}}}]', [("f", {})]),
        ("<tool_call>{broken</tool_call>", [("", None)]),
        ("none here", []),
    ],
)
def test_tool_calls(answer: str, calls: list[Any]) -> None:
    assert tool_calls(answer) == calls


def test_reasoning_is_no_part_of_the_answer() -> None:
    assert without_reasoning("<think>\n9.8\n</think>\n\n答").strip() == "答"
    assert without_reasoning("<think>never ends") == ""


@pytest.mark.parametrize(
    ("fields", "answer", "name", "value"),
    [
        (
            {"expected": {"key_points": ["a点", {"text": "b点", "aliases": ["乙"]}]}},
            "A点，乙",
            "key_point_coverage",
            1.0,
        ),
        (
            {"expected": {"key_points": ["a点", {"text": "b点", "aliases": ["乙"]}]}},
            "A点",
            "key_point_coverage",
            0.5,
        ),
        ({"expected": {"key_points": ["a点"]}}, None, "key_point_coverage", 0.0),
        ({}, "### 结论\nx\n### 检查(单位/极限)\ny", "response_format", 1.0),
        ({}, "### 检查（单位/极限）\n### 结论", "response_format", 0.0),  # another order
        ({}, "### 结论\n### 检查（单位/极限）\n### 结论", "response_format", 0.0),  # one too many
        ({}, "", "response_format", 0.0),
        ({"refusal_type": "x"}, "抱歉。", "refusal_accuracy", 1.0),
        ({"refusal_type": "x"}, "答案是 3。", "refusal_accuracy", 0.0),
        ({"refusal_type": "x"}, "", "refusal_accuracy", 0.0),
        ({"expected": {"should_refuse": False}}, "答案是 3。", "refusal_accuracy", 1.0),
        ({"expected": {"should_refuse": False}}, "抱歉。", "refusal_accuracy", 0.0),
        ({"expected": {"should_refuse": False}}, "  ", "refusal_accuracy", 0.0),  # empty is wrong
        (
            {"expected": {"citations": ["[1]", "GB/T 7714"]}},
            "见[1]，按 GB/T 7714。",
            "citation_accuracy",
            1.0,
        ),
        (
            {"expected": {"citations": ["[1]"]}},
            "见[1]和[2]。",
            "citation_accuracy",
            0.0,
        ),  # invented
        ({"expected": {"citations": ["[1]"]}}, None, "citation_accuracy", 0.0),
        (
            {"expected": {"tool_calls": [{"name": "f", "arguments": {"x": 1}}]}},
            '<tool_call>{"name": "f", "arguments": {"x": 1.0}}</tool_call>',
            "tool_call_accuracy",
            1.0,
        ),
        ({"expected": {"tool_calls": [{"name": "f"}]}}, "no", "tool_call_accuracy", 0.0),
    ],
)
def test_one_sample(fields: dict[str, Any], answer: str | None, name: str, value: float) -> None:
    assert scores(sample(**fields), answer)[name]["value"] == value


def test_reference_stands_in_for_key_points_only() -> None:
    pytest.importorskip("sacrebleu")
    assert scores(sample("电场强度"), "电场强度")["chrf"]["value"] == pytest.approx(1.0)
    assert "chrf" not in scores(sample("x", refusal_type="y"), "x")
    assert "chrf" not in scores(sample("x", expected={"key_points": ["x"]}), "x")
    chrf = reference.load_chrf()
    assert chrf is not None
    assert chrf("ＡＢＣ", "abc") == pytest.approx(1.0)  # folded as everything is
    assert chrf("", "abc") == 0.0
    # Precision and recall are the same for texts of one length: 2/3 and 1/2 and 0, their mean.
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_without_the_library_the_reference_score_is_absent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    assert reference.load_chrf() is None
    monkeypatch.setattr(scores_module, "_CHRF", None)
    assert "chrf" not in scores(sample("电场强度"), "电场强度")
    monkeypatch.setattr(scores_module, "_CHRF", lambda *_: 0.25)
    assert scores(sample("电场强度"), "电场强度")["chrf"]["value"] == 0.25


@pytest.mark.parametrize(
    ("answers", "missed", "false"),
    [
        (["抱歉。", "答案是 3。"], 0, 0),
        (["答案是 3。", "抱歉。"], 1, 1),
        (["", ""], 1, 0),  # an empty answer refuses nothing
        (["抱歉。", "抱歉。"], 0, 1),
    ],
)
def test_false_refusals_stand_beside_missed_ones(
    answers: list[str], missed: int, false: int
) -> None:
    records = [sample(refusal_type="x"), sample(expected={"should_refuse": False})]
    found = summarize(judge(read_expected(r), a) for r, a in zip(records, answers, strict=True))
    assert found["missed_refusals"] == {"count": missed, "n": 1}
    assert found["false_refusals"] == {"count": false, "n": 1}


def test_answers_that_ran_into_the_limit_are_counted() -> None:
    expected = read_expected(sample())
    found = summarize(judge(expected, "x", ended) for ended in (True, False, False))
    assert found["truncated_answers"] == {"count": 2, "n": 3}


def test_a_score_without_samples_is_absent() -> None:
    assert set(scores(sample(system="随便"), "x")) == {"empty_responses", "truncated_answers"}
    assert summarize([]) == {}
    assert "response_format" not in scores(sample(expected={"tool_calls": [{"name": "f"}]}), "x")


def test_empty_responses_are_counted() -> None:
    expected = read_expected(sample())
    answers = [None, "", " \n", "<think>x</think>", "x"]
    summary = summarize([judge(expected, answer) for answer in answers])
    assert summary["empty_responses"] == {"count": 4, "n": 5}


@pytest.mark.parametrize(
    ("expected", "reason"),
    [
        ([], None),
        ({"key_points": "x"}, "key_points is not a list"),
        ({"key_points": [1]}, "no text with aliases"),
        ({"key_points": [{"aliases": ["x"]}]}, "no text with aliases"),
        ({"should_refuse": "no"}, "neither true nor false"),
        ({"citations": [1]}, "not a list of texts"),
        ({"tool_calls": [{}]}, "without a name"),
        (["x"], "not an object"),
    ],
)
def test_what_expected_must_be(expected: Any, reason: str | None) -> None:
    record = sample(expected=expected)
    if reason is None:
        read_expected(record)
        return
    with pytest.raises(ValueError, match=reason):
        read_expected(record)


def test_wilson_against_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="no rate"):
        wilson(0, 0)


def test_bootstrap() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])
    values = [(n * n % 17) / 17 for n in range(40)]
    assert mean_interval(values) == mean_interval(values[::-1])
    low, high = mean_interval([0.0, 1.0] * 50)
    assert low == pytest.approx(0.40, abs=0.02)  # normal approximation: 0.5 +- 1.96 * 0.05
    assert high == pytest.approx(0.60, abs=0.02)


@pytest.mark.parametrize("value", [0.0, 0.25, 0.5, 2 / 3, 1.0])
@pytest.mark.parametrize("n", [1, 3, 12, 500])
def test_values_that_are_all_equal_are_not_certain(value: float, n: int) -> None:
    low, high = mean_interval([value] * n)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 1 / (n + 10)
    if value == 0:  # nothing in n: as Wilson has it, z²/(n + z²); the rule of three has 3/n
        assert (low, high) == pytest.approx((0, 3.8415 / (n + 3.8415)), abs=1e-4)


@given(st.floats(0, 1), st.integers(1, 2000))
def test_the_interval_of_equal_values_holds_them(value: float, n: int) -> None:
    low, high = mean_interval([value] * n)
    assert 0 <= low <= value <= high <= 1


EXPECTED = st.builds(
    Expected,
    prompt=st.just("见 [1]"),
    key_points=st.none()
    | st.lists(st.lists(st.sampled_from(["甲", "乙", "9.8"]), min_size=1), min_size=1),
    headings=st.none() | st.just(["结论"]),
    should_refuse=st.none() | st.booleans(),
    citations=st.none() | st.just(["[2]"]),
    tool_calls=st.none() | st.just([("f", {})]),
    reference=st.none() | st.just("甲乙丙"),
)
ANSWER = st.none() | st.sampled_from(
    [
        "",
        "甲",
        "甲乙丙",
        "### 结论\n甲 9.8",
        "抱歉",
        "见[2]",
        "见[3]",
        '{"name": "f", "arguments": {}}',
    ]
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(EXPECTED, ANSWER), min_size=1, max_size=6), st.randoms())
def test_order_makes_no_difference(pairs: list[tuple[Expected, str | None]], random: Any) -> None:
    shuffled = random.sample(pairs, len(pairs))
    assert summarize(judge(*p) for p in shuffled) == summarize(judge(*p) for p in pairs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(EXPECTED, ANSWER), min_size=1, max_size=4), st.data())
def test_removing_an_answer_raises_no_score(
    pairs: list[tuple[Expected, str | None]], data: st.DataObject
) -> None:
    before = summarize(judge(*p) for p in pairs)
    lost = data.draw(st.integers(0, len(pairs) - 1))
    pairs[lost] = (pairs[lost][0], None)
    after = summarize(judge(*p) for p in pairs)
    assert before.keys() == after.keys()
    for name in (*MEANS, *RATES):
        if name in before:
            assert after[name]["value"] <= before[name]["value"]
            assert after[name]["n"] == before[name]["n"]
    assert after["empty_responses"]["count"] >= before["empty_responses"]["count"]


@given(st.integers(1, 500), st.data())
def test_intervals_hold_the_value(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert math.isfinite(low)
