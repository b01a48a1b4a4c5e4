"""Git repositories to pull from, made with the real git, and a place on a host to pull into."""

import os
import subprocess
from pathlib import Path

from remote_train import git_look, git_tree
from remote_train.git_program import Git
from remote_train.git_ref import parse_ref
from remote_train.git_url import parse

IDENTITY = (
    *("-c", "user.name=t"),
    *("-c", "user.email=t@example.org"),
    *("-c", "protocol.file.allow=always"),
    *("-c", "init.defaultBranch=main"),
    *("-c", "commit.gpgSign=false"),
)


def git(folder, *words, check=True):
    """What git prints, run as a person would."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", *IDENTITY, "-C", folder, *words],
        check=check,
        capture_output=True,
        env=environment,
    )
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def write(folder, files):
    for name, content in files.items():
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Origin:
    """A repository that others pull from; it has a working tree, to commit in."""

    def __init__(self, folder, files=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        git(self.folder, "init", "-q")
        # A server gives away commits that no branch holds: most do.
        git(self.folder, "config", "uploadpack.allowAnySHA1InWant", "true")
        self.commit(files or {"a": "one", "d/b": "two"})

    @property
    def url(self):
        return f"file://{self.folder}"

    @property
    def head(self):
        return git(self.folder, "rev-parse", "HEAD")

    def commit(self, files=None, remove=(), message="a change"):
        write(self.folder, files or {})
        for name in remove:
            (self.folder / name).unlink()
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-q", "--allow-empty", "-m", message)
        return self.head

    def submodule(self, url, name="lib"):
        git(self.folder, "submodule", "-q", "add", url, name)
        return self.commit()

    def git(self, *words):
        return git(self.folder, *words)

    def files(self):
        """The files of the commit, with their contents; submodules aside."""
        names = [name for name in self.git("ls-files", "-z").split("\0") if name]
        return {
            name: (self.folder / name).read_bytes()
            for name in names
            if not (self.folder / name).is_dir()
        }


def contents(root):
    """Every file below ``root`` with its bytes, but for git's own and this project's own."""
    found = {}
    for where, folders, files in os.walk(root):
        folders[:] = [f for f in folders if f != ".git"]
        for file in files:
            path = Path(where) / file
            name = str(path.relative_to(root))
            if file != ".git" and not name.startswith("outputs/training_sync"):
                found[name] = path.read_bytes()
    return found


def everything(folder):
    """Every file, folder and link below ``folder`` with mode, bytes and time, git's own too."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where) / name
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
            found[str(path)] = (status.st_mode, content, status.st_mtime_ns if content else 0)
    return found


class Place:
    """The project's root on a host."""

    def __init__(self, folder, origin):
        self.root = Path(folder) / "tutor"
        self.origin = origin

    def pull(self, ref="main", **options):
        return git_tree.pull(str(self.root), options.pop("url", self.origin.url), ref, **options)

    def look(self, ref="main"):
        return git_look.look(Git(str(self.root), parse(self.origin.url)), parse_ref(ref))

    def git(self, *words):
        return git(self.root, *words)

    @property
    def head(self):
        return self.git("rev-parse", "HEAD")
