"""The plan: what would run and why, and nothing changed to find out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remote_train import fingerprint, live, markers, plan, provision, runs
from remote_train.errors import TrainError
from remote_train.manifest import write_manifest
from remote_train.offer import Offer
from tests.unit.hanging import hanging_below
from tests.unit.stage_host import (
    CODE,
    PACKAGES,
    RUN,
    TRAIN,
    build,
    done_marker,
    project,
    put,
)


@pytest.fixture
def root(tmp_path):
    return project(tmp_path / "root")


def planned(root: Path, packages: Any = PACKAGES, coming: Any = None, **changes: Any) -> Any:
    wanted = build(project_root=str(root), **changes)
    return {s["name"]: s for s in plan.plan_stages(wanted, CODE, packages, coming)}


def actions(root: Path, **changes: Any) -> dict[str, str]:
    return {name: stage["action"] for name, stage in planned(root, **changes).items()}


def contents(root: Path) -> dict[str, Any]:
    return {
        str(path): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in root.rglob("*")
    }


# Stages


def test_on_a_new_host_all_stages_train(root):
    assert set(actions(root).values()) == {"train"}
    assert planned(root)["style"]["reasons"] == ["it has not been trained yet"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tags": ["style"]}, {"style": "train"}),
        ({"tags": ["collect"]}, {}),
        ({"skip_sample": True}, {"style": "train", "writing": "train", "all": "train"}),
        ({"skip": ["multitask"]}, {"sample": "train", "style": "train", "writing": "train"}),
    ],
    ids=str,
)
def test_what_is_not_chosen_is_left_out_with_its_reason(root, changes, expected):
    left = dict.fromkeys(["sample", "style", "writing", "all"], "leave") | expected
    assert actions(root, **changes) == left
    for stage in planned(root, **changes).values():
        if stage["action"] == "leave":
            why = "skip_sample is set" if "skip_sample" in changes else "not among the tags"
            assert stage["reasons"] == [why]


def test_a_stage_that_is_done_skips_and_its_followers_do_not_mind_another_one(root):
    for name in ("sample", "style", "writing", "all"):
        done_marker(root, build(project_root=str(root)), name)
    assert set(actions(root).values()) == {"skip"}
    # Retraining the sample retrains nothing else: needs are an order, not an input.
    put(root, {"data/training/processed/style_sft_sample.jsonl": b"changed\n"})
    expected = {"sample": "train", "style": "skip", "writing": "skip", "all": "skip"}
    assert actions(root) == expected


def test_force_trains_what_is_chosen_and_nothing_else(root):
    for name in ("style", "writing"):
        done_marker(root, build(project_root=str(root)), name)
    assert actions(root, force=True, tags=["style"])["style"] == "train"
    assert actions(root, force=True, tags=["style"])["writing"] == "leave"


def test_data_that_sync_would_bring_counts(root):
    marker = done_marker(root, build(project_root=str(root)))
    now = hashlib.sha256((root / TRAIN).read_bytes()).hexdigest()
    assert planned(root, coming={TRAIN: now})["style"]["action"] == "skip"
    stage = planned(root, coming={TRAIN: "0" * 64})["style"]
    assert stage["action"] == "train"
    old = marker["inputs"]["data"][TRAIN][:15]
    assert stage["reasons"] == [f"data.{TRAIN} {old} -> sha256:00000000"]


def test_packages_that_are_not_known_yet_count_as_runs(root):
    done_marker(root, build(project_root=str(root)))
    assert planned(root, packages=None)["style"]["action"] == "train"


def test_a_damaged_marker_is_a_warning_of_its_stage(root):
    done_marker(root, build(project_root=str(root)))
    Path(markers.marker_path(str(root), "style")).write_text("{")
    made = planned(root)
    assert made["style"]["action"] == "train"
    assert "can't be read" in made["style"]["warnings"][0]
    assert made["writing"]["warnings"] == []


def test_a_base_model_is_hashed_once_for_all_stages(root, monkeypatch):
    put(root, {"base/model.safetensors": b"w"})
    seen = []
    real = fingerprint.base_model

    def counted(model: Any, where: str) -> str:
        seen.append(model)
        return real(model, where)

    monkeypatch.setattr(fingerprint, "base_model", counted)
    planned(root, model_name_or_path="base")
    assert len(seen) == 1
    own = {"all": {"model_name_or_path": "Qwen/Qwen3-8B"}}
    planned(root, model_name_or_path="base", stage_settings=own)
    assert len(seen) == 3


# The whole plan


def made(root: Path, **changes: Any) -> Any:
    return plan.make(build(project_root=str(root), **changes), CODE, {}, sys.executable)


def test_a_plan_changes_nothing(root):
    done_marker(root, build(project_root=str(root)))
    before = contents(root)
    first = made(root)
    compared(root, {TRAIN: "0" * 64})
    plan.engine_differs(str(root), {"training/fit.py": "0" * 64})
    assert contents(root) == before
    assert made(root) == first
    assert json.loads(json.dumps(first)) == first


def test_a_plan_of_a_host_on_which_nothing_was_ever_done(tmp_path):
    nothing = made(tmp_path / "none")
    assert nothing["work"] == ["sample", "style", "writing", "all"]
    assert (nothing["live"], nothing["uncollected"], nothing["home"]) == (None, None, [])
    assert nothing["python"]["path"] == sys.executable
    assert not (tmp_path / "none").exists()


def test_work_is_what_trains_or_is_evaluated(root):
    packages = plan.pythons.recorded(made(root)["python"]["packages"])
    wanted = build(project_root=str(root))
    for name in ("sample", "style", "writing"):
        marker = done_marker(root, wanted, name)
        marker["inputs"]["packages"] = packages
        marker["fingerprint"] = fingerprint.digest(marker["inputs"])
        markers.write(str(root), name, marker)
    assert made(root)["work"] == ["all"]
    assert made(root, stage_settings={"style": {"max_new_tokens": 3}})["work"] == ["style", "all"]


def test_without_a_python_the_packages_are_unknown_and_the_search_is_told(root):
    request = build(project_root=str(root))
    found = plan.make(request, CODE, {"no-such-package": ">=1"}, sys.executable)
    assert found["python"] is None
    assert found["pythons_tried"][0]["missing"] == ["no-such-package>=1"]
    assert len(found["work"]) == 4


def test_a_live_training_is_in_the_plan(root):
    lock = live.take(str(root), {"stage": "style", "pid": 1})
    try:
        put(root, {f"{live.FOLDER}/status.json": b'{"state": "running"}'})
        assert made(root)["live"] == {"stage": "style", "pid": 1, "state": "running"}
    finally:
        os.close(lock)
    assert made(root)["live"] is None


# What is at home


def gathered(root: Path, outputs: dict[str, bytes], own: dict[str, bytes], run: str = RUN) -> None:
    """A run as gather leaves it."""
    put(root, outputs)
    where = f"{runs.SYNC}/{run}"
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in outputs.items()}
    own = {**own, "outputs.sha256": write_manifest(sums)}
    put(root, {f"{where}/{name}": content for name, content in own.items()})
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in own.items()}
    put(root, {f"{where}/SHA256SUMS": write_manifest(sums)})


def expected_at_home(root: Path, *paths: str) -> dict[str, str]:
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize(
    "name",
    ["a.json", "with blank", "two  blanks", "结论\u2028.md", "new\nline\\", os.fsdecode(b"\xff")],
)
def test_what_the_last_collect_gathered(root, name):
    output = f"outputs/adapter/adapter_style/{name}"
    gathered(root, {output: b"x"}, {name: b"y"})
    where = f"{runs.SYNC}/{RUN}"
    names = (output, f"{where}/{name}", f"{where}/outputs.sha256", f"{where}/SHA256SUMS")
    found = plan.at_home(str(root))
    assert {file["path"]: file["sha256"] for file in found} == expected_at_home(root, *names)
    assert len(found) == 4
    assert plan.uncollected(str(root)) is None


def test_a_run_that_brought_nothing_forth_is_at_home_all_the_same(root):
    gathered(root, {}, {"run.json": b"{}"})
    assert len(plan.at_home(str(root))) == 3
    assert plan.uncollected(str(root)) is None


def test_a_later_run_whose_controller_went_away_is_not_collected(root):
    gathered(root, {}, {})
    later = "run_20260210T000000Z"
    put(root, {f"{runs.SYNC}/{later}/.stage_style_done": b""})
    assert plan.uncollected(str(root)) == later
    assert plan.at_home(str(root)) == []


@pytest.mark.parametrize("name", ["SHA256SUMS", "outputs.sha256"])
@pytest.mark.parametrize("damage", [b"", b"\xff\n", b"no list\n", b"0  a\n", None])
def test_a_list_that_is_damaged_is_gathered_again(root, name, damage):
    gathered(root, {"outputs/a": b"x"}, {"run.json": b"{}"})
    path = root / runs.SYNC / RUN / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] if damage is None else damage)
    assert plan.uncollected(str(root)) == RUN
    assert plan.at_home(str(root)) == []
    path.unlink()
    assert plan.uncollected(str(root)) == RUN


@pytest.mark.parametrize("name", ["outputs/a.log", f"{runs.SYNC}/{RUN}/run.json"])
def test_a_list_that_no_longer_holds_is_gathered_anew(root, name):
    gathered(root, {"outputs/a.log": b"x"}, {"run.json": b"{}"})
    (root / name).unlink()
    assert plan.at_home(str(root)) == []
    assert plan.uncollected(str(root)) == RUN
    # A stage that runs is in a run of its own: the one before was collected and is over.
    assert plan.uncollected(str(root), work=True) is None


def test_a_run_that_was_never_collected_goes_on(root):
    put(root, {f"{runs.SYNC}/{RUN}/.stage_style_done": b""})
    assert plan.uncollected(str(root), work=True) == RUN


# What sync would send


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def compared(root: Path, files: dict[str, str], executable: tuple[str, ...] = ()) -> Any:
    """What sync would do, with names in the places of an offer's places."""
    offered = Offer((name, sha256, name in executable) for name, sha256 in files.items())
    found = plan.compare(str(root), str(root / runs.SYNC), offered)
    for key in ("add", "change", "mode"):
        found[key] = [offered.names[place] for place in found[key]]
    return found


