"""Only what the host lacks is sent, and yet all that was offered is there then, or nothing is."""

import base64
import contextlib
import fcntl
import hashlib
import os
import struct
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import apply_lock, bundle, plan, versions
from remote_train.bundle_apply import Delivery
from remote_train.digest_cache import DigestCache
from remote_train.errors import TrainError
from remote_train.file_names import to_name
from remote_train.manifest import MODERN
from remote_train.offer import keep
from remote_train.signature import Trust
from remote_train.target_change import cache_path
from tests.unit import killing, test_apply_killed
from tests.unit.bundle_host import FILES, Host, listed, no_waiting, put
from tests.unit.hostile_deltas import bring, delta_of, offer_of
from tests.unit.signers import ME, line, make_key, signed
from tests.unit.test_apply_killed import MEMORY, NEW, OLD, Stage, tree


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def memory(tmp_path):
    """A folder in memory, where there is one: a disk takes three times as long."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="remote-train-") as folder:
        yield Path(folder)


def looked(host, files, executable=(), cache=None):
    """What the plan finds, by name."""
    wanted = offer_of(files, executable)
    found = plan.compare(str(host.root), str(host.state), wanted, cache)
    by_name = {key: [wanted.names[at] for at in found[key]] for key in ("add", "change", "mode")}
    return {**by_name, "remove": found["remove"]}


def lacks(host, files, executable=()):
    """The names that a delta has to hold."""
    found = looked(host, files, executable)
    return found["add"] + found["change"]


def runs(host, name):
    return bool((host.root / name).stat().st_mode & 0o100)


# -- from a project to a host --------------------------------------------------------------------


def test_a_project_comes_over_by_deltas(tmp_path, host):
    """Packed as the controller packs it: everything, one file of it, nothing."""
    source = tmp_path / "source"
    put(source, FILES)
    (source / "run.sh").chmod(0o755)

    def sync(files):
        chosen = set(lacks(host, files, ["run.sh"]))
        path = tmp_path / "project.delta"
        path.unlink(missing_ok=True)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        of_them = [file for file in listed(files, ["run.sh"]) if file.name in chosen]
        sha256 = bundle.build_delta(str(source), of_them, digests, str(path))
        assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        done = host.apply(path, sha256, delivery=Delivery(None, offer_of(files, ["run.sh"])))
        assert host.files() == files
        return done

    assert sorted(sync(FILES).added) == sorted(FILES)
    assert runs(host, "run.sh")
    changed = {**FILES, "a.py": b"other\n"}
    put(source, changed)
    done = sync(changed)
    assert (done.added, done.replaced, done.removed) == ([], ["a.py"], [])
    assert done.bytes == 6
    assert done.unchanged == len(FILES) - 1
    assert not sync(changed).changed


def test_the_same_files_give_the_same_delta(tmp_path):
    source = tmp_path / "source"
    put(source, FILES)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    made = []
    for turn, files in enumerate((listed(FILES), listed(FILES)[::-1])):
        path = tmp_path / str(turn)
        bundle.build_delta(str(source), files, digests, str(path))
        made.append(path.read_bytes())
        for name in FILES:
            with contextlib.suppress(OSError):
                os.utime(source / name, (1, 1))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"print(1\n"),
        lambda path: path.write_bytes(b"p"),
        lambda path: path.write_bytes(b"longer than it was"),
        lambda path: path.unlink(),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["bytes", "shorter", "longer", "gone", "symlink", "folder", "fifo"],
)
def test_a_file_that_changes_before_it_is_packed_is_named(tmp_path, spoil):
    files = {"a.py": b"print()\n"}
    put(tmp_path / "source", files)
    spoil(tmp_path / "source" / "a.py")
    digests = {"a.py": hashlib.sha256(files["a.py"]).hexdigest()}
    path = str(tmp_path / "delta")
    with pytest.raises(TrainError, match=r"a\.py changed while the training project was being"):
        bundle.build_delta(str(tmp_path / "source"), listed(files), digests, path)


def test_what_does_not_get_smaller_is_not_compressed(tmp_path):
    sizes = []
    for number, content in enumerate((os.urandom(400_000), b"text " * 80_000, b"x")):
        files = {"a": content}
        put(tmp_path / str(number), files)
        digests = {"a": hashlib.sha256(files["a"]).hexdigest()}
        path = tmp_path / f"delta{number}"
        bundle.build_delta(str(tmp_path / str(number)), listed(files), digests, str(path))
        sizes.append(path.stat().st_size)
    assert 400_000 < sizes[0] < 420_000
    assert sizes[1] < 10_000
    assert sizes[2] < 200  # a small one isn't padded


files_of_both = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e", "f\ng", to_name(b"\xff"), "-x"]),
    st.tuples(st.binary(max_size=3), st.booleans()),
    min_size=1,
)


@settings(max_examples=60)
@given(st.lists(files_of_both, min_size=1, max_size=4), st.booleans())
def test_any_trees_one_after_the_other(tmp_path_factory, trees, cached):
    """What the plan says is what a delta needs, and then there is nothing left to say."""
    host = Host(tmp_path_factory.mktemp("trees"))
    put(host.root, {"outputs/mine": b"m"})
    for wanted in trees:
        files = {name: content for name, (content, _runs) in wanted.items()}
        executable = [name for name, (_content, can) in wanted.items() if can]
        before = host.files()
        said = looked(host, files, executable)
        done = bring(host, files, lacks(host, files, executable), executable, cache=cached)
        assert sorted(done.added) == sorted(said["add"])
        assert sorted(done.replaced) == sorted(said["change"] + said["mode"])
        assert len(done.removed) == len(said["remove"])
        assert sorted(said["change"]) == sorted(
            name for name in files if name in before and before[name] != files[name]
        )
        assert host.files() == {**files, "outputs/mine": b"m"}
        assert {name for name in files if runs(host, name)} == set(executable)
        assert not any(looked(host, files, executable).values())


# -- what it may hold ----------------------------------------------------------------------------

THREE = {"a": b"1", "b": b"2", "c": b"3"}


def test_a_file_that_is_there_already_may_come_again(host):
    bring(host, THREE, THREE)
    assert not bring(host, THREE, ["b"]).changed


def test_a_file_that_is_there_already_is_verified_when_it_comes_again(host):
    bring(host, THREE, THREE)
    before = host.snapshot()
    with pytest.raises(TrainError, match="b has another digest than listed"):
        bring(host, THREE, [], content=delta_of({"b": b"evil"}))
    assert host.snapshot() == before


def test_removal_alone(host):
    bring(host, THREE, THREE)
    done = bring(host, {"a": b"1"}, [])
    assert (done.removed, done.added, done.replaced) == (["b", "c"], [], [])
    assert host.files() == {"a": b"1"}
    assert host.rollback().added == ["b", "c"]
    assert host.files() == THREE


def test_removal_alone_keeps_what_the_user_changed(host):
    bring(host, THREE, THREE)
    put(host.root, {"b": b"mine"})
    done = bring(host, {"a": b"1"}, [])
    assert (done.removed, done.kept) == (["c"], ["b"])
    assert "Kept, since it was changed on the host" in done.warnings[0]
    assert host.files() == {"a": b"1", "b": b"mine"}


@pytest.mark.parametrize("to", [True, False])
def test_the_mode_alone(host, to):
    """The bit changes, the bytes aren't touched, it is a version, and going back undoes it."""
    first, second = ([], ["b"]) if to else (["b"], [])
    bring(host, THREE, THREE, first)
    (host.root / "b").chmod(0o750 if not to else 0o640)
    inode = (host.root / "b").stat().st_ino
    said = looked(host, THREE, second)
    assert said == {"add": [], "change": [], "mode": ["b"], "remove": []}
    looking = bring(host, THREE, [], second, check=True)
    assert (looking.changed, runs(host, "b")) == (True, not to)
    done = bring(host, THREE, [], second)
    assert done.replaced == ["b"]
    assert done.bytes == 0
    status = (host.root / "b").stat()
    assert (status.st_mode & 0o777, status.st_ino) == (0o750 if to else 0o640, inode)
    assert [version.number for version in versions.versions(str(host.state))] == [0, 1, 2]
    assert not bring(host, THREE, [], second).changed
    host.rollback()
    assert runs(host, "b") is not to
    assert host.files() == THREE


