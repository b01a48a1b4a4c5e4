"""What is offered comes out as it went in, or is refused; and waits on the host, or doesn't."""

import base64
import hashlib
import os
import re
import resource
import struct
import subprocess
import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import offer
from remote_train.errors import TrainError
from remote_train.file_names import to_name
from remote_train.manifest import MODERN, write_manifest
from remote_train.offer import Offer, keep, kept, unpack
from remote_train.problems import RefusedError
from tests.unit.bundle_host import put

ODD = {
    "with blank": "a b",
    "newline": "a\nb",
    "return": "a\rb",
    "backslash": "a\\nb",
    "begins with one": "\\a",
    "quotes": "a'\"`$(x)",
    "leading dash": "-rf",
    "leading hash": "#a",
    "not UTF-8": to_name(b"latin\xe9"),
    "Chinese": "数据/训练.jsonl",
    "deep": "d/" * 100 + "f",
    "control": "a\x01\x7f\u2028b",
    "long": "x" * 255,
}


def digest_of(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def offered(*names, executable=()):
    return Offer((name, digest_of(name), name in executable) for name in names)


part = st.binary(min_size=1, max_size=8).filter(
    lambda raw: b"\0" not in raw and b"/" not in raw and raw not in {b".", b".."}
)
name = st.lists(part, min_size=1, max_size=3).map(b"/".join).map(to_name)
files = st.dictionaries(
    name, st.tuples(st.binary(min_size=32, max_size=32).map(bytes.hex), st.booleans())
)


def plain(found):
    """All that an offer says."""
    return list(found.items()), found.executable, found.raw, found.sha256


@given(files)
def test_any_files_come_out_as_they_went_in_or_are_refused(listed):
    """Refused is only what a manifest refuses; AppleDouble files are none of a project's."""
    try:
        one = Offer((name, digest, runs) for name, (digest, runs) in listed.items())
    except RefusedError:
        return
    if any(name.rpartition("/")[2].startswith("._") or name == MODERN for name in listed):
        return
    assert plain(unpack(one.packed())) == plain(one)
    assert dict(one) == {name: digest for name, (digest, _runs) in listed.items()}
    assert one.executable == {name for name, (_digest, runs) in listed.items() if runs}
    assert one.raw == write_manifest(dict(one))


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
@pytest.mark.parametrize("runs", [False, True])
def test_an_odd_name_comes_out_as_it_went_in(name, runs):
    one = offered(name, "other", executable=[name] if runs else [])
    found = unpack(one.packed())
    assert plain(found) == plain(one)
    assert (name in found.executable, "other" in found.executable) == (runs, False)
    assert found[name] == digest_of(name)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17])
def test_bits_fill_any_number_of_bytes(count):
    names = [f"{number:02}" for number in range(count)]
    one = offered(*names, executable=names[::3])
    assert unpack(one.packed()).executable == set(names[::3])
    assert len(unpack(one.packed())) == count


def test_it_goes_by_the_order_of_bytes_whatever_order_it_was_made_in():
    names = ["b", "a-", "a/b", "Z", "é", to_name(b"\xff"), "\U0001f600"]
    one, other = offered(*names), offered(*reversed(names))
    assert plain(one) == plain(other)
    assert one.names == sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))


def test_what_is_executable_makes_another_offer():
    """No manifest says it, so that two may have one manifest."""
    one, other = offered("a", "b"), offered("a", "b", executable=["b"])
    assert one.raw == other.raw
    assert len({one.sha256, other.sha256, offered("a", "b", executable=["a"]).sha256}) == 3


def test_a_digest_costs_32_bytes_and_a_name_that_is_like_others_next_to_none():
    names = [f"data/training/processed/part-{number:05}.jsonl" for number in range(2000)]
    assert len(offered(*names).packed()) < 2000 * 50


def test_more_names_than_are_packed_or_read_at_a_time(monkeypatch):
    names = [f"{'x' * (1 + number % 90)}/{number}{'é' * (number % 7)}" for number in range(5000)]
    one = offered(*names, executable=names[::3])
    for block in (1, 7, 64 * 1024):
        monkeypatch.setattr(offer, "_BLOCK", block)
        assert plain(unpack(one.packed())) == plain(one)
    assert one.raw == write_manifest(dict(one))
    assert one.executable == set(names[::3])


def test_names_in_any_order_come_out_in_order():
    found = unpack(text(raw(names="é\0b\0a".encode(), count=3, bits=b"\x03")))
    digests = [hashlib.sha256(b"%d" % number).hexdigest() for number in range(3)]
    assert list(found.items()) == list(zip(["a", "b", "é"], reversed(digests), strict=True))
    assert found.executable == {"b", "é"}


