"""The action that builds a bundle: three files that sha256sum agrees with, the same every time."""

import os
import pwd
import subprocess
import sys
import types
from pathlib import Path

import pytest

from controller import progress
from plugins.action import bundle as bundle_action
from remote_train import bundle, signature
from remote_train.errors import TrainError
from remote_train.manifest import MODERN
from tests.unit.bundle_host import FILES, Host, put, snapshot

ENDS = (".tar.gz", ".tar.gz.sha256", f".{MODERN}")
WHITELIST = "scripts/training_sync_whitelist.txt"


@pytest.fixture
def source(tmp_path):
    return lay(tmp_path / "tutor")


def lay(folder):
    put(folder, {**FILES, WHITELIST: b".\n", "outputs/adapter": b"not for others"})
    (folder / "run.sh").chmod(0o755)
    return folder


def action(source, out, *, check=False, diff=False, **arguments):
    made = object.__new__(bundle_action.ActionModule)
    given = {"project_src": str(source), "dest": str(out), "name": "", **arguments}
    made._task = types.SimpleNamespace(args=given, check_mode=check, diff=diff)
    made.said, made.warned = [], []
    made.say, made.warn = made.said.append, made.warned.append
    return made


def run(source, out, **options):
    return action(source, out, **options).act({})


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def key(folder, kind="ed25519"):
    path = folder / f"key-{kind}"
    command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return str(path)


def test_three_files_that_sha256sum_agrees_with(source, tmp_path):
    made = action(source, tmp_path / "new" / "out")
    answer = made.act({})
    out = tmp_path / "new" / "out"
    assert answer["paths"] == [str(out / f"tutor{end}") for end in ENDS]
    assert sorted(os.listdir(out)) == sorted(f"tutor{end}" for end in ENDS)
    assert answer["changed"]
    assert answer["files"] == len(FILES) + 1
    assert answer["bytes"] == sum(map(len, FILES.values())) + 2
    assert answer["size"] == (out / "tutor.tar.gz").stat().st_size
    assert made.said == answer["lines"]
    text = "\n".join(made.said)
    assert f"{answer['files']} files, {answer['bytes']:,} bytes" in text
    for path in answer["paths"]:
        assert f"  {path}" in made.said
    # What it says checks them does: the archive where it lies, the files in the project.
    for line, folder in zip(made.said[-2:], (tmp_path, source), strict=True):
        command = line.partition("by: ")[2].replace("sha256sum", "sha256sum --strict --quiet")
        subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    assert Host(tmp_path).apply(answer["paths"][0]).warnings == []


def test_what_checks_it_is_quoted(source, tmp_path):
    out = tmp_path / "it's a folder"
    lines = run(source, out)["lines"]
    for line, folder in zip(lines[-2:], (tmp_path, source), strict=True):
        command = f"{line.partition('by: ')[2]} > {os.devnull}"
        subprocess.run(["sh", "-c", command], cwd=folder, check=True)


