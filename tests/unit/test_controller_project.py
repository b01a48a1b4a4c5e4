"""What goes to the GPU host: the project as the settings choose it, and the whole engine."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from controller import project
from remote_train import plan, pythons, tree
from remote_train.errors import TrainError
from tests.unit.stage_host import HOUSE, put


@pytest.fixture
def source(tmp_path):
    put(tmp_path, {"code/a.py": b"1", "code/b.pt": b"2", "data/c.jsonl": b"3", "d.txt": b"4"})
    (tmp_path / "list.txt").write_text("code\ndata\n")
    return str(tmp_path)


@pytest.mark.parametrize(
    ("exclude", "names"),
    [
        ([], {"code/a.py", "code/b.pt", "data/c.jsonl"}),
        (["*.pt"], {"code/a.py", "data/c.jsonl"}),
        ("", {"code/a.py", "code/b.pt", "data/c.jsonl"}),
        ("*.pt, data", {"code/a.py"}),  # -e sync_exclude='*.pt, data'
    ],
)
def test_the_files_of_a_project_with_their_digests(source, exclude, names):
    files = project.Choice("list.txt", exclude).files(source)
    digests = project.offer_of(source, files, cache=False)
    assert {file.name for file in files} == set(digests) == names
    for name in names:
        content = Path(source, name).read_bytes()
        assert digests[name] == hashlib.sha256(content).hexdigest()


def test_an_exclude_that_is_no_list(source):
    wrong: Any = {"a": 1}
    with pytest.raises(TrainError, match="sync_exclude is"):
        project.Choice("list.txt", wrong).files(source)


def test_what_was_read_once_is_remembered_in_the_user_s_cache(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    choice = project.Choice("list.txt")
    time.sleep(0.05)  # what is as young as the look is not remembered
    first = project.offer_of(source, choice.files(source), cache=True)
    (kept,) = (tmp_path / "cache" / "remote-train" / "digests").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(tree.hashing, "descriptor_digest", None)  # nothing is read now
    again = project.offer_of(source, choice.files(source), cache=True)
    assert again.raw == first.raw
    with pytest.raises(TypeError):
        project.offer_of(source, choice.files(source), cache=False)


def test_the_engine_is_the_training_and_what_the_modules_are_made_of():
    names = set(project.engine_files())
    assert {"training/__main__.py", "training/requirements.txt"} <= names
    assert {"remote_train/supervisor.py", "remote_train/__init__.py"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    for path in (HOUSE / "training").glob("*.py"):
        assert f"training/{path.name}" in names


def test_an_engine_that_was_laid_is_the_one_that_was_planned(tmp_path):
    engine = tmp_path / plan.ENGINE
    laid = project.lay_engine(str(engine))
    assert [file.name for file in laid] == list(project.engine_digests())
    assert not plan.engine_differs(str(tmp_path), project.engine_digests())
    assert all(file.size == (engine / file.name).stat().st_size for file in laid)


def test_a_laid_engine_runs(tmp_path):
    """Both of its programs start there with nothing of the checkout on their path."""
    project.lay_engine(str(tmp_path))
    training = subprocess.run(
        [sys.executable, "-m", "training"], cwd=tmp_path, capture_output=True, check=False, env={}
    )
    assert training.returncode == 2
    assert b"usage: python -m training JOB.json" in training.stderr
    code = "import remote_train.supervisor as s; print(s.__file__)"
    supervisor = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True, env={}
    )
    assert supervisor.stdout.decode().startswith(str(tmp_path))


def test_the_requirements_are_those_of_the_training():
    required = pythons.parse_requirements(project.requirements_text())
    assert set(pythons.RECORDED) <= set(required)
