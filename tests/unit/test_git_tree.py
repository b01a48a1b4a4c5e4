"""Pull with the real git: forward only, and nothing of a person's is ever lost."""

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remote_train import git_interrupted, git_program, git_tree
from remote_train.bundle import build
from remote_train.bundle_apply import apply
from remote_train.errors import TrainError
from remote_train.git_url import parse
from remote_train.project_files import ProjectFile
from tests.unit.git_host import Origin, Place, contents, everything, git, write
from tests.unit.small_disk import small_disk

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of the test's own, so that nobody's configuration counts."""
    folder = tmp_path / "home"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return folder


@pytest.fixture
def origin(tmp_path):
    return Origin(tmp_path / "origin")


@pytest.fixture
def place(tmp_path, origin):
    return Place(tmp_path / "host", origin)


@pytest.fixture
def pulled(place):
    place.pull()
    return place


def refused(place, words, ref="main", **options):
    """A pull that is refused; it changes nothing, and a check says the same."""
    before = everything(place.root)
    for check in (True, False):
        with pytest.raises(TrainError, match=words) as caught:
            place.pull(ref, check=check, **options)
        after = {
            path: value
            for path, value in everything(place.root).items()
            # What is fetched may stay, and the lock of this project.
            if "/.git" not in path and "/outputs" not in path
        }
        assert after == {path: before[path] for path in after}
        assert not [
            path
            for path in before
            if path not in after and "/.git" not in path and "/outputs" not in path
        ]
    assert caught.value.category in ("ops", "infra", "data")
    return caught.value


# -- clone ---------------------------------------------------------------------------------------


def test_a_clone(place, origin):
    looked = place.look()
    assert looked.changes
    assert (looked.head, looked.target, looked.last) == ("", origin.head, [])
    checked = place.pull(check=True)
    assert (checked.before, checked.after, checked.files) == ("", origin.head, None)
    assert not place.root.exists()
    done = place.pull()
    assert (done.before, done.after, done.changed) == ("", origin.head, True)
    assert done.files == [("+", "a"), ("+", "d/b")]
    assert [commit.subject for commit in done.last] == ["a change"]
    assert contents(place.root) == origin.files()
    assert place.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert place.git("rev-parse", "--abbrev-ref", "main@{upstream}") == "origin/main"
    assert place.git("status", "--porcelain") == "?? outputs/"


def test_nothing_to_do_changes_nothing(pulled):
    before = everything(pulled.root)
    looked = pulled.look()
    assert not looked.changes
    assert pulled.pull(check=True).changed is False
    done = pulled.pull()
    assert not done.changed
    assert done.files == []
    assert done.before == done.after == pulled.head
    assert everything(pulled.root) == before


def test_a_look_leaves_no_trace(pulled, origin):
    origin.commit({"a": "three"})
    # Git would renew its index here, since the times differ.
    os.utime(pulled.root / "a", (1, 1))
    before = everything(pulled.root)
    assert pulled.look().changes
    assert pulled.pull(check=True).files == [("~", "a")]
    assert everything(pulled.root) == before


def test_a_clone_beside_the_outputs(place, origin):
    write(place.root, {"outputs/adapter/x": "trained"})
    place.pull()
    assert contents(place.root) == {**origin.files(), "outputs/adapter/x": b"trained"}


def test_a_clone_beside_what_delta_has_brought(place, origin, tmp_path):
    """Data that git doesn't track may come first."""
    bring(place.root, tmp_path, {"data/big.jsonl": b"data"}, git_tree.UNTRACKED)
    place.pull()
    assert contents(place.root) == {**origin.files(), "data/big.jsonl": b"data"}


def test_what_delta_has_brought_goes_over_to_git(place, origin, tmp_path):
    files = {"data/x": b"x", "data/mine": b"brought", "data/other": b"o"}
    bring(place.root, tmp_path, files, git_tree.UNTRACKED)
    place.pull()
    write(place.root, {"data/mine": "changed since"})
    origin.commit({"data/x": "newer", "data/mine": "theirs"})
    before = contents(place.root)
    with pytest.raises(TrainError, match="data/mine on the host is in the way"):
        place.pull()
    assert contents(place.root) == before
    (place.root / "data/mine").unlink()
    place.pull()
    assert contents(place.root) == {**origin.files(), "data/other": b"o"}
    manifest = place.root / git_tree.UNTRACKED / "SYNC_MANIFEST.sha256"
    assert [line.split()[1] for line in manifest.read_text().splitlines()] == ["data/other"]
    # And so the next delta removes none of git's files.
    bring(place.root, tmp_path, {"data/last": b"l"}, git_tree.UNTRACKED)
    assert contents(place.root) == {**origin.files(), "data/last": b"l"}
    origin.commit({"data/last": "git's"})
    place.pull()
    assert not manifest.exists()


def bring(root, folder, files, state):
    source = folder / "delta"
    shutil.rmtree(source, ignore_errors=True)
    write(source, files)
    listed = [ProjectFile(name, len(content), False) for name, content in files.items()]
    built = build(str(source), listed, str(folder / "built"), "project")
    apply(built.paths[0], str(root), str(root / state), built.sha256)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("outputs/training_sync", "an earlier sync without git"),
        ("elsewhere/training_sync", "holds files and no git repository"),
    ],
)
def test_files_without_git_are_refused(place, tmp_path, state, words):
    bring(place.root, tmp_path, {"data/x": b"data", "a": b"mine"}, state)
    error = refused(place, words)
    assert "(a" in error.message
    assert not (place.root / ".git").exists()


def test_a_file_beside_what_delta_has_brought_is_refused(place, tmp_path):
    bring(place.root, tmp_path, {"data/big.jsonl": b"data"}, git_tree.UNTRACKED)
    write(place.root, {"data/mine": "mine"})
    assert "(data/mine)" in refused(place, "holds files and no git").message


def test_a_repository_above_is_not_taken_for_it(place, origin, tmp_path):
    write(tmp_path / "host", {"x": "y"})
    git(tmp_path / "host", "init", "-q")
    git(tmp_path / "host", "add", "-A")
    git(tmp_path / "host", "commit", "-qm", "outer")
    before = git(tmp_path / "host", "rev-parse", "HEAD")
    place.pull()
    assert place.head == origin.head
    shutil.rmtree(place.root / ".git")
    (place.root / ".git").mkdir()
    with pytest.raises(TrainError, match="is damaged"):
        place.pull()
    assert git(tmp_path / "host", "rev-parse", "HEAD") == before


def test_sha256_repositories(tmp_path):
    origin = Origin(tmp_path / "plain")
    shutil.rmtree(origin.folder / ".git")
    git(origin.folder, "init", "-q", "--object-format=sha256")
    origin.commit()
    place = Place(tmp_path / "host", origin)
    assert len(place.pull().after) == 64
    assert contents(place.root) == origin.files()


# -- forward -------------------------------------------------------------------------------------


