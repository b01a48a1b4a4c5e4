"""An archive that came in parts is what was sent, however it was cut."""

import gzip
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import parts
from remote_train.bundle_archive import open_archive
from remote_train.errors import TrainError
from remote_train.manifest import MODERN
from remote_train.signature import Trust
from tests.unit.bundle_host import Host, make, no_waiting
from tests.unit.hostile_bundles import LISTING, OK, sound, tar_bytes
from tests.unit.signers import ME, line, make_key, signed


def lay(folder, content, cuts):
    """Write ``content`` in parts that end at ``cuts``."""
    folder.mkdir(exist_ok=True)
    ends = [*cuts, len(content)]
    for start, end in zip([0, *ends], ends, strict=False):
        (folder / parts.name(start, end)).write_bytes(content[start:end])
    return str(folder)


def chain(*ranges):
    return [(parts.name(*one), one[1]) for one in ranges]


def test_a_part_is_called_by_its_bytes():
    assert parts.name(0, 1048576) == "000000000000-000001048576"


ARRIVED = {
    "none": ([], []),
    "in any order": ([(5, 9), (0, 5), (9, 12)], [(0, 5), (5, 9), (9, 12)]),
    "without a start": ([(5, 9)], []),
    "up to a gap": ([(0, 5), (6, 9)], [(0, 5)]),
    "not over an overlap": ([(0, 5), (3, 9)], [(0, 5)]),
    "round an overlap": ([(0, 5), (0, 7), (5, 9)], [(0, 5), (5, 9)]),
    "what comes furthest": (
        [(0, 5), (5, 7), (5, 9), (7, 8), (8, 12)],
        [(0, 5), (5, 7), (7, 8), (8, 12)],
    ),
    "the longer of two": ([(0, 5), (0, 9), (9, 12), (5, 7)], [(0, 9), (9, 12)]),
    "not round and round": ([(0, 5), (5, 5)], [(0, 5)]),
    "nor backwards": ([(0, 5), (5, 0)], [(0, 5)]),
    "nor of no length": ([(0, 0)], []),
    "nor back and forth": ([(0, 5), (3, 9), (5, 3)], [(0, 5)]),
}


@pytest.mark.parametrize(("ranges", "expected"), ARRIVED.values(), ids=ARRIVED)
def test_those_that_follow_each_other_from_the_start_have_arrived(ranges, expected):
    assert parts.arrived(parts.name(*one) for one in ranges) == chain(*expected)


@pytest.mark.parametrize(
    "name",
    [
        "000000000000-000000000005.part",
        "000000000000-000000000005.123",
        "00000000000-000000000005",
        " 000000000000-000000000005",
        "000000000000-000000000005\n",
        "-00000000001-000000000005",
        "٠٠٠٠٠٠٠٠٠٠٠٠-٠٠٠٠٠٠٠٠٠٠٠٥x",
        "..",
        "ls: cannot access",
    ],
)
def test_what_is_called_otherwise_is_no_part(name):
    assert parts.arrived([name]) == []


@given(
    st.binary(max_size=300),
    st.lists(st.integers(0, 300), max_size=6),
    st.lists(st.integers(1, 120), min_size=1, max_size=6),
)
def test_any_cuts_and_any_reads_give_the_same_bytes(tmp_path_factory, content, cuts, reads):
    folder = tmp_path_factory.mktemp("parts")
    cuts = sorted({cut for cut in cuts if 0 < cut < len(content)})
    with parts.open_parts(lay(folder, content, cuts)) as stream:
        found = b""
        for turn in range(400):
            piece = stream.read(reads[turn % len(reads)])
            if not piece:
                break
            found += piece
        assert found == content
        stream.seek(0)
        assert stream.read() == content


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_what_has_arrived_has_neither_gap_nor_overlap(ranges):
    found = parts.arrived(parts.name(*one) for one in ranges)
    at = 0
    for name, end in found:
        assert name == parts.name(at, end)
        assert end > at
        at = end
    reached = {0}
    for start, end in sorted(ranges):  # sorted, each start is reached before it is asked for
        if start in reached and end > start:
            reached.add(end)
    assert at == max(reached)


