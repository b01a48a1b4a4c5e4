"""The digest cache: what it gives is what reading gives, whatever was done to the files between."""

import hashlib
import os
import socket
import stat
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import digest_cache, hashing, tree
from remote_train.digest_cache import DigestCache

NAMES = ["a", "sub/b", "sub/deep/c", "sub/caf\udce9", "z"]


@pytest.fixture
def place(tmp_path):
    """A folder of old files, and the path of a cache."""
    root = tmp_path / "root"
    for name in NAMES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content of " + os.fsencode(name))
    (root / "a").chmod(0o755)
    settle(root)
    return root, str(tmp_path / "cache")


def settle(folder):
    """Wait until the file system's clock has moved on, so that what was written before is old."""
    probe = folder / ".probe"
    probe.write_bytes(b"")
    first = probe.stat().st_ctime_ns
    while probe.stat().st_ctime_ns == first:
        time.sleep(0.001)
        probe.write_bytes(b"")
    probe.unlink()


def findings(root, names=NAMES, cache=None, expected=None, algorithm="sha256"):
    wanted = expected or dict.fromkeys(names, "")
    found = tree.examine(os.fsencode(root), names, wanted.__getitem__, algorithm, cache=cache)
    return sorted(found)


def remember(root, path, names=NAMES):
    cache = DigestCache(path, str(root))
    findings(root, names, cache)
    return cache.save()


@pytest.fixture
def reads(monkeypatch):
    """How many files were read."""
    counted = []
    real = hashing.descriptor_digest

    def count(descriptor, *arguments):
        counted.append(descriptor)
        return real(descriptor, *arguments)

    monkeypatch.setattr(hashing, "descriptor_digest", count)
    return counted


def test_a_finding_from_the_cache_is_the_one_from_reading(place, reads):
    root, path = place
    plain = findings(root)
    wanted = {found.name: found.digest for found in plain} | {"z": "0" * 64}
    plain = findings(root, expected=wanted)
    assert {found.kind for found in plain} == {"same", "different"}
    assert remember(root, path)
    del reads[:]
    assert findings(root, cache=DigestCache(path, str(root)), expected=wanted) == plain
    assert not reads


def test_files_younger_than_the_run_are_read_by_the_next_one(place, reads):
    root, path = place
    cache = DigestCache(path, str(root))
    (root / "a").write_bytes(b"young")
    findings(root, cache=cache)
    cache.save()
    del reads[:]
    settle(root)
    assert remember(root, path)
    assert len(reads) == 1
    assert not remember(root, path)
    assert len(reads) == 1


@pytest.mark.parametrize("later", [-1, 0, 1])
def test_only_what_changed_before_the_clocks_tick_is_kept(place, later):
    root, path = place
    cache = DigestCache(path, str(root))
    status = (root / "a").stat()
    cache._time = status.st_ctime_ns + later
    cache.note("a", status, "ab" * 32)
    assert cache.save() == (later > 0)
    assert DigestCache(path, str(root)).known("a", status) == ("ab" * 32 if later > 0 else "")


def write_again(path):
    path.write_bytes(b"x" * path.stat().st_size)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"y" * path.stat().st_size)
    other.replace(path)


def swap_with_old(path):
    """Another old file of that size takes the name: its ctime is all that is new."""
    other = path.with_name("other")
    other.write_bytes(b"y" * path.stat().st_size)
    settle(path.parent)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def write_through_link(path):
    link = path.with_name("link")
    link.hardlink_to(path)
    write_again(link)
    link.unlink()


def append_and_cut(path):
    size = path.stat().st_size
    with open(path, "r+b") as stream:
        stream.write(b"Q")
        stream.truncate(size + 1)
        stream.truncate(size)


EDITS = [write_again, replace, swap_with_old, write_through_link, append_and_cut]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_that_keeps_size_and_mtime_is_seen(place, edit):
    root, path = place
    remember(root, path)
    before = (root / "sub/b").stat()
    edit(root / "sub/b")
    os.utime(root / "sub/b", ns=(before.st_atime_ns, before.st_mtime_ns))
    after = (root / "sub/b").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert findings(root, cache=DigestCache(path, str(root))) == findings(root)