def test_nothing_at_all(host):
    bring(host, THREE, THREE, ["a"])
    before = host.snapshot()
    done = bring(host, THREE, [], ["a"])
    assert not done.changed
    assert done.unchanged == 3
    assert done.version == 1
    assert host.snapshot() == before


def test_the_first_of_all_makes_the_folder(tmp_path, host):
    host.root.rmdir()
    bring(host, THREE, THREE, ["a"])
    assert host.files() == THREE
    assert (host.state / MODERN).read_bytes() == offer_of(THREE).raw


def test_it_is_recorded_as_a_whole(host):
    """The manifest lists what didn't come too, so that the next sync knows what is its own."""
    bring(host, THREE, THREE)
    bring(host, {**THREE, "d": b"4"}, ["d"])
    assert (host.state / MODERN).read_bytes() == offer_of({**THREE, "d": b"4"}).raw
    assert [version.files for version in versions.versions(str(host.state))] == [0, 3, 4]


def test_a_manifest_in_it_is_passed_over(host):
    """Nothing that comes with the files says what they are to be."""
    bring(host, THREE, THREE)
    files = {**THREE, "d": b"4"}
    bring(host, files, [], content=delta_of({MODERN: offer_of({"d": b"4"}).raw, "d": b"4"}))
    assert host.files() == files


