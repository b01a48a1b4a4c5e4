"""Applying while somebody else does, or changes the target, or left a journal of no sense."""

import contextlib
import os
import signal
import time

import pytest

from remote_train import apply_lock, commit, journal, transaction, versions
from remote_train.errors import TrainError
from remote_train.problems import RefusedError
from remote_train.recovery import recover
from tests.unit.bundle_host import Host, make, no_waiting, put, snapshot

OLD = {"a": b"1", "d/b": b"1", "gone/c": b"1", "z": b"1"}
NEW = {"a": b"2", "d/b": b"2", "new/d": b"2", "z": b"2"}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


@pytest.fixture
def pair(tmp_path):
    return [make(tmp_path, files, f"n{n}").paths[0] for n, files in enumerate((OLD, NEW))]


# -- two at once ---------------------------------------------------------------------------------


@pytest.mark.parametrize("second", ["apply", "rollback", "recover"])
def test_two_at_once(host, pair, second):
    """While one is between two steps, another one is refused, and both can be had in a row."""
    host.apply(pair[0])
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        real = os.unlink

        def wait(*arguments, **options):
            if "dir_fd" in options:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
            real(*arguments, **options)

        os.unlink = wait
        with contextlib.suppress(BaseException):
            host.apply(pair[1])
            os._exit(0)
        os._exit(1)
    try:
        assert os.read(ready[0], 1) == b"x"
        assert journal.pending(str(host.state))
        half = snapshot(host.folder)
        work = {
            "apply": lambda: host.apply(pair[1]),
            "rollback": host.rollback,
            "recover": lambda: recover(str(host.root), str(host.state)),
        }[second]
        with pytest.raises(TrainError, match=r"Another sync is at work on this host .*apply\.lock"):
            work()
        assert snapshot(host.folder) == half
        with pytest.raises(TrainError, match="was interrupted"):
            host.rollback(check=True)
        looked = host.apply(pair[1], check=True)
        assert any("was interrupted" in warning for warning in looked.warnings)
        os.write(go[1], b"x" * 8)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitpid(child, 0)[1]
    assert status == 0
    assert host.files() == NEW
    assert not host.apply(pair[1]).changed


def test_a_killed_one_holds_no_lock(host, pair):
    host.apply(pair[0])
    child = os.fork()
    if child == 0:
        with apply_lock.held(str(host.state)):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert host.apply(pair[1]).changed


def test_an_apply_says_what_became_of_the_one_before(host, pair, monkeypatch):
    host.apply(pair[0])

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transaction, "_publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            host.apply(pair[1])
    done = host.apply(pair[1])
    assert not done.changed
    assert f"A sync that was interrupted was finished: {host.root} is version 2." in done.warnings


# -- between check and use -----------------------------------------------------------------------


def rewrite(host):
    (host.root / "z").write_bytes(b"mine")


