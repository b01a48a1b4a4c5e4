"""Models and caches on a data disk: what is there is kept, whatever it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from remote_train import storage
from remote_train.errors import TrainError
from tests.unit.small_disk import small_disk


class Disk:
    """A project and a data disk."""

    def __init__(self, folder: Path) -> None:
        self.root, self.base = folder / "project", folder / "data"
        self.link = self.root / "models"

    def pending(self, *models: str) -> list[str]:
        return storage.pending(str(self.root), str(self.base), models)

    def make(self, *models: str) -> list[str]:
        return storage.make(str(self.root), str(self.base), models)

    def backups(self) -> list[Path]:
        return sorted(self.root.glob("models.backup-*"))


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


def test_folders_and_the_link_are_made_once(disk):
    assert disk.pending() == [
        f"makes models, huggingface, modelscope, cache in {disk.base}",
        f"links {disk.link} to {disk.base}/models",
    ]
    assert not disk.root.exists()
    assert disk.make()
    assert disk.link.is_symlink()
    assert disk.link.resolve() == disk.base / "models"
    assert sorted(p.name for p in disk.base.iterdir()) == sorted(storage.FOLDERS)
    assert (disk.pending(), disk.make()) == ([], [])
    assert sorted(p.name for p in disk.root.iterdir()) == ["models"]


def test_nothing_is_done_where_nothing_is_asked_for(disk):
    assert storage.pending(str(disk.root), "") == []
    assert storage.make(str(disk.root), "") == []
    assert not disk.root.exists()


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "link", "broken link"])
def test_what_is_there_is_kept_as_a_backup(disk, tmp_path, kind):
    disk.root.mkdir()
    if "folder" in kind:
        disk.link.mkdir()
        if kind == "folder":
            (disk.link / "weights").write_text("dear")
    elif kind == "file":
        disk.link.write_text("dear")
    else:
        target = tmp_path / "elsewhere"
        if kind == "link":
            target.mkdir()
        disk.link.symlink_to(target)
    before = disk.link.lstat().st_ino
    pending = disk.pending()
    assert f"keeps {disk.link} as models.backup-*" in pending
    disk.make()
    (backup,) = disk.backups()
    assert backup.lstat().st_ino == before
    if kind == "folder":
        assert (backup / "weights").read_text() == "dear"
    assert disk.link.resolve() == disk.base / "models"
    assert disk.pending() == []


def test_two_backups_in_one_second_have_two_names(disk, monkeypatch):
    monkeypatch.setattr(storage.time, "strftime", lambda *_: "now")
    disk.link.mkdir(parents=True)
    disk.make()
    disk.link.unlink()
    disk.link.mkdir()
    disk.make()
    assert [path.name for path in disk.backups()] == ["models.backup-now", "models.backup-now-2"]


@pytest.mark.parametrize("at", [1, 2])
def test_a_change_that_is_cut_is_brought_to_its_end(disk, monkeypatch, at):
    disk.link.mkdir(parents=True)
    (disk.link / "weights").write_text("dear")
    real, calls = os.rename, []

    def rename(one: str, other: str) -> None:
        calls.append(one)
        if len(calls) == at:
            raise KeyboardInterrupt
        real(one, other)

    monkeypatch.setattr(storage.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        disk.make()
    monkeypatch.setattr(storage.os, "rename", real)
    disk.make()
    (backup,) = disk.backups()
    assert (backup / "weights").read_text() == "dear"
    assert disk.link.resolve() == disk.base / "models"
    assert disk.pending() == []


def test_a_link_that_leads_there_by_another_way_is_left(disk):
    disk.root.mkdir()
    (disk.base / "models").mkdir(parents=True)
    disk.link.symlink_to("../data/models")
    disk.make()
    assert os.readlink(disk.link) == "../data/models"
    assert disk.backups() == []


def test_a_runtime_base_that_is_the_project_needs_no_link(tmp_path):
    root = str(tmp_path / "project")
    storage.make(root, root)
    assert (tmp_path / "project/models").is_dir()
    assert not (tmp_path / "project/models").is_symlink()
    assert storage.pending(root, root) == []


def test_a_base_model_that_is_in_use_is_not_taken_away(disk):
    (disk.link / "mine").mkdir(parents=True)
    for name in ("models/mine", str(disk.link / "mine")):
        with pytest.raises(TrainError, match="is to become a link"):
            disk.make(name)
    assert (disk.link / "mine").is_dir()
    # Once it is on the data disk nothing is in the way, nor for a name on a hub.
    (disk.base / "models/mine").mkdir(parents=True)
    disk.make("models/mine", "owner/name")
    assert disk.link.is_symlink()


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "it's mine/a b"])
@pytest.mark.parametrize("absolute", [True, False])
def test_the_hint_brings_the_model_to_its_place(disk, name, absolute):
    (disk.link / name).mkdir(parents=True)
    given = str(disk.link / name) if absolute else f"models/{name}"
    with pytest.raises(TrainError, match="is to become a link") as caught:
        disk.make(given)
    command = caught.value.hint.partition(": ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    disk.make(given)
    assert disk.link.is_symlink()
    assert (disk.link / name).is_dir()


def test_a_base_model_that_is_in_neither_place_is_asked_for(disk):
    """It was moved, and not to where the link will lead."""
    disk.link.mkdir(parents=True)
    (disk.base / "models/Qwen3-8B").mkdir(parents=True)
    with pytest.raises(TrainError, match="nor in") as caught:
        disk.make("models/Qwen/Qwen3-8B")
    assert f"{disk.base}/models/Qwen/Qwen3-8B" in caught.value.hint
    assert not disk.link.is_symlink()


def test_a_project_by_another_way_loses_no_model(disk, tmp_path):
    (disk.link / "mine").mkdir(parents=True)
    other = tmp_path / "other"
    other.symlink_to(disk.root)
    with pytest.raises(TrainError, match="is to become a link"):
        disk.make(str(other / "models/mine"))


def test_a_disk_that_refuses_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainError, match=r"file/data can't be made: Not a directory") as caught:
        storage.make(str(tmp_path / "project"), str(tmp_path / "file" / "data"))
    assert "runtime_base" in caught.value.hint


def test_a_disk_that_is_full_or_can_only_be_read_is_told_with_what_to_change(tmp_path):
    project = str(tmp_path / "project")
    for options, words, hint in (
        ("ro", "Read-only file system", "this user can write to."),
        ("nr_inodes=2", "there is no room on the target's disk", "or free some space there."),
    ):
        with small_disk(options) as place:
            base = str(place / "data")
            with pytest.raises(TrainError) as caught:
                storage.make(project, base)
            assert caught.value.message.startswith(base)
            assert caught.value.message.endswith(f" can't be made: {words}.")
            assert caught.value.hint.startswith("Set runtime_base to a folder on a disk that")
            assert caught.value.hint.endswith(hint)
            assert caught.value.category == "infra"
            # Where it is the project's own disk, another data disk is no help.
            with pytest.raises(TrainError) as caught:
                storage.make(str(place), str(tmp_path / "data"))
            assert "runtime_base" not in caught.value.hint
            assert words in caught.value.message
            assert caught.value.category == "infra"