NAMES = ("same.py", "changed.py", "gone.py", "vanished.py", "theirs.py")


def test_what_sync_would_add_change_and_remove(root):
    put(root, {"same.py": b"1", "changed.py": b"1", "gone.py": b"1", "users.txt": b"1"})
    put(root, {"theirs.py": b"2"})
    before = {name: digest(b"1") for name in NAMES}
    put(root, {f"{runs.SYNC}/SYNC_MANIFEST.sha256": write_manifest(before)})
    coming = {"same.py": digest(b"1"), "changed.py": digest(b"2"), "new.py": digest(b"3")}
    assert compared(root, coming, ("same.py", "new.py")) == {
        "add": ["new.py"],
        "change": ["changed.py"],
        "mode": ["same.py"],
        "remove": ["gone.py"],  # the user's own file, which was never sent, stays
        "kept": ["theirs.py"],  # sent before, and changed there since
    }


def test_a_first_sync_removes_nothing(root):
    put(root, {"users.txt": b"1"})
    assert compared(root, {"a.py": digest(b"")}) == {
        "add": ["a.py"],
        "change": [],
        "mode": [],
        "remove": [],
        "kept": [],
    }


def test_a_link_in_the_way_is_refused(root):
    (root / "a.py").symlink_to("/etc/passwd")
    with pytest.raises(TrainError, match=r"a\.py"):
        compared(root, {"a.py": digest(b"")})