def test_what_no_manifest_lists_is_offered_nowhere():
    """AppleDouble files are left out of names, bytes and digest alike."""
    one, other = offered("a", "d/._b", "z", executable=["d/._b", "z"]), offered("a", "z")
    assert (one.names, one.raw) == (other.names, other.raw)
    assert plain(one) == plain(offered("a", "z", executable=["z"])) == plain(unpack(one.packed()))


@pytest.mark.parametrize("digest", ["", "0" * 62, "0" * 40, "x" * 64])
def test_what_is_no_digest_is_not_taken(digest):
    with pytest.raises(ValueError):  # noqa: PT011 - fromhex has words of its own
        Offer([("a", digest, False)])


MEMORY = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from remote_train import offer
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)
def files():
    for number in range(200_000):
        name = f"data/training/processed/part{number // 1000:03}/sample{number % 1000:03}.json"
        yield name, hashlib.sha256(b"%d" % number).hexdigest(), number % 2 == 0
before = peak()
if sys.argv[2] == "make":
    packed = offer.Offer(files()).packed()
    used = peak() - before
    print(packed)
else:
    found = offer.unpack(sys.stdin.read())
    found.sha256
    used = peak() - before
print(used)
"""


def test_a_name_costs_less_than_400_bytes_of_memory_on_either_side():
    """Of a million it is less than 300, as the benchmarks measure; fewer have more room to grow."""
    command = [sys.executable, "-c", MEMORY, os.path.dirname(os.path.dirname(offer.__file__))]
    options = {"capture_output": True, "text": True}
    made, used = subprocess.run([*command, "make"], check=True, **options).stdout.split()
    assert int(used) * 1024 < 400 * 200_000
    used = subprocess.run([*command, "unpack"], check=True, input=made, **options).stdout
    assert int(used) * 1024 < 400 * 200_000


# -- what arrives damaged ------------------------------------------------------------------------


def raw(names=b"a\0b", count=2, magic=b"RTO1", length=None, bits=b"\0", tail=b"", packed=None):
    """The bytes of an offer, as wrong as is asked for."""
    packed = zlib.compress(names) if packed is None else packed
    size = len(packed) if length is None else length
    digests = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(count))
    return magic + struct.pack(">I", size) + packed + digests + bits + tail


def text(content):
    return base64.b64encode(content).decode()


SOUND = text(raw())
DAMAGED = {
    "nothing": "",
    "no Base64": "&&&&",
    "Base64 cut in a group": SOUND[:-3],
    "a blank in it": SOUND[:8] + " " + SOUND[8:],
    "not ASCII": SOUND[:8] + "é" + SOUND[8:],
    "a surrogate": SOUND[:8] + "\udce9" + SOUND[8:],
    "another beginning": text(raw(magic=b"RTO2")),
    "the beginning alone": text(b"RTO1"),
    "half a length": text(b"RTO1\0\0"),
    "a length beyond the end": text(raw(length=2**32 - 1)),
    "a length too short": text(raw(length=3)),
    "a length of nothing": text(raw(length=0)),
    "names that zlib doesn't know": text(raw(packed=b"\x78nonsense")),
    "names that are cut": text(raw(packed=zlib.compress(b"a\0b")[:-2])),
    "more behind the names": text(raw(packed=zlib.compress(b"a\0b") + b"x")),
    "a digest too few": text(raw(count=1)),
    "a digest too many": text(raw(count=3)),
    "half a digest": text(raw(bits=b"\0" * 17)),
    "no bits": text(raw(bits=b"")),
    "more at the end": text(raw(tail=b"\0")),
    "names too few": text(raw(names=b"a")),
    "names too many": text(raw(names=b"a\0b\0c")),
}


def test_the_case_that_all_are_made_from_is_sound():
    assert unpack(SOUND).names == ["a", "b"]


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_one_error(damaged):
    with pytest.raises(TrainError) as error:
        unpack(damaged)
    pattern = r"The list of the project's files arrived damaged \(.+\)\."
    assert re.fullmatch(pattern, error.value.message)
    assert error.value.category == "integrity"
    assert error.value.hint
    assert "\n" not in str(error.value)


@given(st.data())
def test_any_text_is_an_offer_or_one_error(data):
    content = bytearray(raw())
    for _change in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = data.draw(st.one_of(st.just(text(bytes(content))), st.text(max_size=40)))
    try:
        found = unpack(damaged)
    except TrainError:
        return
    assert len(found) == 2


BOMBS = {"one name without an end": b"a", "names of nothing": b"\0"}


@pytest.mark.parametrize("unit", BOMBS.values(), ids=BOMBS)
def test_a_bomb_in_the_names_goes_off_nowhere(monkeypatch, unit):
    """32 MiB that came in 32 KiB: it costs what may be unpacked, and no list of empty names."""
    monkeypatch.setattr(offer, "MAX_MANIFEST", 32 * 1024 * 1024)
    bomb = text(raw(names=unit * (40 if unit == b"a" else 32) * 1024 * 1024, count=0, bits=b""))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 150 * 1024 * 1024, hard))
    try:
        with pytest.raises(TrainError, match=r"don't end where they should|over 1,000,000 names"):
            unpack(bomb)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_too_many_names_are_refused(monkeypatch):
    monkeypatch.setattr(offer, "MAX_LINES", 3)
    assert len(unpack(offered("a", "b", "c").packed())) == 3
    with pytest.raises(TrainError, match="it has over 3 names"):
        unpack(offered("a", "b", "c", "d").packed())


UNFIT = {
    "nothing": ([b"a", b""], "malformed-line"),
    "the same twice": ([b"a", b"a"], "duplicate"),
    "the same, written otherwise": ([b"a", b"./a"], "duplicate"),
    "leads out": ([b"a/../../b"], "parent-reference"),
    "absolute": ([b"/etc/passwd"], "absolute-path"),
    "a folder's": ([b"a/"], "folder-name"),
    "differs in case": ([b"A", b"a"], "case-collision"),
    "differs in form": (["é".encode(), "e\u0301".encode()], "unicode-collision"),
    "file and folder": ([b"a", b"a/b"], "file-and-folder"),
    "too long": ([b"x" * 20_000], "line-too-long"),
}


@pytest.mark.parametrize(("names", "problem"), UNFIT.values(), ids=UNFIT)
def test_names_that_no_manifest_may_hold_are_refused(names, problem):
    """On the host, and on the controller before anything is sent."""
    content = raw(names=b"\0".join(names), count=len(names))
    with pytest.raises(RefusedError) as error:
        unpack(text(content))
    assert {one.problem for one in error.value.problems.items} == {problem}
    with pytest.raises(RefusedError):
        Offer((to_name(name), "0" * 64, False) for name in names)


# -- kept on the host ----------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path):
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


ONE = offered("a", "b", executable=["b"])


def test_what_is_kept_is_found_by_its_digest(state):
    assert keep(str(state), ONE, ONE.packed())
    assert plain(kept(str(state), ONE.sha256)) == plain(ONE)
    path = state / offer.FOLDER / ONE.sha256
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert oct(path.parent.stat().st_mode & 0o777) == "0o700"
    assert keep(str(state), ONE, ONE.packed())
    assert os.listdir(path.parent) == [ONE.sha256]


def test_where_there_is_no_state_nothing_is_left(tmp_path):
    assert not keep(str(tmp_path / "none"), ONE, ONE.packed())
    assert os.listdir(tmp_path) == []


def test_where_it_can_not_be_kept_it_is_sent(state):
    put(state, {offer.FOLDER: b"a file"})
    assert not keep(str(state), ONE, ONE.packed())
    with pytest.raises(TrainError, match="no longer has the list"):
        kept(str(state), ONE.sha256)


def test_what_has_waited_an_hour_goes(state):
    keep(str(state), ONE, ONE.packed())
    young, old = offered("young"), offered("old")
    keep(str(state), young, young.packed())
    keep(str(state), old, old.packed())
    past = os.stat(state).st_mtime - offer.A_DAY - 1
    os.utime(state / offer.FOLDER / old.sha256, (past, past))
    os.utime(state / offer.FOLDER / ONE.sha256, (past + 60, past + 60))
    keep(str(state), young, young.packed())
    assert set(os.listdir(state / offer.FOLDER)) == {young.sha256, ONE.sha256}


def swapped(path):
    path.write_text(offered("a", "evil").packed())


def other_bits(path):
    path.write_text(offered("a", "b", executable=["a", "b"]).packed())


SPOILED = {
    "gone": (lambda path: path.unlink(), "no longer has the list"),
    "another offer": (swapped, "no longer has the list"),
    "the same with other bits": (other_bits, "no longer has the list"),
    "damaged": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "arrived damaged"),
    "emptied": (lambda path: path.write_bytes(b""), "arrived damaged"),
    "no text": (lambda path: path.write_bytes(b"\xff" * 40), "arrived damaged"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "no longer has the list"),
    "a FIFO": (lambda path: (path.unlink(), os.mkfifo(path)), "no longer has the list|damaged"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED)
def test_what_is_no_longer_what_was_kept_is_not_taken(state, spoil, words):
    keep(str(state), ONE, ONE.packed())
    spoil(state / offer.FOLDER / ONE.sha256)
    with pytest.raises(TrainError, match=words) as error:
        kept(str(state), ONE.sha256)
    assert error.value.category == "integrity"


@pytest.mark.parametrize("sha256", ["", "../offers", "x" * 64, "A" * 64, "a" * 63, f"{'a' * 64}\n"])
def test_only_a_digest_finds_one(state, sha256):
    keep(str(state), ONE, ONE.packed())
    with pytest.raises(TrainError, match="no longer has the list"):
        kept(str(state), sha256)