def test_the_same_files_are_no_change(source, tmp_path):
    run(source, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    os.utime(source / "a.py", (1, 1))
    again = run(source, tmp_path / "out")
    assert not again["changed"]
    assert "is there already" in again["lines"][0]
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("damage", ["gone", "other", "link"])
def test_what_is_not_as_it_should_be_is_put_right(source, tmp_path, end, damage):
    run(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    path = tmp_path / "out" / f"tutor{end}"
    if damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif damage == "other":
        path.write_bytes(b"other")
    else:
        path.unlink()
    assert run(source, tmp_path / "out", check=True)["changed"]
    assert run(source, tmp_path / "out")["changed"]
    assert contents(tmp_path / "out") == before
    assert not path.is_symlink()


def test_a_changed_file_makes_another_bundle(source, tmp_path):
    run(source, tmp_path / "out")
    (source / "a.py").write_bytes(b"other\n")
    answer = run(source, tmp_path / "out", diff=True)
    assert answer["changed"]
    (diff,) = answer["diff"]
    changed = set(diff["after"].splitlines()) - set(diff["before"].splitlines())
    assert [line.split()[-1] for line in changed] == ["a.py"]
    (source / "a.py").chmod(0o700)  # no manifest says that
    assert run(source, tmp_path / "out", check=True)["changed"]
    assert run(source, tmp_path / "out")["changed"]


BUILD = """
import os, sys, types
from plugins.action import bundle
os.umask(int(sys.argv[1], 8))
if sys.argv[2]:  # now that all is imported, which others may not read
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
made = object.__new__(bundle.ActionModule)
given = {"project_src": sys.argv[3], "dest": sys.argv[4], "name": "tutor"}
made._task = types.SimpleNamespace(args=given, check_mode=False, diff=False)
made.say = print
assert made.act({})["changed"]
"""


def test_whoever_builds_it_wherever_and_whenever_the_bytes_are_the_same(source, tmp_path):
    """Another folder, order of writing, umask, time, zone, locale, hash seed and user."""
    run(source, tmp_path / "out")
    expected = contents(tmp_path / "out")
    other = tmp_path / "another place" / "x"
    put(other, dict(reversed(FILES.items())))
    put(other, {WHITELIST: b".\n"})
    for folder, _folders, files in os.walk(os.fsencode(other)):
        for number, name in enumerate(files):
            path = os.path.join(folder, name)
            os.chmod(path, 0o711 if name == b"run.sh" else 0o604)
            os.utime(path, (number, 10**9 + number))
    out = tmp_path / "there"
    out.mkdir()
    uid = ""
    if os.geteuid() == 0:  # only root can become somebody else
        uid = str(pwd.getpwnam("nobody").pw_uid)
        subprocess.run(["chown", "-R", uid, str(other), str(out)], check=True)
        for folder in (tmp_path, *tmp_path.parents):
            if folder.name.startswith(("test_", "popen-", "pytest-")):
                folder.chmod(0o755)
    house = Path(bundle_action.__file__).parents[2]
    paths = [house, house / "plugins/module_utils", house / "plugins/plugin_utils"]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONHASHSEED": "7",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C.UTF-8",
        "HOME": str(out),
        "ANSIBLE_HOME": str(out / ".ansible"),
    }
    command = [sys.executable, "-c", BUILD, "0077", uid, str(other), str(out)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert {name: (out / name).read_bytes() for name in expected} == expected
    modes = {(out / name).stat().st_mode & 0o777 for name in expected}
    assert modes == {0o644}


@pytest.mark.parametrize("there", [False, True])
def test_check_mode_says_what_would_be_built_and_writes_nothing(source, tmp_path, there):
    out = tmp_path / "out"
    if there:
        run(source, out)
        (source / "a.py").write_bytes(b"other\n")
    before = snapshot(tmp_path)
    looked = run(source, out, check=True, signing_key="")
    assert snapshot(tmp_path) == before
    assert "would be built" in looked["lines"][0]
    built = run(source, out)
    assert looked["changed"]
    for one in ("paths", "files", "bytes", "size", "sha256"):
        assert looked[one] == built[one]
    assert not run(source, out, check=True)["changed"]


def test_a_bundle_in_the_project_is_not_packed_into_itself(source, tmp_path):
    first = run(source, source)
    made = action(source, source)
    again = made.act({})
    assert (again["changed"], again["sha256"]) == (False, first["sha256"])
    assert len(made.warned) == 1
    assert "tutor.tar.gz and 1 more is this bundle itself" in made.warned[0]
    named = run(source, tmp_path / "elsewhere")
    assert named["files"] == first["files"] + 2  # there, they are files like any others


@pytest.mark.parametrize(
    ("given", "name"),
    [("", "tutor"), ("v1.2", "v1.2"), ("v1.2.tar.gz", "v1.2")],
)
def test_its_name(source, tmp_path, given, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run("tutor/", "", name=given)
    assert answer["paths"][0] == str(tmp_path / f"{name}.tar.gz")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"project_src": ""}, "project_src is missing"),
        ({"project_src": "/no/where"}, "There is no training project in /no/where"),
        ({"name": "../x"}, r"can't have the name '\.\./x'"),
        ({"dest": "/proc/no"}, "can't be written into /proc/no"),
        ({"signing_key": "/no/key"}, "signing key /no/key can't be read"),
        ({"exclude": ["*"]}, "There are no files"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(source, tmp_path, arguments, words):
    run(source, tmp_path / "out")
    before = snapshot(tmp_path)
    (source / "a.py").write_bytes(b"other\n")
    with pytest.raises(TrainError, match=words):
        action(source, tmp_path / "out", **arguments).act({})
    (source / "a.py").write_bytes(FILES["a.py"])
    assert contents(tmp_path / "out")
    assert {k: v[:2] for k, v in snapshot(tmp_path).items()} == {
        k: v[:2] for k, v in before.items()
    }


def test_links_are_followed_where_that_is_asked_for(source, tmp_path):
    (source / "link").symlink_to("data")
    with pytest.raises(TrainError, match="link in the training project is a symlink"):
        run(source, tmp_path / "out")
    answer = run(source, tmp_path / "out", follow_links="true", exclude="link/train*")
    assert answer["files"] == len(FILES) + 2
    assert "link/结论.md" in Path(answer["paths"][2]).read_text(errors="replace")


# -- signed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])  # one signs twice alike, one doesn't
def test_a_signature_of_the_manifest(source, tmp_path, kind):
    mine = key(tmp_path, kind)
    answer = run(source, tmp_path / "out", signing_key=mine)
    listing, signed = (Path(path) for path in answer["paths"][2:])
    assert signed.name == f"tutor.{MODERN}.sig"
    allowed = f"me {Path(mine + '.pub').read_text()}"
    assert signature.check(listing.read_bytes(), signed.read_bytes(), allowed, "x") == "me"
    before = snapshot(tmp_path / "out")
    assert not run(source, tmp_path / "out", signing_key=mine, check=True)["changed"]
    assert not run(source, tmp_path / "out", signing_key=mine)["changed"]
    assert snapshot(tmp_path / "out") == before
    signed.write_bytes(signed.read_bytes().replace(b"A", b"B"))
    assert run(source, tmp_path / "out", signing_key=mine)["changed"]
    assert signature.check(listing.read_bytes(), signed.read_bytes(), allowed, "x") == "me"


def test_a_signature_by_another_key_is_replaced(source, tmp_path):
    run(source, tmp_path / "out", signing_key=key(tmp_path, "ecdsa"))
    mine = key(tmp_path)
    assert run(source, tmp_path / "out", signing_key=mine)["changed"]
    assert not run(source, tmp_path / "out", signing_key=mine)["changed"]


def test_a_signature_of_another_manifest_is_removed(source, tmp_path):
    run(source, tmp_path / "out", signing_key=key(tmp_path))
    signed = tmp_path / "out" / f"tutor.{MODERN}.sig"
    assert not run(source, tmp_path / "out")["changed"]
    assert signed.exists()
    (source / "a.py").write_bytes(b"other\n")
    looked = action(source, tmp_path / "out", check=True)
    assert looked.act({})["changed"]
    assert signed.exists()
    made = action(source, tmp_path / "out")
    assert made.act({})["changed"]
    assert not signed.exists()
    assert "another manifest" in made.warned[0]


# -- while it runs -------------------------------------------------------------------------------


def test_progress_is_shown_once_it_takes_a_while(source, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SHOWN_AFTER", 0.0)
    made = action(source, tmp_path / "out")
    shown = []
    made.rewrite = shown.append
    monkeypatch.delenv("NO_COLOR", raising=False)
    answer = made.act({"controller_terminal": True, "ansible_play_hosts": ["one", "two"]})
    total = progress.size(answer["bytes"])
    assert any(f"packing tutor: {total} of {total}" in text for text in shown)
    assert all("/s" in text for text in shown[:-1])


def test_a_build_that_is_interrupted_leaves_nothing(source, tmp_path, monkeypatch):
    run(source, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    (source / "a.py").write_bytes(b"other\n")

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle, "_pack_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
