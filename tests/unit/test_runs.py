"""The folder of a run: its name, how its steps ended, and what its stages did."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import runs
from remote_train.errors import TrainError

RUN = "run_20260209T093000Z"


def test_a_run_is_named_after_its_start_in_utc():
    zone = datetime.timezone(datetime.timedelta(hours=8))
    at = datetime.datetime(2026, 2, 9, 17, 30, tzinfo=zone).astimezone(datetime.UTC)
    assert runs.new_name(at) == RUN
    assert runs.folder("/srv/tutor", runs.new_name())
    assert runs.is_name(RUN)
    assert not runs.is_name([RUN])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "run",
        "../run_20260209T093000Z",
        f"{RUN}/..",
        f"{RUN}\n",
        "run_2026",
        "run_x",
        "outgoing",
    ],
)
def test_another_name_is_no_run(name):
    assert not runs.is_name(name)
    with pytest.raises(TrainError, match="is not the name of a run"):
        runs.folder("/srv/tutor", name)


@given(st.lists(st.datetimes(datetime.datetime(2000, 1, 1)), min_size=1, max_size=4))
def test_the_latest_run_is_the_one_that_started_last(tmp_path_factory, starts):
    root = tmp_path_factory.mktemp("runs")
    for start in starts:
        Path(runs.folder(str(root), runs.new_name(start))).mkdir(parents=True, exist_ok=True)
    assert runs.latest(str(root)) == runs.new_name(max(starts))


def test_what_else_lies_there_is_no_run(tmp_path):
    assert runs.latest(str(tmp_path)) is None
    for name in ("engine", "stages", "live", "run_backup", "zzz"):
        (tmp_path / runs.SYNC / name).mkdir(parents=True)
    assert runs.latest(str(tmp_path)) is None


@pytest.mark.parametrize("first", runs.STATES)
@pytest.mark.parametrize("second", runs.STATES)
def test_the_last_word_on_a_stage_counts(tmp_path, first, second):
    root = str(tmp_path)
    assert runs.state_of(root, RUN, "style") is None
    for state in (first, second):
        runs.mark(root, RUN, "style", state)
    runs.mark(root, RUN, "writing", "done")
    assert runs.state_of(root, RUN, "style") == second
    names = {path.name for path in Path(runs.folder(root, RUN)).iterdir()}
    assert names == {f".stage_style_{second}", ".stage_writing_done"}


def test_a_state_that_does_not_exist_is_a_defect(tmp_path):
    with pytest.raises(ValueError, match="finished"):
        runs.mark(str(tmp_path), RUN, "style", "finished")
    assert list(tmp_path.iterdir()) == []


def test_a_stages_record_is_kept_and_read_again(tmp_path):
    root = str(tmp_path)
    assert runs.stage_record(root, RUN, "style") == {}
    runs.record_stage(root, RUN, "style", {"state": "done", "words": "结论"})
    runs.record_stage(root, RUN, "style", {"state": "failed"})
    assert runs.stage_record(root, RUN, "style") == {"state": "failed"}
    assert [path.name for path in Path(runs.folder(root, RUN)).iterdir()] == ["stage_style.json"]