def test_forward(pulled, origin):
    before = pulled.head
    origin.commit({"a": "three", "new": "x"}, remove=["d/b"], message="forward \x1b[2J")
    checked = pulled.pull(check=True)
    assert checked.changed
    assert pulled.head == before
    done = pulled.pull()
    assert (done.before, done.after) == (before, origin.head) == (checked.before, checked.after)
    assert done.files == [("~", "a"), ("-", "d/b"), ("+", "new")] == checked.files
    assert done.last[0].subject == "forward \\x1b[2J"
    assert contents(pulled.root) == origin.files()


def test_the_last_five(pulled, origin):
    for number in range(7):
        origin.commit(message=f"number {number}")
    pulled.pull()
    last = pulled.look().last
    assert [commit.subject for commit in last] == [f"number {n}" for n in (6, 5, 4, 3, 2)]
    assert origin.head.startswith(last[0].short)
    assert last[0].date[4] == "-"


def test_the_default_branch(place, origin):
    origin.git("checkout", "-q", "-b", "trunk")
    origin.commit({"t": "t"})
    done = place.pull("")
    assert done.ref == ("trunk", "branch")
    assert place.git("symbolic-ref", "HEAD") == "refs/heads/trunk"


def test_another_branch_and_back(pulled, origin):
    main = origin.head
    origin.git("checkout", "-q", "-b", "feature/x")
    side = origin.commit({"side": "s"})
    assert pulled.pull("feature/x").after == side
    assert not pulled.look("feature/x").changes
    assert pulled.look("main").changes
    assert pulled.pull("main").after == main
    assert pulled.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert contents(pulled.root) == {"a": b"one", "d/b": b"two"}


def test_another_branch_at_the_same_commit(pulled, origin):
    origin.git("branch", "twin")
    assert pulled.look("twin").changes
    done = pulled.pull("twin")
    assert (done.changed, done.files) == (True, [])
    assert pulled.git("symbolic-ref", "HEAD") == "refs/heads/twin"


@pytest.mark.parametrize("annotated", [False, True])
def test_a_tag_is_pinned(place, origin, annotated):
    origin.git("tag", *(["-m", "x", "-a"] if annotated else []), "v1")
    pinned = origin.head
    origin.commit({"a": "later"})
    done = place.pull("v1")
    assert (done.after, done.ref.kind) == (pinned, "tag")
    assert place.git("rev-parse", "--abbrev-ref", "HEAD") == "HEAD"
    assert not place.look("v1").changes
    # Moved at the remote, it moves here; no tag of the person's own is touched.
    place.git("tag", "-f", "v1", "HEAD")
    origin.git("tag", "-f", *(["-m", "y", "-a"] if annotated else []), "v1")
    assert place.pull("v1").after == origin.head
    assert place.git("rev-parse", "v1^{commit}") == pinned


def test_a_commit_is_pinned(place, origin):
    pinned = origin.head
    origin.commit({"a": "later"})
    assert place.pull(pinned).after == pinned
    assert contents(place.root)["a"] == b"one"
    shutil.rmtree(origin.folder)  # nobody is asked for what is there
    assert not place.pull(pinned.upper()).changed


def test_a_commit_that_is_here_needs_no_network(pulled, origin):
    first = pulled.head
    origin.commit({"a": "later"})
    pulled.pull()
    shutil.rmtree(origin.folder)
    assert pulled.pull(first, check=True).files == [("~", "a")]
    assert pulled.pull(first).after == first


def test_a_commit_that_no_branch_holds(pulled, origin):
    base = origin.head
    lost = origin.commit({"a": "lost"})
    origin.git("reset", "-q", "--hard", base)
    assert pulled.pull(lost).after == lost
    # What was brought was at the remote once: it is nobody's own work.
    newer = origin.commit({"a": "newer"})
    assert pulled.pull("main").after == newer


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("nothing", "no branch or tag nothing"),
        ("refs/tags/main", "no tag main"),
        ("refs/heads/v1", "no branch v1"),
        ("d" * 40, "The commit d{40} is not in"),
        ("abcdef12", "no branch or tag abcdef12"),
        ("both", "both a branch and a tag"),
        ("-b", "can't be the name"),
        ("--upload-pack=touch pwned", "can't be the name"),
    ],
)
def test_no_such_ref(pulled, origin, ref, words):
    origin.git("tag", "v1")
    origin.git("tag", "both")
    origin.git("branch", "both")
    error = refused(pulled, words, ref)
    assert error.hint


def test_one_of_two_of_a_name(pulled, origin):
    origin.git("tag", "both")
    tagged = origin.head
    origin.git("checkout", "-q", "-b", "both")
    branched = origin.commit({"a": "b"})
    assert pulled.pull("refs/heads/both").after == branched
    assert pulled.pull("refs/tags/both").after == tagged


def test_an_empty_remote(place, tmp_path):
    git(tmp_path, "init", "-q", "--bare", "empty")
    with pytest.raises(TrainError, match="no default branch"):
        place.pull("", url=f"file://{tmp_path}/empty")


# -- what would be lost --------------------------------------------------------------------------


def test_a_dirty_tree_is_refused(pulled, origin):
    write(pulled.root, {f"d/{n}": "x" for n in range(7)})
    pulled.git("add", "-A", "d")
    write(pulled.root, {"a": "mine"})
    assert pulled.look().dirty == ["a", *(f"d/{n}" for n in range(7))]
    error = refused(pulled, "were changed in .*: a, d/0, d/1, d/2, d/3 and 3 more")
    assert "sync_git_allow_dirty" in error.hint
    origin.commit({"c": "c"})
    refused(pulled, "were changed")


@pytest.mark.parametrize("how", ["deleted", "mode", "renamed", "staged"])
def test_every_change_is_dirty(pulled, how):
    if how == "deleted":
        (pulled.root / "a").unlink()
    elif how == "mode":
        (pulled.root / "a").chmod(0o755)
    elif how == "renamed":
        pulled.git("mv", "a", "z")
    else:
        write(pulled.root, {"a": "mine"})
        pulled.git("add", "a")
        write(pulled.root, {"a": "one"})
    assert pulled.look().dirty == [{"renamed": "z"}.get(how, "a")]
    refused(pulled, "were changed")


def test_allowed_dirty_changes_are_kept(pulled, origin):
    write(pulled.root, {"a": "mine"})
    origin.commit({"d/b": "theirs"})
    assert pulled.pull(allow_dirty=True, check=True).changed
    done = pulled.pull(allow_dirty=True)
    assert "a in" in done.warnings[0]
    assert contents(pulled.root) == {"a": b"mine", "d/b": b"theirs"}
    assert pulled.look().dirty == ["a"]
    origin.commit({"a": "theirs"})
    with pytest.raises(TrainError, match="a on the host is in the way"):
        pulled.pull(allow_dirty=True)
    assert contents(pulled.root)["a"] == b"mine"
    write(pulled.root, {"a": "one"})
    assert pulled.pull().warnings == []


