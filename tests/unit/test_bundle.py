"""Bundles: built the same every time, and applied as they were packed."""

import fcntl
import hashlib
import os
import stat
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from remote_train import bundle, staging
from remote_train.bundle import apply, build, compare
from remote_train.errors import TrainError
from remote_train.file_names import to_bytes
from remote_train.manifest import LEGACY, MODERN
from remote_train.problems import RefusedError
from tests.unit.bundle_host import FILES, Host, listed, make, put, read, snapshot


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# -- building ----------------------------------------------------------------------------------


def test_the_same_files_give_the_same_bytes(tmp_path):
    one = make(tmp_path, FILES, "one", executable=["run.sh"])
    time.sleep(0.01)
    two = make(tmp_path, dict(reversed(FILES.items())), "two", executable=["run.sh"])
    (tmp_path / "source-two" / "a.py").chmod(0o600)
    assert one.sha256 == two.sha256
    for first, second in zip(one.paths[::2], two.paths[::2], strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()
    other = make(tmp_path, FILES, "three", executable=[])
    assert other.sha256 != one.sha256


def test_nothing_of_this_machine_is_in_the_archive(tmp_path):
    made = make(tmp_path, FILES, executable=["run.sh"])
    header = Path(made.paths[0]).read_bytes()[:10]
    assert header[3] == 0  # no name
    assert header[4:8] == bytes(4)  # no time
    with tarfile.open(made.paths[0]) as archive:
        members = archive.getmembers()
    assert members[0].name == MODERN
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert {m.mode for m in members} == {0o644, 0o755}
    ordered = [to_bytes(member.name) for member in members[1:]]
    assert ordered == sorted(ordered)


def test_sha256sum_and_tar_agree_with_all_three_files(tmp_path):
    made = make(tmp_path, FILES)
    archive, digest, listing = made.paths
    check = ["sha256sum", "--strict", "--quiet", "-c"]
    subprocess.run([*check, os.path.basename(digest)], cwd=os.path.dirname(digest), check=True)
    subprocess.run([*check, listing], cwd=tmp_path / "source-project", check=True)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", tmp_path / "out"], check=True)
    subprocess.run([*check, MODERN], cwd=tmp_path / "out", check=True)
    assert read(tmp_path / "out") == {**FILES, MODERN: Path(listing).read_bytes()}
    assert made.digests["a.py"] == hashlib.sha256(FILES["a.py"]).hexdigest()
    assert made.bytes == sum(map(len, FILES.values()))


def grow(source):
    (source / "a").write_bytes(b"longer")


def link(source):
    (source / "a").unlink()
    (source / "a").symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", [grow, link, lambda source: (source / "a").unlink()])
@pytest.mark.parametrize("late", [False, True])
def test_a_file_that_changes_while_it_is_packed_is_refused(tmp_path, monkeypatch, change, late):
    source = tmp_path / "source"
    put(source, {"a": b"a", "b": b"b"})
    if late:  # after it was hashed, before it is packed
        write = bundle.write_manifest
        monkeypatch.setattr(bundle, "write_manifest", lambda d: (change(source), write(d))[1])
    else:
        change(source)
    with pytest.raises(TrainError, match=r"^a changed while"):
        build(str(source), listed({"a": b"a", "b": b"b"}), str(tmp_path / "out"))
    assert not late or os.listdir(tmp_path / "out") == []


def test_same_size_change_after_hashing_is_seen(tmp_path, monkeypatch):
    source = tmp_path / "source"
    put(source, {"a": b"a"})
    write = bundle.write_manifest
    monkeypatch.setattr(
        bundle, "write_manifest", lambda d: ((source / "a").write_bytes(b"b"), write(d))[1]
    )
    with pytest.raises(TrainError, match=r"^a changed while"):
        build(str(source), listed({"a": b"a"}), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        ({"a": b"", "A": b""}, "n", "case only"),
        ({"é": b"", "e\u0301": b""}, "n", "Unicode form only"),
        ({}, "n", "no files"),
        ({"a": b""}, "../n", "can't have the name"),
    ],
)
def test_what_no_receiver_would_take_is_not_built(tmp_path, files, name, words):
    put(tmp_path / "source", files)
    with pytest.raises(TrainError, match=words):
        build(str(tmp_path / "source"), listed(files), str(tmp_path / "out"), name)
    assert not (tmp_path / "out").exists()


