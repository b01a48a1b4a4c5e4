"""Applying to a disk that is full, read-only, another one, or another user's."""

import contextlib
import os
import subprocess

import pytest

from remote_train import bundle_apply
from remote_train.errors import TrainError
from remote_train.problems import RefusedError
from tests.unit.bundle_host import Host, make, no_waiting, snapshot
from tests.unit.small_disk import small_disk

OLD = {"a": b"1", "d/b": b"1", "gone/c": b"1", "z": b"1"}
NEW = {"a": b"2", "d/b": b"2", "new/d": b"2", "z": b"2"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def pair(tmp_path):
    return [make(tmp_path, files, f"n{n}").paths[0] for n, files in enumerate((OLD, NEW))]


@pytest.mark.parametrize("way", ["apply", "rollback"])
@pytest.mark.parametrize(("what", "options"), [("room", "size=2m"), ("inodes", "nr_inodes=220")])
def test_a_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, what, options, way):
    """Whatever little is left, from nothing on: it is refused in a sentence, or it is done."""
    files = [
        {f"d{n}/f{n}": bytes([turn]) * (20_000 if what == "room" else 10) for n in range(20)}
        for turn in range(2)
    ]
    paths = [make(tmp_path, one, f"n{n}").paths[0] for n, one in enumerate(files)]
    with small_disk(options) as disk:
        monkeypatch.setattr(bundle_apply, "_room", lambda _state: 10**9)
        host = Host(disk)
        host.apply(paths[0])
        if way == "rollback":
            host.apply(paths[1])
        old = host.snapshot()
        fill(disk, what)
        errors = []
        for _turn in range(100):
            try:
                host.apply(paths[1]) if way == "apply" else host.rollback()
            except TrainError as error:
                errors.append(error)
            else:
                break
            assert host.snapshot() == old
            free_some(disk)
        assert len(errors) > 3
        assert all("no room on the target's disk" in error.message for error in errors)
        assert {error.category for error in errors} == {"infra"}
        assert host.files() == files[1 if way == "apply" else 0]


def fill(disk, what):
    """Leave no room."""
    (disk / "filler").mkdir()
    with contextlib.suppress(OSError):
        for number in range(1000):
            (disk / "filler" / str(number)).write_bytes(bytes(16_384 if what == "room" else 0))


def free_some(disk):
    """Let go of the largest of what fills the disk."""
    files = sorted((disk / "filler").iterdir(), key=lambda path: path.stat().st_size)
    files[-1].unlink()


def test_a_file_system_that_is_read_only(pair, monkeypatch):
    monkeypatch.setattr(bundle_apply, "_room", lambda _state: 10**9)
    with small_disk("size=2m") as disk:
        host = Host(disk)
        host.apply(pair[0])
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(TrainError, match="Read-only file system") as error:
            host.apply(pair[1])
        assert "Mount it for writing" in error.value.hint
        assert host.files() == OLD


def test_another_file_system_inside_the_project_is_refused(tmp_path, host, pair):
    host.apply(pair[0])
    with small_disk("size=2m") as disk:
        subprocess.run(["mount", "--bind", disk, host.root / "d"], check=True)
        try:
            before = snapshot(host.folder)
            with pytest.raises(RefusedError, match="d is on another file system") as error:
                host.apply(pair[1])
            assert [p.problem for p in error.value.problems.items] == ["other-file-system"]
            assert host.state.is_dir()
            assert snapshot(host.folder) == before
        finally:
            subprocess.run(["umount", "--lazy", host.root / "d"], check=True)


def test_the_same_file_system_mounted_inside_the_project_is_found_in_time(tmp_path, host, pair):
    """Renames don't cross a bind mount, though both sides have the same number."""
    if os.geteuid() != 0:
        pytest.skip("a bind mount takes root")
    host.apply(pair[0])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b").write_bytes(b"1")
    subprocess.run(["mount", "--bind", elsewhere, host.root / "d"], check=True)
    try:
        before = snapshot(host.folder)
        with pytest.raises(TrainError, match="on another file system than"):
            host.apply(pair[1])
        assert snapshot(host.folder) == before
        (elsewhere / "b").unlink()  # now it is to be added there: seen at its step, and undone
        before = host.files()
        with pytest.raises(TrainError, match=r"d/b can't be changed in .* on another file system"):
            host.apply(pair[1])
        assert host.files() == before
    finally:
        subprocess.run(["umount", "--lazy", host.root / "d"], check=True)


def test_a_folder_that_may_not_be_written_to(tmp_path, host, pair):
    """As another user than root, whom nothing is forbidden."""
    if os.geteuid() != 0:
        pytest.skip("changing the user takes root")
    host.apply(pair[0])
    (host.root / "d").chmod(0o555)
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == os.geteuid() and path.name.startswith(
            ("pytest-", "popen-", "test_")
        ):
            path.chmod(0o755)
    subprocess.run(["chown", "-R", "65534", host.folder], check=True)
    before = host.snapshot()
    child = os.fork()
    if child == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with contextlib.suppress(BaseException):
            try:
                host.apply(pair[1])
            except TrainError as error:
                right = "d/b can't be changed" in error.message and "Permission" in error.message
                hint = "Nothing was changed. Let this user write"
                os._exit(0 if right and hint in error.hint else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert host.snapshot() == before


def test_nobody_else_may_hold_the_lock(host, tmp_path):
    """Whoever can open it can hold it, and no sync would ever begin."""
    lock = host.state / "apply.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch(0o644)  # as an earlier version made it
    host.apply(make(tmp_path, {"a": b"1"}).paths[0])
    assert lock.stat().st_mode & 0o777 == 0o600