@pytest.mark.parametrize("ignored", [False, True])
def test_untracked_files_are_kept(pulled, origin, ignored):
    write(pulled.root, {"mine": "mine", "d/mine": "too"})
    if ignored:
        write(pulled.root / ".git" / "info", {"exclude": "mine\n"})
    origin.commit({"c": "c"})
    pulled.pull()
    assert contents(pulled.root)["mine"] == b"mine"
    origin.commit({"mine": "theirs", "d/mine": "theirs"})
    with pytest.raises(TrainError, match="mine and 1 more on the host are in the way"):
        pulled.pull()
    assert contents(pulled.root)["mine"] == b"mine"
    assert contents(pulled.root)["d/mine"] == b"too"
    (pulled.root / "mine").unlink()
    (pulled.root / "d/mine").unlink()
    assert pulled.pull().changed
    assert contents(pulled.root) == origin.files()


def test_local_commits_are_refused(pulled, origin):
    for number in range(2):
        write(pulled.root, {"a": f"mine {number}"})
        pulled.git("commit", "-qam", "mine")
    mine = pulled.head
    refused(pulled, "has 2 commits that the remote doesn't have")
    origin.commit({"c": "c"})
    error = refused(pulled, "has 2 commits that the remote doesn't have")
    assert "Push" in error.hint
    assert pulled.head == mine
    # On another branch they stay where they are.
    assert pulled.pull(origin.head).changed
    assert pulled.git("rev-parse", "main") == mine


def test_commits_on_no_branch_are_refused(pulled, origin):
    pulled.git("checkout", "-q", "--detach")
    write(pulled.root, {"a": "mine"})
    pulled.git("commit", "-qam", "mine")
    refused(pulled, "a commit that the remote doesn't have")
    refused(pulled, "a commit that the remote doesn't have", origin.head)
    pulled.git("branch", "kept")
    pulled.pull()
    assert pulled.git("rev-parse", "kept") != pulled.head


def test_a_forced_push_is_said(pulled, origin):
    old = pulled.head
    origin.git("commit", "-q", "--amend", "-m", "rewritten")
    error = refused(pulled, f"main was rewritten at the remote: {old[:12]}")
    assert pulled.pull(origin.head).after == origin.head
    # The hint holds with the branch checked out as with the commit.
    words = error.hint.partition("run there: ")[2]
    subprocess.run(["sh", "-ec", words], check=True, capture_output=True)
    assert not pulled.pull().changed


def test_a_forced_push_with_the_branch_checked_out(pulled, origin):
    origin.git("commit", "-q", "--amend", "-m", "rewritten")
    words = refused(pulled, "main was rewritten").hint.partition("run there: ")[2]
    subprocess.run(["sh", "-ec", words], check=True, capture_output=True)
    assert not pulled.pull().changed


def test_a_shallow_clone(place, origin):
    origin.commit({"a": "two"})
    git(place.root.parent.parent, "clone", "-q", "--depth=1", origin.url, str(place.root))
    origin.commit({"a": "three"})
    assert place.pull().files == [("~", "a")]
    write(place.root, {"a": "mine"})
    place.git("commit", "-qam", "mine")
    origin.git("commit", "-q", "--amend", "-m", "x")
    refused(place, "is shallow")


@pytest.mark.parametrize("work", ["merge", "rebase", "cherry-pick", "revert"])
def test_in_the_middle_of_something(pulled, origin, work):
    base = pulled.head
    write(pulled.root, {"a": "mine"})
    pulled.git("commit", "-qam", "mine")
    pulled.git("checkout", "-q", "-b", "side", base)
    write(pulled.root, {"a": "side"})
    pulled.git("commit", "-qam", "side")
    git(pulled.root, work, "main", check=False)
    error = refused(pulled, f"A {work} that somebody began", allow_dirty=True)
    assert f"git {work} --abort" in error.hint


def test_another_origin_is_refused(pulled, tmp_path):
    other = Origin(tmp_path / "other")
    error = refused(pulled, "was cloned from", url=other.url)
    assert pulled.origin.url in error.message
    assert other.url in error.message


def test_no_password_is_said(pulled):
    pulled.git("remote", "set-url", "origin", "https://me:hunter2@h.example/x")
    error = refused(pulled, "was cloned from", url="https://you:swordfish@h.example/y")
    assert "hunter2" not in str(error)
    assert "swordfish" not in str(error)
    assert "https://h.example/x" in error.message


def test_a_repository_without_an_origin_gets_one(place, origin):
    git(place.root.parent.parent, "clone", "-q", origin.url, str(place.root))
    place.git("remote", "remove", "origin")
    origin.commit({"c": "c"})
    assert place.pull().changed
    assert place.git("remote", "get-url", "origin") == origin.url


def test_what_git_can_t_say_lets_nothing_pass(place, origin, program):
    """The question whether a commit is kept elsewhere fails."""
    place.pull(origin.head)
    write(place.root, {"a": "mine"})
    place.git("commit", "-qam", "mine")
    mine = place.head
    real = f'exec {shutil.which("git")} "$@"'
    fails = '*"rev-list -n 1"*) echo "fatal: bad object refs/tags/x" >&2; exit 128'
    program("git", f'case "$*" in {fails};; esac\n{real}')
    origin.commit({"z": "z"})
    for check in (True, False):
        with pytest.raises(TrainError, match="is damaged"):
            place.pull(origin.head, check=check)
    assert place.head == mine


@pytest.mark.parametrize("where", ["file", "link", "state"])
def test_a_commit_that_writes_into_our_folder(place, origin, tmp_path, where):
    if where == "link":
        (origin.folder / "outputs").symlink_to(tmp_path)
    elif where == "file":
        write(origin.folder, {"outputs": "x"})
    else:
        write(origin.folder, {"outputs/training_sync/engine/x.py": "x"})
    origin.commit()
    with pytest.raises(TrainError, match="where this project keeps its own files"):
        place.pull()
    assert not (place.root / "a").exists()
    origin.git("rm", "-rq", "--cached", "outputs")
    origin.git("commit", "-qm", "mended")
    assert place.pull().changed


def test_other_outputs_may_be_tracked(place, origin):
    origin.commit({"outputs/README": "x"})
    place.pull()
    assert contents(place.root)["outputs/README"] == b"x"


def test_what_git_ignores_from_now_on_stays(pulled, origin):
    """Else the data would be gone until the next delta, which is planned before the pull."""
    origin.commit({"data/x": "x" * 100, "data/y": "y", "gone": "g"})
    (origin.folder / "data/x").chmod(0o755)
    origin.commit()
    pulled.pull()
    origin.commit({".gitignore": "data/\n"}, remove=["data/x", "data/y", "gone"])
    assert pulled.pull().changed
    assert contents(pulled.root) == {
        **origin.files(), "data/x": b"x" * 100, "data/y": b"y",
    }  # fmt: skip
    assert (pulled.root / "data/x").stat().st_mode & stat.S_IXUSR
    assert not pulled.look().changes


def test_what_lies_below_a_link_now_keeps_none_of_the_rest(pulled, origin):
    """Git knows nothing of names below a link, and ends at the first one."""
    origin.commit({"a2/x": "1", "data/training/y": "2", "gone": "g"})
    pulled.pull()
    shutil.rmtree(origin.folder / "a2")
    (origin.folder / "a2").symlink_to("data")
    origin.commit({".gitignore": "data/\n"}, remove=["data/training/y"])
    assert pulled.pull().changed
    assert (pulled.root / "a2").is_symlink()
    assert (pulled.root / "data/training/y").read_bytes() == b"2"
    assert not (pulled.root / "data/x").exists()


