"""Versions that are kept, and going back to them."""

import json
import os
import shutil

import pytest

from remote_train import keeper, versions
from remote_train.bundle import apply
from remote_train.errors import TrainError
from remote_train.manifest import LEGACY, MODERN, parse
from remote_train.problems import RefusedError
from remote_train.rollback import rollback
from tests.unit.bundle_host import FILES, Host, make, no_waiting, put, snapshot
from tests.unit.hostile_bundles import tar_of

TREES = [
    {"a": b"1", "d/b": b"1", "gone/soon": b"1", "x": b"file"},
    {"a": b"2", "d/b": b"1", "x/inner": b"folder"},
    {"a": b"3", "d/b": b"3", "d/new": b"3", "x/inner": b"folder"},
]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def applied(tmp_path, host):
    """A host that got the three trees one after the other; versions 1, 2 and 3."""
    put(host.root, {"users own": b"u"})
    for number, files in enumerate(TREES, 1):
        done = host.apply(make(tmp_path, files, f"tree{number}").paths[0])
        assert done.version == number
    return host


def numbers(host):
    return [version.number for version in versions.versions(str(host.state))]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_version_that_is_kept_comes_back(applied, number):
    expected = {"users own": b"u", **(TREES[number - 1] if number else {})}
    looked = applied.rollback(number, check=True)
    done = applied.rollback(number)
    assert applied.files() == expected
    assert looked.changed
    for field in ("added", "replaced", "removed", "kept", "unchanged", "bytes", "before", "after"):
        assert getattr(looked, field) == getattr(done, field)
    assert (done.left, done.target, done.version, looked.version) == (3, number, 4, None)
    manifest = applied.state / MODERN
    assert manifest.exists() == bool(number)
    if number:
        assert parse(manifest.read_bytes()).lines.keys() == TREES[number - 1].keys()
    # It is a version like any other: from there to any other one, and back.
    applied.rollback(3)
    assert applied.files() == {"users own": b"u", **TREES[2]}
    applied.rollback(4)
    assert applied.files() == expected


def test_the_one_before_is_the_default_and_goes_to_and_fro(applied):
    assert applied.rollback().target == 2
    assert applied.files() == {"users own": b"u", **TREES[1]}
    assert applied.rollback().target == 3
    assert applied.files() == {"users own": b"u", **TREES[2]}


def test_what_it_says_is_what_changed(applied):
    done = applied.rollback(1)
    assert done.added == ["gone/soon", "x"]
    assert done.replaced == ["a", "d/b"]
    assert done.removed == ["d/new", "x/inner"]
    assert [line.split()[-1] for line in done.before] == ["a", "d/b", "d/new", "x/inner"]
    assert [line.split()[-1] for line in done.after] == ["a", "d/b", "gone/soon", "x"]
    assert done.bytes == len(b"1" + b"1" + b"1" + b"file")


def test_check_mode_writes_nothing(applied):
    before = snapshot(applied.folder)
    assert applied.rollback(1, check=True).changed
    assert snapshot(applied.folder) == before


def test_going_back_to_the_present_version_does_nothing(applied):
    before = snapshot(applied.folder)
    done = applied.rollback(3)
    assert not done.changed
    assert done.version == 3
    assert snapshot(applied.folder) == before


def test_versions_say_what_they_are(applied):
    applied.rollback(1)
    found = versions.versions(str(applied.state))
    assert [(v.number, v.by, v.of, v.files, v.current) for v in found] == [
        (0, "", "", 0, False),
        (1, "apply", "tree1.tar.gz", 4, False),
        (2, "apply", "tree2.tar.gz", 3, False),
        (3, "apply", "tree3.tar.gz", 4, False),
        (4, "rollback", "1", 4, True),
    ]
    assert len({v.sha256 for v in found[1:4]}) == 3
    assert "before the first sync" in found[0].line
    assert found[4].line.endswith("<- now")


