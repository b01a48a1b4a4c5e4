"""What may be pulled from, and that nobody sees what is secret about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.errors import TrainError
from remote_train.git_ref import parse_ref
from remote_train.git_url import parse, same, scheme_of, without_secrets


@pytest.mark.parametrize(
    "url",
    [
        "https://git.example.org/tutor.git",
        "https://git.example.org:8443/tutor.git",
        "ssh://git@git.example.org:2222/srv/tutor.git",
        "git@git.example.org:group/tutor.git",
        "git.example.org:tutor.git",
        "git@[2001:db8::1]:tutor.git",
        "file:///srv/git/tutor.git",
        "/srv/git/tutor.git",
        "/srv/a:b/tutor.git",
        "http://git.example.org/tutor.git",
        "git://git.example.org/tutor.git",
    ],
)
def test_is_one(url):
    assert parse(url) == (url, "", "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "No git repository"),
        ("ext::sh -c touch% /tmp/x", "blanks or control"),
        ("ext::sh", "is not a git URL"),
        ("EXT::sh", "is not a git URL"),
        ("fd::17", "is not a git URL"),
        ("--upload-pack=touch", "is not a git URL"),
        ("--upload-pack=touch:x", "is not a git URL"),
        ("-oProxyCommand=touch:x", "is not a git URL"),
        ("ssh://-oProxyCommand=touch/x", "names no host"),
        ("ssh://-u@git.example.org/x", "names no user"),
        ("ssh://git:word@git.example.org/x", "holds a password"),
        ("https:///x", "names no host"),
        ("https://[::1/x", "names no host"),
        ("ftp://git.example.org/x", "is not a git URL"),
        ("../tutor", "is not a git URL"),
        ("tutor", "is not a git URL"),
        ("https://a/b\nc", "blanks or control"),
        ("https://a/\x1b[2J", "blanks or control"),
    ],
)
def test_is_none(url, words):
    with pytest.raises(TrainError, match=words) as caught:
        parse(url)
    assert caught.value.hint
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("https://u:p%40w@h/x", ("https://h/x", "u", "p@w")),
        ("https://token@h:8443/x", ("https://h:8443/x", "token", "")),
        ("https://:word@h/x", ("https://h/x", "", "word")),
        ("https://a@b:c@h/x", ("https://h/x", "a@b", "c")),
    ],
)
def test_a_login_is_taken_out(url, remote):
    found = parse(url)
    assert found == remote
    assert found.has_login
    assert found.site == found.url.removesuffix("/x")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("fatal: 'https://u:p@h/x' is", "fatal: 'https://h/x' is"),
        ("https://token@h/x https://b:c@i", "https://h/x https://i"),
        ("https://a:b@c@h/x", "https://h/x"),
        ("ssh://git@h/x", "ssh://git@h/x"),
        ("ssh://git:pw@h/x", "ssh://h/x"),
        ("git@h:x and a@b", "git@h:x and a@b"),
        ("https://h/x@y", "https://h/x@y"),
    ],
)
def test_no_secret_is_shown(text, seen):
    assert without_secrets(text) == seen


@given(st.text())
def test_any_text_is_a_remote_or_refused(text):
    for made in (text, f"https://{text}", f"ssh://{text}"):
        try:
            remote = parse(made)
        except TrainError:
            continue
        assert not remote.url.startswith("-")
        assert scheme_of(remote.url) in (
            "https",
            "ssh",
            "file",
            "http",
            "git",
            "git+ssh",
            "ssh+git",
        )


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("https://h/x", "https://h/x.git", True),
        ("https://h/x/", "https://u:p@h/x", True),
        ("https://h/x", "https://h/y", False),
        ("git@h:x", "me@h:x", False),
        ("/srv/x", "/srv/x/", True),
    ],
)
def test_alike(one, other, alike):
    assert same(one, other) == alike


@pytest.mark.parametrize(
    "ref",
    ["-b", "--upload-pack=x", "a..b", "a b", "a~1", "a^", "a:b", "a*", "a?", "a[b", "a\\b", "/a",
     "a/", "a//b", ".a", "a/.b", "a.lock", "a.lock/b", "a.", "@", "@{-1}", "a@{1}", "a\n",
     "a\x00b"],
)  # fmt: skip
def test_can_be_no_ref(ref):
    with pytest.raises(TrainError, match="can't be the name"):
        parse_ref(ref)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("", ("", "")),
        ("main", ("main", "")),
        ("feature/x-1", ("feature/x-1", "")),
        ("entwürfe", ("entwürfe", "")),
        ("refs/heads/v1", ("v1", "branch")),
        ("refs/tags/v1", ("v1", "tag")),
        ("A" * 40, ("a" * 40, "commit")),
        ("0" * 64, ("0" * 64, "commit")),
        ("abcdef1", ("abcdef1", "")),
    ],
)
def test_a_ref(text, ref):
    assert parse_ref(text) == ref