def test_git_s_word_on_what_is_ignored_is_needed(pulled, origin, program):
    origin.commit({"data/x": "x", "b": "b"})
    pulled.pull()
    origin.commit({".gitignore": "data/\n"}, remove=["data/x"])
    real = f'exec {shutil.which("git")} "$@"'
    program("git", f'case "$*" in *check-ignore*) echo "fatal: no" >&2; exit 128;; esac\n{real}')
    with pytest.raises(TrainError, match="Git could not"):
        pulled.pull()
    program("git", real)
    # The next one still knows what was there.
    assert pulled.pull().changed
    assert (pulled.root / "data/x").read_bytes() == b"x"


# -- submodules ----------------------------------------------------------------------------------
#
# Git lets no submodule be at a local path unless its user says so, and this project doesn't say
# it for them: the user does here, for what is fetched. Over ssh it is tests/integration's.


@pytest.fixture
def local_submodules(monkeypatch):
    config = [
        value.replace("protocol.file.allow=user", "protocol.file.allow=always")
        for value in git_program._CONFIG
    ]
    monkeypatch.setattr(git_program, "_CONFIG", config)


@pytest.fixture
def nested(tmp_path, origin, local_submodules):
    """A project with a submodule that has one of its own."""
    deep = Origin(tmp_path / "deep", {"deep.py": "1"})
    lib = Origin(tmp_path / "lib", {"lib.py": "1"})
    lib.submodule(deep.url, "deep")
    origin.submodule(lib.url, "lib")
    origin.git("submodule", "-q", "update", "--init", "--recursive")
    return lib, deep


def all_files(origin, lib, deep):
    return {
        **origin.files(),
        **{f"lib/{name}": content for name, content in lib.files().items()},
        **{f"lib/deep/{name}": content for name, content in deep.files().items()},
    }


def test_submodules_come_along(place, origin, nested):
    lib, deep = nested
    done = place.pull()
    assert contents(place.root) == all_files(origin, lib, deep)
    assert ("+", "lib/lib.py") in done.files
    assert ("+", "lib/deep/deep.py") in done.files
    before = everything(place.root)
    assert not place.look().changes
    assert not place.pull().changed
    assert everything(place.root) == before
    deep.commit({"deep.py": "2"})
    lib.git("-C", "deep", "pull", "-q")
    lib.commit()
    origin.git("-C", "lib", "pull", "-q")
    origin.commit()
    done = place.pull()
    assert done.files == [("~", "lib/deep/deep.py")]
    assert contents(place.root) == all_files(origin, lib, deep)


def test_a_pull_that_moves_a_submodule_only(place, origin, nested):
    """What changes in there isn't known yet: a check may not say that nothing does."""
    lib, _ = nested
    place.pull()
    lib.commit({"lib.py": "2"})
    origin.git("-C", "lib", "pull", "-q", lib.url, "main")
    origin.commit()
    looked = place.pull(check=True)
    assert looked.changed
    assert looked.files is None
    assert place.pull().files == [("~", "lib/lib.py")]
    # Nor where a submodule alone is behind.
    place.git("-C", "lib", "checkout", "-q", "HEAD~")
    looked = place.pull(check=True)
    assert looked.changed
    assert looked.files is None


def test_a_submodule_in_our_folder(place, origin, nested, tmp_path):
    lib, _ = nested
    origin.submodule(lib.url, "outputs")
    place.root.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(TrainError, match="tracks outputs, where this project"):
            place.pull()
        assert not (place.root / "a").exists()


def test_a_submodule_moves_house(place, origin, nested, tmp_path):
    lib, _ = nested
    place.pull()
    lib.folder.rename(tmp_path / "moved")
    lib.folder = tmp_path / "moved"
    lib.commit({"lib.py": "2"})
    origin.git("config", "--file", ".gitmodules", "submodule.lib.url", lib.url)
    origin.git("submodule", "-q", "sync")
    origin.git("-C", "lib", "pull", "-q", "origin", "main")
    origin.commit()
    place.pull()
    assert contents(place.root)["lib/lib.py"] == b"2"


def test_a_changed_submodule_is_dirty(place, nested):
    place.pull()
    write(place.root, {"lib/deep/deep.py": "mine"})
    assert place.look().dirty == ["lib/deep/deep.py"]
    refused(place, "were changed in .*: lib/deep/deep.py")
    assert place.pull(allow_dirty=True).changed is False


def test_a_commit_in_a_submodule_is_refused(place, nested):
    place.pull()
    write(place.root, {"lib/lib.py": "mine"})
    git(place.root / "lib", "commit", "-qam", "mine")
    assert place.look().behind == ["lib"]
    refused(place, "The submodule lib .* a commit that the remote doesn't have")
    git(place.root / "lib", "branch", "kept")
    place.pull()
    assert contents(place.root)["lib/lib.py"] == b"1"


def test_a_submodule_that_was_moved_goes_back(place, nested):
    lib, _ = nested
    lib.commit({"lib.py": "2"})
    place.pull()
    git(place.root / "lib", "pull", "-q", "origin", "main")
    assert place.look().behind == ["lib"]
    assert place.pull().changed
    assert not place.look().changes


def test_a_submodule_that_is_left_out_stays_so(place, origin, nested):
    origin.git("config", "--file", ".gitmodules", "submodule.lib.update", "none")
    origin.commit()
    place.pull()
    assert not (place.root / "lib" / "lib.py").exists()
    assert not place.look().changes


def test_a_submodule_that_is_gone(place, origin, nested):
    place.pull()
    origin.git("rm", "-q", "lib")
    origin.commit()
    done = place.pull()
    assert "lib is no submodule any more" in done.warnings[0]
    assert not place.look().changes


def test_files_in_the_way_of_a_submodule(place, origin, nested):
    place.pull(origin.git("rev-parse", "HEAD~1"))
    write(place.root, {"lib/mine": "mine"})
    with pytest.raises(TrainError, match="in the way of the submodule"):
        place.pull()
    assert contents(place.root)["lib/mine"] == b"mine"
    shutil.rmtree(place.root / "lib")
    place.pull()
    assert not place.look().changes


def test_a_submodule_without_a_url(place, origin, nested):
    origin.git("config", "--file", ".gitmodules", "--unset", "submodule.lib.url")
    origin.commit()
    with pytest.raises(TrainError, match=r"the submodule|a submodule in lib"):
        place.pull()


def test_a_submodule_whose_commit_was_not_pushed(place, origin, nested):
    lib, _ = nested
    lib.git("config", "uploadpack.allowAnySHA1InWant", "false")
    git(origin.folder / "lib", "commit", "-q", "--allow-empty", "-m", "unpushed")
    origin.commit()
    with pytest.raises(TrainError, match=r"(?i)there is no|lacks the commit") as caught:
        place.pull()
    assert caught.value.hint