def test_the_last_five_are_kept(tmp_path, host):
    for number in range(1, 10):
        files = {"a": b"%d" % number, "same": b"s"}
        host.apply(make(tmp_path, files, f"n{number}").paths[0])
    assert numbers(host) == [4, 5, 6, 7, 8, 9]
    assert sorted(os.listdir(host.state / "versions")) == list("456789")
    host.rollback(4)
    assert host.files()["a"] == b"4"
    assert numbers(host) == [5, 6, 7, 8, 9, 10]
    host.rollback(keep=2)
    assert numbers(host) == [9, 10, 11]
    host.apply(make(tmp_path, {"a": b"x"}, "x").paths[0], keep=0)
    assert numbers(host) == [12]
    with pytest.raises(TrainError, match="is kept that could be gone back to"):
        host.rollback()


def test_an_apply_that_changes_nothing_makes_no_version(tmp_path, applied):
    before = snapshot(applied.folder)
    done = applied.apply(tmp_path / "bundles" / "tree3.tar.gz")
    assert (done.changed, done.version) == (False, 3)
    assert snapshot(applied.folder) == before


def test_files_that_were_there_already_are_not_removed_by_going_back(tmp_path, host):
    put(host.root, {"a": b"1", "b": b"the user's"})
    (host.root / "b").chmod(0o600)
    host.apply(make(tmp_path, {"a": b"1", "b": b"2", "c": b"3"}).paths[0])
    host.rollback(0)
    assert host.files() == {"a": b"1", "b": b"the user's"}
    assert (host.root / "b").stat().st_mode & 0o7777 == 0o600
    host.rollback(1, keep=9)
    assert host.files() == {"a": b"1", "b": b"2", "c": b"3"}
    host.rollback(0, keep=9)
    host.apply(make(tmp_path, {"d": b"4"}, "other").paths[0], keep=9)
    host.rollback(1, keep=9)
    assert host.files() == {"a": b"1", "b": b"2", "c": b"3"}
    host.rollback(0, keep=9)
    (host.root / "b").write_bytes(b"changed since")
    with pytest.raises(RefusedError, match="b was changed on the host since"):
        host.rollback(1)


def test_modes_and_folders_come_back(tmp_path, host):
    host.apply(make(tmp_path, {"run": b"x", "f/g/h": b"1", "r": b"1"}, "one", ["run"]).paths[0])
    (host.root / "f" / "g").chmod(0o750)
    (host.root / "r").chmod(0o640)
    (host.root / "empty and the user's").mkdir()
    before = snapshot(host.root)
    host.apply(make(tmp_path, {"run": b"x", "r": b"2"}, "two").paths[0])
    assert not (host.root / "f").exists()
    host.rollback()
    modes = {path: value[:2] for path, value in snapshot(host.root).items()}
    state = os.fsencode(host.state)
    assert {path: mode for path, mode in modes.items() if not path.startswith(state)} == {
        path: value[:2] for path, value in before.items() if not path.startswith(state)
    }


def test_a_folder_of_the_users_stays_when_it_is_left_empty(tmp_path, host):
    (host.root / "data").mkdir()
    host.apply(make(tmp_path, {"data/made/a": b"1", "b": b"1"}, "one").paths[0])
    host.apply(make(tmp_path, {"b": b"1"}, "two").paths[0])
    assert os.listdir(host.root / "data") == []


def test_odd_names_come_back(tmp_path, host):
    host.apply(make(tmp_path, FILES, "one", ["run.sh"]).paths[0])
    host.apply(make(tmp_path, dict.fromkeys(FILES, b"other"), "two").paths[0])
    host.rollback()
    assert host.files() == FILES
    assert os.access(host.root / "run.sh", os.X_OK)


def test_a_bundle_with_sha1_digests_is_gone_back_to_by_sha256(tmp_path, host):
    host.apply(tar_of(tmp_path / "1.tar.gz", {"a": b"1", "run": b"r"}, LEGACY, "sha1"))
    host.apply(tar_of(tmp_path / "2.tar.gz", {"a": b"2", "run": b"r"}, LEGACY, "sha1", ["run"]))
    host.rollback()
    assert host.files() == {"a": b"1", "run": b"r"}
    assert not os.access(host.root / "run", os.X_OK)
    (host.root / "a").write_bytes(b"edited")
    with pytest.raises(RefusedError, match="changed on the host since"):
        host.rollback()


