"""The short way that common lines are read by gives what the long way gives."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train import manifest
from remote_train.manifest import MODERN, parse
from remote_train.manifest_lines import common_sha256

A = hashlib.sha256(b"a").hexdigest().encode()
PARTS = [
    b"a",
    b"B",
    b"/",
    b".",
    b"..",
    b"._",
    b" ",
    b"\\",
    b"\\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xc3",
    b"*",
]


def outcome(content):
    found = parse(content, MODERN)
    return dict(found.items()), dict(found.lines), found.mentioned, found.problems.items


@given(
    st.lists(
        st.tuples(
            st.sampled_from([A, A.upper(), A[:40], A[1:], b"\\" + A]),
            st.sampled_from([b"  ", b" *", b" ", b"   "]),
            st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(b"".join),
            st.sampled_from([b"\n", b"\n", b"\r\n", b""]),
        ).map(b"".join),
        max_size=6,
    ).map(b"".join)
)
def test_both_ways_agree(content):
    short = outcome(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "common_sha256", lambda _raw: None)
        assert short == outcome(content)


@pytest.mark.parametrize(
    "name", [b"a", b"a/b.c/d", b"caf\xe9", b" a b ", b"*", b"-x", b"a..", b"a."]
)
def test_common_names_go_the_short_way(name):
    assert common_sha256(A + b"  " + name + b"\n") == (A, name)


def test_a_long_name_that_does_not_match_is_over_at_once():
    assert not common_sha256(A + b"  " + b"a/" * 8000 + b"/\n")
