"""Bringing a run home over a link, a disk and a host that do what they like."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import download, link
from controller.action import GaveUpError
from remote_train import bundle_apply
from remote_train.errors import TrainError
from tests.unit.collect_host import ADAPTER, CollectHost
from tests.unit.small_disk import small_disk

MIB = 1024 * 1024
AT_HOME = ADAPTER.removeprefix("outputs/")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link.time, "sleep", lambda _seconds: None)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.html"
    }


def check_home(host: CollectHost) -> None:
    """All that the host has listed is at home, byte for byte, and nothing waits there."""
    for name, content in files(host.root / "outputs/adapter").items():
        assert (host.home / "adapter" / name).read_bytes() == content, name
    run = host.root / "outputs/training_sync" / host.run
    for name in (run / "SHA256SUMS").read_text().splitlines():
        path = name.split("  ", 1)[1]
        assert (host.home / "training_sync" / host.run / path).read_bytes() == (
            run / path
        ).read_bytes()
    assert not (host.home / download.FOLDER).exists()


def test_a_large_file_comes_in_ranges_and_the_others_in_a_bundle(tmp_path):
    host = CollectHost(tmp_path)
    content = host.large(5 * MIB)
    answer = host.collect()
    assert answer["changed"]
    assert (host.home / AT_HOME).read_bytes() == content
    check_home(host)
    assert host.moved < 5 * MIB + 64 * 1024


def test_only_what_changed_crosses_the_wire(tmp_path):
    host = CollectHost(tmp_path)
    host.large(5 * MIB)
    host.collect()
    host.moved = 0
    (host.root / "outputs/logs/second.log").write_bytes(b"new\n")
    host.collect()
    check_home(host)
    assert host.moved < 64 * 1024
    assert (host.home / "logs/second.log").read_bytes() == b"new\n"


@pytest.mark.parametrize("seed", range(8))
def test_a_download_that_is_cut_at_random_points_goes_on_where_it_stopped(
    tmp_path, seed, monkeypatch
):
    """Each command is cut once, and ends; what came before is not fetched a second time."""
    drawn = random.Random(seed)  # noqa: S311
    monkeypatch.setattr(download, "LARGEST", MIB)  # as where the link is slow
    monkeypatch.setattr(link.Link, "__call__", lambda _self, attempt: given_up(attempt))
    host = CollectHost(tmp_path)
    content = host.large(6 * MIB + drawn.randrange(MIB), seed)
    cuts = 0
    while True:
        host.cuts = [None] * drawn.randrange(1, 4) + [drawn.randrange(MIB)]
        answer = host.collect()
        if not answer.get("failed"):
            break
        cuts += 1
        assert answer["unreachable_host"]
        assert not (host.home / AT_HOME).exists()
    assert cuts > 1
    assert (host.home / AT_HOME).read_bytes() == content
    check_home(host)
    # Each cut costs the range that it hit, and the reports, whose record grows with each.
    assert host.moved < len(content) + cuts * (MIB + 64 * 1024)


def given_up(attempt: Callable[[], Any]) -> Any:
    """A link that has no patience: the host stays away."""
    try:
        return attempt()
    except AnsibleConnectionFailure as error:
        raise GaveUpError("The host could not be reached again.", "", "infra") from error


def test_at_four_fifths_of_an_adapter_the_next_command_fetches_the_rest_alone(tmp_path):
    host = CollectHost(tmp_path)
    content = host.large(10 * MIB)
    made = host.action()
    good = made._connection.exec_command

    def breaks(*args: Any, **options: Any) -> Any:
        if host.moved > 7 * MIB:
            host.cuts = [100]
        return good(*args, **options)

    made._connection.exec_command = breaks
    assert made.act({})["unreachable_host"]
    assert not (host.home / AT_HOME).exists()
    before = max(path.stat().st_size for path in (host.home / download.FOLDER).iterdir())
    assert before >= 7 * MIB
    host.moved = 0
    host.collect()
    assert (host.home / AT_HOME).read_bytes() == content
    assert host.moved < 10 * MIB - before + 64 * 1024
    check_home(host)


def test_a_link_that_comes_back_in_time_ends_nothing(tmp_path):
    host = CollectHost(tmp_path, reconnect_timeout=60)
    content = host.large(5 * MIB)
    host.cuts = [10, 0, 300]
    assert host.collect()["changed"]
    assert host.resets == 3
    assert (host.home / AT_HOME).read_bytes() == content
    check_home(host)


@pytest.mark.parametrize("where", [100, 5000, MIB])
def test_a_byte_that_flips_on_the_way_is_seen_and_fetched_again(tmp_path, where):
    host = CollectHost(tmp_path)
    content = host.large(5 * MIB)
    made = host.action()
    good, calls = made._connection.exec_command, []

    def flips(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:  # the first range of the large file
            host.flip = where
        return good(*args, **options)

    made._connection.exec_command = flips
    made.act({})
    assert (host.home / AT_HOME).read_bytes() == content
    check_home(host)


def test_a_file_that_changes_on_the_host_after_it_was_listed_replaces_nothing(tmp_path):
    host = CollectHost(tmp_path)
    old = host.large(5 * MIB)
    host.collect()
    new = host.large(5 * MIB, seed=2)
    made = host.action()
    good = made._connection.exec_command
    seen: list[bytes] = []

    def flips(*args: Any, **options: Any) -> Any:
        seen.append((host.home / AT_HOME).read_bytes())
        path = host.root / ADAPTER
        damaged = bytearray(path.read_bytes())
        damaged[len(seen) % 100] ^= 1
        path.write_bytes(damaged)  # with each range another byte
        return good(*args, **options)

    made._connection.exec_command = flips
    with pytest.raises(TrainError) as caught:
        made.act({})
    assert caught.value.category == "integrity"
    assert set(seen) == {old}
    assert (host.home / AT_HOME).read_bytes() == old
    (host.root / ADAPTER).write_bytes(new)
    host.collect()
    check_home(host)


def test_a_file_that_became_shorter_on_the_host_is_named(tmp_path):
    host = CollectHost(tmp_path)
    host.large(5 * MIB)
    made = host.action()
    good = made._connection.exec_command

    def shortens(*args: Any, **options: Any) -> Any:
        (host.root / ADAPTER).write_bytes(b"short")
        return good(*args, **options)

    made._connection.exec_command = shortens
    # What is gathered again is what there is by now.
    made.act({})
    assert (host.home / AT_HOME).read_bytes() == b"short"
    check_home(host)


# Home


@pytest.mark.parametrize("mib", [1, 4])
def test_a_full_disk_at_home_leaves_what_is_there_and_goes_on_when_there_is_room(
    tmp_path, mib, monkeypatch
):
    monkeypatch.setattr(download, "RESERVE", 0)
    host = CollectHost(tmp_path)
    content = host.large(5 * MIB)
    with small_disk("size=300m") as disk:
        host.home = disk / "home"
        host.collect()
        old = (host.home / AT_HOME).read_bytes()
        assert old == content
        new = host.large(6 * MIB, seed=3)
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        filler.write_bytes(b"\0" * (free - mib * MIB))
        with pytest.raises(TrainError) as caught:
            host.collect()
        assert caught.value.category == "infra"
        assert str(host.home) in caught.value.message + caught.value.hint
        assert (host.home / AT_HOME).read_bytes() == old
        filler.unlink()
        host.collect()
        assert (host.home / AT_HOME).read_bytes() == new
        check_home(host)


def test_a_disk_that_fills_up_in_the_middle_keeps_what_came(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "require_room", lambda *_: None)
    monkeypatch.setattr(bundle_apply, "RESERVE", 0)
    host = CollectHost(tmp_path)
    content = host.large(6 * MIB)
    with small_disk("size=4m") as disk:
        host.home = disk / "home"
        with pytest.raises(TrainError, match=r"Results can't be written to .*: No space left"):
            host.collect()
        assert not (host.home / AT_HOME).exists()
        left = {path.name: path.stat().st_size for path in (host.home / download.FOLDER).iterdir()}
        assert max(left.values()) > MIB
        shutil.copytree(host.home, tmp_path / "larger")
    host.home = tmp_path / "larger"
    host.moved = 0
    host.collect()
    assert (host.home / AT_HOME).read_bytes() == content
    assert host.moved < 6 * MIB - max(left.values()) + 256 * 1024


def test_a_disk_at_home_that_is_read_only_is_named(tmp_path):
    host = CollectHost(tmp_path)
    with small_disk("ro") as disk:
        host.home = disk / "home"
        with pytest.raises(TrainError, match=r"can't be written to .*Read-only") as caught:
            host.collect()
    assert "collect_dest" in caught.value.hint


def test_a_file_in_the_place_of_a_folder_is_named_and_kept(tmp_path):
    host = CollectHost(tmp_path)
    host.home.mkdir()
    (host.home / "adapter").write_text("mine")
    with pytest.raises(TrainError) as caught:
        host.collect()
    assert "adapter" in caught.value.message
    assert (host.home / "adapter").read_text() == "mine"


@pytest.mark.parametrize("link_at", ["adapter", AT_HOME, download.FOLDER])
def test_a_link_at_home_is_not_followed(tmp_path, link_at):
    host = CollectHost(tmp_path)
    host.large(5 * MIB)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("mine")
    target = elsewhere / "precious" if link_at == AT_HOME else elsewhere
    path = host.home / link_at
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    with pytest.raises(TrainError) as caught:
        host.collect()
    assert caught.value.hint
    assert [(p.name, p.read_text()) for p in elsewhere.iterdir()] == [("precious", "mine")]
    path.unlink()
    host.collect()
    check_home(host)


def test_what_is_at_home_already_is_verified_again_and_put_right(tmp_path):
    host = CollectHost(tmp_path)
    content = host.large(5 * MIB)
    host.collect()
    damaged = bytearray(content)
    damaged[4 * MIB] ^= 1
    (host.home / AT_HOME).write_bytes(damaged)
    answer = host.collect(again=True)
    assert answer["fetched"] == [AT_HOME]
    assert (host.home / AT_HOME).read_bytes() == content


def test_a_host_that_names_a_path_as_a_digest_is_not_believed(tmp_path):
    fetcher = download.Download(lambda _: b"", None, str(tmp_path))
    with pytest.raises(TrainError, match="which is none"):
        fetcher.left(1, "../../etc/passwd")


def test_one_command_at_a_time_brings_results_home(tmp_path):
    said: list[str] = []
    with download.incoming(str(tmp_path), said.append):
        pid = os.fork()
        if pid == 0:  # waits until the one above lets go
            with download.incoming(str(tmp_path), lambda _text: (tmp_path / "told").touch()):
                released = (tmp_path / "released").exists()
            os._exit(0 if released else 3)
        while not (tmp_path / "told").exists():
            os.sched_yield()
        (tmp_path / "released").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert said == []
    assert not (tmp_path / download.FOLDER).exists()