@pytest.mark.parametrize("url", ["file://{0}", "{0}", "../lib", "ext::sh -c touch% {1}"])
def test_a_submodule_may_not_be_anywhere(place, origin, tmp_path, url):
    """Git's own rule since 2.38.1, whatever the version: a project could name any path."""
    lib = Origin(tmp_path / "lib", {"lib.py": "1"})
    origin.submodule(lib.url)
    trap = tmp_path / "pwned"
    hostile = url.format(lib.folder, trap)
    origin.git("config", "--file", ".gitmodules", "submodule.lib.url", hostile)
    origin.commit()
    with pytest.raises(TrainError, match=r"may not fetch over '(file|ext)'"):
        place.pull()
    assert not trap.exists()
    assert not (place.root / "lib" / "lib.py").exists()


def test_an_option_for_the_url_of_a_submodule(place, origin, nested, tmp_path):
    trap = tmp_path / "pwned"
    hostile = f"--upload-pack=touch {trap}"
    origin.git("config", "--file", ".gitmodules", "submodule.lib.url", hostile)
    origin.commit()
    with pytest.raises(TrainError):
        place.pull()
    assert not trap.exists()


# -- nothing of a repository's, or of the outside's, runs or counts ------------------------------


def hook(path, trap):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho $0 >> {trap}\n")
    path.chmod(0o755)


def test_no_hook_runs(place, origin, nested, tmp_path, home):
    trap = tmp_path / "trap"
    names = ("post-checkout", "post-merge", "reference-transaction", "post-index-change")
    for name in names:
        hook(home / "hooks" / name, trap)
    (home / ".gitconfig").write_text(
        f"[core]\n\thooksPath = {home}/hooks\n\tfsmonitor = {home}/hooks/post-merge\n"
    )
    place.pull()
    for name in names:
        hook(place.root / ".git" / "hooks" / name, trap)
        hook(place.root / ".git" / "modules" / "lib" / "hooks" / name, trap)
    nested[0].commit({"lib.py": "2"})
    origin.git("-C", "lib", "pull", "-q")
    trap.unlink(missing_ok=True)  # the person's own git ran them
    origin.commit({"a": "2"})
    trap.unlink(missing_ok=True)
    place.pull()
    assert contents(place.root)["lib/lib.py"] == b"2"
    assert not trap.exists()


def test_variables_of_git_don_t_count(place, origin, tmp_path, monkeypatch):
    other = Origin(tmp_path / "other")
    before = everything(other.folder)
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other.folder))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.bare")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    place.pull()
    origin.commit({"a": "2"})
    place.pull()
    assert contents(place.root) == origin.files()
    assert everything(other.folder) == before


@pytest.mark.parametrize("url", ["ext::sh -c touch% {}", "ext::{}", "--upload-pack=touch {}"])
def test_a_url_runs_nothing(place, tmp_path, url):
    trap = tmp_path / "pwned"
    with pytest.raises(TrainError, match="git URL"):
        place.pull(url=url.format(trap))
    assert not trap.exists()


def test_another_language_doesn_t_matter(pulled, program, monkeypatch, tmp_path):
    for name in ("LANG", "LC_ALL", "LC_MESSAGES", "LANGUAGE"):
        monkeypatch.setenv(name, "de_DE.UTF-8")
    real = shutil.which("git")
    program("git", f'echo "$LC_ALL:$LANGUAGE" >> {tmp_path}/spoken; exec {real} "$@"')
    pulled.pull()
    assert set((tmp_path / "spoken").read_text().split()) == {"C:"}


@pytest.mark.parametrize(
    "name", ["-rf", "--", "a b", "new\nline", '"quoted"', "é", os.fsdecode(b"\xff"), ":(top)x", "*"]
)
def test_odd_names(place, origin, name):
    origin.commit({name: "1"})
    place.pull()
    assert contents(place.root)[name] == b"1"
    origin.commit({name: "2"})
    assert [path for _, path in place.pull().files] == [name]
    write(place.root, {name: "mine"})
    assert place.look().dirty == [name]


# -- one at a time, and taken up -----------------------------------------------------------------


def test_one_at_a_time(pulled, origin):
    origin.commit({"a": "2"})
    with open(pulled.root / "outputs/training_sync/apply.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainError, match="Another sync is at work"):
            pulled.pull()
        assert pulled.pull(check=True).changed
    assert pulled.pull().changed


@pytest.mark.parametrize("ref", ["main", "commit"])
def test_the_lock_of_another_git_is_said(pulled, origin, ref):
    commit = origin.commit({"a": "2"})
    lock = pulled.root / ".git" / "index.lock"
    lock.touch()
    with pytest.raises(TrainError, match=r"index\.lock") as caught:
        pulled.pull(commit if ref == "commit" else ref)
    assert "remove that file" in caught.value.hint
    lock.unlink()
    assert pulled.pull().changed


KILLER = """#!{python}
# Runs git, and kills it and whoever called it when it has come so far.
import os, signal, subprocess, sys, time
words = sys.argv[1:]
git = {git!r}
what, where, far = {what!r}, {where!r}, {far}
if what not in words:
    os.execv(git, [git, *words])
start = time.time_ns()
def written():
    return sum(
        os.lstat(os.path.join(at, file)).st_mtime_ns > start
        for at, _, files in os.walk(where)
        for file in files
        if os.path.lexists(os.path.join(at, file))
    )
child = subprocess.Popen([git, *words], start_new_session=True)
while child.poll() is None and written() < far:
    time.sleep(0.002)
if child.poll() is None:
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    os.kill(os.getppid(), signal.SIGKILL)
sys.exit(child.returncode)
"""


class Killed:
    """Pulls in a process of their own, which is killed together with its git."""

    def __init__(self, folder, place):
        self.folder = folder / "bin"
        self.folder.mkdir()
        self.place = place
        self.program = shutil.which("git")

    def __call__(self, what, where, far, ref="main", **options):
        script = KILLER.format(
            python=sys.executable, git=self.program, what=what, where=str(where), far=far
        )
        (self.folder / "git").write_text(script)
        (self.folder / "git").chmod(0o755)
        code = (
            "import json, sys; from remote_train import git_program, git_tree\n"
            "git_program._CONFIG = [v.replace('file.allow=user', 'file.allow=always')"
            " for v in git_program._CONFIG]\n"
            "git_tree.pull(*json.loads(sys.argv[1]), **json.loads(sys.argv[2]))"
        )
        arguments = [str(self.place.root), self.place.origin.url, ref]
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(arguments), json.dumps(options)],
            env={
                **os.environ,
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "PYTHONPATH": str(HOUSE / "plugins/module_utils"),
            },
            check=False,
            capture_output=True,
            text=True,
        )
        return done.returncode


@pytest.fixture
def killed(tmp_path, place):
    return Killed(tmp_path, place)


SLOW = 10  # files that take git a moment each