# -- applying ----------------------------------------------------------------------------------


def test_apply_brings_what_was_packed(tmp_path, host):
    made = make(tmp_path, FILES, executable=["run.sh"])
    done = host.apply(made.paths[0])
    assert host.files() == FILES
    assert done.changed
    assert sorted(done.added) == sorted(FILES)
    assert done.bytes == made.bytes
    assert not done.warnings
    assert os.access(host.root / "run.sh", os.X_OK)
    assert not (host.root / "a.py").stat().st_mode & 0o111
    recorded = (host.state / MODERN).read_bytes()
    assert recorded == Path(made.paths[2]).read_bytes()
    assert sorted(os.listdir(host.state)) == [MODERN, "apply.lock", "versions"]
    before = snapshot(host.folder)
    again = host.apply(made.paths[0], made.sha256)
    assert not again.changed
    assert again.unchanged == len(FILES)
    assert snapshot(host.folder) == before


def test_apply_replaces_removes_and_leaves_the_rest(tmp_path, host):
    first = make(tmp_path, {"a": b"1", "b": b"2", "gone/deep/c": b"3", "edited": b"4"}, "one")
    host.apply(first.paths[0])
    put(host.root, {"users own": b"u", "outputs/adapter/x": b"o", "edited": b"mine now"})
    second = make(tmp_path, {"a": b"1", "b": b"new"}, "two")
    looked = host.apply(second.paths[0], check=True)
    assert host.files()["b"] == b"2"
    done = host.apply(second.paths[0])
    for result in (looked, done):
        assert (result.added, result.replaced) == ([], ["b"])
        assert result.removed == ["gone/deep/c"]
        assert result.kept == ["edited"]
        assert result.unchanged == 1
        assert [line.split()[-1] for line in result.before] == ["b", "gone/deep/c"]
        assert [line.split()[-1] for line in result.after] == ["b"]
    assert host.files() == {
        "a": b"1",
        "b": b"new",
        "users own": b"u",
        "outputs/adapter/x": b"o",
        "edited": b"mine now",
    }
    assert not (host.root / "gone").exists()


def test_the_executable_bit_alone_is_a_change(tmp_path, host):
    host.apply(make(tmp_path, {"run": b"x"}, "one").paths[0])
    second = make(tmp_path, {"run": b"x"}, "two", executable=["run"])
    assert host.apply(second.paths[0]).replaced == ["run"]
    assert os.access(host.root / "run", os.X_OK)
    third = make(tmp_path, {"run": b"x"}, "three")
    assert host.apply(third.paths[0]).replaced == ["run"]
    assert not (host.root / "run").stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"x": b"file"}, {"x/inner/y": b"in a folder"}),
        ({"x/inner/y": b"in a folder"}, {"x": b"file"}),
    ],
)
def test_a_file_may_become_a_folder_and_the_reverse(tmp_path, host, old, new):
    host.apply(make(tmp_path, old, "one").paths[0])
    host.apply(make(tmp_path, new, "two").paths[0])
    assert host.files() == new


def test_check_mode_writes_nothing_at_all(tmp_path, host):
    made = make(tmp_path, FILES)
    before = snapshot(host.folder)
    done = host.apply(made.paths[0], check=True)
    assert sorted(done.added) == sorted(FILES)
    assert snapshot(host.folder) == before
    missing = host.root / "not" / "there"
    assert apply(made.paths[0], str(missing), str(missing / "state"), check=True).changed
    assert snapshot(host.folder) == before
    apply(made.paths[0], str(missing), str(missing / "state"))
    assert read(missing)["a.py"] == FILES["a.py"]


