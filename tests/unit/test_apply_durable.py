"""What outlasts a power cut: the order in which an apply brings things to the disk."""

import ctypes
import os

import pytest

from remote_train import durable, journal
from remote_train.errors import TrainError
from tests.unit.bundle_host import Host, make

OLD = {"a": b"1", "d/b": b"1", "gone/c": b"1", "z": b"1"}
NEW = {"a": b"2", "d/b": b"2", "new/d": b"2", "z": b"2"}


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def pair(tmp_path):
    return [make(tmp_path, files, f"n{n}").paths[0] for n, files in enumerate((OLD, NEW))]


class Log:
    """What was brought to the disk, and the renames, in their order."""

    def __init__(self, monkeypatch):
        self.events = []
        fsync, replace, unlink = os.fsync, os.replace, os.unlink

        def note(kind, *what):
            self.events.append((kind, *(os.fsdecode(one) for one in what)))

        monkeypatch.setattr(
            os,
            "fsync",
            lambda fd: (note("sync", os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))[1],
        )
        monkeypatch.setattr(
            os, "replace", lambda a, b, **o: (note("rename", a, b), replace(a, b, **o))[1]
        )
        monkeypatch.setattr(os, "unlink", lambda a, **o: (note("unlink", a), unlink(a, **o))[1])

    def place(self, kind, end):
        found = [
            n for n, event in enumerate(self.events) if event[0] == kind and event[-1].endswith(end)
        ]
        assert found, f"no {kind} of {end} in {self.events}"
        return found[-1]


def test_the_order_that_outlasts_a_power_cut(host, pair, monkeypatch):
    """Bytes first, then the journal, then the names, then its end: each on the disk by then."""
    host.apply(pair[0])
    log = Log(monkeypatch)
    host.apply(pair[1])
    began = log.place("rename", journal.NAME)
    staged = [event[1] for event in log.events[:began] if event[0] == "sync"]
    for end in ("/new/0", "/new/3", "/new", "/kept", "/kept/files", "/kept/before.json", "/next"):
        assert any(path.endswith(end) for path in staged), end
    assert log.events[began - 1][0] == "sync"
    assert log.events[began - 1][1].endswith(journal.NAME)
    assert log.events[began + 1] == ("sync", str(host.state))
    ended = log.place("unlink", journal.NAME)
    swapped = [n for n, event in enumerate(log.events[:ended]) if event[-1] in {"a", "b", "d", "z"}]
    assert len(swapped) == 4
    for folder in ("project", "project/d", "project/new", "versions", "versions/1", "versions/2"):
        assert max(swapped) < log.place("sync", folder) < ended
    assert log.place("sync", "training_sync") == ended + 1


def test_many_files_are_brought_to_the_disk_at_once(tmp_path, host, monkeypatch):
    calls = []
    whole = durable._whole
    monkeypatch.setattr(durable, "_whole", lambda folder: (calls.append(folder), whole(folder))[1])
    made = make(tmp_path, {f"d{n}/{n}": b"" for n in range(100)})
    log = Log(monkeypatch)
    host.apply(made.paths[0])
    assert len(calls) == 2  # before the journal, and before its end
    assert len([event for event in log.events if event[0] == "sync"]) < 20


@pytest.mark.parametrize("here", ["no ctypes function", "not in this kernel"])
def test_where_that_cannot_be_asked_each_file_is(tmp_path, host, monkeypatch, here):
    class Library:
        """A C library of another system, or on another kernel."""

        def __init__(self, *_arguments, **_options):
            if here != "no ctypes function":
                self.syncfs = lambda _descriptor: -1

    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.setattr(ctypes, "get_errno", lambda: 38)
    log = Log(monkeypatch)
    host.apply(make(tmp_path, {f"d{n}/{n}": b"" for n in range(50)}).paths[0])
    assert len([event for event in log.events if event[0] == "sync" and "/new/" in event[1]]) == 50


def test_a_disk_that_fails_says_so(tmp_path, host, pair, monkeypatch):
    host.apply(pair[0])
    before = host.snapshot()

    def fail(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrainError, match=r"can't be prepared .*Input/output error"):
        host.apply(pair[1])
    assert host.snapshot() == before
