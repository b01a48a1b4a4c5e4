"""The actions on the controller, with a host that is played: what it says is not believed."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import link
from controller.action import HostRefusedError, others_of
from plugins.action import code_sync, collect
from plugins.action import plan as plan_action
from remote_train import issues
from remote_train.errors import TrainError
from tests.unit.stage_host import RUN, build

MADE: dict[str, Any] = {
    "stages": [],
    "work": [],
    "live": None,
    "python": None,
    "home": [],
    "uncollected": None,
    "pythons_tried": [],
    "provision": [],
    "bare": None,
    "sync": None,
    "offer_kept": False,
    "git": None,
    "is_clone": False,
    "engine_changed": False,
    "interrupted": [],
    "changed": False,
}
FAILED = {
    "check": "data_leak",
    "scope": "data",
    "result": "fail",
    "seen": "x",
    "expected": "none",
    "action": "Mend it.",
}
CONTROLLER: dict[str, Any] = {
    "issues": [],
    "failure": None,
    "plan": [],
    "findings": [],
    "gate_stops": False,
    "gpus": [],
    "gate": {"mode": "strict"},
}


def action(module: Any, arguments: dict[str, Any], call: Any, **attributes: Any) -> Any:
    """An action with its arguments, whose modules are ``call``; what it says is in ``said``."""
    made = object.__new__(module.ActionModule)
    made._task = types.SimpleNamespace(args=arguments, check_mode=False, diff=False)
    made._connection = types.SimpleNamespace(transport="ssh", **attributes)
    made.said = []
    made.say = made.said.append
    made.call = call
    return made


def planned(tmp_path: Path, made: dict[str, Any], **request: Any) -> Any:
    wanted = {**build(project_root=str(tmp_path)), **request}
    return action(plan_action, {"request": wanted}, lambda *_: {**MADE, **made}).act({})


def cut(*_: Any, **_options: Any) -> Any:
    raise AnsibleConnectionFailure("Broken pipe")


# The plan


@pytest.mark.parametrize("name", ["../../../etc", "run_x", "", {"a": 1}])
def test_a_host_that_names_a_run_elsewhere_is_not_believed(tmp_path, name):
    with pytest.raises(TrainError, match="not the name of a run") as caught:
        planned(tmp_path, {"uncollected": name})
    assert caught.value.category == "integrity"


def test_a_request_without_stages_has_a_plan(tmp_path):
    assert planned(tmp_path, {}, stages=[], selected=[])["work"] == []


PYTHON = {"path": "/opt/python"}


@pytest.mark.parametrize(
    ("steps", "selected", "made", "due"),
    [
        (["provision"], [], {}, ["provision"]),
        (["provision"], [], {"python": PYTHON}, []),
        (["provision"], [], {"python": PYTHON, "provision": ["fetches it"]}, ["provision"]),
        (["provision"], [], {"engine_changed": True, "python": PYTHON}, []),
        (["sync"], [], {"engine_changed": True}, ["sync"]),
        (["sync"], [], {"uncollected": RUN}, []),
        (["collect"], [], {}, []),
        (["collect"], [], {"engine_changed": True}, []),
        (["collect"], [], {"uncollected": RUN}, ["collect"]),
        (["precheck"], [], {"engine_changed": True, "uncollected": RUN}, []),
        # All is up to date: the Python that trained it may be gone.
        (["sync", "provision", "collect"], ["style"], {}, []),
        (["provision", "collect"], ["style"], {"work": ["style"]}, ["provision", "train"]),
    ],
    ids=str,
)
def test_a_plan_is_empty_where_no_step_that_was_asked_for_has_work(
    tmp_path, steps, selected, made, due
):
    answer = planned(tmp_path, made, steps=steps, selected=selected)
    assert answer["due"] == due
    assert answer["empty"] is (not due)


@pytest.mark.parametrize("place", [1, -1, "0", 0.0, None, True])
def test_a_host_that_speaks_of_files_it_was_not_offered_is_not_believed(tmp_path, place):
    source = tmp_path / "source"
    (source / "scripts").mkdir(parents=True)
    (source / "scripts" / "training_sync_whitelist.txt").write_text("a\n")
    (source / "a").write_text("1")
    request = build(project_root="/srv/tutor", project_src=str(source), sync_cache=False)
    places = {"add": [place], "change": [], "mode": [], "remove": [], "kept": []}
    with pytest.raises(TrainError, match="not offered") as caught:
        planned(tmp_path, {"sync": places}, **{**request, "selected": [], "steps": ["collect"]})
    assert caught.value.category == "integrity"


def test_a_project_of_which_nothing_is_left_is_no_success(tmp_path):
    source = tmp_path / "source"
    (source / "scripts").mkdir(parents=True)
    (source / "scripts" / "training_sync_whitelist.txt").write_text("scripts\n")
    request = build(project_root="/srv/tutor", project_src=str(source), sync_exclude=["*"])
    with pytest.raises(TrainError, match="No file of the training project"):
        planned(tmp_path, {}, **request)


# A host that is gone


def test_a_cut_in_a_sync_is_a_failure_that_can_be_rescued(tmp_path, monkeypatch):
    plan = {
        "git": None,
        "sync": {"add": [], "change": [], "mode": [], "remove": []},
        "sends": True,
        "engine_changed": True,
    }
    request = build(project_root=str(tmp_path), reconnect_timeout=0)
    made = action(code_sync, {"request": request, "plan": plan}, cut, reset=lambda: None)
    made.shell = cut
    monkeypatch.setattr(link.time, "sleep", lambda _seconds: None)
    answer = made.act({})
    assert (answer["failed"], answer["unreachable_host"], answer["category"]) == (
        True,
        True,
        "infra",
    )


def collecting(tmp_path: Path, call: Any, **attributes: Any) -> Any:
    arguments = {
        "request": {
            "project_root": "/srv/tutor",
            "report_language": "en",
            "reconnect_timeout": 0,
        },
        "run": RUN,
        "dest": str(tmp_path),
        "controller": CONTROLLER,
    }
    return action(collect, arguments, call, **attributes)


def test_a_record_that_is_at_home_already_is_kept(tmp_path):
    path = tmp_path / "training_sync" / RUN / "issues.jsonl"
    issues.append(str(path), issues.make("train", "Earlier.", category="oom"))
    answer = collecting(tmp_path, cut).act({})
    assert (answer["failed"], answer["unreachable_host"]) == (True, True)
    assert symptoms(tmp_path) == ["Earlier.", "The host could not be reached."]
    assert "Earlier." in path.with_name("ISSUES.md").read_text()


def symptoms(folder: Path) -> list[str]:
    found = issues.read(str(folder / "training_sync" / RUN / "issues.jsonl"))
    return sorted(issue["symptom"] for issue in found)


def refused(*_: Any) -> Any:
    raise TrainError("The record can't be written: there is no room.", "Make room.", "infra")


def test_where_the_host_takes_no_record_what_was_seen_is_at_home(tmp_path):
    made = collecting(tmp_path, refused)
    made._task.args["controller"] = {**CONTROLLER, "findings": [FAILED], "gate_stops": True}
    with pytest.raises(TrainError, match="there is no room") as caught:
        made.act({})
    assert f"Make room. What was seen from here is in {tmp_path}" in caught.value.hint
    assert symptoms(tmp_path) == [
        "The record can't be written: there is no room.",
        "data_leak: x",
    ]
    record = json.loads((tmp_path / "training_sync" / RUN / "precheck.json").read_text())
    assert (record["findings"], record["stops"], record["mode"]) == ([FAILED], True, "strict")


def test_where_nothing_was_changed_there_the_record_is_at_home_alone(tmp_path):
    def asked(*_: Any) -> Any:
        raise AssertionError("the host is not to be asked")

    made = collecting(tmp_path, asked)
    failure = {"msg": "The check data_leak failed.", "category": "ops", "recorded": True}
    made._task.args.update(
        untouched=True,
        controller={**CONTROLLER, "findings": [FAILED], "gate_stops": True, "failure": failure},
    )
    assert made.act({}) == {"changed": False}
    assert symptoms(tmp_path) == ["data_leak: x"]
    assert made.said[0].strip().startswith("what was found is in ")
    made._task.check_mode = True
    shutil.rmtree(tmp_path / "training_sync")
    made.act({})
    assert not list(tmp_path.iterdir())


def test_how_a_stage_ended_is_at_home_where_the_hosts_own_record_is_not(tmp_path):
    failure = {
        "msg": "The stage style failed.",
        "hint": "",
        "category": "oom",
        "stage": "style",
        "phase": "train",
        "recorded": True,
    }
    made = collecting(tmp_path, cut)
    made._task.args["controller"] = {**CONTROLLER, "failure": failure}
    made.act({})
    assert symptoms(tmp_path) == ["The stage style failed."]


def test_the_record_left_at_home_has_its_page(tmp_path):
    collecting(tmp_path, cut).act({})
    page = (tmp_path / "training_sync" / RUN / "report.html").read_text(encoding="utf-8")
    assert "The host could not be reached." in page


def test_a_page_that_cannot_be_drawn_is_a_warning_and_no_failure(tmp_path):
    made = collecting(tmp_path, cut)
    warned: list[str] = []
    made.warn = warned.append
    folder = tmp_path / "training_sync" / RUN
    (folder / "report.html" / "full").mkdir(parents=True)  # nothing can take its place
    assert made.draw_page(str(tmp_path), RUN, "en") == ""
    assert made.draw_page(str(tmp_path / "elsewhere"), RUN, "en") == ""
    assert len(warned) == 2
    assert all(RUN in text and "`remote-train report`" in text for text in warned)


def test_a_bundle_is_removed_though_its_fetch_broke(tmp_path, monkeypatch):
    monkeypatch.setattr(link.time, "sleep", lambda _seconds: None)
    bundle = "/srv/tutor/outputs/training_sync/outgoing/x/home.tar.gz"
    answers = iter(
        [
            {"files": [{"path": "outputs/a", "sha256": "0" * 64, "size": 1}]},
            {"bundle": bundle, "size": 1, "sha256": "1" * 64},
        ]
    )
    made = collecting(tmp_path, lambda *_: next(answers), exec_command=cut, reset=lambda: None)
    removed: list[list[str]] = []
    made.shell = removed.append
    answer = made.act({})
    assert (answer["unreachable_host"], answer["category"]) == (True, "infra")
    assert [words[-1] for words in removed] == [str(Path(bundle).parent)]
    assert symptoms(tmp_path) == ["The host could not be reached again in 0 s."]


def test_where_nothing_was_collected_nothing_is_made(tmp_path):
    made = collecting(tmp_path / "home", cut)
    made._task.args["expected"] = []
    assert made.act({}) == {"changed": False}
    assert len(made.said) == 1
    assert not (tmp_path / "home").exists()


# A refusal with several reasons


def refusing(count: int) -> Any:
    problems = [{"message": f"reason {number}"} for number in range(min(count, 1000))]
    error = TrainError("It has problems; the first: reason 0.")
    return HostRefusedError(error, problems, count)


@pytest.mark.parametrize(
    ("count", "last"),
    [(1, None), (2, "reason 1"), (10, "reason 9"), (11, "and 1 more"), (5000, "and 4,990 more")],
)
def test_the_first_ten_reasons_are_shown(count, last):
    shown = others_of(refusing(count))
    assert len(shown) == min(count - 1, 10)
    assert (shown or [None])[-1] == last


def test_an_error_with_one_reason_has_no_others():
    assert others_of(TrainError("x")) == []


def test_a_folder_in_the_place_of_a_file_at_home_makes_way_unless_something_is_in_it(tmp_path):
    action = collect.ActionModule.__new__(collect.ActionModule)
    action._home = str(tmp_path / "home")
    for name in ("empty", "full"):
        (tmp_path / "home" / name).mkdir(parents=True)
    kept = tmp_path / "home/full/mine.txt"
    kept.write_text("mine")
    for name in ("empty", "full"):
        (tmp_path / name).write_text("fetched")
    action._place(str(tmp_path / "empty"), "empty")
    assert (tmp_path / "home/empty").read_text() == "fetched"
    with pytest.raises(TrainError, match="isn't empty is in the place of "):
        action._place(str(tmp_path / "full"), "full")
    assert kept.read_text() == "mine"
