"""Work in forked processes: the same results as without, whatever becomes of the processes."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from remote_train import forked, hashing, tree
from tests.unit.stage_host import HOUSE

BLOCKS = list(range(23))


def square(block):
    return [block, block * block, b"\0" * 1000, "caf\udce9"]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_results_come_in_order(count):
    assert list(forked.each(square, BLOCKS, count)) == [square(block) for block in BLOCKS]


def test_the_work_is_done_elsewhere():
    assert os.getpid() not in set(forked.each(lambda _block: os.getpid(), BLOCKS, 2))


def test_results_larger_than_a_pipe_pass():
    results = list(forked.each(lambda block: [block] * 300_000, BLOCKS[:4], 2))
    assert [result[0] for result in results] == BLOCKS[:4]


def killed(_place):
    os.kill(os.getpid(), signal.SIGKILL)


def ended(_place):
    os._exit(0)


@pytest.mark.parametrize("end", [killed, ended])
def test_the_part_of_a_process_that_is_gone_is_done_here(end):
    here = os.getpid()

    def work(block):
        if os.getpid() != here and block >= 5:
            end(block)
        return block

    assert list(forked.each(work, BLOCKS, 3)) == BLOCKS


def test_a_process_that_is_killed_amid_a_result_is_no_loss():
    others = set(children())
    results = forked.each(lambda block: [block] * 300_000, BLOCKS, 2)
    first = next(results)
    time.sleep(0.1)  # both wait now for somebody to read what doesn't fit into a pipe
    for child in set(children()) - others:
        os.kill(int(child), signal.SIGKILL)
    assert [first[0], *(result[0] for result in results)] == BLOCKS


def test_an_error_is_raised_here():
    def work(block):
        if block == 3:
            raise FileNotFoundError("three")
        return block

    results = forked.each(work, BLOCKS, 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(FileNotFoundError, match="three"):
        next(results)


def test_without_processes_it_is_done_here(monkeypatch):
    def fork():
        raise BlockingIOError

    monkeypatch.setattr(os, "fork", fork)
    assert list(forked.each(square, BLOCKS, 2)) == [square(block) for block in BLOCKS]


def children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as stream:
        return stream.read().split()


def test_nobody_is_left_when_the_caller_stops_early():
    before, others = len(os.listdir("/proc/self/fd")), set(children())
    results = forked.each(lambda block: [block] * 300_000, BLOCKS, 3)
    next(results)
    assert len(set(children()) - others) == 3
    results.close()
    assert set(children()) <= others
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_with_threads_is_not_forked():
    """In a process of its own: libraries that other tests load leave threads in this one."""
    code = """
import threading
from remote_train import forked
assert forked.possible()
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
assert not forked.possible()
stop.set()
thread.join()
assert forked.possible()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(HOUSE / "plugins" / "module_utils")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def many(tmp_path):
    """More files than one process takes, of all kinds, in folders of which one is a link."""
    root = tmp_path / "root"
    names = [f"{number % 7}/{number % 3}/file{number}" for number in range(tree.MANY + 50)]
    for place, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * (place % 5))
    (root / "large").write_bytes(b"x" * (tree.LARGE + 1))
    (root / "1/link").symlink_to("1/file1")
    (root / "linked").symlink_to("2")
    os.mkfifo(root / "3/fifo")
    return root, [*names, "large", "1/link", "linked/0/file0", "3/fifo", "none", "5/none/x", "4"]


def test_findings_are_the_same_in_one_process_in_threads_and_in_many(many, monkeypatch):
    root, names = many
    wanted = {name: hashing.file_digest(str(root / name)) for name in names[:30]}

    def findings(workers):
        found = tree.examine(
            os.fsencode(root), names, lambda name: wanted.get(name, ""), workers=workers
        )
        return list(found)

    alone = findings(1)
    assert {found.kind for found in alone} == {
        *("same", "different", "symlink", "special", "missing", "folder"),
    }
    forks = []
    real = os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or real())
    monkeypatch.setattr(forked, "possible", lambda: True)  # whatever other tests left here
    assert findings(3) == alone
    assert len(forks) == 3
    monkeypatch.setattr(forked, "possible", lambda: False)
    assert findings(3) == alone
    assert len(forks) == 3


def test_a_process_that_waits_for_its_reader_ends_with_it():
    """Killed at once, the one that asked leaves nobody behind."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(reading)
        results = forked.each(lambda block: [block] * 300_000, BLOCKS, 2)
        next(results)
        os.write(writing, b"x")
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(reading, 1) == b""  # the last who held the other end is gone
    os.close(reading)