def many(text):
    """A tree that git can be killed in the middle of."""
    files = {f"f{n // 4}/{n:02}.slow": f"{text} {n}" for n in range(SLOW)}
    return {
        ".gitattributes": "*.slow filter=slow\n",
        **files,
        "big": text * 100_000,
        f"z/{text}": text,
        "a": text,
    }


@pytest.fixture(autouse=True)
def slow_files(home):
    (home / ".gitconfig").write_text('[filter "slow"]\n\tsmudge = "sleep 0.03; cat"\n')


@pytest.mark.parametrize("far", [1, 6])
def test_a_clone_that_was_killed_is_finished(place, origin, killed, far):
    origin.commit(many("x"))
    assert killed("checkout", place.root, far) == -9
    assert place.look().interrupted
    assert place.pull(check=True).changed
    done = place.pull()
    assert "A pull was interrupted" in done.warnings[0]
    assert contents(place.root) == origin.files()
    assert not place.look().changes
    assert place.git("status", "--porcelain", "-uno") == ""


@pytest.mark.parametrize(("far", "newer"), [(1, False), (6, False), (6, True)])
def test_a_pull_that_was_killed_is_finished(place, origin, killed, far, newer):
    origin.commit(many("x"))
    place.pull()
    write(place.root, {"a": "mine", "untracked": "mine", "f0/mine": "m"})
    changed = many("y")
    del changed["a"]
    origin.commit(changed, remove=["z/x"])
    assert killed("checkout", place.root, far, allow_dirty=True) == -9
    assert contents(place.root)["a"] == b"mine"
    if newer:
        origin.commit({"f1/05.slow": "newest"})
    with pytest.raises(TrainError, match=r"were changed in .*: a\."):
        place.pull()  # what was lost in the middle is put right first; the rest is a person's
    done = place.pull(allow_dirty=True)
    assert done.changed
    expected = {**origin.files(), "a": b"mine", "untracked": b"mine", "f0/mine": b"m"}
    assert contents(place.root) == expected
    assert place.look().dirty == ["a"]


@pytest.mark.parametrize("cut", [0, 1, 5, 6])
def test_a_file_that_was_cut_off(place, origin, cut):
    origin.commit({"one": "old", "gone": "old", "same": "old"})
    place.pull()
    new = origin.commit({"one": "newer!", "fresh/two": "newer!", "three": "newer!"}, ["gone"])
    at = git_program.Git(str(place.root), git_tree.parse(origin.url))
    git_interrupted.note(at, new)
    place.git("fetch", "-q")
    (place.root / ".git" / "index.lock").touch()
    (place.root / "gone").unlink()
    cut_off = "newer!"[:cut]
    write(place.root, {"one": cut_off, "fresh/two": cut_off, "same": "mine", "three": "mine"})
    with pytest.raises(TrainError, match=r"were changed in .*: same\."):
        place.pull()
    with pytest.raises(TrainError, match="three on the host is in the way"):
        place.pull(allow_dirty=True)
    assert contents(place.root)["three"] == b"mine"
    (place.root / "three").unlink()
    assert place.pull(allow_dirty=True).changed
    assert contents(place.root) == {**origin.files(), "same": b"mine"}


def test_killed_between_the_index_and_the_head(place, origin):
    """The last instant: all is there, and git says that it is at the old commit."""
    origin.commit({"gone": "1", "kept": "1", "mode": "1"})
    place.pull()
    old = place.head
    write(place.root, {"kept": "mine"})
    (origin.folder / "mode").chmod(0o755)
    new = origin.commit({"a": "2", "new": "2"}, remove=["gone"])
    at = git_program.Git(str(place.root), git_tree.parse(origin.url))
    git_interrupted.note(at, new)
    place.git("fetch", "-q")
    place.git("checkout", "-q", "--detach", new)
    place.git("update-ref", "--no-deref", "HEAD", old)
    place.git("symbolic-ref", "HEAD", "refs/heads/main")
    with pytest.raises(TrainError, match=r"were changed in .*: kept\."):
        place.pull()
    done = place.pull(allow_dirty=True)
    assert done.changed
    assert contents(place.root) == {**origin.files(), "kept": b"mine"}
    assert place.git("status", "--porcelain", "-uno") == "M kept"
    assert (place.root / "mode").stat().st_mode & stat.S_IXUSR


@pytest.mark.parametrize("what", ["fetch", "init", "remote", "update-ref", "config"])
def test_killed_before_or_after_the_tree(place, origin, killed, what):
    assert killed(what, place.root, 1) in (-9, 0)
    place.pull()
    assert contents(place.root) == origin.files()
    assert not place.look().changes


@pytest.mark.parametrize("far", [1, 12, 22])
def test_submodules_that_were_killed_are_finished(place, origin, killed, nested, far):
    lib, deep = nested
    lib.commit(many("x"))
    origin.git("-C", "lib", "pull", "-q")
    origin.commit()
    assert killed("submodule", place.root, far) == -9
    assert place.pull(check=True).changed
    place.pull()
    assert contents(place.root) == all_files(origin, lib, deep)
    assert not place.look().changes
    changed = many("y")
    lib.commit(changed, remove=["z/x"])
    origin.git("-C", "lib", "pull", "-q")
    origin.commit({"a": "2"})
    assert killed("submodule", place.root / "lib", min(far, 5)) == -9
    assert place.pull(check=True).changed
    place.pull()
    assert contents(place.root) == all_files(origin, lib, deep)
    assert not place.look().changes


def cut_clone(folder):
    """Leave of a submodule what its clone has made when the refs have come, and HEAD has not."""
    at = Path(git(folder, "rev-parse", "--absolute-git-dir"))
    for path in folder.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    git(folder, "pack-refs", "--all")
    packed = (at / "packed-refs").read_text().splitlines(keepends=True)
    (at / "packed-refs").write_text("".join(one for one in packed if "refs/heads/" not in one))
    (at / "HEAD").write_text("ref: refs/heads/main\n")
    (at / "index").unlink()
    shutil.rmtree(at / "modules", ignore_errors=True)
    assert git(folder, "for-each-ref", "refs/remotes")
    assert not git(folder, "for-each-ref", "refs/heads")


@pytest.mark.parametrize(
    ("name", "newer", "noted"),
    [("lib", 0, 0), ("lib", 1, 1), ("lib/deep", 0, 1), ("lib/deep", 1, 0)],
)
def test_a_clone_of_a_submodule_that_was_killed_at_its_end(
    place, origin, nested, name, newer, noted
):
    """Its commits are there, and HEAD stands for none of them: git goes on with none such."""
    lib, deep = nested
    expected = all_files(origin, lib, deep)
    if newer:  # the branch is further than what is named
        (lib if name == "lib" else deep).commit({"lib.py": "2", "deep.py": "2", "more": "2"})
    place.pull()
    cut_clone(place.root / name)
    write(place.root / name, {"mine": "m"})
    if noted:
        at = git_program.Git(str(place.root), git_tree.parse(origin.url))
        git_interrupted.note(at, origin.head)
    assert place.pull(check=True).changed
    assert place.pull().changed
    assert contents(place.root) == {**expected, f"{name}/mine": b"m"}
    assert not place.look().changes


