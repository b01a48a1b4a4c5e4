"""The folder for what is on its way: made, gone, and swept up after those who were killed."""

import os
import subprocess
import sys
import tempfile

import pytest

from controller import scratch as scratch_module
from controller.scratch import scratch


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_goes(place):
    with scratch() as folder:
        assert os.path.dirname(folder) == str(place)
        assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.listdir(place) == []


def test_what_a_killed_process_left_goes_and_nothing_else(place):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = place / f"remote-train-{ended.pid}-x"
    (left / "files").mkdir(parents=True)
    (left / "project.delta").write_bytes(b"1")
    others = [f"remote-train-{os.getpid()}-other", "remote-train-x", f"mine-{ended.pid}-x"]
    for name in others:
        (place / name).mkdir()
    (place / f"remote-train-{ended.pid}-link").symlink_to(place / "mine")
    with scratch():
        assert not left.exists()
    assert set(others) <= set(os.listdir(place))


def test_a_folder_of_somebody_else_stays(place, monkeypatch):
    monkeypatch.setattr(scratch_module, "_lives", lambda _pid: False)
    (place / "remote-train-1-x").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    scratch_module._sweep(str(place))
    assert (place / "remote-train-1-x").exists()
