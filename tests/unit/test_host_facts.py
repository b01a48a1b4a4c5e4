"""The facts of disks and memory, against the system's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_train import host_facts


def test_host_facts_of_a_folder_still_to_be_made(tmp_path: Path) -> None:
    facts = host_facts.look("project_root", str(tmp_path / "not" / "yet"))
    real = os.statvfs(tmp_path)
    assert facts.folder == str(tmp_path)
    assert (facts.blocked, facts.read_only) == ("", False)
    assert facts.total == real.f_blocks * real.f_frsize
    assert facts.inodes_total == real.f_files
    assert (facts.name, facts.path) == ("project_root", str(tmp_path / "not" / "yet"))
    assert facts.device == tmp_path.stat().st_dev


def test_host_facts_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    facts = host_facts.look("x", str(tmp_path / "file" / "tutor"))
    assert facts.blocked == f"{tmp_path}/file is not a folder"


@pytest.mark.parametrize(
    ("root", "words"), [("new", "can't be given new folders by"), ("", "can't be written to by")]
)
def test_host_facts_without_the_right_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, words: str
) -> None:
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert words in host_facts.look("x", str(tmp_path / root)).blocked


def test_host_facts_of_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = list(os.statvfs(tmp_path))
    # Free in all and for an unprivileged user: blocks, then inodes; and the flags.
    real[1], real[3], real[4], real[6], real[7] = 4096, 10, 7, 9, 8
    real[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda *_: os.statvfs_result(real))
    facts = host_facts.look("x", str(tmp_path))
    assert facts.read_only is True
    assert (facts.free, facts.inodes_free) == (7 * 4096, 8)


def test_host_facts_where_nothing_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(path: str) -> os.statvfs_result:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "statvfs", stale)
    facts = host_facts.look("x", str(tmp_path))
    assert "Stale file handle" in facts.blocked
    assert (facts.free, facts.read_only) == (None, None)


def test_available_memory_heeds_a_container_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [str(tmp_path / name) for name in ("max", "current", "stat")]
    for name, value in zip(names, ("1000", "700", "anon 1\ninactive_file 200\n"), strict=True):
        Path(name).write_text(value)
    monkeypatch.setattr(host_facts, "_CGROUP_FILES", ((names[0], names[1]),))
    monkeypatch.setattr(host_facts, "_CGROUP_STAT", (names[2],))
    assert host_facts.available_memory() == 500
    Path(names[0]).write_text("max\n")
    assert (host_facts.available_memory() or 0) > 1000


def test_load_is_the_systems_or_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 2.5, 3.5))
    assert host_facts.load() == 1.5

    def refuse() -> None:
        raise OSError

    monkeypatch.setattr(os, "getloadavg", refuse)
    assert host_facts.load() is None