def test_what_else_lies_in_the_repository_of_a_submodule_stays(place, origin, nested):
    place.pull()
    modules = place.root / ".git" / "modules" / "lib"
    mine = {"info/exclude": "mine\n", "lfs/objects/ab/cd": "m", "modules/deep/info/mine": "m"}
    write(modules, mine)
    at = git_program.Git(str(place.root), git_tree.parse(origin.url))
    git_interrupted.note(at, origin.head)
    half = place.root / ".git" / "modules" / "half"
    git(place.root, "init", "-q", "--bare", str(half))
    place.pull()
    assert not half.exists()
    assert {name: (modules / name).read_text() for name in mine} == mine


def test_a_git_that_is_still_at_work(place, origin, monkeypatch):
    place.pull()
    git_interrupted.note(git_program.Git(str(place.root), git_tree.parse(origin.url)), origin.head)
    with subprocess.Popen(
        ["git", "cat-file", "--batch"], cwd=place.root, stdin=subprocess.PIPE
    ) as busy:
        wait = time.monotonic() + 10
        while "git" not in Path(f"/proc/{busy.pid}/comm").read_text():
            assert time.monotonic() < wait
        with pytest.raises(TrainError, match=f"still at work .*process {busy.pid}"):
            place.pull()
        busy.stdin.close()
    assert "interrupted" in place.pull().warnings[0]


# -- what fails, in words ------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts another program in the place of one on the PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def put(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


def test_no_git(place, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainError, match="Git is not installed") as caught:
        place.pull()
    assert caught.value.category == "infra"


def test_no_repository(place, tmp_path):
    with pytest.raises(TrainError, match=r"There is no repository at file://.*/nothing"):
        place.pull(url=f"file://{tmp_path}/nothing")
    assert not place.root.exists() or contents(place.root) == {}


def test_a_damaged_repository(pulled):
    (pulled.root / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(TrainError, match="is damaged") as caught:
        pulled.pull()
    assert caught.value.category == "integrity"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_a_repository_of_another_user(pulled):
    for path in (pulled.root, pulled.root / ".git"):
        os.chown(path, 4321, 4321)
    with pytest.raises(TrainError, match=f"refuses {pulled.root}, because it belongs") as caught:
        pulled.pull()
    assert "safe.directory" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_a_remote_of_another_user(place, origin):
    for path in (origin.folder, origin.folder / ".git"):
        os.chown(path, 4321, 4321)
    with pytest.raises(TrainError, match=f"refuses {origin.folder}.*, because it belongs"):
        place.pull()


def test_no_room(origin):
    origin.commit({"big": os.urandom(3_000_000)})
    with small_disk("size=2m") as disk:
        place = Place(disk, origin)
        with pytest.raises(TrainError, match="no room left") as caught:
            place.pull()
        assert caught.value.category == "infra"
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        place.pull()
        assert contents(place.root) == origin.files()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ssh: Could not resolve hostname h.example: Name or service not known", "can't find h.ex"),
        ("fatal: unable to access 'https://h/': Could not resolve host: h.ex", "can't find h."),
        ("ssh: connect to host h port 22: Connection refused", "doesn't answer"),
        ("fatal: unable to access 'https://h/': Failed to connect to h port 443", "doesn't answer"),
        ("ssh: connect to host h port 22: Connection timed out", "doesn't answer"),
        ("fatal: unable to access 'x': The requested URL returned error: 503", "doesn't answer"),
        ("Host key verification failed.", "doesn't know the key"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "another key"),
        ("git@h: Permission denied (publickey).", "refuses the host's login"),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", "no access"),
        ("fatal: Authentication failed for 'https://u:hunter2@h/x/'", "no access"),
        ("remote: Repository not found.\nfatal: repository 'https://h/x/' not found", "no repos"),
        ("ERROR: Repository not found.\nfatal: Could not read from remote repository.", "no repos"),
        ("fatal: unable to access 'x': SSL certificate problem: expired", "certificate"),
        ("error: cannot run ssh: No such file or directory\nfatal: unable to fork", "needs ssh"),
        ("git: 'remote-https' is not a git command. See 'git --help'.", "can't speak https"),
        ("fatal: early EOF\nfatal: invalid index-pack output", "broke in the middle"),
        ("error: RPC failed; curl 18 transfer closed", "broke in the middle"),
        ("fatal: write error: No space left on device", "no room left"),
        ("fatal: cannot mkdir x: Read-only file system", "can't write"),
        ("error: unable to create file x: Permission denied", "can't write"),
        ("fatal: shallow file has changed since we read it", "only a part of its history"),
        ("git-lfs: 1: git-lfs: not found\nfatal: x: smudge filter lfs failed", "lfs"),
        ("error: unknown option `end-of-options'", "too old"),
        ("error: cannot lock ref 'refs/remotes/o/a/b': 'refs/remotes/o/a' exists", "renew"),
        ("error: object file .git/objects/ab/cd is empty", "damaged"),
        ("fatal: something new at https://u:hunter2@h/x", "could not fetch .*: something new at"),
        ("", "could not fetch main on the host: no word"),
    ],
)  # fmt: skip
def test_each_failure_has_its_sentence(pulled, origin, program, said, words):
    origin.commit({"a": "2"})
    real = shutil.which("git")
    program(
        "git",
        f'case "$*" in *" fetch "*) cat <<\'END\' >&2\n{said}\nEND\nexit 128;; esac\n'
        f'exec {real} "$@"',
    )
    with pytest.raises(TrainError, match=words) as caught:
        pulled.pull()
    assert "hunter2" not in str(caught.value)
    assert caught.value.category in ("infra", "ops", "integrity")


