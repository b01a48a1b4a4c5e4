"""What the controller asks its own git."""

import pytest

from controller import source
from controller.progress import Line
from remote_train.errors import TrainError
from tests.unit.git_host import Origin, git, write


def sync(folder, **git_):
    return {
        **{"src": str(folder), "bundle": "", "signing_key": "", "allowed_signers": ""},
        "git": {"url": "", "ref": "", "allow_dirty": False, **git_},
    }


@pytest.fixture
def origin(tmp_path):
    made = Origin(tmp_path / "o")
    made.git("remote", "add", "origin", "https://right.example/x")
    return made


def test_a_hook_s_variables_don_t_count(origin, tmp_path, monkeypatch):
    other = Origin(tmp_path / "p")
    other.git("remote", "add", "origin", "https://wrong.example/x")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    assert source.pulled_from(sync(origin.folder))["url"] == "https://right.example/x"


@pytest.mark.parametrize(
    ("there", "url"),
    [
        ("https://me:TOKEN@right.example/x", "https://right.example/x"),
        ("https://me:TO'KEN@right.example/x", "https://right.example/x"),
        ("https://TOKEN@right.example/x", "https://right.example/x"),
        ("ssh://git@right.example/x", "ssh://git@right.example/x"),
        ("ssh://git:TOKEN@right.example/x", "ssh://right.example/x"),
        ("git@right.example:x", "git@right.example:x"),
        ("/srv/x", "/srv/x"),
    ],
)
def test_a_login_here_is_not_the_host_s(origin, there, url):
    origin.git("remote", "set-url", "origin", there)
    assert source.pulled_from(sync(origin.folder))["url"] == url


def test_the_login_of_the_setting(origin):
    """The request has the URL without it; the setting itself is beside it."""
    given = "https://me:TOKEN@there.example/x"
    asked = sync(origin.folder, url="https://there.example/x")
    assert source.pulled_from(asked, given)["url"] == given
    assert source.pulled_from(asked)["url"] == "https://there.example/x"
    assert source.with_login("https://other.example/x", given) == "https://other.example/x"


def test_names_that_are_no_utf8(origin):
    origin.commit({b"\xff\xfe": "2"})
    git(origin.folder, "config", "core.quotePath", "false")
    write(origin.folder, {b"\xff\xfe": "3"})
    assert "1 tracked file was changed" in source.not_pulled(sync(origin.folder), "x")[0]


def test_no_clone(tmp_path):
    asked = {
        **sync(tmp_path),
        "mode": "git",
        "whitelist": "",
        "exclude": [],
        "follow_links": False,
        "cache": False,
    }
    with (
        pytest.raises(TrainError, match="which is no clone of a git repository"),
        source.opened(asked, "data/training", Line(print, None)),
    ):
        pass
