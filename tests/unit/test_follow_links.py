"""Symlinks that are followed: what they lead to is synced under their own names."""

import hashlib
import os
import subprocess

import pytest

from controller.project import Choice, offer_of
from remote_train import bundle, project_sources
from remote_train.errors import TrainError
from remote_train.file_names import to_bytes, to_name
from remote_train.project_files import list_files
from tests.unit.bundle_host import Host, put, read

PROJECT = {"a.py": b"1", "data/x.jsonl": b"22", "data/raw/y": b"333", "outputs/adapter": b"no"}
ELSEWHERE = {
    "big.jsonl": b"4444",
    "run.sh": b"#!/bin/sh\n",
    "deep/er/z": b"55555",
    "deep/outputs/o": b"of another",
    to_name(b"deep/caf\xe9 \n"): b"666666",
    ".git/config": b"no",
    "__pycache__/m.pyc": b"no",
    "deep/._z": b"no",
}
FOLLOWED = {"big.jsonl", "run.sh", "deep/er/z", "deep/outputs/o", to_name(b"deep/caf\xe9 \n")}


def git(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    subprocess.run(["git", "-C", folder, *arguments], check=True, env=environment)


@pytest.fixture
def project(tmp_path):
    """A project whose files git tracks, and a folder outside of it."""
    root = tmp_path / "project"
    put(root, PROJECT)
    put(tmp_path / "elsewhere", ELSEWHERE)
    (tmp_path / "elsewhere" / "run.sh").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", "-f", "a.py", "data", "outputs")
    return root


def link(root, name, target):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    git(root, "add", "-f", name)


def followed(root, whitelist=None, **options):
    return list_files(str(root), whitelist, follow_links=True, **options)


def names(files):
    return [file.name for file in files]


OWN = {"a.py", "data/x.jsonl", "data/raw/y"}

LINKS = {
    "file": ({"link": "a.py"}, {"link"}),
    "file elsewhere": ({"data/link": "../../elsewhere/big.jsonl"}, {"data/link"}),
    "link to a link": ({"one": "two", "two": "a.py"}, {"one", "two"}),
    "folder": ({"copy": "data"}, {"copy/x.jsonl", "copy/raw/y"}),
    "folder elsewhere": ({"far": "../elsewhere"}, {f"far/{name}" for name in FOLLOWED}),
    "through another": (
        {"far": "../elsewhere", "near": "far/deep/er"},
        {f"far/{name}" for name in FOLLOWED} | {"near/z"},
    ),
    "two ways to one": ({"one": "data/raw", "two": "data/raw"}, {"one/y", "two/y"}),
    "a folder of git's": ({"hooks": ".git/hooks.d"}, {"hooks/h"}),
    "named as outputs": ({"data/outputs": "raw", "outputs2": "outputs"}, {"data/outputs/y"}),
}


@pytest.mark.parametrize("way", ["git", "whitelist"])
@pytest.mark.parametrize("case", LINKS)
def test_what_links_lead_to_is_listed(project, case, way):
    links, found = LINKS[case]
    put(project, {".git/hooks.d/h": b"h"})
    for name, target in links.items():
        link(project, name, target)
    found = found | ({"outputs2/adapter"} if "outputs2" in links else set())
    listing = None
    if way == "whitelist":
        listing = str(project.parent / "list")
        project.parent.joinpath("list").write_text("\n".join(["a.py", "data", *links]))
    files = followed(project, listing)
    assert set(names(files)) == OWN | found
    assert names(files) == sorted(names(files), key=to_bytes)
    for file in files:
        path = os.path.join(os.fsencode(project), to_bytes(file.name))
        assert file.size == os.stat(path).st_size
        assert file.executable == bool(os.stat(path).st_mode & 0o100)
        if file.name in OWN:
            assert file.path == ""
        else:
            assert os.fsencode(file.path) == os.path.realpath(path)
    with pytest.raises(TrainError, match="is a symlink") as error:
        list_files(str(project), listing)
    assert "sync_exclude" in error.value.hint
    assert "sync_follow_links" in error.value.hint


def test_find_agrees(project):
    """All of a project with links, by the program that follows them as well."""
    put(project.parent / "other", {"one": b"1", "sub/two": b"2"})
    (project.parent / "elsewhere/deep/more").symlink_to("../../other")
    (project.parent / "other/sub/file").symlink_to(project / "a.py")
    link(project, "far", "../elsewhere")
    link(project, "data/here", "raw")
    (project / "list").write_text(".\n")
    # fmt: off
    command = ["find", "-L", ".", "(", "-name", ".git", "-o", "-name", "__pycache__",
               "-o", "-path", "./outputs", ")", "-prune",
               "-o", "-type", "f", "-not", "-name", "._*", "-print0"]
    # fmt: on
    found = subprocess.run(command, cwd=project, check=True, capture_output=True).stdout
    expected = {to_name(raw[2:]) for raw in found.split(b"\0") if raw}
    assert "far/deep/more/sub/file" in expected
    assert set(names(followed(project, "list"))) == expected


@pytest.mark.parametrize("line", ["far/deep", "far/deep/", "copy/far2/er", "far/deep/er/z"])
def test_a_whitelist_may_lead_through_links(project, line):
    link(project, "far", "../elsewhere")
    link(project, "data/far2", "../../elsewhere/deep")
    link(project, "copy", "data")
    (project / "list").write_text(f"{line}\n")
    below = line.rstrip("/")
    ends = {
        "far/deep": {name for name in FOLLOWED if name.startswith("deep/")},
        "copy/far2/er": {"z"},
    }
    found = {"far/deep": {f"far/{name}" for name in ends["far/deep"]}}
    found["copy/far2/er"] = {"copy/far2/er/z"}
    found["far/deep/er/z"] = {"far/deep/er/z"}
    assert set(names(followed(project, "list"))) == found[below]


def test_exclude_goes_by_the_names_in_the_project(project):
    link(project, "far", "../elsewhere")
    files = followed(project, exclude=["far/deep", "*.jsonl", "elsewhere"])
    assert set(names(files)) == {"a.py", "data/raw/y", "far/run.sh"}


def test_a_tracked_folder_that_became_a_link(project):
    """Git says what is tracked, the link where it lies."""
    (project / "data").rename(project.parent / "moved")
    (project / "data").symlink_to(project.parent / "moved")
    put(project.parent / "moved", {"untracked": b""})
    files = followed(project)
    assert set(names(files)) == OWN
    assert {file.path for file in files} == {
        "",
        str(project.parent / "moved/x.jsonl"),
        str(project.parent / "moved/raw/y"),
    }


BAD = {
    "dangling": ({"link": "gone"}, "link in .* a symlink that leads to gone, and nothing is there"),
    "dangling inside": (
        {"far": "../elsewhere", "../elsewhere/x": "no"},
        "^far/x in .* leads to no",
    ),
    "circle": ({"one": "two", "two": "one"}, "^one in .* leads in a circle"),
    "itself": ({"me": "me"}, "^me in .* leads in a circle"),
    "its own folder": ({"data/me": "."}, "^data/me in .* leads back to a folder it lies in"),
    "the project": ({"data/raw/up": "../.."}, "^data/raw/up in .* leads back"),
    "above the project": ({"up": "../.."}, "^up in .* leads back"),
    "each other": ({"data/b": "../c", "c/d": "../data"}, "^(c/d/b|data/b/d) in .* leads back"),
    "back from elsewhere": (
        {"far": "../elsewhere", "../elsewhere/deep/back": "../../project"},
        "^far/deep/back in .* leads back",
    ),
    "fifo": ({"link": "../elsewhere/pipe"}, "^link in .* is not a regular file"),
    "fifo inside": ({"far": "../elsewhere"}, "^far/pipe in .* is not a regular file"),
    "through a file": ({"link": "a.py/x"}, "^link can't be read: Not a directory"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", BAD)
def test_a_link_that_leads_nowhere_or_round_is_named(project, case):
    links, words = BAD[case]
    if "fifo" in case:
        os.mkfifo(project.parent / "elsewhere/pipe")
    for name, target in links.items():
        if name.startswith("../"):
            (project / name).symlink_to(target)
        else:
            link(project, name, target)
    with pytest.raises(TrainError, match=words) as error:
        followed(project)
    assert error.value.category == "data"
    assert "sync_exclude" in error.value.hint
    assert set(names(followed(project, exclude=[*links, "far"]))) >= OWN


def test_a_link_on_the_way_that_leads_nowhere_is_named(project):
    (project / "data").rename(project.parent / "moved")
    (project / "data").symlink_to("../gone")
    with pytest.raises(TrainError, match=r"^data in .* leads to \.\./gone, and nothing is there"):
        followed(project)


def test_a_folder_that_cannot_be_read(project, monkeypatch):
    link(project, "far", "../elsewhere")
    scan = os.scandir
    denied = os.stat(project.parent / "elsewhere" / "deep").st_ino

    def refuse(descriptor):
        if os.fstat(descriptor).st_ino == denied:
            raise PermissionError(13, "Permission denied")
        return scan(descriptor)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TrainError, match=r"^far can't be read: Permission denied"):
        followed(project)
    files = followed(project, exclude=["far/deep"])  # what is excluded isn't looked at
    assert set(names(files)) == OWN | {"far/big.jsonl", "far/run.sh"}


# -- packed and sent -----------------------------------------------------------------------------


def test_a_bundle_holds_what_links_lead_to(project, tmp_path):
    link(project, "far", "../elsewhere")
    link(project, "same", "a.py")
    files = followed(project)
    made = bundle.build(str(project), files, str(tmp_path / "out"))
    host = Host(tmp_path)
    done = host.apply(made.paths[0])
    assert host.files() == {name: PROJECT[name] for name in OWN} | {"same": b"1"} | {
        f"far/{name}": ELSEWHERE[name] for name in FOLLOWED
    }
    assert os.access(host.root / "far/run.sh", os.X_OK)
    assert not (host.root / "far/big.jsonl").stat().st_mode & 0o111
    assert done.bytes == made.bytes
    # The same files without a link in them give the same bundle.
    flat = tmp_path / "flat"
    put(flat, host.files())
    (flat / "far/run.sh").chmod(0o700)
    (tmp_path / "list").write_text(".")
    again = bundle.build(str(flat), list_files(str(flat), str(tmp_path / "list")), str(tmp_path))
    assert again.sha256 == made.sha256
    assert (
        read(tmp_path / "out")[os.path.basename(made.paths[2])]
        == read(tmp_path)[os.path.basename(again.paths[2])]
    )


def test_an_offer_holds_what_links_lead_to(project):
    link(project, "far", "../elsewhere")
    choice = Choice(follow_links="yes")
    offer = offer_of(str(project), choice.files(str(project)), cache=False)
    assert set(offer) == OWN | {f"far/{name}" for name in FOLLOWED}
    assert offer["far/big.jsonl"] == hashlib.sha256(b"4444").hexdigest()
    assert offer.executable == {"far/run.sh"}
    with pytest.raises(TrainError, match="sync_follow_links is 'maybe'"):
        Choice(follow_links="maybe").files(str(project))


def as_link(path):
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def as_folder(path):
    path.unlink()
    path.mkdir()


def as_fifo(path):
    path.unlink()
    os.mkfifo(path)


CHANGES = {
    "link": (as_link, "symlink"),
    "folder": (as_folder, "folder"),
    "fifo": (as_fifo, "special"),
    "gone": (lambda path: path.unlink(), "missing"),
    "longer": (lambda path: path.write_bytes(b"longer than it was"), "different"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("late", [False, True])
def test_a_target_that_changes_is_seen(project, tmp_path, monkeypatch, change, late):
    link(project, "far", "../elsewhere")
    files = followed(project)
    happen, kind = CHANGES[change]
    target = tmp_path / "elsewhere/big.jsonl"
    if late:  # after it was hashed, before it is packed
        write = bundle.write_manifest
        monkeypatch.setattr(bundle, "write_manifest", lambda d: (happen(target), write(d))[1])
    else:
        happen(target)
        found = {f.name: f.kind for f in project_sources.examine(str(project), files)}
        assert found["far/big.jsonl"] == kind
        assert [name for name in found if found[name] != "different"] == (
            [] if kind == "different" else ["far/big.jsonl"]
        )
    with pytest.raises(TrainError, match=r"^far/big.jsonl changed while"):
        bundle.build(str(project), files, str(tmp_path / "out"))


class Remembering:
    """A cache that knows what it is told to."""

    def __init__(self, **digests):
        self.digests = digests
        self.noted = {}

    def known(self, name, status):
        assert status.st_size
        return self.digests.get(name, "")

    def note(self, name, status, digest):
        self.noted[name] = (status.st_size, digest)


def test_digests_that_are_known_are_not_made_again(project):
    link(project, "far", "../elsewhere")
    files = followed(project, exclude=["far/deep"])
    cache = Remembering(**{"far/big.jsonl": "f" * 64})
    found = {f.name: f for f in project_sources.examine(str(project), files, cache)}
    assert found["far/big.jsonl"].digest == "f" * 64
    assert (found["far/big.jsonl"].size, found["far/big.jsonl"].executable) == (4, False)
    script = hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert found["far/run.sh"].digest == script
    assert found["far/run.sh"].executable
    assert cache.noted["far/run.sh"] == (10, script)
    assert "far/big.jsonl" not in cache.noted
    assert set(cache.noted) == OWN | {"far/run.sh"}
