"""Bundles that would harm the machine they are applied to: refused, and nothing is changed."""

import gzip
import hashlib
import io
import os
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_train import bundle_apply, staging, tar_reader, target_change
from remote_train.errors import TrainError
from remote_train.manifest import LEGACY, MODERN
from remote_train.problems import RefusedError
from tests.unit.bundle_host import FILES, Host, make, put


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


# -- hostile bundles -----------------------------------------------------------------------------


def tar_bytes(members, manifest_name=MODERN, listing=None, form=tarfile.GNU_FORMAT):
    """A tar of (TarInfo or name, bytes); the manifest lists the regular ones unless given."""
    if listing is None:
        listing = "".join(
            f"{hashlib.sha256(data).hexdigest()}  {member}\n"
            for member, data in members
            if isinstance(member, str)
        ).encode()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for member, data in [(manifest_name, listing), *members]:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def special(name, kind, **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


OK = ("ok", b"fine")
LISTING = f"{hashlib.sha256(b'fine').hexdigest()}  ok\n".encode()


def with_member(member, data=b""):
    return gzip.compress(tar_bytes([OK, (member, data)], listing=LISTING))


def lying_size():
    data = bytearray(tar_bytes([OK, ("b", b"x")]))
    at = data.index(b"b\0", 1024)
    info = tarfile.TarInfo.frombuf(bytes(data[at : at + 512]), "utf-8", "strict")
    info.size = 10**7
    data[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(bytes(data))


def damaged_header():
    data = bytearray(tar_bytes([OK]))
    data[512 * 2 + 3] ^= 1
    return gzip.compress(bytes(data))


def pax(**headers):
    info = tarfile.TarInfo("p")
    info.pax_headers = headers
    return gzip.compress(tar_bytes([OK, (info, b"")], listing=LISTING, form=tarfile.PAX_FORMAT))


def huge_long_name():
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    data = bytearray(tar_bytes([OK, (info, b"")], listing=LISTING))
    at = data.index(b"././@LongLink")
    info.size = 10**9
    data[at : at + 512] = info.tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(bytes(data))


def bad_digest():
    return gzip.compress(tar_bytes([("ok", b"evil")], listing=LISTING))


def sound():
    return gzip.compress(tar_bytes([OK]))


def manifest_of(text):
    return gzip.compress(tar_bytes([OK], listing=text))


LINE = LISTING[:66]

# rule -> (the bundle's bytes, part of the message)
HOSTILE = {
    "parent-reference": (lambda: with_member("../evil"), "../evil leads out"),
    "parent-reference: listed": (lambda: manifest_of(LINE + b"../evil\n"), "line 1: .*leads out"),
    "parent-reference: pax": (lambda: pax(path="a/../../evil"), "leads out"),
    "parent-reference: escaped": (
        lambda: manifest_of(b"\\" + LINE + b"..\\\\x\n" + b"\\" + LINE + b"../a\\\\x\n"),
        "line 2: .*leads out",
    ),
    "absolute-path": (lambda: with_member("/srv/evil"), "/srv/evil is an absolute path"),
    "nul": (lambda: pax(path="a\0b"), "NUL"),
    "symlink-member": (
        lambda: with_member(special("l", tarfile.SYMTYPE, linkname="/etc")),
        "l is a symlink",
    ),
    "hard-link-member": (
        lambda: with_member(special("l", tarfile.LNKTYPE, linkname="ok")),
        "l is a hard-link",
    ),
    "device-member": (lambda: with_member(special("d", tarfile.CHRTYPE)), "d is a device"),
    "device-member: block": (lambda: with_member(special("d", tarfile.BLKTYPE)), "d is a device"),
    "fifo-member": (lambda: with_member(special("f", tarfile.FIFOTYPE)), "f is a fifo"),
    "unknown-member": (lambda: with_member(special("u", b"V")), "u is of a kind"),
    "sparse-member": (lambda: pax(**{"GNU.sparse.major": "1"}), "p is a sparse"),
    "setuid": (lambda: with_member(special("ok", tarfile.REGTYPE, mode=0o4755), b"fine"), "setuid"),
    "setuid: group": (
        lambda: with_member(special("s", tarfile.REGTYPE, mode=0o2755)),
        "s would run",
    ),
    "duplicate-member": (lambda: with_member("./ok", b"fine"), "ok is in it twice"),
    "duplicate-member: manifest": (lambda: with_member(MODERN, LISTING), "is in it twice"),
    "unlisted": (lambda: with_member("evil", b"x"), "evil is in it and not listed"),
    "missing": (lambda: manifest_of(LISTING + LINE + b"b\n"), "line 2: b is not in it|b is not"),
    "digest-differs": (bad_digest, "ok has another digest"),
    "not-a-regular-file": (
        lambda: gzip.compress(tar_bytes([(special("ok", tarfile.DIRTYPE), b"")], listing=LISTING)),
        "ok is a folder",
    ),
    "file-and-folder": (lambda: manifest_of(LISTING + LINE + b"ok/x\n"), "as a file"),
    "case-collision": (lambda: manifest_of(LISTING + LINE + b"OK\n"), "case only"),
    "duplicate": (lambda: manifest_of(LISTING * 2), "already"),
    "malformed-line": (lambda: manifest_of(LISTING + b"x\n"), "line 2"),
    "empty-manifest": (lambda: manifest_of(b""), "no file"),
    "mixed-algorithms": (
        lambda: gzip.compress(tar_bytes([OK], LEGACY, LISTING + b"0" * 40 + b"  b\n")),
        "SHA-1",
    ),
    "no-manifest": (lambda: gzip.compress(tar_bytes([OK], "README", b"x")), "no manifest"),
    "reserved-path": (
        lambda: gzip.compress(tar_bytes([("outputs/training_sync/stages/x.json", b"x")])),
        "no bundle may change",
    ),
    "not-gzip": (lambda: b"plain text, no gzip", "not sound gzip"),
    "not-gzip: tar": (lambda: tar_bytes([OK]), "not sound gzip"),
    "not-gzip: bit flipped": (
        lambda: sound()[:-6] + bytes([sound()[-6] ^ 1]) + sound()[-5:],
        "not sound gzip",
    ),
    "truncated": (lambda: sound()[:-9], "ends before"),
    "truncated: empty": (lambda: b"", "ends before"),
    "truncated: no end mark": (lambda: gzip.compress(tar_bytes([OK])[:2048]), "no end mark"),
    "truncated: lying size": (lying_size, "middle of a member"),
    "concatenated-gzip": (lambda: sound() + sound(), "after its gzip data"),
    "trailing-data": (lambda: gzip.compress(tar_bytes([OK]) + b"more"), "after the archive"),
    "bad-header": (damaged_header, "damaged"),
    "header-too-large": (huge_long_name, "long name"),
    "bad-pax-header": (lambda: pax(size="many"), "not a number"),
}


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("rule", HOSTILE)
def test_a_hostile_bundle_changes_nothing(tmp_path, host, rule, check):
    build_it, words = HOSTILE[rule]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(build_it())
    put(host.root, {"ok": b"as it was", "data/mine": b"m"})
    before = host.snapshot()
    with pytest.raises(RefusedError, match=words) as error:
        host.apply(path, check=check)
    assert rule.partition(":")[0] in {p.problem for p in error.value.problems.items}
    assert error.value.category == "integrity"
    assert host.snapshot() == before
    assert check or os.listdir(host.state) == ["apply.lock"]


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


def test_a_bundle_that_unpacks_to_more_than_there_is_room_for(tmp_path, host, monkeypatch):
    monkeypatch.setattr(bundle_apply, "_room", lambda _state: 10_000_000)
    made = make(tmp_path, {"bomb": bytes(11_000_000)})
    before = host.snapshot()
    with pytest.raises(RefusedError, match="room for"):
        host.apply(made.paths[0])
    assert host.snapshot() == before


def test_too_many_members(tmp_path, host, monkeypatch):
    monkeypatch.setattr(tar_reader, "MAX_MEMBERS", 5)
    path = tmp_path / "x.tar.gz"
    folders = [(special(f"d{number}", tarfile.DIRTYPE), b"") for number in range(9)]
    path.write_bytes(gzip.compress(tar_bytes([OK, *folders], listing=LISTING)))
    with pytest.raises(RefusedError, match="members"):
        host.apply(path)
    assert host.files() == {}


def test_a_full_disk_is_one_sentence_and_changes_nothing(tmp_path, host, monkeypatch):
    made = make(tmp_path, FILES)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    before = host.snapshot()
    monkeypatch.setattr(staging.os, "write", full)
    with pytest.raises(TrainError, match="no room on the target's disk") as error:
        host.apply(made.paths[0])
    monkeypatch.undo()
    assert error.value.category == "infra"
    assert host.snapshot() == before


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


def test_another_manifest_beside_the_bundle_is_refused(tmp_path, host):
    made = make(tmp_path, {"a": b"1"})
    with open(made.paths[2], "ab") as stream:
        stream.write(LISTING)
    with pytest.raises(RefusedError, match="another manifest"):
        host.apply(made.paths[0])


def test_an_archive_that_changes_while_it_is_read_is_refused(tmp_path, host, monkeypatch):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(sound())
    plan = target_change.to_manifest

    def swap(*arguments):
        path.write_bytes(gzip.compress(tar_bytes([OK]), 1, mtime=1))  # the same file, other bytes
        return plan(*arguments)

    monkeypatch.setattr(target_change, "to_manifest", swap)
    with pytest.raises(RefusedError, match="changed while it was read"):
        host.apply(path)
    assert host.files() == {}


# -- what stands on the target -------------------------------------------------------------------


def link_file(host):
    (host.root / "sub").mkdir()
    (host.root / "sub" / "b").symlink_to(host.folder / "neighbour" / "file")


def link_folder(host):
    (host.root / "sub").symlink_to(host.folder / "neighbour")


def fifo(host):
    os.mkfifo(host.root / "a")


def users_folder(host):
    put(host.root, {"a/users own": b"u"})


def users_file(host):
    put(host.root, {"sub": b"u"})


TARGETS = {
    "symlink": (link_file, "sub/b is a symlink"),
    "symlink: folder": (link_folder, "sub is a symlink, on the way to sub/b"),
    "not-a-regular-file": (fifo, "a is not a regular file"),
    "not-a-regular-file: folder": (users_folder, "a is a folder"),
    "not-a-folder": (users_file, "sub is not a folder"),
}


@pytest.mark.parametrize("rule", TARGETS)
def test_what_stands_in_the_way_is_refused(tmp_path, host, rule):
    prepare, words = TARGETS[rule]
    made = make(tmp_path, {"a": b"1", "sub/b": b"2", "z": b"3"})
    prepare(host)
    before = host.snapshot()
    with pytest.raises(RefusedError, match=words) as error:
        host.apply(made.paths[0])
    assert {p.problem for p in error.value.problems.items} == {rule.partition(":")[0]}
    assert host.snapshot() == before


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