def test_a_file_that_is_written_again_in_the_same_tick_is_read_again(tmp_path):
    """Some of these rounds lie within one tick, where ctime alone tells nothing.

    Linux from 6.13 on gives a file that was looked at a finer time: the test before tests the rule.
    """
    root, path = tmp_path / "root", str(tmp_path / "cache")
    root.mkdir()
    file = root / "a"
    file.write_bytes(b"-")
    fixed = file.stat().st_mtime_ns
    for turn in range(300):
        with open(file, "r+b") as stream:
            stream.write(b"A")
        os.utime(file, ns=(fixed, fixed))
        cache = DigestCache(path, str(root))
        findings(root, ["a"], cache)
        with open(file, "r+b") as stream:
            stream.write(b"B")
        os.utime(file, ns=(fixed, fixed))
        cache.save()
        found = findings(root, ["a"], DigestCache(path, str(root)))
        assert found[0].digest == hashlib.sha256(b"B").hexdigest(), turn


def to_symlink(path):
    path.rename(path.with_name("old"))
    path.symlink_to("old")


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_fifo(path):
    path.unlink()
    os.mkfifo(path)


def to_socket(path):
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def folder_to_link(path):
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.symlink_to("elsewhere")


def folder_to_file(path):
    path.parent.rename(path.parent.with_name("elsewhere"))
    path.parent.write_bytes(b"")


@pytest.mark.parametrize(
    "change",
    [to_symlink, to_folder, to_fifo, to_socket, folder_to_link, folder_to_file, os.unlink],
)
def test_what_is_no_regular_file_any_more_is_found_as_without_a_cache(place, change):
    root, path = place
    remember(root, path)
    change(root / "sub/b")
    assert findings(root, cache=DigestCache(path, str(root))) == findings(root)


def write(root, one, _other, content):
    (root / one).write_bytes(content)


def write_and_keep_time(root, one, _other, content):
    if (root / one).exists():
        old = (root / one).stat()
        (root / one).write_bytes(content)
        os.utime(root / one, ns=(old.st_atime_ns, old.st_mtime_ns))


def move(root, one, other, _content):
    if (root / one).exists():
        (root / one).replace(root / other)


def link(root, one, other, _content):
    if (root / one).exists() and one != other:
        (root / other).unlink(missing_ok=True)
        (root / other).hardlink_to(root / one)


def remove(root, one, _other, _content):
    (root / one).unlink(missing_ok=True)


def run_of_ours(root, *_rest):
    remember(root, f"{root}.cache", FEW)


FEW = ["a", "b", "c"]
STEPS = st.tuples(
    st.sampled_from([write, write_and_keep_time, move, link, remove, run_of_ours, run_of_ours]),
    st.sampled_from(FEW),
    st.sampled_from(FEW),
    st.sampled_from([b"1", b"2", b"33"]),
)


@given(st.lists(STEPS, max_size=25))
@settings(max_examples=60, deadline=None)
def test_any_changes_in_any_order_are_found_as_without_a_cache(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("any") / "root"
    root.mkdir()
    for step, *arguments in steps:
        step(root, *arguments)
    cache = DigestCache(f"{root}.cache", str(root))
    assert findings(root, FEW, cache) == findings(root, FEW)


def test_nothing_is_written_when_nothing_changed(place):
    root, path = place
    assert remember(root, path)
    before = os.stat(path)
    cache = DigestCache(path, str(root))
    for found in findings(root, cache=cache):  # a caller may note what it knows already
        cache.note(found.name, (root / found.name).stat(), found.digest)
    assert not cache.save()
    after = os.stat(path)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_file_is_private_and_nothing_is_left_beside_it(place):
    root, path = place
    remember(root, path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert sorted(os.listdir(root.parent)) == ["cache", "root"]
    assert sorted(os.listdir(root)) == ["a", "sub", "z"]


def bad_byte(path, place):
    with open(path, "r+b") as stream:
        stream.seek(place, os.SEEK_END if place < 0 else os.SEEK_SET)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))


DAMAGE = {
    "format": lambda path, _root: bad_byte(path, 26),
    "header": lambda path, _root: bad_byte(path, 70),
    "digest": lambda path, _root: bad_byte(path, -40),
    "checksum": lambda path, _root: bad_byte(path, -1),
    "cut": lambda path, _root: os.truncate(path, os.path.getsize(path) - 7),
    "empty": lambda path, _root: os.truncate(path, 0),
    "folder": lambda path, _root: (os.unlink(path), os.mkdir(path)),
    "fifo": lambda path, _root: (os.unlink(path), os.mkfifo(path)),
    "symlink": lambda path, _root: (os.rename(path, path + "2"), os.symlink(path + "2", path)),
    "writable by others": lambda path, _root: os.chmod(path, 0o620),
    "another root": lambda _path, root: (root.rename(f"{root}2"), root.symlink_to(f"{root}2")),
    "another format": lambda path, _root: reformat(path),
}


