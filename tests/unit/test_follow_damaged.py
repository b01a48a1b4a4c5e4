"""A status that can't be read: followed with patience, since its supervisor writes it again."""

from __future__ import annotations

import json
import subprocess

import pytest

from controller import follow
from remote_train import live
from remote_train.errors import TrainError

STATUS = {"token": "t", "stage": "style", "log": "log", "state": "running", "heartbeat": 1.0}


def shell(command: str) -> str:
    """Run a command as the action does: what it printed; a status that isn't 0 ends the view."""
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode:
        raise TrainError(f"it can't be read: {done.stderr}", "")
    return done.stdout


def emptied(path):
    path.write_text("")


def truncated(path):
    path.write_text('{"token": "t", "sta')


def a_folder(path):
    path.unlink()
    path.mkdir()


def a_folder_with_something_in_it(path):
    a_folder(path)
    (path / "x").touch()


def gone(path):
    path.unlink()


DAMAGES = [emptied, truncated, a_folder, a_folder_with_something_in_it, gone]


@pytest.fixture
def status_file(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "POLL_SECONDS", (0.01, 0.02))
    (tmp_path / "log").write_text("first\n")
    path = tmp_path / live.FOLDER / "status.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(STATUS))
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_it_is_read_again_when_it_is_whole_and_no_line_is_lost(tmp_path, status_file, damage):
    asked = []

    def run(command: str) -> str:
        asked.append(command)
        if len(asked) == 2:
            damage(status_file)
        if len(asked) == 5:
            if status_file.is_dir():
                status_file.rename(tmp_path / "damaged")
            (tmp_path / "log").write_text("first\nlast\n")
            status_file.write_text(json.dumps({**STATUS, "state": "done", "heartbeat": 2.0}))
        return shell(command)

    seen = list(follow.polls(run, str(tmp_path), STATUS))
    assert [poll.status["state"] for poll in seen] == ["running", "done"]
    assert b"".join(poll.fresh for poll in seen) == b"first\nlast\n"
    assert len(asked) == 5


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_that_stays_so_ends_the_view_with_a_sentence(
    tmp_path, status_file, damage, monkeypatch
):
    monkeypatch.setattr(follow, "SILENT_AFTER", 0.1)
    damage(status_file)
    with pytest.raises(TrainError, match="What the host says of style could not be read for"):
        list(follow.polls(shell, str(tmp_path), STATUS))