def test_the_version_that_it_came_as_a_bundle_before_is_known(tmp_path, host):
    """A bundle first, then a delta: one history."""
    source = tmp_path / "s"
    put(source, THREE)
    host.apply(bundle.build(str(source), listed(THREE), str(tmp_path / "out")).paths[0])
    assert lacks(host, {"a": b"1", "n": b"n"}) == ["n"]
    bring(host, {"a": b"1", "n": b"n"}, ["n"])
    assert host.files() == {"a": b"1", "n": b"n"}
    host.rollback()
    assert host.files() == THREE


def test_a_check_writes_nothing(host):
    bring(host, THREE, THREE)
    before = host.snapshot()
    done = bring(host, {"a": b"x"}, ["a"], ["a"], check=True)
    assert (done.replaced, done.removed, done.changed) == (["a"], ["b", "c"], True)
    assert [line.split()[0] for line in done.after] == [hashlib.sha256(b"x").hexdigest()]
    assert host.snapshot() == before


# -- while others are at work --------------------------------------------------------------------


def test_a_file_changed_on_the_host_after_the_plan_is_noticed(host):
    """One that was the same then: it is not in the delta, so that nothing is applied."""
    bring(host, THREE, THREE)
    files = {**THREE, "a": b"new"}
    chosen = lacks(host, files)
    put(host.root, {"b": b"mine"})
    before = host.snapshot()
    with pytest.raises(TrainError, match="b is not in it"):
        bring(host, files, chosen)
    assert host.snapshot() == before
    # The same command again finds it, says so, and the version before keeps it.
    done = bring(host, files, lacks(host, files))
    assert any("Replaced, though it was changed on the host: b" in said for said in done.warnings)
    assert host.files() == files
    host.rollback()
    assert host.files() == {**THREE, "b": b"mine"}


def test_a_file_that_went_after_the_plan_is_noticed(host):
    bring(host, THREE, THREE)
    files = {**THREE, "a": b"new"}
    chosen = lacks(host, files)
    (host.root / "b").unlink()
    with pytest.raises(TrainError, match="b is not in it"):
        bring(host, files, chosen)
    assert host.files() == {"a": b"1", "c": b"3"}


def test_a_file_that_came_by_itself_after_the_plan_is_no_matter(host):
    bring(host, THREE, THREE)
    files = {**THREE, "d": b"4"}
    chosen = lacks(host, files)
    put(host.root, {"d": b"4"})
    assert not bring(host, files, chosen).added
    assert host.files() == files


def test_two_at_once(host):
    bring(host, THREE, THREE)
    before = host.snapshot()
    with (
        apply_lock.held(str(host.state)),
        pytest.raises(TrainError, match="Another sync is at work"),
    ):
        bring(host, {"a": b"x"}, ["a"])
    assert host.snapshot() == before
    bring(host, {"a": b"x"}, ["a"])
    assert host.files() == {"a": b"x"}


def test_one_that_was_brought_meanwhile_is_noticed(host):
    """Two controllers plan, one is first: the other's delta no longer fits."""
    bring(host, THREE, THREE)
    mine, theirs = {**THREE, "a": b"mine"}, {**THREE, "b": b"theirs"}
    chosen = lacks(host, mine)
    bring(host, theirs, ["b"])
    before = host.snapshot()
    with pytest.raises(TrainError, match="b is not in it"):
        bring(host, mine, chosen)
    assert host.snapshot() == before


# -- the cache -----------------------------------------------------------------------------------


def remember(host, files):
    """Look at the host as a plan does; the cache as it is on the disk then."""
    cache = DigestCache(cache_path(str(host.state)), str(host.root))
    looked(host, files, cache=cache)
    cache.save()
    return DigestCache(cache_path(str(host.state)), str(host.root))


