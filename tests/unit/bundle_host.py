"""What the tests of bundles share: projects to pack, and a host whose every byte is watched."""

import os
import stat

from remote_train import durable
from remote_train.bundle import apply, build
from remote_train.file_names import to_bytes, to_name
from remote_train.project_files import ProjectFile
from remote_train.rollback import rollback

FILES = {
    "a.py": b"print()\n",
    "data/train.jsonl": b"{}\n" * 1000,
    "data/结论.md": b"x",
    "run.sh": b"#!/bin/sh\n",
    "with blank\nand newline\\": b"odd",
    to_name(b"latin\xe9"): b"",
    "deep/" * 60 + "long name" * 12: b"deep",
}


def no_waiting(monkeypatch):
    """Leave out what only a power cut would show, since it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr(durable, "_whole", lambda _folder: True)


def put(root, files):
    for name, content in files.items():
        path = os.path.join(os.fsencode(root), to_bytes(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(content)


def read(root):
    """Every file below: its bytes, and whether it may be run."""
    found = {}
    for at, _folders, files in os.walk(os.fsencode(root)):
        for name in files:
            path = os.path.join(at, name)
            with open(path, "rb") as stream:
                content = stream.read()
            found[to_name(os.path.relpath(path, os.fsencode(root)))] = content
    return found


def snapshot(folder):
    """Every name below with kind, mode, time and bytes."""
    seen = {}
    for at, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(at, name)
            status = os.lstat(path)
            content = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as stream:
                    content = stream.read()
            seen[path] = (status.st_mode, content, status.st_mtime_ns if content else 0)
    return seen


def listed(files, executable=()):
    return [ProjectFile(name, len(content), name in executable) for name, content in files.items()]


def make(folder, files, name="project", executable=()):
    """Write ``files`` as a project and build its bundle."""
    source = folder / f"source-{name}"
    put(source, files)
    return build(str(source), listed(files, executable), str(folder / "bundles"), name)


class Host:
    """A place to apply to: the project, its state, and a neighbour that nobody may touch."""

    def __init__(self, folder):
        self.place(folder / "host")
        (self.folder / "neighbour").mkdir(parents=True)
        (self.folder / "neighbour" / "file").write_text("mine")
        self.root.mkdir()

    def place(self, folder):
        """Say where it is, without making anything."""
        self.folder = folder
        self.root = folder / "project"
        self.state = self.root / "outputs" / "training_sync"

    def apply(self, path, sha256=None, **options):
        return apply(str(path), str(self.root), str(self.state), sha256, **options)

    def rollback(self, version=None, **options):
        return rollback(str(self.root), str(self.state), version, **options)

    def files(self):
        """What the project holds, but for the state."""
        return {
            name: content
            for name, content in read(self.root).items()
            if not name.startswith("outputs/training_sync/")
        }

    def snapshot(self):
        seen = snapshot(self.folder)
        lock = os.fsencode(self.state / "apply.lock")
        return {
            path: value
            for path, value in seen.items()
            if path != lock and not lock.startswith(path + b"/")
        }
