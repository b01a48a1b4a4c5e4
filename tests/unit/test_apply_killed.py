"""Killed at any instant, an apply, a rollback or their recovery leaves the tree old or new."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from remote_train import journal, versions
from remote_train.errors import TrainError
from remote_train.recovery import recover
from remote_train.rollback import rollback
from tests.unit.bundle_host import Host, make, no_waiting, put, snapshot
from tests.unit.killing import killed_at, steps

MEMORY = "/dev/shm"  # noqa: S108  # a folder of the tests' own is made in it
LATIN = os.fsdecode(b"latin\xe9")

OLD = {
    "same": b"same",
    "replaced": b"old",
    "run.sh": b"#!/bin/sh\n",
    "also run.sh": b"#!/bin/sh\n",
    "removed/deep/gone": b"g",
    "file becomes folder": b"f",
    "folder becomes file/inner/x": b"x",
    "folder becomes file/y": b"y",
    "edited by the user": b"e",
    "d/with\nnewline": b"n",
}
NEW = {
    "same": b"same",
    "replaced": b"new",
    "run.sh": b"#!/bin/sh\n",
    "also run.sh": b"#!/bin/sh\n",
    "file becomes folder/inner/z": b"z",
    "folder becomes file": b"f",
    "d/with\nnewline": b"changed",
    "d/" + LATIN: b"",
    "added/deep/here": b"h",
}
USERS = {
    "users own": b"u",
    "removed/users own": b"u",
    "outputs/adapter/x": b"o",
    "edited by the user": b"mine now",
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


class Stage:
    """A host with OLD applied and the user's own files, of which copies are made to be killed."""

    def __init__(self, folder):
        self.folder = folder
        self.template = Host(folder / "template")
        self.old = make(folder, OLD, "old")
        self.new = make(folder, NEW, "new", executable=["run.sh", "also run.sh", "added/deep/here"])
        self.template.apply(self.old.paths[0])
        put(self.template.root, USERS)
        (self.template.root / "users own").chmod(0o600)
        (self.template.root / "replaced").chmod(0o640)
        (self.template.root / "removed" / "deep").chmod(0o711)
        self._count = 0

    def host(self, applied=False):
        """A new copy of the host, with NEW applied or not."""
        self._count += 1
        shutil.rmtree(self.folder / f"copy-{self._count - 4}", ignore_errors=True)
        copy = self.folder / f"copy-{self._count}"
        shutil.copytree(self.template.folder, copy / "host", symlinks=True)
        host = Host.__new__(Host)
        host.place(copy / "host")
        if applied:
            host.apply(self.new.paths[0])
        return host

    def apply(self, host):
        return host.apply(self.new.paths[0])

    def applying(self, host):
        """The same for another process."""
        return "apply", self.new.paths[0], host.root, host.state


@pytest.fixture
def stage(tmp_path):
    with contextlib.ExitStack() as stack:
        if os.access(MEMORY, os.W_OK):  # a disk takes three times as long
            memory = tempfile.TemporaryDirectory(dir=MEMORY, prefix="remote-train-")
            tmp_path = Path(stack.enter_context(memory))
        yield Stage(tmp_path)


def back(host):
    return rollback(str(host.root), str(host.state))


def tree(host):
    """Everything on the host but the state: kind, mode and bytes; of user's files the time too."""
    state = os.fsencode(host.state)
    users = {os.fsencode(host.root / name) for name in USERS}
    return {
        os.path.relpath(path, os.fsencode(host.folder)): value if path in users else value[:2]
        for path, value in snapshot(host.folder).items()
        if path != state and not path.startswith(state + b"/")
    }


def clean(host):
    """Nothing lies about in the state folder."""
    return set(os.listdir(host.state)) <= {"apply.lock", "versions", "SYNC_MANIFEST.sha256"}


def test_apply_killed_at_every_step(stage):
    old = tree(stage.host())
    unkilled = stage.host()
    stage.apply(unkilled)
    new = tree(unkilled)
    assert old != new
    ends = {"old": 0, "new": 0}
    for step in steps():
        host = stage.host()
        if not killed_at(step, *stage.applying(host)):
            break
        begun = journal.pending(str(host.state))
        if not begun:
            assert tree(host) in (old, new)
        recovered = recover(str(host.root), str(host.state))
        assert bool(recovered) == begun
        ends["new" if tree(host) == new else "old"] += 1
        assert tree(host) in (old, new)
        if begun:
            assert recovered.finished
            assert tree(host) == new
            assert clean(host)
        # The next apply finds its way from there, and so does going back.
        stage.apply(host)
        assert tree(host) == new
        assert clean(host)
        assert [version.number for version in versions.versions(str(host.state))] == [0, 1, 2]
        if step % 4 == 0:
            back(host)
            assert tree(host) == old
    assert tree(host) == new
    assert ends["old"] > 20
    assert ends["new"] > 20


def test_rollback_killed_at_every_step(stage):
    old, new = tree(stage.host()), tree(stage.host(applied=True))
    for step in steps():
        host = stage.host(applied=True)
        if not killed_at(step, "rollback", host.root, host.state):
            break
        recovered = recover(str(host.root), str(host.state))
        found = tree(host)
        assert found in (old, new)
        assert not recovered or (found == old and clean(host))
        if found == old:
            assert len(versions.versions(str(host.state))) == 4
            assert rollback(str(host.root), str(host.state), 2).version == 4  # and forth again
            assert tree(host) == new
        else:
            back(host)
            assert tree(host) == old
            assert clean(host)
    assert tree(host) == old
    assert step > 40