def settle():
    """Let the file system's clock go on, so that what is there is no longer too young."""
    time.sleep(0.05)


def test_what_is_remembered_is_not_read_again_and_a_change_is_seen(host, monkeypatch):
    bring(host, THREE, THREE)
    settle()
    remember(host, THREE)
    cache = DigestCache(cache_path(str(host.state)), str(host.root))
    reads = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **o: (reads.append(path), real(path, *a, **o))[1]
    )
    assert not any(looked(host, THREE, cache=cache).values())
    assert not {b"a", b"b", b"c"} & set(reads)
    reads.clear()
    assert not any(looked(host, THREE).values())
    assert {b"a", b"b", b"c"} <= set(reads)
    put(host.root, {"b": b"X"})
    assert looked(host, THREE, cache=remember(host, THREE))["change"] == ["b"]


def forged(host, name, digest):
    """A cache that says of a file, whose look it has right, that it has another digest."""
    path = cache_path(str(host.state))
    with open(path, "rb") as stream:
        content = stream.read()[:-32]
    old = hashlib.sha256((host.root / name).read_bytes()).digest()
    assert old in content
    content = content.replace(old, bytes.fromhex(digest))
    with open(path, "wb") as stream:
        stream.write(content + hashlib.sha256(content).digest())


def test_a_stale_cache_is_believed_only_where_that_is_allowed(host):
    """Off, every byte is read again, in the plan and when it is applied."""
    bring(host, THREE, THREE)
    settle()
    remember(host, THREE)
    files = {**THREE, "b": b"new"}
    forged(host, "b", hashlib.sha256(b"new").hexdigest())
    cache = DigestCache(cache_path(str(host.state)), str(host.root))
    assert not any(looked(host, files, cache=cache).values())
    assert looked(host, files)["change"] == ["b"]
    with pytest.raises(TrainError, match="b is not in it"):
        bring(host, files, [], cache=False)
    assert host.files() == THREE
    bring(host, files, ["b"], cache=False)
    assert host.files() == files