def test_an_interrupted_apply_leaves_nothing_that_stays(tmp_path, host, monkeypatch):
    made = make(tmp_path, FILES)
    put(host.state, {"staging-old/0": b"left"})

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(staging.Unpacker, "unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        host.apply(made.paths[0])
    assert os.listdir(host.state) == ["apply.lock"]


def test_the_staging_folder_is_for_its_owner_alone(tmp_path, host, monkeypatch):
    seen = []
    unpack = staging.Unpacker.unpack

    def look(self, *arguments):
        seen.extend(host.state.glob("staging-*"))
        assert stat.S_IMODE(seen[0].stat().st_mode) == 0o700
        return unpack(self, *arguments)

    monkeypatch.setattr(staging.Unpacker, "unpack", look)
    host.apply(make(tmp_path, FILES).paths[0])
    assert len(seen) == 1


def test_two_applies_at_once_are_refused(tmp_path, host):
    made = make(tmp_path, FILES)
    host.state.mkdir(parents=True)
    with open(host.state / "apply.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainError, match="Another sync is at work"):
            host.apply(made.paths[0])
    assert host.apply(made.paths[0]).changed


# -- bundles that others made --------------------------------------------------------------------

SCRIPTS = {
    "find, tar folder": f"find . -type f | xargs sha256sum > {MODERN}; tar -czf ../x.tar.gz .",
    "legacy sha1": f"sha1sum a sub/b > {LEGACY}; tar -czf ../x.tar.gz *",
    "legacy sha256": f"shasum -a 256 sub/b a > {LEGACY}; tar -czf ../x.tar.gz a sub {LEGACY}",
    "pax": f"sha256sum a sub/b > {MODERN}; tar --format=pax -czf ../x.tar.gz .",
    "ustar": f"sha256sum -b a sub/b > {MODERN}; tar --format=ustar -czf ../x.tar.gz .",
    "v7": f"sha256sum --tag a sub/b > {MODERN}; tar --format=v7 -czf ../x.tar.gz .",
    "apple": f"sha256sum a sub/b > {MODERN}; touch ._a; tar -czf ../x.tar.gz .",
    "setgid folder": f"chmod g+s sub; sha256sum a sub/b > {MODERN}; tar -czf ../x.tar.gz .",
    "manifest beside": "sha256sum a sub/b > ../x.SYNC_MANIFEST.sha256; tar -czf ../x.tar.gz .",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("beside", ["sha256sum $PWD/x.tar.gz > x.tar.gz.sha256", "true"])
def test_bundles_by_simple_scripts_apply(tmp_path, host, script, beside):
    content = {"a": b"1", "sub/b": b"2" * 300}
    put(tmp_path / "source", content)
    subprocess.run(["sh", "-c", SCRIPTS[script]], check=True, cwd=tmp_path / "source")
    subprocess.run(["sh", "-c", beside], check=True, cwd=tmp_path)
    done = host.apply(tmp_path / "x.tar.gz")
    assert host.files() == content
    assert done.legacy == ("sha1" in script)
    assert any("vouches" in warning for warning in done.warnings) == (beside == "true")
    assert (host.state / MODERN).read_bytes() == b"".join(
        b"%s  %s\n" % (hashlib.sha256(data).hexdigest().encode(), name.encode())
        for name, data in content.items()
    )
    assert not host.apply(tmp_path / "x.tar.gz").changed


def test_compare_sorts_names_by_what_is_there(tmp_path):
    put(tmp_path, {"same": b"a", "other": b"b", "file": b"c", "unlisted": b""})
    digest = hashlib.sha256(b"a").hexdigest()
    entries = dict.fromkeys(["same", "other", "gone", "file/in", "no/folder"], digest)
    assert compare(str(tmp_path), entries) == {
        "missing": ["file/in", "gone", "no/folder"],
        "different": ["other"],
        "same": ["same"],
    }
    assert compare(str(tmp_path / "none"), entries)["missing"] == sorted(entries)
    (tmp_path / "link").symlink_to("same")
    with pytest.raises(RefusedError, match="link is a symlink"):
        compare(str(tmp_path), {"link": digest})
