"""What git brings is signed, where somebody asks for that: with the real git and ssh-keygen."""

import os

import pytest

from remote_train import git_signed
from remote_train.errors import TrainError
from tests.unit.git_host import Origin, Place, contents, git
from tests.unit.signers import line, make_key, public


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))


@pytest.fixture
def key(tmp_path):
    return make_key(tmp_path / "keys")


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / "origin")


@pytest.fixture
def place(tmp_path, origin):
    return Place(tmp_path / "host", origin)


def signing(key):
    return ("-c", "gpg.format=ssh", "-c", f"user.signingKey={public(key)}")


def sign(origin, key):
    """Sign the last commit."""
    origin.git(*signing(key), "commit", "-q", "--amend", "--no-edit", "-S")
    return origin.head


def refused(place, words, allowed, ref="main"):
    before = contents(place.root)
    with pytest.raises(TrainError, match=words) as caught:
        place.pull(ref, allowed_signers=allowed)
    assert caught.value.category == "integrity"
    assert contents(place.root) == before


@pytest.mark.parametrize("namespaces", ["", 'namespaces="git,remote-train"', 'namespaces="git"'])
def test_a_signed_commit(place, origin, key, namespaces):
    head = sign(origin, key)
    allowed = line(key, options=namespaces)
    assert place.pull(check=True, allowed_signers=allowed).after == head
    assert place.pull(allowed_signers=allowed).after == head
    assert contents(place.root) == origin.files()
    assert not place.pull(allowed_signers=allowed).changed
    origin.commit({"a": "2"})
    head = sign(origin, key)
    assert place.pull(check=True, allowed_signers=allowed).changed
    assert place.pull(allowed_signers=allowed).after == head
    assert place.pull(head, allowed_signers=allowed).changed  # pinned


def test_what_doesn_t_count(place, origin, key, tmp_path):
    refused(place, "is not signed", line(key))
    other = make_key(tmp_path / "keys", "other")
    sign(origin, other)
    refused(place, r"none of the allowed signers.*SHA256:", line(key))
    refused(place, r"none of the allowed signers", "# nobody\n")
    refused(place, "none of the allowed signers", line(other, options='namespaces="remote-train"'))
    refused(place, "none of the allowed signers", line(other, options='valid-before="20200101"'))
    assert place.pull(allowed_signers=line(other)).changed


def test_not_forward_to_what_isn_t_signed(place, origin, key):
    """A check says it too, and what is signed before says nothing of what comes after it."""
    head = sign(origin, key)
    place.pull(allowed_signers=line(key))
    origin.commit({"a": "theirs"})
    for check in (True, False):
        with pytest.raises(TrainError, match="is not signed"):
            place.pull(check=check, allowed_signers=line(key))
    assert place.head == head
    assert (place.root / "a").read_bytes() == b"one"


def test_what_was_pulled_before_anybody_asked(place, origin, key):
    """Nothing is to be pulled, and what lies there is not signed."""
    place.pull()
    for check in (True, False):
        with pytest.raises(TrainError, match="is not signed"):
            place.pull(check=check, allowed_signers=line(key))


def test_a_signed_tag(place, origin, key):
    origin.git(*signing(key), "tag", "-s", "-m", "v1", "v1")
    origin.git("tag", "-m", "v2", "v2")
    refused(place, "is not signed", line(key), "main")
    refused(place, "is not signed", line(key), "v2")
    assert place.pull("v1", allowed_signers=line(key)).after == origin.head
    for check in (True, False):
        assert not place.pull("v1", check=check, allowed_signers=line(key)).changed
    # It isn't another one's.
    origin.git("update-ref", "refs/tags/v3", "refs/tags/v1")
    refused(place, "the tag v3 is signed as v1", line(key), "v3")


def test_a_key_of_another_kind_counts_for_nothing(place, origin, key, tmp_path):
    """The host's own keys of GnuPG are nobody's list of signers."""
    fake = tmp_path / "gpg"
    fake.write_text(
        '#!/bin/sh\ncat >/dev/null\ncase "$*" in *--verify*)\n'
        "printf '\\n[GNUPG:] GOODSIG 1 me\\n[GNUPG:] TRUST_ULTIMATE 0 pgp\\n';;\n"
        "*) printf '[GNUPG:] SIG_CREATED \\n' >&2;"
        "printf -- '-----BEGIN PGP SIGNATURE-----\\nx\\n-----END PGP SIGNATURE-----\\n';;\nesac\n"
    )
    fake.chmod(0o755)
    git(
        tmp_path / "origin", "-c", f"gpg.program={fake}", "commit", "-q", "--amend", "-S", "-m", "x"
    )
    (tmp_path / "home" / ".gitconfig").write_text(f"[gpg]\n\tprogram = {fake}\n")
    assert git(origin.folder, "cat-file", "-p", "HEAD").count("PGP SIGNATURE")
    refused(place, "is not signed with a key of ssh", line(key))


def test_an_old_git(place, origin, key, monkeypatch):
    monkeypatch.setattr(git_signed, "NEEDED", (99, 0))
    sign(origin, key)
    with pytest.raises(TrainError, match=r"git 99\.0 or newer") as caught:
        place.pull(allowed_signers=line(key))
    assert caught.value.category == "infra"


def test_the_module(place, origin, key, run_module):
    given = {"root": str(place.root), "url": origin.url, "allowed_signers": line(key)}
    assert "is not signed" in run_module("pull", **given)["msg"]
    sign(origin, key)
    assert run_module("pull", **given)["changed"]
