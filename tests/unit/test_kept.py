"""What runs keep of adapters and markers, and which runs go: on the host and at home alike."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller import link, signing
from remote_train import gather, kept, markers, retention, runs
from remote_train.errors import TrainError
from remote_train.hashing import file_digest
from tests.unit.collect_host import ADAPTER, CollectHost
from tests.unit.small_disk import small_disk
from tests.unit.stage_host import HOUSE, build

SAMPLE = "outputs/adapter/adapter_sample/adapter_model.safetensors"


def run_name(number: int) -> str:
    return f"run_20260301T{number:06}Z"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link.time, "sleep", lambda _seconds: None)


def both(host: CollectHost) -> list[Path]:
    """The folder of the runs, on the host and at home."""
    return [host.root / runs.SYNC, host.home / "training_sync"]


def check_kept(sync: Path, run: str) -> None:
    """A run keeps all that its list names, byte for byte, by a program of coreutils' own."""
    folder = sync / run / kept.FOLDER
    listing = sync / run / "outputs.sha256"
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", str(listing)], cwd=folder, check=True
    )
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert found == set(runs.listed(str(listing)) or {})


def check_markers(sync: Path) -> None:
    """No marker anywhere names a run that is gone, or a file that its own place lacks."""
    places = [(sync / "stages", None)]
    places += [(path / kept.FOLDER / markers.STAGES, path) for path in sync.glob("run_*")]
    for folder, run in places:
        for path in folder.glob("*.json"):
            marker = json.loads(path.read_text())
            assert (sync / marker["run"]).is_dir(), (path, marker["run"])
            if run:
                for name in marker["outputs"]:
                    digest = file_digest(str(run / kept.FOLDER / name), "sha256")
                    assert digest == marker["outputs"][name]["sha256"]


def test_a_run_keeps_what_it_lists_and_no_byte_is_copied(tmp_path):
    host = CollectHost(tmp_path)
    host.collect()
    for sync, top in zip(both(host), (host.root, host.home), strict=True):
        check_kept(sync, host.run)
        for name in (ADAPTER, SAMPLE):
            lies = top / (name if top == host.root else name.removeprefix("outputs/"))
            assert (sync / host.run / kept.FOLDER / name).samefile(lies)
    listed = runs.listed(str(both(host)[0] / host.run / "SHA256SUMS"))
    assert listed
    assert not [name for name in listed if name.startswith(kept.FOLDER)]


def test_gathered_and_brought_again_nothing_of_it_changes(tmp_path):
    host = CollectHost(tmp_path)
    host.collect()
    before = [sorted((p, p.stat().st_ino) for p in s.rglob("kept/**/*")) for s in both(host)]
    host.collect()
    host.collect(again=True)
    after = [sorted((p, p.stat().st_ino) for p in s.rglob("kept/**/*")) for s in both(host)]
    assert before == after
    assert before[0]


def test_the_next_training_leaves_what_the_run_before_it_kept(tmp_path):
    host = CollectHost(tmp_path)
    host.collect()
    old = (host.root / ADAPTER).read_bytes()
    first = host.run
    host.train(run_name(1), b"new")
    host.collect()
    for sync in both(host):
        assert (sync / first / kept.FOLDER / ADAPTER).read_bytes() == old
        assert (sync / run_name(1) / kept.FOLDER / ADAPTER).read_bytes() == b"newstyle"
        check_kept(sync, first)
        check_kept(sync, run_name(1))
        check_markers(sync)
    # What has not changed is there once.
    assert (host.root / SAMPLE).stat().st_nlink == 3


def test_what_a_users_own_command_may_write_over_is_copied_once(tmp_path):
    """Such a command writes into the file as it lies, and a link would change with it."""
    host = CollectHost(tmp_path, stage_command=["sh", "-c", "true"], stage_code=["a"])
    host.collect()
    sync, first = host.root / runs.SYNC, host.run
    held = sync / first / kept.FOLDER
    assert not (held / ADAPTER).samefile(host.root / ADAPTER)
    host.record(run_name(1))
    host.collect()
    # It has not changed: the copy is there once.
    assert (sync / run_name(1) / kept.FOLDER / ADAPTER).samefile(held / ADAPTER)
    with (host.root / ADAPTER).open("r+b") as stream:
        stream.write(b"W")
    check_kept(sync, first)
    host.record(run_name(2))
    gather.markers.write(
        str(host.root),
        "style",
        {
            **json.loads((sync / "stages/style.json").read_text()),
            "outputs": markers.outputs_of(str(host.root), [ADAPTER]),
        },
    )
    host.collect()
    for sync in both(host):
        for run in (first, run_name(1), run_name(2)):
            check_kept(sync, run)
    assert (held / ADAPTER).read_bytes() == b"weights"