@given(st.binary(min_size=1, max_size=60), st.lists(st.sets(st.integers(1, 59)), min_size=1))
def test_uploads_that_cut_in_different_ways_make_one_archive(tmp_path_factory, content, uploads):
    """One of them is whole, the others came part of the way."""
    folder = tmp_path_factory.mktemp("parts")
    whole, *others = [sorted(cut for cut in cuts if cut < len(content)) for cuts in uploads]
    lay(folder, content, whole)
    for cuts in others:
        lay(folder, content[: cuts[-1]] if cuts else content, cuts[:-1])
    with parts.open_parts(str(folder)) as stream:
        assert stream.read() == content


def test_back_to_the_start_over_more_than_a_buffer(tmp_path):
    content = os.urandom(3 * 1024 * 1024 + 5)
    with parts.open_parts(lay(tmp_path / "p", content, [1, 1024 * 1024, 2_500_000])) as stream:
        assert stream.read(2_700_000) == content[:2_700_000]
        stream.seek(0)
        assert stream.read() == content
        assert stream.read() == b""
        stream.seek(0)
        assert stream.read(10) == content[:10]
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0, os.SEEK_END)


def test_nothing_stays_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    stream = parts.open_parts(lay(tmp_path / "p", b"abcdef", [2]))
    assert stream.read(1) == b"a"
    stream.close()
    assert os.listdir("/proc/self/fd") == before


def link(path):
    path.rename(path.with_name("else"))
    path.symlink_to("else")  # as many bytes as the part has


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


SPOILED = {
    "shorter": lambda path: path.write_bytes(b"c"),
    "longer": lambda path: path.write_bytes(b"cdefg"),
    "a symlink": link,
    "a FIFO": fifo,
    "a folder": folder,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_part_that_is_not_what_its_name_says_is_refused(tmp_path, spoil):
    where = lay(tmp_path / "p", b"abcdefgh", [2, 6])
    spoil(tmp_path / "p" / parts.name(2, 6))
    with pytest.raises(TrainError, match=f"{parts.name(2, 6)} is not what was sent") as error:
        parts.open_parts(where)
    assert error.value.category == "integrity"


def test_what_comes_behind_a_gap_is_not_read(tmp_path):
    where = lay(tmp_path / "p", b"abcdefgh", [2, 4])
    (tmp_path / "p" / parts.name(2, 4)).unlink()
    with parts.open_parts(where) as stream:
        assert stream.read() == b"ab"


def test_a_folder_without_parts_is_no_archive(tmp_path):
    with pytest.raises(TrainError, match="is not a regular file"):
        open_archive(str(tmp_path))


# -- bundles that came in parts ------------------------------------------------------------------


@pytest.fixture
def host(tmp_path, monkeypatch):
    no_waiting(monkeypatch)
    return Host(tmp_path)


@pytest.fixture
def incoming(tmp_path):
    (tmp_path / "incoming").mkdir()
    return tmp_path / "incoming"


def test_a_bundle_is_applied_out_of_its_parts(tmp_path, host):
    files = {"a": b"1", "large": os.urandom(200_000)}
    built = make(tmp_path, files)
    with open(built.paths[0], "rb") as stream:
        where = lay(tmp_path / "project.tar.gz", stream.read(), [10, 70_000])
    host.apply(where, built.sha256)
    assert host.files() == files
    (tmp_path / "project.tar.gz" / parts.name(10, 70_000)).unlink()
    with pytest.raises(TrainError, match="its SHA-256 is"):
        host.apply(where, built.sha256)


def test_what_stands_beside_the_parts_speaks_of_the_bundle(tmp_path, incoming, host):
    """A manifest that isn't in the archive, and its signature."""
    where = lay(incoming / "x.tar.gz", gzip.compress(tar_bytes([OK], "")), [7, 70])
    (incoming / f"x.{MODERN}").write_bytes(LISTING)
    key = make_key(tmp_path)
    with pytest.raises(TrainError, match="it is not signed"):
        host.apply(where, trust=Trust(line(key)))
    (incoming / f"x.{MODERN}.sig").write_bytes(signed(LISTING, key))
    assert host.apply(where, trust=Trust(line(key))).signer == ME
    assert host.files() == {"ok": b"fine"}


def test_another_manifest_beside_the_parts_is_refused(incoming, host):
    where = lay(incoming / "x.tar.gz", sound(), [7, 100])
    (incoming / f"x.{MODERN}").write_bytes(LISTING * 2)
    with pytest.raises(TrainError, match="is another manifest than"):
        host.apply(where)
