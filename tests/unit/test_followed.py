"""What was seen of a stage, kept at home."""

from __future__ import annotations

import json
import os

import pytest

from controller import followed

STATUS = {"token": "t1", "stage": "style", "run": "run_1", "log": "log", "host": "gpu"}


@pytest.fixture
def clock(monkeypatch):
    now = [5000.0]
    monkeypatch.setattr(followed.time, "monotonic", lambda: now[0])
    return now


def test_what_was_kept_is_read_for_the_same_start_alone(tmp_path):
    home = tmp_path / "home"
    followed.Followed(str(home)).keep(STATUS, 12, b"a\nb\n", step=3, loss=0.5)
    another = followed.Followed(str(home))
    found = another.read(run="run_1")
    assert (found["offset"], found["step"], found["loss"]) == (12, 3, 0.5)
    assert found["last_lines"] == ["a", "b"]
    assert another.read(run="run_2") == {}
    another.forget("t2")
    assert another.read(run="run_1")
    another.forget("t1")
    # No empty folder is left behind, and none that holds something is removed.
    assert list(tmp_path.iterdir()) == []
    (home / "adapter").mkdir(parents=True)
    third = followed.Followed(str(home))
    third.keep(STATUS, 12, b"")
    third.forget("t1")
    assert list(home.iterdir()) == [home / "adapter"]


@pytest.mark.parametrize("there", ["home", "home/training_sync"])
def test_an_empty_folder_of_the_users_stays(tmp_path, clock, there):
    """Also where what made the others isn't what sees the end."""
    (tmp_path / there).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    record = followed.Followed(str(tmp_path / "home"))
    record.keep(STATUS, 12, b"")
    clock[0] += followed.EVERY
    record.keep(STATUS, 24, b"")
    assert record.read()["offset"] == 24
    followed.Followed(str(tmp_path / "home")).forget("t1")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("made", [None, "/", ["/"], [3], {}])
def test_what_a_damaged_record_names_is_not_removed(tmp_path, made):
    path = tmp_path / followed.NAME
    path.parent.mkdir()
    path.write_text(json.dumps({"token": "t1", "offset": 1, "made": made}))
    followed.Followed(str(tmp_path)).forget("t1")
    assert list(tmp_path.rglob("*")) == [path.parent]


def test_it_is_written_now_and_then_with_all_lines_since(tmp_path, clock):
    record = followed.Followed(str(tmp_path))
    record.keep(STATUS, 2, b"a\n")
    clock[0] += followed.EVERY - 0.1
    record.keep(STATUS, 4, b"b\n")
    assert record.read()["offset"] == 2
    clock[0] += 0.1
    record.keep(STATUS, 6, b"c\n")
    assert record.read()["offset"] == 6
    assert record.read()["last_lines"] == ["a", "b", "c"]


def test_it_stays_small(tmp_path):
    record = followed.Followed(str(tmp_path))
    record.keep(STATUS, 10**8, b"".join(b"line %d\n" % n for n in range(100_000)))
    assert record.read()["last_lines"][-1] == "line 99999"
    assert len(record.read()["last_lines"]) == followed.LAST_LINES


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"offset": -1}', '{"offset": "x"}'])
def test_a_damaged_one_is_none(tmp_path, content):
    path = tmp_path / followed.NAME
    path.parent.mkdir()
    path.write_text(content)
    assert followed.Followed(str(tmp_path)).read() == {}


def test_a_home_that_can_not_be_written_ends_nothing(tmp_path):
    (tmp_path / "training_sync").write_text("in the way")
    record = followed.Followed(str(tmp_path))
    record.keep(STATUS, 1, b"x")
    assert record.read() == {}
    record.forget("t1")


def test_what_is_no_text_is_kept_all_the_same(tmp_path):
    followed.Followed(str(tmp_path)).keep({**STATUS, "log": os.fsdecode(b"\xff")}, 1, b"\xff\n")
    assert json.loads((tmp_path / followed.NAME).read_bytes())["last_lines"] == ["\ufffd"]