def test_where_no_link_can_be_made_it_is_copied(tmp_path):
    """As where outputs/adapter is a link to a bigger disk."""
    with small_disk("size=8m") as disk:
        host = CollectHost(tmp_path)
        subprocess.run(
            ["mv", str(host.root / "outputs/adapter"), str(disk / "adapter")], check=True
        )
        (host.root / "outputs/adapter").symlink_to(disk / "adapter")
        host.collect()
        check_kept(host.root / runs.SYNC, host.run)
        assert (host.root / runs.SYNC / host.run / kept.FOLDER / ADAPTER).stat().st_nlink == 1


def test_what_can_not_be_kept_is_an_issue_and_no_failure(tmp_path):
    host = CollectHost(tmp_path)
    with small_disk("size=8m") as disk:
        folder = host.root / runs.SYNC
        subprocess.run(["cp", "-a", f"{folder}/.", str(disk)], check=True)
        subprocess.run(["rm", "-r", str(folder)], check=True)
        folder.symlink_to(disk)
        host.large(1024 * 1024)
        answer = host.collect()
        assert answer["changed"]
        issues = (disk / host.run / "issues.jsonl").read_text()
        assert f"{ADAPTER} is not kept with {host.run}: No space left on device." in issues
        assert not list(disk.rglob("*.tmp"))
    assert (host.home / ADAPTER.removeprefix("outputs/")).stat().st_size == 1024 * 1024


# Signatures


def test_adapters_are_signed_beside_their_folders_and_again_when_they_change(tmp_path):
    """Where model-signing is installed; it is no part of this project's environment."""
    program = signing._program()
    if program is None:
        pytest.skip("model_signing is not installed")
    for words in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"],
        ["ec", "-in", "key.pem", "-pubout", "-out", "public.pem"],
    ):
        subprocess.run(["openssl", *words], cwd=tmp_path, check=True, capture_output=True)
    host = CollectHost(tmp_path, sign_adapters_key=str(tmp_path / "key.pem"))

    def verified(folder: Path) -> bool:
        signature = host.home / "adapter/adapter_style.sig"
        public = str(tmp_path / "public.pem")
        words = ["verify", "key", "--public_key", public, "--signature", str(signature)]
        return subprocess.run([program, *words, str(folder)], check=False).returncode == 0

    host.collect()
    assert host.warned == []
    folder = host.home / "adapter/adapter_style"
    assert verified(folder)
    assert verified(
        host.home / "training_sync" / host.run / kept.FOLDER / "outputs" / "adapter/adapter_style"
    )
    before = (host.home / "adapter/adapter_style.sig").read_bytes()
    host.collect(again=True)
    assert (host.home / "adapter/adapter_style.sig").read_bytes() == before
    host.train(run_name(1), b"new")
    host.collect()
    assert verified(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"another")
    assert not verified(folder)


def test_a_key_without_the_program_or_a_key_that_is_none_is_a_warning(tmp_path, monkeypatch):
    host = CollectHost(tmp_path, sign_adapters_key=str(tmp_path / "none.pem"))
    monkeypatch.setattr(signing, "_program", lambda: None)
    host.collect()
    assert len(host.warned) == 2
    assert "adapter_sample is not signed: there is no model_signing here" in host.warned[0]
    monkeypatch.setattr(signing, "_program", lambda: "/nowhere/model_signing")
    assert "adapter_style is not signed: " in signing.sign(
        str(host.home / "adapter/adapter_style"), "k"
    )
    assert not list(host.home.rglob("*.sig*"))


# Which runs go


@pytest.mark.parametrize("keep", [1, 2, 3, 0])
def test_so_many_runs_are_kept_on_the_host_and_at_home(tmp_path, keep):
    host = CollectHost(tmp_path, keep_runs=keep)
    names = [run_name(number) for number in range(4)]
    for number, run in enumerate(names):
        host.train(run, b"%d" % number, ("sample", "style"))
        host.collect()
    for sync in both(host):
        found = [path.name for path in sync.glob("run_*")]
        # The run that the host began with was never collected.
        assert sorted(set(found) - ({host.began} if keep == 0 else set())) == names[-keep:]
        for run in names[-keep:]:
            check_kept(sync, run)
        check_markers(sync)
        assert not list(sync.glob(".removed*"))


def test_a_pinned_run_stays_and_is_whole(tmp_path):
    host = CollectHost(tmp_path, keep_runs=1, pinned_runs=[run_name(1)])
    for number in range(4):
        host.train(run_name(number), b"%d" % number, ("sample", "style"))
        host.collect()
    for sync in both(host):
        assert sorted(path.name for path in sync.glob("run_*")) == [run_name(1), run_name(3)]
        check_kept(sync, run_name(1))


@pytest.mark.parametrize("name", ["", "run_1", "../run_20260301T000000Z"])
def test_a_pinned_run_that_has_no_runs_name_is_refused(name):
    with pytest.raises(TrainError, match="which is not the name of a run"):
        build(pinned_runs=[name])


def test_a_negative_number_of_runs_is_refused():
    with pytest.raises(TrainError, match="keep_runs is -1"):
        build(keep_runs=-1)


