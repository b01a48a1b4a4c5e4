"""The module rollback, and what plan does with a sync that was interrupted."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remote_train import journal, plan, runs, transaction
from tests.unit.bundle_host import Host, make, no_waiting, snapshot
from tests.unit.stage_host import build

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    no_waiting(monkeypatch)


@pytest.fixture
def host(tmp_path):
    """A host with two versions beside what was there before."""
    made = Host(tmp_path)
    for number in (1, 2):
        files = {"a": b"%d" % number, f"only{number}": b"x"}
        made.apply(make(tmp_path, files, f"n{number}").paths[0])
    return made


@pytest.fixture
def back(host, run_module):
    def run(**options):
        return run_module("rollback", root=str(host.root), state_dir=str(host.state), **options)

    return run


def test_the_list_changes_nothing(host, back):
    before = snapshot(host.folder)
    result = back(version="list")
    assert not result["changed"]
    assert [version["number"] for version in result["versions"]] == [0, 1, 2]
    assert [line.split()[0] for line in result["lines"]] == ["0", "1", "2"]
    assert snapshot(host.folder) == before


def test_going_back_says_what_changed(host, back):
    looked = back(check=True, diff=True)
    assert looked["changed"]
    assert looked["version"] is None
    assert looked["diff"]["before"].splitlines()[1].endswith(" - only2")
    assert looked["diff"]["after"].splitlines()[1].endswith(" - only1")
    assert looked["lines"][0] == (
        "  the files would be as in version 1 again: 1 added, 1 replaced, 1 removed"
    )
    result = back()
    assert host.files() == {"a": b"1", "only1": b"x"}
    assert result["lines"] == [
        "  the files are as in version 1 again: 1 added, 1 replaced, 1 removed",
        "  + only1",
        "  ~ a",
        "  - only2",
        "  this is version 3; -e version=2 goes forth again",
    ]
    assert (result["left"], result["target"], result["version"]) == (2, 1, 3)
    assert [version["current"] for version in result["versions"]] == [False, False, False, True]
    assert "diff" not in result
    assert not back(version="3")["changed"]
    assert host.files() == {"a": b"1", "only1": b"x"}


def test_a_long_list_is_cut(tmp_path, host, back):
    files = {f"f{number}": b"" for number in range(30)}
    host.apply(make(tmp_path, files, "many").paths[0])
    lines = back()["lines"]
    assert len(lines) == 23
    assert lines[21] == "  and 12 more; --diff shows all"


def test_a_kept_file_is_warned_of(host, back):
    (host.root / "only2").write_bytes(b"mine")
    result = back()
    assert result["kept"] == ["only2"]
    assert "only2" in str(result["warnings"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"version": "7"}, "is not kept"),
        ({"version": "the last one"}, "no version's number"),
        ({"version": "-1"}, "no version's number"),
        ({"version": "²"}, "no version's number"),
        ({"keep": -1}, "below 0"),
    ],
)
def test_mistakes_are_one_sentence(host, back, options, words):
    before = snapshot(host.folder)
    result = back(**options)
    assert result["failed"]
    assert words in result["msg"]
    assert result["category"] == "ops"
    assert snapshot(host.folder) == before


def test_a_refusal_lists_its_reasons(host, back):
    (host.root / "a").write_bytes(b"mine")
    result = back()
    assert result["failed"]
    assert [problem["problem"] for problem in result["problems"]] == ["changed-since"]
    assert result["problem_count"] == 1


def test_not_under_a_running_training(host, back):
    folder = host.state / "live"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = back()
        assert result["failed"]
        assert "A training is running" in result["msg"]
        assert not back(version="list")["changed"]
    assert back()["changed"]


def test_versions_of_nothing(tmp_path, run_module):
    result = run_module(
        "rollback", root=str(tmp_path), state_dir=str(tmp_path / "state"), version="list"
    )
    assert result["versions"] == []
    assert os.listdir(tmp_path) == []


def test_the_documentation_renders():
    environment = {**os.environ, "ANSIBLE_LIBRARY": str(HOUSE / "plugins" / "modules")}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-doc"), "-t", "module", "-j", "rollback"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    shown = json.loads(done.stdout)["rollback"]
    assert shown["doc"]["attributes"]["check_mode"]["support"] == "full"
    assert shown["examples"]
    assert "versions" in shown["return"]


# -- the plan ------------------------------------------------------------------------------------


@pytest.fixture
def plan_it(run_module, host):
    def run(**options):
        request = {**build(project_root=str(host.root)), "stages": [], "selected": []}
        return run_module("plan", request=request, code=["a", "b"], python="/none", **options)

    return run


def interrupt(bundle, root, state):
    """Leave an apply in the middle, as a kill would."""

    def stop(*_arguments):
        raise KeyboardInterrupt

    real, transaction._publish = transaction._publish, stop
    try:
        with pytest.raises(KeyboardInterrupt):
            plan.bundle.apply(bundle, str(root), str(state))
    finally:
        transaction._publish = real


def test_the_plan_ends_what_was_interrupted(tmp_path, host, plan_it):
    assert plan_it()["interrupted"] == []
    engine = host.root / plan.ENGINE
    bundle = make(tmp_path, {"a": b"3"}, "three").paths[0]
    interrupt(bundle, host.root, host.root / runs.SYNC)
    interrupt(bundle, engine, engine / ".state")
    before = snapshot(host.folder)
    looked = plan_it(check=True)
    assert not looked["changed"]
    assert len(looked["interrupted"]) == 2
    assert snapshot(host.folder) == before
    made = plan_it()
    assert made["changed"]
    assert [sentence.split(":")[0] for sentence in made["interrupted"]] == [
        "A sync that was interrupted was finished"
    ] * 2
    assert not journal.pending(str(host.state))
    assert not journal.pending(str(engine / ".state"))
    assert not plan_it()["changed"]
