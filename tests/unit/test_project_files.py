"""Which files belong to the project: the whitelist's, else git's."""

import os
import subprocess

import pytest

from remote_train.errors import TrainError
from remote_train.project_files import DEFAULT_WHITELIST, list_files


def git(folder, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    subprocess.run(
        [
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "protocol.file.allow=always",
            "-C",
            folder,
            *arguments,
        ],
        check=True,
        capture_output=True,
        env=environment,
    )


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def names(files):
    return [file.name for file in files]


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    put(root, "a.py", "data/x.jsonl", "data/raw/y", "outputs/adapter", "untracked", ".hidden")
    git(root, "init", "-q")
    git(root, "add", "a.py", "data", "outputs", ".hidden")
    return root


def test_git_tracked_files_sorted_by_bytes(project):
    put(project, "Z", "é", "data-x")
    (project / os.fsdecode(b"\xff")).write_text("latin")
    git(project, "add", "-A")
    (project / "a.py").chmod(0o755)
    files = list_files(str(project))
    assert names(files) == [
        ".hidden",
        "Z",
        "a.py",
        "data-x",
        "data/raw/y",
        "data/x.jsonl",
        "untracked",
        "é",
        "\udcff",
    ]
    assert [file.name for file in files if file.executable] == ["a.py"]
    assert files[2].size == len("a.py")


def test_untracked_files_and_outputs_stay(project):
    assert names(list_files(str(project))) == [".hidden", "a.py", "data/raw/y", "data/x.jsonl"]


def test_a_folder_of_a_larger_repository_is_a_project(project):
    put(project, "examples/tutor/in", "examples/tutor/sub/in2")
    git(project, "add", "examples")
    assert names(list_files(str(project / "examples/tutor"))) == ["in", "sub/in2"]


def test_files_of_submodules_come_along(project, tmp_path):
    put(tmp_path / "other", "inner/file")
    git(tmp_path / "other", "init", "-q")
    git(tmp_path / "other", "add", "-A")
    git(tmp_path / "other", "commit", "-qm", "x")
    git(project, "submodule", "add", "-q", str(tmp_path / "other"), "vendor")
    assert "vendor/inner/file" in names(list_files(str(project)))
    git(project, "submodule", "deinit", "-q", "-f", "vendor")
    with pytest.raises(TrainError, match="vendor is a git submodule"):
        list_files(str(project))
    assert "a.py" in names(list_files(str(project), exclude=["vendor"]))


def test_git_variables_of_a_hook_are_not_believed(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert "a.py" in names(list_files(str(project)))


@pytest.mark.parametrize(
    ("exclude", "gone"),
    [
        (["data"], {"data/x.jsonl", "data/raw/y"}),
        (["data/raw/"], {"data/raw/y"}),
        (["*.jsonl"], {"data/x.jsonl"}),
        (["*/raw"], {"data/raw/y"}),
        (["dat"], set()),
        (["DATA"], set()),
        (["a.py", "data/?.jsonl"], {"a.py", "data/x.jsonl"}),
    ],
)
def test_exclude_takes_away(project, exclude, gone):
    everything = {".hidden", "a.py", "data/raw/y", "data/x.jsonl"}
    assert set(names(list_files(str(project), exclude=exclude))) == everything - gone


def test_a_whitelist_counts_before_git(project):
    put(project, "data/.git/config", "data/__pycache__/x.pyc", "data/._x", "data/new")
    put(project, DEFAULT_WHITELIST)
    (project / DEFAULT_WHITELIST).write_text("# ours\n\n  data/ \nuntracked\r\n./a.py\n")
    expected = ["a.py", "data/new", "data/raw/y", "data/x.jsonl", "untracked"]
    assert names(list_files(str(project))) == expected
    (project / "other.txt").write_text("a.py\na.py\n")
    assert names(list_files(str(project), "other.txt")) == ["a.py"]
    assert names(list_files(str(project), str(project / "other.txt"))) == ["a.py"]


def test_a_whitelist_may_name_everything(tmp_path):
    put(tmp_path, "a", "sub/b", "outputs/c", "SYNC_MANIFEST.sha256")
    (tmp_path / "list").write_text(".\n")
    assert names(list_files(str(tmp_path), "list")) == ["a", "list", "sub/b"]


BAD_LINES = {
    "missing": ("a.py\nno/such\n", "line 2: there is no no/such"),
    "absolute": ("/etc\n", "line 1: /etc is an absolute path"),
    "upwards": ("\n../x\n", r"line 2: ../x leads out"),
    "outputs": ("outputs/adapter\n", "line 1: outputs/adapter is never synced"),
    "git": (".git\n", "line 1: .git is never synced"),
    "nothing": ("# only this\n", "names nothing"),
    "link in a folder": ("data\n", "data/folder in the training project is a symlink"),
    "link itself": ("data/link\n", "data/link in the training project is a symlink"),
    "through a link": ("data/folder/x\n", "data/folder in the training project is a symlink"),
    "folder through a link": ("data/folder/raw\n", "data/folder on the way .* is a symlink"),
    "fifo": ("special\n", "special/fifo in the training project is not a regular file"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_whitelist_is_one_sentence(project, case):
    content, words = BAD_LINES[case]
    (project / "list").write_text(content)
    put(project, "elsewhere/x", "elsewhere/raw/y")
    (project / "special").mkdir()
    os.mkfifo(project / "special" / "fifo")
    (project / "data" / "link").symlink_to("x.jsonl")
    (project / "data" / "folder").symlink_to("../elsewhere")
    with pytest.raises(TrainError, match=words) as error:
        list_files(str(project), "list")
    assert error.value.category == "data"


def test_an_excluded_link_is_no_error(project):
    (project / "link").symlink_to("a.py")
    git(project, "add", "link")
    with pytest.raises(TrainError, match="link in the training project is a symlink") as error:
        list_files(str(project))
    assert "sync_exclude" in error.value.hint
    assert "a.py" in names(list_files(str(project), exclude=["link"]))
    (project / "list").write_text("a.py\nlink\n")
    assert names(list_files(str(project), "list", exclude=["link"])) == ["a.py"]


def test_a_tracked_folder_that_became_a_link_is_an_error(project):
    (project / "data").rename(project.parent / "moved")
    (project / "data").symlink_to(project.parent / "moved")
    with pytest.raises(TrainError, match="data in the training project is a symlink"):
        list_files(str(project))


def test_neither_git_nor_whitelist_says_so(tmp_path, monkeypatch):
    put(tmp_path, "a")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(TrainError, match=r"Nothing says which files.*not a git repository"):
        list_files(str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainError, match=r"git is not installed"):
        list_files(str(tmp_path))


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: (root / "a.py").unlink(), "a.py belongs to the training project and can't"),
        (lambda root: git(root, "rm", "-rq", "--cached", "."), "git tracks no file"),
    ],
)
def test_what_git_lists_must_be_there(project, prepare, words):
    prepare(project)
    with pytest.raises(TrainError, match=words):
        list_files(str(project))


def test_missing_project_and_missing_whitelist(project):
    with pytest.raises(TrainError, match=r"no training project in .*nowhere"):
        list_files(str(project / "nowhere"))
    with pytest.raises(TrainError, match=r"whitelist .*none.txt can't be read"):
        list_files(str(project), "none.txt")
