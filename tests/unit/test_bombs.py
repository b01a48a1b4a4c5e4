"""Archives that would fill memory, disk or time: refused with little of each."""

import gzip
import os
import resource
import tarfile
import time
from pathlib import Path

import pytest

from remote_train import bundle_apply
from remote_train.manifest import MODERN
from remote_train.problems import RefusedError
from tests.unit.bundle_host import Host
from tests.unit.hostile_bundles import LINE, LISTING, OK, bomb, header, special, tar_bytes
from tests.unit.small_disk import small_disk
from tests.unit.spent import peak

MEGABYTE = 1024 * 1024
GIGABYTE = 1024 * MEGABYTE
ROOM = 8 * MEGABYTE
MEMORY = 64 * MEGABYTE  # that an apply may take beside what the interpreter has


def start(listing=LISTING, name=MODERN):
    """A sound archive as far as before its end."""
    data = tar_bytes([OK], name, listing)
    return data[: data.index(b"fine") + tarfile.BLOCKSIZE]


def member(name, size):
    return header(name, size) + bytes(-(-size // 512) * 512)


BOMBS = {
    "one file of 64 GiB": (
        lambda: bomb(
            start(LISTING + LINE + b"b\n") + header("b", 64 * GIGABYTE), bytes(16 * MEGABYTE), 64
        ),
        "too-large",
    ),
    "many files of 1 MiB": (
        lambda: bomb(
            start(LISTING + b"".join(LINE + b"b%d\n" % number for number in range(40)))
            + b"".join(member(f"b{number}", MEGABYTE) for number in range(40)),
            bytes(512),
            1,
        ),
        "too-large",
    ),
    "a file that says 2**62 bytes": (
        lambda: bomb(start(LISTING + LINE + b"b\n") + header("b", 2**62), bytes(MEGABYTE), 2),
        "too-large",
    ),
    "64 GiB behind the end": (
        lambda: bomb(start() + bytes(1024), bytes(16 * MEGABYTE), 4096),
        "too-large",
    ),
    "a manifest of 64 GiB": (
        lambda: bomb(header(MODERN, 64 * GIGABYTE), bytes(16 * MEGABYTE), 64),
        "too-large",
    ),
    "a long name of 64 GiB": (
        lambda: bomb(
            start() + header("././@LongLink", 64 * GIGABYTE, tarfile.GNUTYPE_LONGNAME),
            bytes(MEGABYTE),
            64,
        ),
        "header-too-large",
    ),
    "a million folders": (
        lambda: bomb(start(), special("d", tarfile.DIRTYPE).tobuf() * 1000, 1000),
        "too-many-members",
    ),
    "many files that are left out": (
        lambda: bomb(
            start(),
            b"".join(header(f"._{number:0>90}", 0) for number in range(12_000)),
            1,
        ),
        "too-many-members",
    ),
}


def measured(work):
    """Do ``work()`` in another process with little memory: its problems, and the peak in bytes."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            before = peak()
            here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            most = here + MEMORY + 512 * MEGABYTE  # threads reserve much that they never use
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            try:
                work()
                said = ["applied"]
            except RefusedError as error:
                said = sorted({problem.problem for problem in error.problems.items})
            os.write(writing, " ".join([str(peak() - before), *said]).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        used, *said = stream.read().split() or ["0", "nothing"]
    assert os.waitpid(child, 0)[1] == 0
    return said, int(used)


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_neither_memory_nor_disk_nor_time(tmp_path, monkeypatch, name):
    made, problem = BOMBS[name]
    path = tmp_path / "x.tar.gz"
    path.write_bytes(made())
    # Were more written than there is room for, this disk would be full, and that another error.
    with small_disk(f"size={ROOM + 4 * MEGABYTE}") as disk:
        monkeypatch.setattr(bundle_apply, "RESERVE", 2 * MEGABYTE)
        host = Host(disk)
        before = host.snapshot()
        began = time.monotonic()
        said, used = measured(lambda: host.apply(path))
        assert problem in said
        assert time.monotonic() - began < 20
        assert used < MEMORY
        assert host.snapshot() == before
        assert os.listdir(host.state) == ["apply.lock"]


def test_a_line_more_than_a_million(tmp_path):
    """Manifest and names are in memory as a whole: what a million of them take is the bound."""
    path = tmp_path / "x.tar.gz"
    lines = b"".join(LINE + b"%d\n" % number for number in range(1_000_001))
    path.write_bytes(gzip.compress(tar_bytes([], MODERN, lines), 1))
    host = Host(tmp_path)
    before = host.snapshot()
    said, used = measured(lambda: host.apply(path))
    assert said == ["too-many-lines"]
    assert used < 500 * MEGABYTE
    assert host.snapshot() == before


def test_where_there_is_no_room_the_disk_is_to_blame(tmp_path, monkeypatch):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(start() + member("ok", 5) + bytes(1024)))
    monkeypatch.setattr(bundle_apply, "RESERVE", 1 << 60)
    with pytest.raises(RefusedError, match="more than the 0 bytes there is room for") as refusal:
        Host(tmp_path / "host").apply(path)
    assert refusal.value.category == "infra"
    assert "Make room" in refusal.value.hint