def test_what_hangs_is_ended(pulled, origin, program, monkeypatch, tmp_path):
    origin.commit({"a": "2"})
    real = shutil.which("git")
    program(
        "git",
        f'case "$*" in *" fetch "*) sleep 600 & echo $! > {tmp_path}/pid; wait;; esac\n'
        f'exec {real} "$@"',
    )
    monkeypatch.setattr(git_program, "SILENT", 0.5)
    started = time.monotonic()
    with pytest.raises(TrainError, match=r"showed nothing for 0 s|showed nothing for 1 s"):
        pulled.pull()
    assert time.monotonic() - started < 20
    pid = int((tmp_path / "pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_is_slow_and_says_so_goes_on(pulled, origin, program, monkeypatch):
    origin.commit({"a": "2"})
    real = shutil.which("git")
    slow = "for i in 1 2 3 4 5; do sleep 0.3; echo . >&2; done"
    program("git", f'case "$*" in *" fetch "*) {slow};; esac\nexec {real} "$@"')
    monkeypatch.setattr(git_program, "SILENT", 1.0)
    assert pulled.pull().changed


def test_git_asks_nobody(place, program, tmp_path, monkeypatch):
    """No terminal, no dialogue of git's or ssh's, whatever the environment offers."""
    asked = tmp_path / "asked"
    program("ask", f"touch {asked}; echo secret")
    monkeypatch.setenv("SSH_ASKPASS", "ask")
    monkeypatch.setenv("GIT_ASKPASS", "ask")
    monkeypatch.setenv("DISPLAY", ":0")
    program("ssh", f'printf "%s\\n" "$@" "display=$DISPLAY" > {tmp_path}/words; exit 255')
    with pytest.raises(TrainError):
        place.pull(url="git@git.example.org:tutor.git")
    words = (tmp_path / "words").read_text()
    assert "-oBatchMode=yes" in words
    assert "-oStrictHostKeyChecking=yes" in words
    assert "display=\n" in words
    assert not asked.exists()


# -- git lfs, http, and the rest -----------------------------------------------------------------


def test_a_pointer_of_lfs_is_warned_of(place, origin):
    origin.commit({
        ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "x.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    })  # fmt: skip
    assert "x.bin on the host holds only a pointer" in place.pull().warnings[0]


def test_unprotected_ways_are_warned_of(pulled):
    unprotected = git_tree.parse("http://h/x")
    at = git_program.Git(str(pulled.root), unprotected)
    assert "Nothing protects" in next(iter(git_tree._warnings(at, pulled.look())))
    assert not list(git_tree._warnings(at, pulled.look(pulled.head)))


# -- what makes way --------------------------------------------------------------------------------


def test_nothing_makes_way_through_a_link(place, origin, tmp_path, monkeypatch):
    """A folder on the way became a link: what it leads to isn't what was brought."""
    bring(place.root, tmp_path, {"data/x": b"x"}, git_tree.UNTRACKED)
    place.pull()
    elsewhere = tmp_path / "elsewhere"
    (place.root / "data").rename(elsewhere)
    (place.root / "data").symlink_to(elsewhere)
    origin.commit({"data/x": "newer"})
    check_out = git_tree._check_out
    seen = []

    def looking(*given):
        seen.append((elsewhere / "x").exists())
        check_out(*given)

    monkeypatch.setattr(git_tree, "_check_out", looking)
    with pytest.raises(TrainError, match="in the way"):
        place.pull()
    assert seen == [True]
    assert (elsewhere / "x").read_bytes() == b"x"
    assert (place.root / "data").is_symlink()


def test_what_made_way_comes_back_after_a_kill(place, origin, tmp_path):
    """Killed while files were out of the way; then the remote goes back on what it tracked."""
    files = {"data/x": b"x", "data/deep/y": b"y"}
    bring(place.root, tmp_path, files, git_tree.UNTRACKED)
    place.pull()
    before = origin.head
    origin.commit({"data/x": "newer", "data/deep/y": "newer"})
    ended = f"""
import os
from remote_train import git_tree
git_tree._check_out = lambda *given: os._exit(9)
git_tree.pull({str(place.root)!r}, {origin.url!r}, "main")
"""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE / "plugins" / "module_utils")}
    done = subprocess.run([sys.executable, "-c", ended], env=environment, check=False)
    assert done.returncode == 9
    assert not (place.root / "data/x").exists()
    origin.git("reset", "-q", "--hard", before)
    place.pull()
    assert contents(place.root) == {**origin.files(), **files}


def test_large_files_are_compared_bit_by_bit(place, origin):
    """A file that was cut off at 300 MB takes no 300 MB of memory to be known."""
    place.pull()
    size = 300 * 2**20
    with open(origin.folder / "big", "wb") as stream:
        stream.truncate(size)
    target = origin.commit()
    place.git("fetch", "-q", "origin")
    with open(place.root / "big", "wb") as stream:
        stream.truncate(size - 5)
    looked = f"""
import resource
from remote_train import git_interrupted, git_program, git_url
git = git_program.Git({str(place.root)!r}, git_url.parse({origin.url!r}))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
touched = git_interrupted.take_back(git, {target!r})
print(touched, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    environment = {**os.environ, "PYTHONPATH": str(HOUSE / "plugins" / "module_utils")}
    done = subprocess.run(
        [sys.executable, "-c", looked], env=environment, capture_output=True, text=True, check=True
    )
    touched, _, grown = done.stdout.strip().rpartition(" ")
    assert touched == "['big']"
    assert int(grown) < 30 * 1024  # KiB
    assert not (place.root / "big").exists()


def test_a_fifo_in_the_place_of_a_file_that_was_coming(place, origin):
    place.pull()
    target = origin.commit({"new": "n"})
    place.git("fetch", "-q", "origin")
    os.mkfifo(place.root / "new")
    git_ = git_program.Git(str(place.root), parse(origin.url))
    assert git_interrupted.take_back(git_, target) == []


# -- the module ----------------------------------------------------------------------------------


def test_the_module(place, origin, run_module):
    given = {"root": str(place.root), "url": origin.url, "ref": "main"}
    looked = run_module("pull", check=True, diff=True, **given)
    assert looked["changed"]
    assert looked["files"] is None
    assert not place.root.exists()
    done = run_module("pull", diff=True, **given)
    assert (done["before"], done["after"]) == ("", origin.head)
    assert done["files"] == 2
    assert done["diff"] == {"before": "nothing\n", "after": f"{origin.head}\n+ a\n+ d/b\n"}
    assert done["lines"][0] == (
        f"  git: branch main went from nothing to {origin.head[:12]}, files that differ: 2"
    )
    assert done["last"][0]["subject"] == "a change"
    again = run_module("pull", diff=True, **given)
    assert not again["changed"]
    assert again["lines"][0] == f"  git: branch main is at {origin.head[:12]} already"
    origin.commit({"a": "2"})
    looked = run_module("pull", check=True, diff=True, **given)
    assert looked["diff"]["after"] == f"{origin.head}\n~ a\n"
    assert " would go from " in looked["lines"][0]


def test_the_module_fails_in_words(place, run_module):
    url = "https://someone:hunter2@127.0.0.1:1/x"
    done = run_module("pull", root=str(place.root), url=url)
    assert done["failed"]
    assert done["category"] == "infra"
    assert "doesn't answer" in done["msg"]
    assert "https://127.0.0.1:1/x" in done["msg"]
    assert "hunter2" not in json.dumps(done)
    assert "someone" not in json.dumps(done)


def test_not_under_a_running_training(pulled, run_module):
    folder = pulled.root / "outputs/training_sync/live"
    folder.mkdir()
    given = {"root": str(pulled.root), "url": pulled.origin.url}
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "A training is running" in run_module("pull", **given)["msg"]
        assert not run_module("pull", check=True, **given)["changed"]
    assert not run_module("pull", **given)["changed"]


def test_the_documentation_renders():
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-doc"), "-t", "module", "-j", "pull"],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_LIBRARY": str(HOUSE / "plugins" / "modules")},
        check=True,
    )
    shown = json.loads(done.stdout)["pull"]
    assert shown["doc"]["attributes"]["check_mode"]["support"] == "full"
    assert shown["return"]


def test_modes_of_files(place, origin):
    write(origin.folder, {"run.sh": "#!/bin/sh"})
    (origin.folder / "run.sh").chmod(0o755)
    origin.commit()
    place.pull()
    assert (place.root / "run.sh").stat().st_mode & stat.S_IXUSR