def rewrite_keeping_size_and_time(host):
    status = (host.root / "z").stat()
    (host.root / "other").write_bytes(b"m")
    os.utime(host.root / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (host.root / "other").replace(host.root / "z")


def rewrite_what_goes(host):
    (host.root / "gone" / "c").write_bytes(b"mine")


def remove(host):
    (host.root / "z").unlink()


def become_link(host):
    (host.root / "z").unlink()
    (host.root / "z").symlink_to(host.folder / "neighbour" / "file")


def become_folder(host):
    (host.root / "z").unlink()
    (host.root / "z").mkdir()


def become_fifo(host):
    (host.root / "z").unlink()
    os.mkfifo(host.root / "z")


def folder_becomes_link(host):
    (host.root / "d").rename(host.root / "elsewhere")
    (host.root / "d").symlink_to(host.folder / "neighbour")


def appear(host):
    put(host.root, {"new/d": b"mine"})


def link_in_new_folders_place(host):
    (host.root / "new").symlink_to(host.folder / "neighbour")


CHANGES = [
    rewrite,
    rewrite_keeping_size_and_time,
    rewrite_what_goes,
    remove,
    become_link,
    become_folder,
    become_fifo,
    folder_becomes_link,
    appear,
    link_in_new_folders_place,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("moment", ["before it is kept", "after it is kept"])
def test_what_changes_between_check_and_use(host, pair, monkeypatch, change, moment):
    """Somebody is faster: all is undone, and what they made is as they made it."""
    host.apply(pair[0])
    seen = []
    module, name = (commit, "_entries") if moment.startswith("before") else (journal, "write")
    real = getattr(module, name)

    def first(*arguments):
        if not seen:
            change(host)
            seen.append(snapshot(host.folder))
        return real(*arguments)

    monkeypatch.setattr(module, name, first)
    with pytest.raises(RefusedError, match="changed on the host while") as error:
        host.apply(pair[1])
    assert [p.problem for p in error.value.problems.items] == ["changed-on-target"]
    assert "Nothing was changed" in error.value.hint

    def but_for_the_state(found):
        state = os.fsencode(host.state)
        return {path: value for path, value in found.items() if not path.startswith(state)}

    assert but_for_the_state(snapshot(host.folder)) == but_for_the_state(seen[0])
    assert sorted(os.listdir(host.state)) == ["SYNC_MANIFEST.sha256", "apply.lock", "versions"]


def test_a_file_that_is_exchanged_while_it_is_kept(host, pair, monkeypatch):
    """Its old bytes have their second link, and then another file takes its name."""
    host.apply(pair[0])
    real = os.link

    def exchange(source, target, **options):
        real(source, target, **options)
        if source == b"z":
            (host.root / "other").write_bytes(b"mine")
            (host.root / "other").replace(host.root / "z")

    monkeypatch.setattr(os, "link", exchange)
    with pytest.raises(RefusedError, match="z changed on the host while"):
        host.apply(pair[1])
    assert host.files() == {**OLD, "z": b"mine"}


def test_what_is_removed_by_another_meanwhile_is_removed(host, pair, monkeypatch):
    host.apply(pair[0])
    real = journal.write
    monkeypatch.setattr(
        journal, "write", lambda *given: ((host.root / "gone" / "c").unlink(), real(*given))
    )
    host.apply(pair[1])
    assert host.files() == NEW


# -- a journal that makes no sense ---------------------------------------------------------------


def journal_of(host, **changes):
    made = journal.Journal("staging-x", 1, 2, 5, **changes)
    (host.state / made.staging).mkdir()
    journal.write(str(host.state), made)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema":2}',
        b"\xff",
        b"[" * 100_000,
        b'{"schema":1,"staging":"../x","before":1,"version":2,"keep":5,"entries":[],"make":[],'
        b'"empty":[],"direction":"forward"}',
        b'{"schema":1,"staging":"staging-x","before":1,"version":2,"keep":5,"entries":[],'
        b'"make":[["../x",-1]],"empty":[],"direction":"forward"}',
        b'{"schema":1,"staging":"staging-x","before":1,"version":2,"keep":5,"make":[],"empty":[],'
        b'"entries":[["/etc/x","remove","","",[1,2,3],[1,2,3],[1,2,3],0,0,""]],'
        b'"direction":"forward"}',
        b'{"schema":1,"staging":"staging-x","before":1,"version":2,"keep":5,"entries":[],"make":[],'
        b'"empty":[],"direction":"sideways"}',
    ],
)
def test_a_journal_that_makes_no_sense_is_not_followed(host, pair, content):
    host.apply(pair[0])
    (host.state / journal.NAME).write_bytes(content)
    before = host.snapshot()
    for work in (lambda: host.apply(pair[1]), lambda: recover(str(host.root), str(host.state))):
        with pytest.raises(TrainError, match=r"journal .* can't be read") as error:
            work()
        assert "remove the journal" in error.value.hint
        assert host.snapshot() == before


def test_a_staging_folder_that_is_gone_is_said(host, pair):
    host.apply(pair[0])
    journal_of(host)
    (host.state / "staging-x" / "journal.json").unlink(missing_ok=True)
    (host.state / "staging-x").rmdir()
    with pytest.raises(TrainError, match="of a sync that was interrupted is gone"):
        host.apply(pair[1])


def test_recovering_takes_no_time_where_there_is_nothing(host, pair):
    host.apply(pair[0])
    began = time.perf_counter()
    for _turn in range(100):
        assert recover(str(host.root), str(host.state)) is None
    assert time.perf_counter() - began < 0.1
    assert versions.current(str(host.state)).number == 1


def test_what_lay_there_before_the_first_sync_is_told_of(host, tmp_path):
    put(host.root, {"mine": b"m", "same": b"s"})
    path = make(tmp_path, {"mine": b"theirs", "same": b"s"}).paths[0]
    first = host.apply(path)
    assert any("no sync had put it there: mine." in text for text in first.warnings)
    assert not host.apply(make(tmp_path, {"mine": b"new"}, "two").paths[0]).warnings