@given(
    trained=st.lists(
        st.sets(st.sampled_from(["sample", "style", "writing"]), min_size=1), min_size=1, max_size=9
    ),
    keep=st.integers(1, 4),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_marker_names_what_is_gone_whatever_was_trained(tmp_path_factory, trained, keep):
    host = CollectHost(tmp_path_factory.mktemp("host"), keep_runs=keep)
    for number, stages in enumerate(trained):
        host.train(run_name(number), b"%d" % number, tuple(sorted(stages)))
        gather.gather(host.request, host.run, host.action()._task.args["controller"])
        sync = host.root / runs.SYNC
        check_markers(sync)
        newest = runs.found(str(sync))[:keep]
        for run in newest:
            if (sync / run / "SHA256SUMS").exists():
                check_kept(sync, run)
        # Beside them, no more than one run for each stage and each of them is there.
        assert len(runs.found(str(sync))) <= keep + 3 * (keep + 1)


def test_what_is_no_run_stays(tmp_path):
    host = CollectHost(tmp_path, keep_runs=1)
    sync = host.root / runs.SYNC
    host.collect()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "run.json").write_text("{}")
    (sync / run_name(0)).mkdir()  # has the name alone
    (sync / run_name(0) / "mine.txt").write_text("mine")
    (sync / "run_20260101T000000Z").symlink_to(outside)
    (sync / "run_20260102T000000Z").write_text("a file")
    (sync / "run_mine").mkdir()
    (sync / f"{retention._REMOVED}mine").mkdir()
    (sync / f"{retention._REMOVED}{run_name(7)}").symlink_to(outside)
    for number in (10, 11):
        host.train(run_name(number), b"%d" % number, ("sample", "style"))
        host.collect()
    assert (outside / "run.json").exists()
    assert sorted(
        path.name for path in sync.iterdir() if "run_" in path.name or "mine" in path.name
    ) == [
        f"{retention._REMOVED}mine",
        f"{retention._REMOVED}{run_name(7)}",
        "run_20260101T000000Z",
        "run_20260102T000000Z",
        run_name(0),
        run_name(11),
        "run_mine",
    ]


def test_a_link_in_an_old_run_goes_and_what_it_leads_to_stays(tmp_path):
    host = CollectHost(tmp_path, keep_runs=1)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    host.train(run_name(0), b"0", ("sample", "style"))
    host.collect()
    (host.root / runs.SYNC / run_name(0) / "link").symlink_to(precious)
    (host.root / runs.SYNC / run_name(0) / kept.FOLDER / "link").symlink_to(precious)
    host.train(run_name(1), b"1", ("sample", "style"))
    host.collect()
    assert not (host.root / runs.SYNC / run_name(0)).exists()
    assert (precious / "file").read_text() == "mine"


def test_the_run_that_is_collected_or_trained_stays_whatever_its_age(tmp_path):
    host = CollectHost(tmp_path)
    sync = host.root / runs.SYNC
    for number in range(3):
        host.train(run_name(number), b"%d" % number, ("sample", "style"))
        host.collect()
    pruned = retention.prune(str(sync), 1, busy={run_name(0)})
    assert run_name(0) not in pruned.removed
    assert run_name(1) in pruned.removed
    check_kept(sync, run_name(0))


KILLED = """
import os, signal, sys
sys.path.insert(0, {utils!r})
from remote_train import retention
left = int(sys.argv[2])
def counting(real):
    def call(*args, **options):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **options)
    return call
for name in ("rename", "unlink", "rmdir"):
    setattr(os, name, counting(getattr(os, name)))
retention.prune(sys.argv[1], 1)
print("ended")
"""


def test_a_removal_that_is_killed_at_any_step_leaves_whole_runs_or_none(tmp_path):
    """After each kill the next collect brings it to its end."""
    script = KILLED.format(utils=str(HOUSE / "plugins/module_utils"))
    for steps in itertools.count():
        host = CollectHost(tmp_path / str(steps), keep_runs=0)
        sync = host.root / runs.SYNC
        for number, stages in enumerate((("sample", "style"), ("sample",), ("style",), ("style",))):
            host.train(run_name(number), b"%d" % number, stages)
            gather.gather(host.request, host.run, host.action()._task.args["controller"])
        done = subprocess.run(
            [sys.executable, "-c", script, str(sync), str(steps)],
            capture_output=True,
            text=True,
            check=False,
        )
        check_markers(sync)
        for path in sync.glob("run_*"):
            assert (path / "SHA256SUMS").exists() or path.name == host.began
        again = retention.prune(str(sync), 1)
        assert again.problems == []
        assert not list(sync.glob(f"{retention._REMOVED}*"))
        check_markers(sync)
        left = sorted(path.name for path in sync.glob("run_*"))
        assert left == [run_name(1), run_name(3)]  # where sample was trained, and the newest
        if done.returncode == 0:
            assert done.stdout == "ended\n"
            break
        assert done.returncode == -signal.SIGKILL
    assert steps > 10
