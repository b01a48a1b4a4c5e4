"""The last lines of a log, and which log it is."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.log_lines import LONGEST, LogLines, plain
from controller.text import printable
from remote_train import live, log_tail

# The last lines


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=9)),
    ended=st.booleans(),
    count=st.integers(1, 12),
    block=st.integers(1, 40),
)
def test_as_tail_does(tmp_path_factory, lines, ended, count, block):
    path = tmp_path_factory.mktemp("log") / "log"
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    path.write_text(text, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_tail, "BLOCK", block)
        found = log_tail.last_lines(str(path), count)
    expected = text.split("\n")
    whole = expected[:-1] if expected[-1] == "" else expected
    tail = "\n".join(whole[-count:]) + ("\n" if text.endswith("\n") else "")
    assert found == {"text": tail, "end": len(text.encode()), "cut": False}


def test_a_log_of_some_gigabytes_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "log"
    with path.open("wb") as stream:
        stream.truncate(8 * 1024**3)  # a hole: nothing of it lies on the disk
        stream.seek(0, os.SEEK_END)
        stream.write(b"\nlast but one\nlast\n")
    read = []

    class Counted:
        def __init__(self, path, mode):
            self._stream = open(path, mode)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._stream.close()

        def seek(self, *where):
            return self._stream.seek(*where)

        def read(self, size):
            read.append(size)
            return self._stream.read(size)

    monkeypatch.setattr(log_tail, "open", Counted, raising=False)
    found = log_tail.last_lines(str(path), 2)
    assert found["text"] == "last but one\nlast\n"
    assert found["end"] == path.stat().st_size
    assert sum(read) <= 2 * log_tail.BLOCK
    # One endless line is read as far as that is allowed.
    found = log_tail.last_lines(str(path), 4, most=100_000)
    assert found["cut"]
    assert len(found["text"]) == 100_000


def test_an_empty_log(tmp_path):
    (tmp_path / "log").touch()
    assert log_tail.last_lines(str(tmp_path / "log"), 3) == {"text": "", "end": 0, "cut": False}


# Which log

LOGS = "outputs/logs"
OLD = f"{LOGS}/train_style_20260209T093000Z.log"
NEW = f"{LOGS}/train_style_20260210T093000Z.log"
OTHER = f"{LOGS}/train_my_style_20260211T093000Z.log"


@pytest.fixture
def root(tmp_path):
    for name in (OLD, NEW, OTHER, f"{LOGS}/other.log"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return tmp_path


def log_of(root, stage="", status=None, held=True):
    if status is not None:
        path = root / live.FOLDER / "status.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(status))
    running = status if status and held and status["state"] == "running" else None
    return log_tail.look(str(root), LOGS, stage, 5, running)


RUNS = {"state": "running", "stage": "style", "log": OLD, "token": "t"}


@pytest.mark.parametrize(
    ("stage", "status", "expected", "follows"),
    [
        ("", None, OTHER, False),
        ("style", None, NEW, False),
        ("my_style", None, OTHER, False),
        ("writing", None, "", False),
        ("", RUNS, OLD, True),
        ("style", RUNS, OLD, True),
        ("my_style", RUNS, OTHER, False),
        ("", {**RUNS, "state": "done"}, OLD, False),
        ("my_style", {**RUNS, "state": "done"}, OTHER, False),
        # Another log_dir was in force then.
        ("all", {**RUNS, "state": "done", "stage": "all", "log": f"{LOGS}/other.log"}, "x", False),
        # It has only just begun, and has no log yet: an older one is not its.
        ("", {**RUNS, "log": f"{LOGS}/not_yet.log"}, "", True),
        ("style", {**RUNS, "log": f"{LOGS}/not_yet.log"}, "", True),
    ],
)
def test_which_log(root, stage, status, expected, follows):
    found = log_of(root, stage, status)
    assert found["log"] == (f"{LOGS}/other.log" if expected == "x" else expected)
    assert bool(found["live"]) is follows
    assert found["text"] == (f"{found['log']}\n" if found["log"] else "")


def test_of_two_that_began_in_the_same_second_the_last_written_one_counts(root):
    twin = root / OTHER.replace("my_style", "a")
    twin.write_text("x\n")
    os.utime(root / OTHER, (1, 1))
    assert log_of(root)["stage"] == "a"
    os.utime(root / OTHER)
    os.utime(twin, (1, 1))
    assert log_of(root)["stage"] == "my_style"


def test_one_whose_supervisor_was_killed_is_not_followed(root):
    assert log_of(root, "", RUNS, held=False)["live"] is None


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)])
def test_what_is_no_file_is_no_log(root, make):
    make(root / f"{LOGS}/train_all_20270101T000000Z.log")
    assert log_of(root)["log"] == OTHER
    assert log_of(root, "all")["log"] == ""


def test_without_a_folder(tmp_path):
    assert log_of(tmp_path)["log"] == ""
    assert list(tmp_path.iterdir()) == []


# Lines for a terminal


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plain 结论", "plain 结论"),
        (" 10%|#  |\r 50%|## |\r100%|###|", "100%|###|"),
        ("windows\r", "windows"),
        ("\x1b[31mred\x1b[0m and \x1b[2Jcleared", "red and cleared"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("a\tb", "a       b"),
        ("\r\r", ""),
        ("", ""),
    ],
)
def test_a_line_as_a_terminal_would_leave_it(line, expected):
    assert plain(line) == expected


@given(st.text())
def test_nothing_harmful_is_left(line):
    assert "\r" not in plain(line)
    assert all(sign.isprintable() for sign in printable(plain(line)).replace("\n", ""))


@given(st.text(st.characters(exclude_characters="\r\x1b\t")), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut(text, size):
    shown: list[str] = []
    lines = LogLines(shown.append)
    data = text.encode("utf-8", "surrogatepass")
    for start in range(0, len(data), size):
        lines.take(data[start : start + size])
    lines.end()
    lines.end()
    whole = data.decode("utf-8", "replace").split("\n")
    assert shown == (whole if whole[-1] else whole[:-1])


def test_a_line_without_end_is_shown_in_parts():
    shown: list[str] = []
    lines = LogLines(shown.append)
    for _ in range(5):
        lines.take(b"x" * LONGEST)
    assert len(shown) == 2
    lines.end()
    assert sum(map(len, shown)) == 5 * LONGEST