@pytest.mark.parametrize(
    ("changed", "action"),
    [(None, "train"), ({TRAIN}, "train"), ({"README.md"}, "skip")],
    ids=["nobody knows which", "what it reads", "what it doesn't read"],
)
def test_a_pull_that_may_change_what_a_stage_reads_lets_it_run(root, changed, action):
    request = build(project_root=str(root))
    stages = [{"name": "style", "action": "skip", "reasons": ["up to date"], "warnings": []}]
    plan.unsure(stages, request, changed, "git brings 123456")
    assert stages[0]["action"] == action
    assert ("git brings 123456" in stages[0]["reasons"][0]) is (action == "train")


@pytest.mark.parametrize(
    "name", ["models/base", "{root}/models/base", "models/base/", "./models/base"]
)
def test_a_pull_that_changes_the_base_model_lets_it_run(root, name):
    request = build(project_root=str(root))
    for stage in request["stages"]:
        stage["model"]["model_name_or_path"] = name.format(root=root)
    skipped = {"name": "style", "action": "skip", "reasons": ["up to date"], "warnings": []}
    for changed, action in (({"models/base.md"}, "skip"), ({"models/base/w"}, "train")):
        stages = [dict(skipped)]
        plan.unsure(stages, request, changed, "git brings 123456")
        assert stages[0]["action"] == action


def test_the_engine_differs_until_it_is_the_same(root):
    engine = {"training/fit.py": digest(b"1")}
    assert plan.engine_differs(str(root), engine)
    put(root, {f"{plan.ENGINE}/training/fit.py": b"2"})
    assert plan.engine_differs(str(root), engine)
    put(root, {f"{plan.ENGINE}/training/fit.py": b"1"})
    assert not plan.engine_differs(str(root), engine)
    (root / plan.ENGINE / "training/fit.py").unlink()
    (root / plan.ENGINE / "training/fit.py").symlink_to("/etc/passwd")
    assert plan.engine_differs(str(root), engine)