def reformat(path):
    """Write it as a later version would: all is in order, but the number."""
    with open(path, "rb") as stream:
        content = stream.read()[: -digest_cache._DIGEST].replace(b"cache 1", b"cache 2")
    with open(path, "wb") as stream:
        stream.write(content + hashlib.sha256(content).digest())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_cache_that_cannot_be_trusted_is_as_none(place, damage, reads):
    root, path = place
    remember(root, path)
    del reads[:]
    DAMAGE[damage](path, root)
    cache = DigestCache(path, str(root))
    assert findings(root, cache=cache) == findings(root)
    assert len(reads) == 2 * len(NAMES)
    assert cache.save() == (damage != "folder")
    if damage != "folder":
        del reads[:]
        findings(root, cache=DigestCache(path, str(root)))
        assert not reads


@given(st.binary(max_size=400))
def test_any_bytes_are_a_cache_or_none(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "cache"
    for whole in (content, digest_cache._MAGIC + content):
        path.write_bytes(whole + hashlib.sha256(whole).digest())
        assert DigestCache(str(path), str(folder)).known("a", folder.stat()) == ""


def test_what_cannot_be_saved_is_no_error(place):
    root, path = place
    cache = DigestCache(os.path.join(path, "none", "cache"), str(root))
    findings(root, cache=cache)
    assert not cache.save()
    assert not os.path.lexists(path)
    nowhere = DigestCache(path, str(root / "none"))
    assert not nowhere.save()


def test_sha1_passes_it_by(place):
    root, path = place
    remember(root, path)
    cache = DigestCache(path, str(root))
    found = findings(root, cache=cache, algorithm="sha1")
    assert found == findings(root, algorithm="sha1")
    assert not cache.save()


def test_a_clock_of_another_file_system_is_not_used(place, monkeypatch):
    root, path = place
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    assert remember(root, path)  # the same one: a file beside the cache tells the time
    assert sorted(os.listdir(root.parent)) == ["cache", "root"]
    os.unlink(path)
    elsewhere = "/dev/shm"  # noqa: S108 - a file system of its own on Linux
    if not os.path.isdir(elsewhere) or os.stat(elsewhere).st_dev == root.stat().st_dev:
        pytest.skip("there is one file system here")
    assert not remember(root, f"{elsewhere}/remote-train-test-{os.getpid()}")


def like(status, **others):
    fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return SimpleNamespace(**{field: getattr(status, field) for field in fields} | others)


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_a_file_that_looks_different_in_one_way_is_not_known(place, field):
    root, path = place
    remember(root, path)
    cache = DigestCache(path, str(root))
    status = (root / "a").stat()
    assert cache.known("a", like(status))
    for step in (-1, 1):
        assert not cache.known("a", like(status, **{field: getattr(status, field) + step}))


def test_files_of_another_file_system_are_not_remembered(place):
    root, path = place
    cache = DigestCache(path, str(root))
    status = (root / "a").stat()
    cache.note("a", like(status, st_dev=status.st_dev + 1), "ab" * 32)
    assert not cache.save()


def test_only_regular_files_are_recalled(place):
    root, path = place
    to_fifo(root / "a")
    settle(root)
    cache = DigestCache(path, str(root))
    cache.note("a", (root / "a").lstat(), "ab" * 32)
    assert cache.save()
    assert findings(root, cache=DigestCache(path, str(root))) == findings(root)


def test_files_that_are_gone_are_forgotten_in_the_end(place):
    root, path = place
    remember(root, path)
    gone = (root / "z").stat()
    for name in NAMES[1:]:
        (root / name).unlink()
    (root / "new").write_bytes(b"")
    settle(root)
    remember(root, path, ["a", "new"])
    cache = DigestCache(path, str(root))
    assert sorted(cache._places) == ["a", "new"]
    assert cache.known("z", gone) == ""


def test_large_files_are_remembered_too(place, monkeypatch, reads):
    root, path = place
    monkeypatch.setattr(tree, "LARGE", 12)
    plain = findings(root)
    remember(root, path)
    del reads[:]
    assert findings(root, cache=DigestCache(path, str(root))) == plain
    assert not reads
