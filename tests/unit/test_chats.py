"""Checking files of chats: what is sound passes, what isn't is named by file, line and reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train.chats import MOST_PROBLEMS, check_file, check_files, check_leak, fold
from training.chats import read_chats
from training.errors import JobError

NAME = "data/training/processed/style_sft.jsonl"


def chat(
    identity: str = "a", question: str = "为什么?", answer: str = "因为。", **more: Any
) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": identity, "messages": messages, **more}, ensure_ascii=False)


def messages(*items: Any) -> str:
    return json.dumps({"id": "a", "messages": list(items)}, ensure_ascii=False)


def write(folder: Path, *lines: str | bytes, name: str = "x.jsonl") -> str:
    path = folder / name
    path.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines))
    return str(path)


USER = {"role": "user", "content": "问"}
CALL = {"type": "function", "function": {"name": "plot", "arguments": '{"x": 1}'}}

SOUND = [
    chat(),
    chat(mode="style", refusal_type=None, meta={}),
    messages({"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "a"}),
    messages(
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "done"},
    ),
    messages(USER, {"role": "assistant", "tool_calls": [{"name": "plot", "arguments": {}}]}),
    messages({"role": "assistant", "content": "a"}),  # enough to learn from, if not to ask
    chat(answer="a\u2028b\u0085c"),  # line ends to str.splitlines, not to JSON
    chat().replace(", ", ",\r"),  # a blank to JSON, a line end to bytes.splitlines
]

# A line that is no chat to learn from, and the reason that is given.
UNSOUND = [
    (
        '{"id": "a", "messages" [}',
        "not JSON (Expecting ':' delimiter at column 24)",
    ),
    ('{"id": "a" "b": 1}', "not JSON (Expecting ',' delimiter at column 12)"),
    ("[1]", "not a JSON object but a list"),
    ("null", "not a JSON object but null"),
    ("3", "not a JSON object but a number"),
    ('{"messages": []}', "it has no id"),
    ('{"id": 7, "messages": []}', "its id is 7, not a text"),
    ('{"id": " ", "messages": []}', 'its id is " ", not a text'),
    ('{"id": "a"}', "it has no messages"),
    ('{"id": "a", "messages": []}', "its messages are not a list with something in it"),
    ('{"id": "a", "messages": "hi"}', "its messages are not a list with something in it"),
    (messages("hi"), "message 1 is not an object but a text"),
    (
        messages(USER, {"role": "bot", "content": "a"}),
        'the role of message 2 is "bot", none of system, user, assistant, tool',
    ),
    (
        messages(USER, {"role": ["user"], "content": "a"}),
        'the role of message 2 is ["user"], none of system, user, assistant, tool',
    ),
    (
        messages({"role": "user", "content": 3}),
        "the content of message 1 is not a text but a number",
    ),
    (
        messages({"role": "user", "content": [{"type": "text"}]}),
        "the content of message 1 is not a text but a list",
    ),
    (
        messages({"role": "user", "content": None}),
        "message 1 has no content (only an assistant's tool_calls replace it)",
    ),
    (
        messages({"role": "user", "tool_calls": [CALL]}),
        "message 1 has no content (only an assistant's tool_calls replace it)",
    ),
    (
        messages(USER, {"role": "assistant", "content": None, "tool_calls": []}),
        "message 2 has no content (only an assistant's tool_calls replace it)",
    ),
    (
        messages(USER, {"role": "assistant", "content": "a", "tool_calls": {"a": 1}}),
        "the tool_calls of message 2 are not a list but an object",
    ),
    (
        messages(USER, {"role": "assistant", "content": "a", "tool_calls": [{"function": {}}]}),
        "a tool call of message 2 names no function",
    ),
    (
        messages(USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}),
        "the arguments of a tool call of message 2 are not an object",
    ),
    (messages(USER), "it has no assistant's turn to learn from"),
    (
        messages(USER, {"role": "assistant", "content": " \n"}),
        "it has no assistant's turn to learn from",
    ),
    (
        '{"id": "\\ud800", "messages": []}',
        "a \\u escape is half of a character (a lone surrogate)",
    ),
    ("[" * 100_000, "not JSON that can be read (nested too deeply)"),
]


@pytest.mark.parametrize("line", SOUND)
def test_sound(tmp_path: Path, line: str) -> None:
    report = check_file(write(tmp_path, line), NAME)
    assert report.problems == []
    assert report.ok
    assert (report.lines, report.chats) == (1, 1)


@pytest.mark.parametrize(("line", "reason"), UNSOUND)
def test_unsound(tmp_path: Path, line: str, reason: str) -> None:
    report = check_file(write(tmp_path, chat("first"), line), NAME)
    assert [(p.file, p.line, p.reason) for p in report.problems] == [(NAME, 2, reason)]
    assert not report.ok
    assert (report.lines, report.chats) == (2, 1)


def test_message_is_the_one_a_person_reads(tmp_path: Path) -> None:
    lines = [chat(str(number)) for number in range(6)]
    report = check_file(write(tmp_path, *lines, '{"id": "a" 3}'), NAME)
    assert [str(problem) for problem in report.problems] == [
        f"{NAME}, line 7: not JSON (Expecting ',' delimiter at column 12)."
    ]


def test_a_number_too_long_to_read_is_a_problem_and_no_crash(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, '{"id": ' + "9" * 10_000 + "}"), NAME)
    assert report.problem_count == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is empty"), (b"\n \n\r\n", "it holds nothing but blank lines")],
)
def test_empty(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert [str(p) for p in check_file(str(path), NAME).problems] == [f"{NAME}: {reason}."]


def test_not_there_and_not_a_file(tmp_path: Path) -> None:
    missing = check_file(str(tmp_path / "no"), NAME)
    assert [str(p) for p in missing.problems] == [f"{NAME}: there is no such file."]
    folder = check_file(str(tmp_path), NAME)
    assert [str(p) for p in folder.problems] == [f"{NAME}: it is not a regular file."]
    below = check_file(write(tmp_path, chat()) + "/x", NAME)
    assert [str(p) for p in below.problems] == [f"{NAME}: it can't be read (Not a directory)."]
    odd = check_file("a\0b", NAME)
    assert odd.problem_count == 1


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_bad_utf8_names_the_offset_in_the_file(tmp_path: Path, bom: bytes) -> None:
    first = bom + chat().encode()
    path = write(tmp_path, first, b'{"id": "\xe4\xb8\xff"}')
    offset = len(first) + 1 + len(b'{"id": "')
    assert Path(path).read_bytes()[offset] == 0xE4
    (problem,) = check_file(path, NAME).problems
    assert problem.line == 2
    assert problem.reason == f"not UTF-8 (byte 0xe4 at offset {offset} of the file)"


def test_blank_lines_crlf_and_bom_are_passed_over(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + chat("a").encode() + b"\r\n\r\n" + chat("b").encode()
    path = tmp_path / "x"
    path.write_bytes(content)
    report = check_file(str(path), NAME)
    assert (report.ok, report.lines, report.chats) == (True, 2, 2)
    assert report.ids == {"a": 1, "b": 3}
    assert report.digest == "sha256:" + hashlib.sha256(content).hexdigest()


def test_an_id_twice(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, chat("a"), chat("b"), chat("a"), chat("a")), NAME)
    assert [(p.line, p.reason) for p in report.problems] == [
        (3, 'the id "a" is already that of line 1'),
        (4, 'the id "a" is already that of line 1'),
    ]


def test_the_first_problems_are_told_and_all_are_counted(tmp_path: Path) -> None:
    report = check_file(write(tmp_path, *["x"] * 50), NAME)
    assert report.problem_count == 50
    assert [problem.line for problem in report.problems] == list(range(1, MOST_PROBLEMS + 1))
    assert report.facts()["problem_count"] == 50


def test_what_a_benchmark_needs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        messages(USER),
        messages({"role": "system", "content": "s"}).replace('"a"', '"b"'),
        chat("c", expected={"key_points": []}),
        chat("d", expected=["x"]),
    )
    report = check_file(path, NAME, "evaluate")
    assert [(p.line, p.reason) for p in report.problems] == [
        (2, "it has no user's turn to answer"),
        (4, "its expected is not an object but a list"),
    ]


def test_a_file_that_plays_both_parts_is_held_to_both(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        messages(USER),
        messages({"role": "assistant", "content": "a"}).replace('"a",', '"b",'),
        chat("c"),
    )
    report = check_file(path, NAME, "train", "evaluate")
    assert [(p.line, p.reason) for p in report.problems] == [
        (1, "it has no assistant's turn to learn from"),
        (2, "it has no user's turn to answer"),
    ]


def turns(*questions: str) -> str:
    items = [
        message
        for question in questions
        for message in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": "答"},
        )
    ]
    return messages(*items)


@pytest.mark.parametrize(
    ("trained", "asked", "leaks"),
    [
        (["高斯定理是什么?"], ["高斯定理是什么?"], True),
        (["高斯定理是什么?"], ["高斯定律是什么?"], False),
        (["高斯定理是什么?"], [" 高斯 定理是什么？\n"], True),  # blanks, full-width mark
        (["What is Gauss' law?"], ["what is  GAUSS' LAW?"], True),
        (["é"], ["e\u0301"], True),
        (["q1", "q2", "q3"], ["q2"], True),
        (["q1", "q2", "q3"], ["q2", "q3"], True),
        (["q1", "q2", "q3"], ["q1", "q3"], False),
        (["q2"], ["q1", "q2"], False),
        (["x", "a", "a", "b"], ["a", "b"], True),
    ],
)
def test_leak(tmp_path: Path, trained: list[str], asked: list[str], leaks: bool) -> None:
    train = check_file(write(tmp_path, turns(*trained), name="train"), "train.jsonl")
    bench = check_file(write(tmp_path, turns(*asked), name="bench"), "bench.jsonl", "evaluate")
    assert train.ok
    assert bench.ok
    expected = (
        "bench.jsonl, line 1: the same question is in the training data (train.jsonl, line 1)."
    )
    assert [str(p) for p in check_leak([train], [bench])] == ([expected] if leaks else [])


@given(st.text(), st.text(alphabet=" \t\n\u3000", max_size=3))
def test_folding_settles_and_ignores_blanks(text: str, blanks: str) -> None:
    assert fold(blanks + text + blanks) == fold(text)
    assert not any(character.isspace() for character in fold(text))


def test_stages_are_checked_each_with_its_own_files(tmp_path: Path) -> None:
    write(tmp_path, turns("q1"), name="sample.jsonl")
    write(tmp_path, turns("q2"), name="style.jsonl")
    write(tmp_path, turns("q1"), name="bench.jsonl")
    sample = [
        {"name": "sample.jsonl", "role": "train", "stage": "sample"},
        {"name": "sample.jsonl", "role": "evaluate", "stage": "sample"},
    ]
    style = [
        {"name": "style.jsonl", "role": "train", "stage": "style"},
        {"name": "bench.jsonl", "role": "evaluate", "stage": "style"},
    ]
    reports, leaks = check_files(str(tmp_path), sample + style)
    assert leaks == []  # sample is scored on itself; style doesn't train on it
    assert [report.file for report in reports] == [
        "sample.jsonl",
        "style.jsonl",
        "bench.jsonl",
    ]
    both = [{**item, "stage": "both"} for item in (sample[0], style[0], style[1])]
    _reports, leaks = check_files(str(tmp_path), [*style, *both, *both])
    assert [str(leak) for leak in leaks] == [
        "bench.jsonl, line 1: the same question is in the training data (sample.jsonl, line 1)."
    ]


def test_one_report_for_a_file_that_plays_both_parts(tmp_path: Path) -> None:
    write(tmp_path, messages({"role": "assistant", "content": "a"}), name="a")
    files = [{"name": "a", "role": role, "stage": "sample"} for role in ("train", "evaluate")]
    (report,), _leaks = check_files(str(tmp_path), files)
    assert [problem.reason for problem in report.problems] == ["it has no user's turn to answer"]


def test_files_without_a_stage_are_one_stage(tmp_path: Path) -> None:
    write(tmp_path, turns("q1"), name="a")
    write(tmp_path, turns("q1"), name="b")
    files = [{"name": "a", "role": "train"}, {"name": "b", "role": "evaluate"}]
    assert len(check_files(str(tmp_path), files)[1]) == 1
    assert check_files(str(tmp_path), []) == ([], [])


@pytest.mark.parametrize("line", [*SOUND, *[line for line, _reason in UNSOUND]])
def test_what_passes_here_is_what_the_training_reads(tmp_path: Path, line: str) -> None:
    """The training's own reader never refuses what passed the gate."""
    path = write(tmp_path, line)
    if check_file(path, NAME).ok:
        assert len(read_chats(tmp_path, "x.jsonl").chats) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["id", "messages", "role", "content", "tool_calls", "function", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(line=json_values.map(json.dumps).map(str.encode) | st.binary(max_size=60))
def test_any_line_gives_a_report_and_agrees_with_the_training(
    tmp_path_factory: pytest.TempPathFactory, line: bytes
) -> None:
    folder = tmp_path_factory.mktemp("chats")
    path = write(folder, line)
    if check_file(path, NAME).ok:
        try:
            read_chats(folder, "x.jsonl")
        except JobError as error:
            pytest.fail(f"passed the gate, but: {error}")