# Provisioning


def on_the_hub(**more: Any) -> dict[str, Any]:
    return build(model_name_or_path="owner/name", runtime_base="/nowhere/data", **more)


@pytest.mark.parametrize(
    ("selected", "work", "fetches"),
    [
        (["style"], ["style"], True),
        (["style"], [], False),  # all is up to date, and the model may be gone
        ([], [], True),  # the step alone was asked for
    ],
)
def test_what_provisioning_would_do(selected, work, fetches):
    request = {**on_the_hub(), "selected": selected}
    found = plan.provisioning(request, work)
    assert ("fetches the model owner/name@main" in found) is fetches
    assert bool(found) is fetches
    # No model is fetched for a command of the user's own; where it looks for one isn't known.
    own = {**on_the_hub(stage_command="true"), "selected": selected}
    assert "fetches the model owner/name@main" not in plan.provisioning(own, work)


def test_a_model_that_would_be_moved_away_stops_the_plan(root):
    (root / "models/mine").mkdir(parents=True)
    request = build(project_root=str(root), model_name_or_path="models/mine", runtime_base="/none")
    with pytest.raises(TrainError, match="is to become a link"):
        plan.provisioning(request, ["style"])


def test_a_model_that_sync_brings_is_not_fetched(root):
    request = build(project_root=str(root), model_name_or_path="mine/model")
    fetches = "fetches the model mine/model@main"
    assert fetches in plan.provisioning(request, ["style"])
    assert fetches not in plan.provisioning(request, ["style"], {"mine/model/config.json": "0"})


@pytest.mark.parametrize("setting", ["runtime_base", "hf_home", "model_name_or_path", "root"])
def test_a_folder_that_hangs_is_named_by_the_plan_within_its_time(
    tmp_path, monkeypatch, run_module, setting
):
    dead = tmp_path / "dead"
    root = dead if setting == "root" else project(tmp_path / "root")
    changes = {} if setting == "root" else {setting: str(dead)}
    request = build(project_root=str(root), **changes)
    hanging_below(monkeypatch, dead)
    began = time.monotonic()
    found = run_module("plan", request=request, code=list(CODE))
    assert time.monotonic() - began < 20
    assert found["msg"] == f"{dead} gives no answer in 1 s: a dead mount?"
    assert "Nothing was changed" in found["hint"]
    assert found["category"] == "infra"


def test_a_disk_that_dies_after_the_first_look_ends_the_plan_too(root, tmp_path, monkeypatch):
    request = build(project_root=str(root), runtime_base=str(tmp_path / "dead"))
    plan.reach(request)
    monkeypatch.setattr(fingerprint, "base_model", lambda *_: "x")
    hanging_below(monkeypatch, tmp_path / "dead")
    with pytest.raises(TrainError, match="dead gives no answer") as caught:
        plan.make(request, CODE, {}, sys.executable)
    assert caught.value.category == "infra"


# What provisioning will do about a Python


OLD = {"path": "/x/python", "python": "3.9.2", "packages": {}, "missing": ["torch>=2.6"]}


def test_a_plan_hands_on_what_provisioning_refuses(root, tmp_path):
    named = str(tmp_path / "none")
    request = build(project_root=str(root))
    refused = plan.make(request, CODE, {"torch": ">=2.6"}, named)["bare"]
    with pytest.raises(TrainError) as caught:
        provision.look(provision.Wanted(str(root), {"torch": ">=2.6"}, named))
    assert refused == {"install": [], "msg": caught.value.message, "hint": caught.value.hint}
    assert named in refused["msg"]


@pytest.mark.parametrize(
    ("tried", "expected"),
    [
        ([OLD], {"install": [], "msg": "The host has no Python 3.10 or newer."}),
        ([{**OLD, "python": "3.11.2"}], {"install": ["torch"], "msg": ""}),
    ],
)
def test_what_is_to_be_installed_is_in_the_plan(tried, expected):
    found = plan.bare("/srv", {"torch": ">=2.6"}, "", {"found": None, "tried": tried})
    assert found is not None
    assert {name: found[name] for name in expected} == expected
    assert plan.bare("/srv", {"torch": ""}, "", {"found": OLD, "tried": []}) is None
    assert plan.bare("/srv", {}, "", {"found": None, "tried": []}) is None
