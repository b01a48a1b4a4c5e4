"""Issues: what is written for programs comes back as it was, and people find all of it."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import issues

texts = st.text(max_size=12)
made = st.builds(
    issues.make,
    st.sampled_from(issues.PHASES),
    texts,
    category=st.sampled_from(issues.CATEGORIES),
    severity=st.sampled_from(issues.SEVERITIES),
    stage=st.none() | st.just("style"),
    cause=texts,
    action=texts,
    status=texts,
)


def test_an_issue_has_the_fields_of_the_design_brief():
    issue = issues.make("train", "It broke.", category="oom", stage="style")
    assert tuple(issue) == issues.FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", issue["time"])
    assert (issue["severity"], issue["status"]) == ("error", "open")


@pytest.mark.parametrize(
    "wrong", [{"category": "magic"}, {"category": "oom", "severity": "fatal"}, {"category": ""}]
)
def test_a_category_that_does_not_exist_is_a_defect(wrong):
    with pytest.raises(ValueError, match="no such category"):
        issues.make("train", "It broke.", **wrong)


@pytest.mark.parametrize("wrong", ["", "code_sync", "fail", "stage", "gpu_probe"])
def test_a_phase_that_does_not_exist_is_a_defect(wrong):
    with pytest.raises(ValueError, match="no such phase"):
        issues.make(wrong, "It broke.", category="oom")


@settings(max_examples=30)
@given(st.lists(made, max_size=4))
def test_what_is_appended_is_read_again(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("issues") / "run" / "issues.jsonl"
    for issue in some:
        issues.append(str(path), issue)
    assert issues.read(str(path)) == some


def test_line_ends_of_unicode_do_not_cut_an_issue(tmp_path):
    path = str(tmp_path / "issues.jsonl")
    issue = issues.make("train", "a\u2028b\x85c\u2029d", category="data", cause="x\n\ry\x1c")
    issues.append(path, issue)
    assert issues.read(path) == [issue]


def test_a_name_in_another_encoding_can_be_in_an_issue(tmp_path):
    path = str(tmp_path / "issues.jsonl")
    issue = issues.make("sync", b"odd\xff.txt".decode("utf-8", "surrogateescape"), category="data")
    issues.append(path, issue)
    assert issues.read(path) == [issue]


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "issues.jsonl"
    good = issues.make("train", "结论", category="data")
    issues.append(str(path), good)
    with path.open("ab") as stream:
        stream.write(b'{"time": "x"}\n[]\n\xff\n\n' + issues.line(good).encode()[:-10])
    assert issues.read(str(path)) == [good]
    issues.append(str(path), good)
    assert issues.read(str(path)) == [good, good]
    assert issues.read(str(tmp_path / "none")) == []


@given(st.lists(made, max_size=4), st.lists(made, max_size=4))
def test_merging_keeps_each_once_in_the_order_of_time(here, there):
    for number, issue in enumerate([*here, *there]):
        issue["time"] = f"2026-02-09T09:30:{number % 3:02}Z"
    merged = issues.merge(here, there, here)
    assert [i["time"] for i in merged] == sorted(i["time"] for i in merged)
    as_text = [json.dumps(i, sort_keys=True) for i in merged]
    assert len(set(as_text)) == len(as_text)
    assert set(as_text) == {json.dumps(i, sort_keys=True) for i in (*here, *there)}


def test_no_issue_is_said_too():
    assert "None" in issues.render([])


def test_a_section_each_with_what_is_known():
    text = issues.render(
        [
            issues.make(
                "train",
                "Memory ran out.",
                category="oom",
                stage="style",
                cause="Long chats.",
                action="Lower max_length.",
            ),
            issues.make("plan", "A marker is damaged.", category="integrity", severity="warning"),
        ]
    )
    assert text.count("\n## ") == 2
    first, second = text.split("\n## ")[1:]
    assert first.startswith("1. Memory ran out.\n")
    assert "- Where: train, stage style\n" in first
    assert "- Category: oom (error)\n" in first
    assert "- Cause: Long chats.\n" in first
    assert "- What to do: Lower max_length.\n" in first
    assert "- Where: plan\n" in second
    assert "Cause" not in second


@given(st.lists(made, min_size=1, max_size=4))
def test_each_issue_is_in_the_report(some):
    text = issues.render(some)
    for number, issue in enumerate(some, 1):
        assert f"## {number}. {issue['symptom']}\n" in text


@pytest.mark.parametrize(
    ("fields", "stage", "status", "action"),
    [
        ({"category": "infra", "action": "Try again."}, "style", "handled", ""),
        ({"category": "infra", "action": "Try again."}, "other", "open", "Try again."),
        ({"category": "data", "action": "Mend it."}, "style", "open", "Mend it."),
        (
            {
                "category": "infra",
                "status": "handled",
                "action": "Attempt 2 of 3 begins in 0.5 s. Start the same command again.",
            },
            "style",
            "handled",
            "Attempt 2 of 3 begins in 0.5 s.",
        ),
    ],
)
def test_what_a_stage_came_through_is_open_no_more(fields, stage, status, action):
    (found,) = issues.settle([issues.make("train", "It broke.", stage=stage, **fields)], ["style"])
    assert (found["status"], found["action"]) == (status, action)


def test_the_last_lines_of_a_log_are_a_block_of_code():
    issue = issues.make(
        "train", "It ended.", category="data", cause="# one\n\n  two", action="Read."
    )
    text = issues.render([issue])
    assert "- Cause: last lines of the log:\n\n      # one\n      \n        two\n\n- What" in text