def test_a_cache_of_another_look_changes_nothing(host):
    """The file was replaced since: its look is another one, whatever the cache says of it."""
    bring(host, THREE, THREE)
    settle()
    remember(host, THREE)
    status = (host.root / "b").stat()
    put(host.root, {"b": b"Y"})
    os.utime(host.root / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    cache = DigestCache(cache_path(str(host.state)), str(host.root))
    assert looked(host, THREE, cache=cache)["change"] == ["b"]
    with pytest.raises(TrainError, match="b is not in it"):
        bring(host, THREE, [], cache=True)


def test_a_damaged_cache_is_as_none(host):
    bring(host, THREE, THREE)
    settle()
    remember(host, THREE)
    path = cache_path(str(host.state))
    with open(path, "r+b") as stream:
        stream.write(struct.pack("<Q", 0))
    cache = DigestCache(path, str(host.root))
    assert not any(looked(host, THREE, cache=cache).values())
    assert not bring(host, THREE, [], cache=True).changed


# -- killed --------------------------------------------------------------------------------------


class DeltaStage(Stage):
    """The same trees as the bundles' own test has, brought by a delta."""

    def __init__(self, folder):
        super().__init__(folder)
        runs_there = ["run.sh", "also run.sh", "added/deep/here"]
        self.delta = folder / "new.delta"
        changed = {name: content for name, content in NEW.items() if OLD.get(name) != content}
        assert "also run.sh" not in changed
        self.delta.write_bytes(delta_of(changed, runs_there))
        (folder / "new.delta.offer").write_text(offer_of(NEW, runs_there).packed())

    def apply(self, host):
        return killing.apply_delta(str(self.delta), str(host.root), str(host.state))

    def applying(self, host):
        return "delta", self.delta, host.root, host.state


@pytest.fixture
def delta_stage(memory):
    return DeltaStage(memory)


def test_killed_at_every_step(delta_stage):
    test_apply_killed.test_apply_killed_at_every_step(delta_stage)


def test_recovery_killed_at_every_step(delta_stage):
    test_apply_killed.test_recovery_killed_at_every_step(delta_stage)


def test_a_delta_brings_what_a_bundle_brings(delta_stage):
    """Byte for byte, mode for mode."""
    by_delta, by_bundle = delta_stage.host(), delta_stage.host()
    delta_stage.apply(by_delta)
    Stage.apply(delta_stage, by_bundle)
    assert tree(by_delta) == tree(by_bundle)
    manifests = [(host.state / MODERN).read_bytes() for host in (by_delta, by_bundle)]
    assert manifests[0] == manifests[1]


# -- the module ----------------------------------------------------------------------------------


def module(run_module, host, files, changed, **options):
    content = delta_of({name: files[name] for name in changed})
    return run_module(
        "apply_bundle",
        root=str(host.root),
        state_dir=str(host.state),
        content=base64.b64encode(content).decode(),
        label="project.delta",
        sha256=hashlib.sha256(content).hexdigest(),
        **options,
    )


def test_the_module_takes_an_offer_that_comes_along_or_was_kept(host, run_module):
    done = module(run_module, host, THREE, THREE, offer=offer_of(THREE).packed())
    assert (done["added"], done["changed"]) == (["a", "b", "c"], True)
    wanted = offer_of({"a": b"x"})
    keep(str(host.state), wanted, wanted.packed())
    done = module(run_module, host, {"a": b"x"}, ["a"], offer_sha256=wanted.sha256)
    assert (done["replaced"], done["removed"]) == (["a"], ["b", "c"])
    # A link that broke may bring the same once more.
    again = module(run_module, host, {"a": b"x"}, ["a"], offer_sha256=wanted.sha256)
    assert not again["changed"]
    assert host.files() == {"a": b"x"}


WRONG = {
    "an offer that isn't there": ({"offer_sha256": "0" * 64}, "no longer has the list"),
    "an offer of another kind": ({"offer": "eA=="}, "arrived damaged"),
    "two of them": ({"offer": "x", "offer_sha256": "0" * 64}, "mutually exclusive"),
    "none": ({}, "it holds no manifest"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_the_module_says_what_is_wrong(host, run_module, options, words):
    before = host.snapshot()
    failed = module(run_module, host, THREE, THREE, **options)
    assert failed["failed"]
    assert words in failed["msg"]
    assert host.snapshot() == before


def test_the_module_refuses_content_that_is_no_base64(host, run_module):
    failed = run_module(
        "apply_bundle", root=str(host.root), state_dir=str(host.state), content="&", label="x"
    )
    assert failed["msg"].startswith("content is not Base64")


def test_the_module_applies_nothing_under_a_running_training(host, run_module):
    lock = host.root / "outputs/training_sync/live/lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = host.snapshot()
        offer_text = offer_of(THREE).packed()
        options = {"offer": offer_text, "project_root": str(host.root)}
        failed = module(run_module, host, THREE, THREE, **options)
        assert "A training is running" in failed["msg"]
        assert host.snapshot() == before
    assert module(run_module, host, THREE, THREE, **options)["changed"]


def test_one_that_was_cut_off_is_waited_for(host, run_module):
    """The next one finds what it has left to do: here, nothing of it was done yet."""
    offer_text = offer_of(THREE).packed()
    with apply_lock.held(str(host.state)):
        failed = module(run_module, host, THREE, THREE, offer=offer_text, wait=0.3)
        assert "Another sync is at work" in failed["msg"]
    held = apply_lock.held(str(host.state))
    held.__enter__()
    ends = threading.Timer(0.5, held.__exit__, (None, None, None))
    ends.start()
    assert module(run_module, host, THREE, THREE, offer=offer_text, wait=10)["changed"]


# -- signed --------------------------------------------------------------------------------------


def test_what_is_signed_is_the_whole_list(tmp_path, host):
    """A signature of it counts for a delta; of another list, or of none, it doesn't."""
    key = make_key(tmp_path)
    wanted = offer_of(THREE)
    trust = Trust(line(key), signed(wanted.raw, key))
    assert bring(host, THREE, THREE, trust=trust).signer == ME
    files = {**THREE, "d": b"4"}
    before = host.snapshot()
    for content in (signed(wanted.raw, key), None, b""):
        with pytest.raises(TrainError, match=r"signature is over other bytes|not signed|is none"):
            bring(host, files, ["d"], trust=Trust(line(key), content))
    another = make_key(tmp_path, "another")
    with pytest.raises(TrainError, match="not among the allowed signers"):
        bring(host, files, ["d"], trust=Trust(line(key), signed(offer_of(files).raw, another)))
    assert host.snapshot() == before
    bring(host, files, ["d"], trust=Trust(line(key), signed(offer_of(files).raw, key)))
    assert host.files() == files
