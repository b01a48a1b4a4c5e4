"""Bundles that would harm the machine they are applied to: refused, and nothing is changed."""

import gzip
import os
import re
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import bundle_archive
from remote_train.errors import TrainError
from remote_train.manifest import MODERN
from remote_train.problems import RefusedError
from remote_train.staging import read_inner
from tests.unit.bundle_host import Host, no_waiting
from tests.unit.hostile_bundles import LINE, LISTING, OK, sound, special, tar_bytes
from tests.unit.hostile_place import Place
from tests.unit.hostile_rules import RULES, SPELLINGS
from tests.unit.spent import at_most


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def place(tmp_path, host, monkeypatch):
    return Place(host, tmp_path, monkeypatch, check=False)


MEMORY = 8 * 1024 * 1024  # bytes; the most that one of these took is 1 MB
WRITTEN = 64 * 1024  # bytes; the most that one of these wrote is 2 kB


def refuse(place, rule):
    """Lay out a case; the error that it is refused with.

    Nothing may have changed, and no more of memory and disk been taken than so small a bundle
    takes; what would take more is in test_bombs.py.
    """
    work = rule.work(place)
    before = place.snapshot()
    with at_most(MEMORY, WRITTEN), pytest.raises(TrainError, match=rule.words) as error:
        work()
    # What somebody changes meanwhile is as they left it, and the rest as it was.
    assert place.snapshot() == (place.meanwhile or before)
    problems = getattr(error.value, "problems", None)
    found = {problem.problem for problem in problems.items} if problems else {""}
    assert rule.problem in found
    left = os.listdir(place.host.state) if place.host.state.is_dir() else []
    assert set(left) <= {MODERN, "apply.lock", "versions", "journal.json", "staging-x"}
    return error.value


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name, rule in {**RULES, **SPELLINGS}.items()
        for check in ([False, True] if rule.always else [False])
    ],
)
def test_what_is_refused_changes_nothing(place, name, check):
    rule = {**RULES, **SPELLINGS}[name]
    place.check = check
    error = refuse(place, rule)
    assert error.category in {"integrity", "infra", "ops"}
    assert str(error).count("\n") == 0


def test_a_rule_that_costs_memory_or_disk_does_not_pass(tmp_path, place, monkeypatch):
    """The same refusal, after more was taken than there is a reason for."""
    rule = RULES["no manifest"]
    for waste, words in (
        (lambda: bytearray(b"x") * (4 * MEMORY), "bytes of memory"),
        (lambda: (tmp_path / "full").write_bytes(bytes(WRITTEN + 1)), "it wrote"),
    ):

        def wasteful(*arguments, waste=waste):
            waste()
            (tmp_path / "full").unlink(missing_ok=True)
            return read_inner(*arguments)

        monkeypatch.setattr(bundle_archive, "read_inner", wasteful)
        with pytest.raises(AssertionError, match=words):
            refuse(place, rule)


def test_each_rule_has_a_message_of_its_own(tmp_path):
    """At least sixty rules, and what is said of one is said of no other."""
    messages = {}
    for number, (name, rule) in enumerate(RULES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            messages[name] = refuse(Place(Host(folder), folder, patch, check=False), rule).message
    for name, rule in RULES.items():
        fitting = [other for other, said in messages.items() if re.search(rule.words, said)]
        assert fitting == [name]
    assert len(RULES) >= 60


def test_all_that_is_wrong_is_reported_at_once(tmp_path, host):
    members = [("ok", b"evil"), ("../x", b""), (special("l", tarfile.SYMTYPE, linkname="x"), b"")]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(members, listing=LISTING + LINE + b"gone\n")))
    with pytest.raises(RefusedError) as error:
        host.apply(path)
    assert {p.problem for p in error.value.problems.items} == {
        "digest-differs",
        "parent-reference",
        "symlink-member",
        "missing",
    }


@pytest.mark.parametrize(
    ("expected", "beside", "words"),
    [
        ("0" * 64, None, "archive-digest"),
        (None, "0" * 64 + "  x.tar.gz\n", "archive-digest"),
        (None, "nonsense\n", "doesn't begin with a SHA-256"),
    ],
)
def test_an_archive_with_another_digest_is_refused(tmp_path, host, expected, beside, words):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(sound())
    if beside:
        (tmp_path / "x.tar.gz.sha256").write_text(beside)
    with pytest.raises(TrainError) as error:
        host.apply(path, expected)
    problems = getattr(error.value, "problems", None)
    assert words in (problems.items[0].problem if problems else error.value.message)
    assert host.files() == {}


@settings(max_examples=150)
@given(data=st.data())
def test_no_bytes_escape(tmp_path_factory, data):
    """A sound bundle with bytes changed is applied as listed, or refused with nothing changed."""
    folder = tmp_path_factory.mktemp("fuzz")
    place = Host(folder)
    raw = bytearray(tar_bytes([OK, ("sub/b", b"x" * 600)]))
    for _change in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(raw), 1))
    before = place.snapshot()
    try:
        place.apply(path)
    except TrainError:
        assert place.snapshot() == before
    else:
        # Flags, owners, times may have changed, and so may a name together with its line.
        assert sorted(place.files().values()) == [b"fine", b"x" * 600]
        assert (place.folder / "neighbour" / "file").read_text() == "mine"