def journaled_steps(stage):
    """The steps at which a killed apply leaves its journal: the first, and how many there are."""
    found = []
    for step in steps():
        host = stage.host()
        if not killed_at(step, *stage.applying(host)):
            return found
        if journal.pending(str(host.state)):
            found.append(step)
    return found


def test_recovery_killed_at_every_step(stage):
    new = tree(stage.host(applied=True))
    found = journaled_steps(stage)
    for at in found[:: max(1, len(found) // 3)]:
        for step in steps():
            host = stage.host()
            assert killed_at(at, *stage.applying(host))
            if not killed_at(step, "recover", host.root, host.state):
                break
            recover(str(host.root), str(host.state))
            assert tree(host) == new
            assert clean(host) or not journal.pending(str(host.state))
        assert tree(host) == new


def test_undoing_killed_at_every_step(stage):
    """Somebody changes a file while the apply is dead: then it is undone, in the same safe way."""
    found = journaled_steps(stage)
    for at in found[2 :: max(1, len(found) // 3)]:
        for step in steps():
            host = stage.host()
            assert killed_at(at, *stage.applying(host))
            change = change_what_is_left(host)
            if change is None:
                break  # nothing is left to do that could be hindered by it
            if not killed_at(step, "recover", host.root, host.state):
                break
            recover(str(host.root), str(host.state))
            assert tree(host) == change(tree(stage.host()))
            assert not journal.pending(str(host.state))
        if change:
            assert tree(host) == change(tree(stage.host()))
            assert versions.versions(str(host.state))[-1].number == 1
            # Its sentence says so, and the next apply takes the user's file for what it is.
            stage.apply(host)
            assert host.files()["replaced"] == b"new"


def test_what_is_changed_while_an_apply_is_dead_is_left_as_it_is(stage):
    """Undone is only what is known: not a file that was new already, and then was edited."""
    at = step_when(stage, lambda host: host.files()["d/with\nnewline"] == b"changed")
    host = stage.host()
    assert killed_at(at, *stage.applying(host))
    (host.root / "d" / LATIN).write_bytes(b"edited when it was new already")
    (host.root / "d" / "with\nnewline").unlink()  # was new already; its old bytes come back
    change_what_is_left(host)
    recovered = recover(str(host.root), str(host.state))
    assert not recovered.finished
    assert "problem: replaced changed on the host while" in recovered.sentence
    assert "since it was changed meanwhile: d/latin\\xe9." in recovered.sentence
    assert host.files() == {
        **OLD,
        **USERS,
        "d/" + LATIN: b"edited when it was new already",
        "replaced": b"changed while it was dead",
    }
    assert clean(host)


def test_what_was_put_back_and_taken_away_again_holds_nothing_up(stage):
    """Undoing is killed, somebody removes a file that was old again already, and it goes on."""
    name = "d/with\nnewline"
    at = step_when(stage, lambda host: host.files()[name] == b"changed")
    for step in steps():
        host = stage.host()
        assert killed_at(at, *stage.applying(host))
        change_what_is_left(host)
        assert killed_at(step, "recover", host.root, host.state)
        if host.files()[name] == b"n":
            break
    assert journal.pending(str(host.state))
    (host.root / name).unlink()
    assert not recover(str(host.root), str(host.state)).finished
    expected = {**OLD, **USERS, "replaced": b"changed while it was dead"}
    del expected[name]
    assert host.files() == expected


def step_when(stage, reached):
    """The first step at which a killed apply leaves something that can be seen on the host."""
    for step in steps():
        host = stage.host()
        assert killed_at(step, *stage.applying(host))
        if reached(host):
            return step
    return None


def change_what_is_left(host):
    """Change a file that is still to be replaced; what that makes of a tree, or None."""
    path = host.root / "replaced"
    if path.read_bytes() != b"old":
        return None
    path.write_bytes(b"changed while it was dead")
    key = os.fsencode(os.path.relpath(path, host.folder))

    def change(found):
        found[key] = (found[key][0], b"changed while it was dead")
        return found

    return change


@pytest.mark.parametrize("call", ["unlink", "rmdir", "mkdir", "replace", "fchmod"])
def test_a_step_that_the_system_refuses_is_undone_with_all_before_it(stage, monkeypatch, call):
    """Each call after the journal fails in its turn, and the tree is as it was each time."""
    old = tree(stage.host())
    messages = []
    for turn in steps():
        host = stage.host()
        real = getattr(os, call)
        seen = []

        def refuse(*arguments, real=real, host=host, seen=seen, turn=turn, **options):
            doing = "dst_dir_fd" in options or "dir_fd" in options or call == "fchmod"
            if doing and journal.pending(str(host.state)):
                seen.append(arguments)
                if len(seen) == turn:
                    raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            try:
                stage.apply(host)
            except TrainError as error:
                messages.append(error.message)
            else:
                break
        assert tree(host) == old
        assert clean(host)
    assert messages
    assert all("no room on the target's disk" in message for message in messages)


def test_nothing_to_recover_is_one_look(stage, monkeypatch):
    host = stage.host()
    looks = []
    real = os.lstat
    monkeypatch.setattr(os, "lstat", lambda path, **o: (looks.append(path), real(path, **o))[1])
    assert recover(str(host.root), str(host.state)) is None
    assert looks == [str(host.state / journal.NAME)]