# -- how the old bytes are kept ------------------------------------------------------------------


def kept_files(host, number):
    return sorted((host.state / "versions" / str(number) / "kept" / "files").iterdir())


def test_old_bytes_are_kept_without_a_copy(tmp_path, host):
    host.apply(make(tmp_path, {"a": b"1", "b": b"1"}, "one").paths[0])
    numbers_before = {(host.root / name).stat().st_ino for name in "ab"}
    host.apply(make(tmp_path, {"b": b"2"}, "two").paths[0])
    assert {path.stat().st_ino for path in kept_files(host, 1)} == numbers_before


@pytest.mark.parametrize("number", [1, 95, 31])  # EPERM, EOPNOTSUPP, EMLINK
def test_without_hard_links_they_are_copied(tmp_path, host, monkeypatch, number):
    host.apply(make(tmp_path, {"a": b"1", "b": b"1"}, "one").paths[0])
    (host.root / "a").chmod(0o604)

    def no_links(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(keeper.os, "link", no_links)
    host.apply(make(tmp_path, {"a": b"2"}, "two").paths[0])
    assert host.files() == {"a": b"2"}
    host.rollback()
    assert host.files() == {"a": b"1", "b": b"1"}
    assert (host.root / "a").stat().st_mode & 0o777 == 0o604


def test_writing_to_a_file_that_came_back_leaves_what_is_kept_alone(applied):
    applied.rollback(1)
    with open(applied.root / "a", "ab") as stream:
        stream.write(b" and more")
    with open(applied.state / MODERN, "ab") as stream:
        stream.write(b"nonsense\n")
    shutil.copy(applied.state / "versions" / "4" / MODERN, applied.state / MODERN)
    (applied.root / "a").write_bytes(b"1")
    applied.rollback(3)
    applied.rollback(1)
    assert applied.files() == {"users own": b"u", **TREES[0]}


def test_it_is_for_its_owner_alone(applied):
    assert (applied.state / "versions").stat().st_mode & 0o777 == 0o700


# -- what the user changed meanwhile -------------------------------------------------------------


def edit(host):
    (host.root / "a").write_bytes(b"mine")


def make_what_was_removed(host):
    put(host.root, {"gone/soon": b"mine"})


def link(host):
    (host.root / "a").unlink()
    (host.root / "a").symlink_to("d/b")


@pytest.mark.parametrize(
    ("change", "words", "problem"),
    [
        (edit, "a was changed on the host since it was applied", "changed-since"),
        (make_what_was_removed, "gone/soon was changed on the host", "changed-since"),
        (link, "a is a symlink", "symlink"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_a_file_that_was_changed_is_not_replaced(applied, change, words, problem, check):
    change(applied)
    before = snapshot(applied.folder)
    with pytest.raises(RefusedError, match=words) as error:
        applied.rollback(1, check=check)
    assert [p.problem for p in error.value.problems.items] == [problem]
    assert "Nothing was changed" in error.value.hint
    assert snapshot(applied.folder) == before


def test_a_file_that_was_changed_is_not_removed(applied):
    (applied.root / "d" / "new").write_bytes(b"mine")
    done = applied.rollback(1)
    assert done.kept == ["d/new"]
    assert "d/new" in done.warnings[0]
    assert applied.files() == {"users own": b"u", **TREES[0], "d/new": b"mine"}


def test_a_file_that_was_removed_comes_back(applied):
    (applied.root / "a").unlink()
    assert "a" in applied.rollback(1).added
    assert applied.files() == {"users own": b"u", **TREES[0]}


def test_syncing_first_keeps_what_was_changed_and_lets_go_back(tmp_path, applied):
    edit(applied)
    done = applied.apply(tmp_path / "bundles" / "tree3.tar.gz")
    assert any("changed on the host: a." in warning for warning in done.warnings)
    applied.rollback(1)
    assert applied.files()["a"] == b"1"
    applied.rollback(3)
    assert applied.files()["a"] == b"mine"
    # What going back has put there is not what somebody changed since.
    applied.rollback(1)
    assert applied.files()["a"] == b"1"


# -- what is kept is damaged ---------------------------------------------------------------------


def flip(host):
    next(path for path in kept_files(host, 1) if path.read_bytes() == b"file").write_bytes(b"File")


def lose(host):
    next(path for path in kept_files(host, 1) if path.read_bytes() == b"file").unlink()


def lose_manifest(host):
    (host.state / "versions" / "1" / MODERN).unlink()


def break_manifest(host):
    (host.state / "versions" / "1" / MODERN).write_bytes(b"nonsense\n")


def break_record(host):
    (host.state / "versions" / "1" / "kept" / "before.json").write_bytes(b"{")


def newer_record(host):
    path = host.state / "versions" / "1" / "kept" / "before.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))


def lose_between(host):
    shutil.rmtree(host.state / "versions" / "2")


def lose_what_is_kept(host):
    shutil.rmtree(host.state / "versions" / "2" / "kept")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, "bytes that are kept of x are not those"),
        (lose, "bytes that are kept of x can't be read"),
        (lose_manifest, "its manifest is gone"),
        (break_manifest, "line 1: not a line"),
        (break_record, "before.json of a version can't be read"),
        (newer_record, "another version of this program"),
        (lose_between, "Version 1 of .* is not kept"),
        (lose_what_is_kept, "Version 1 of .* is not kept"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_damage_is_found_before_anything_changes(applied, damage, words, check):
    damage(applied)
    before = snapshot(applied.folder)
    with pytest.raises(TrainError, match=words):
        applied.rollback(1, check=check)
    assert snapshot(applied.folder) == before


def test_bytes_that_were_never_kept_are_missed(tmp_path, host):
    """Only the mode changed from 1 to 2; then somebody edited the file, and 3 replaced that."""
    host.apply(make(tmp_path, {"a": b"x"}, "one").paths[0])
    host.apply(make(tmp_path, {"a": b"x"}, "two", ["a"]).paths[0])
    (host.root / "a").write_bytes(b"mine")
    host.apply(make(tmp_path, {"a": b"z"}, "three").paths[0])
    with pytest.raises(RefusedError, match="bytes that a had are not kept"):
        host.rollback(1)
    host.rollback(2)
    assert host.files() == {"a": b"mine"}


def test_what_a_program_applied_that_kept_no_versions(tmp_path, applied):
    """Its manifest is that of number 0: what it lists and isn't there any more is removed."""
    shutil.rmtree(applied.state / "versions")
    old = applied.files()
    done = applied.apply(make(tmp_path, {"a": b"4"}, "tree4").paths[0])
    assert (done.version, done.removed) == (1, ["d/b", "d/new", "x/inner"])
    applied.rollback()
    assert applied.files() == old
    assert parse((applied.state / MODERN).read_bytes()).lines.keys() == TREES[2].keys()


def test_where_nothing_was_applied_nothing_is_kept(host):
    with pytest.raises(TrainError, match="No version of"):
        host.rollback()
    assert not host.state.exists()
    with pytest.raises(TrainError, match="No version of"):
        host.rollback(check=True)


def test_a_state_folder_of_its_own_works_too(tmp_path):
    """As at home, where what was fetched is applied to a folder beside it."""
    root, state = str(tmp_path / "files"), str(tmp_path / "state")
    apply(make(tmp_path, {"a": b"1"}, "one").paths[0], root, state)
    apply(make(tmp_path, {"a": b"2"}, "two").paths[0], root, state)
    rollback(root, state)
    assert (tmp_path / "files" / "a").read_bytes() == b"1"
    rollback(root, state, 0)
    assert os.listdir(root) == []
