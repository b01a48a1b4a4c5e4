"""The gate's checks of the data files, by the module: on the host and as the controller found them.

Each check has a case in which it is ok and one in which it is not, on both sides, in equal words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plugins.action import plan as plan_action
from remote_train.errors import TrainError
from tests.unit.stage_host import build
from tests.unit.test_actions import MADE, action

STYLE = "data/style.jsonl"
BENCH = "data/bench.jsonl"


def chat(name: str, question: str, answer: str = "Yes.") -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": name, "messages": turns})


NOTHING: dict[str, list[Any]] = {key: [] for key in ("add", "change", "mode", "remove", "kept")}
SOUND = {STYLE: [chat("a", "One?"), chat("b", "Two?")], BENCH: [chat("c", "Three?")]}

# What lies there, the check, its result, what is seen, and what is to be done.
CASES: list[tuple[dict[str, list[str]], str, str, str, str]] = [
    (SOUND, "data_files", "ok", "3 chats in 2 files, on the {where}", ""),
    (SOUND, "data_leak", "ok", "none", ""),
    (SOUND, "data_length", "ok", f"{STYLE}, line 1: 8 bytes of text, within 100 tokens", ""),
    ({BENCH: SOUND[BENCH]}, "data_files", "fail", f"{STYLE}: there is no such file", "Put the"),
    ({**SOUND, STYLE: []}, "data_files", "fail", f"{STYLE}: it is empty.", "Put the file there"),
    (
        {**SOUND, STYLE: [chat("a", "One?"), "{"]},
        "data_files",
        "fail",
        f"{STYLE}, line 2: not JSON (Expecting property name enclosed in double quotes at",
        "correct the named lines",
    ),
    (
        {**SOUND, STYLE: [chat("a", "One?"), '{"id": "b"}']},
        "data_files",
        "fail",
        f"{STYLE}, line 2: it has no messages.",
        "correct the named lines",
    ),
    (
        {**SOUND, STYLE: [chat("a", "One?"), chat("a", "Two?")]},
        "data_files",
        "fail",
        f'{STYLE}, line 2: the id "a" is already that of line 1.',
        "correct the named lines",
    ),
    (
        {**SOUND, STYLE: [*SOUND[STYLE], chat("d", " THREE? ")]},
        "data_leak",
        "fail",
        f"{BENCH}, line 1: the same question is in the training data ({STYLE}, line 3)",
        "Take those chats out",
    ),
    (
        {**SOUND, STYLE: ["{"]},
        "data_leak",
        "unknown",
        f"{STYLE} has problems, see data_files",
        "",
    ),
    (
        {**SOUND, STYLE: [chat("a", "One?", "long " * 200)]},
        "data_length",
        "warn",
        f"{STYLE}, line 1: 1004 bytes of text, likely over 100 tokens",
        "Raise max_length, or shorten the chat",
    ),
    (
        {**SOUND, STYLE: [chat("a", "One?", "long " * 60)]},
        "data_length",
        "ok",
        f"{STYLE}, line 1: 304 bytes of text, likely within 100 tokens",
        "",
    ),
]
STAGE = {
    "name": "style",
    "tag": "style",
    "adapter": "adapter_style",
    "train": [STYLE],
    "evaluate": [BENCH],
    "settings": {"max_length": 100},
}


def lay_out(root: Path, lines: dict[str, list[str]]) -> None:
    for name in (STYLE, BENCH):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if name in lines:
            (root / name).write_text("".join(f"{line}\n" for line in lines[name]), encoding="utf-8")


def request(project: Path, root: str) -> Any:
    settings = {"stages": [STAGE], "project_src": str(project), "project_root": root}
    return build(**settings, gpu_gate="off", sync_cache=False)


def planned(project: Path, **arguments: Any) -> Any:
    """What the plan finds of the data that lies here."""
    (project / "scripts").mkdir(exist_ok=True)
    (project / "scripts" / "training_sync_whitelist.txt").write_text("data\nscripts\n")
    wanted = request(project, "/srv/tutor")
    made = action(
        plan_action, {"request": wanted, **arguments}, lambda *_: {**MADE, "sync": NOTHING}
    )
    made.warned = []
    made.warn = made.warned.append
    return made, made.act({})


def probed(run_module: Any, root: Path, **arguments: Any) -> dict[str, Any]:
    stages = request(root, str(root))["stages"]
    found = run_module(
        "gpu_probe", project_root=str(root), mode="off", stages=stages, seconds=30, **arguments
    )
    return {one["check"]: one for one in found["findings"]} | {"stopping": found["stopping"]}


@pytest.mark.parametrize("where", ["host", "controller"])
@pytest.mark.parametrize(("lines", "check", "result", "seen", "advice"), CASES)
def test_a_check_of_the_data(
    run_module: Any,
    tmp_path: Path,
    where: str,
    lines: dict[str, list[str]],
    check: str,
    result: str,
    seen: str,
    advice: str,
) -> None:
    lay_out(tmp_path, lines)
    if where == "host":
        files = [
            {"name": STYLE, "role": "train", "stage": "style"},
            {"name": BENCH, "role": "evaluate", "stage": "style"},
        ]
        found = probed(run_module, tmp_path, data_files=files)
    else:
        plan = planned(tmp_path, data="gate")[1]
        assert plan["data_on_host"] == []
        handed = {name: plan[name] for name in ("data_checked", "data_leaks")}
        found = probed(run_module, tmp_path, **json.loads(json.dumps(handed)))
    finding = found[check]
    assert finding["result"] == result, finding
    assert seen.format(where=where) in finding["seen"]
    assert finding["expected"]
    assert advice in finding["action"]
    assert bool(finding["action"]) == (result in ("fail", "warn"))
    assert (check in [one["check"] for one in found["stopping"]]) == (result == "fail")


def test_both_sides_agree_on_every_word(run_module: Any, tmp_path: Path) -> None:
    lay_out(tmp_path, {**SOUND, STYLE: ["{", chat("d", "Three?")]})
    plan = planned(tmp_path, data="gate")[1]
    here = probed(run_module, tmp_path, **{k: plan[k] for k in ("data_checked", "data_leaks")})
    files = [
        {"name": STYLE, "role": "train", "stage": "style"},
        {"name": BENCH, "role": "evaluate", "stage": "style"},
    ]
    there = probed(run_module, tmp_path, data_files=files)
    for check in ("data_files", "data_leak", "data_length"):
        assert here[check] == there[check]


def test_data_on_two_machines_is_not_said_to_be_compared(run_module: Any, tmp_path: Path) -> None:
    lay_out(tmp_path, SOUND)
    plan = planned(tmp_path, data="gate")[1]
    (bench,) = [file for file in plan["data_checked"] if file["file"] == BENCH]
    files = [{"name": STYLE, "role": "train", "stage": "style"}]
    found = probed(run_module, tmp_path, data_files=files, data_checked=[bench])
    assert (found["data_leak"]["result"], found["data_leak"]["seen"]) == (
        "unknown",
        f"{BENCH} (on the controller) was not compared with {STYLE} (on the host)",
    )


LEAKY = {**SOUND, STYLE: [*SOUND[STYLE], chat("d", "Three?")]}


def test_a_plan_without_a_gate_stops_at_wrong_data(tmp_path: Path) -> None:
    lay_out(tmp_path, LEAKY)
    with pytest.raises(TrainError, match=r"^The check data_leak failed: ") as caught:
        planned(tmp_path, data="stop")
    assert caught.value.category == "data"
    assert caught.value.hint == "Take those chats out of one of the two files."
    # That is the default: who forgets to say what follows sends nothing wrong.
    with pytest.raises(TrainError, match="data_leak"):
        planned(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"data": "warn"}, "The check data_leak: "),
        (
            {"data": "stop", "silence": {"data_leak": "known", "gpu_ecc": "x"}},
            "silenced: known; it would be fail: ",
        ),
    ],
)
def test_a_plan_says_what_it_does_not_stop_at(
    tmp_path: Path, arguments: dict[str, Any], words: str
) -> None:
    lay_out(tmp_path, LEAKY)
    made, _plan = planned(tmp_path, **arguments)
    (warning,) = made.warned
    assert words in warning


@pytest.mark.parametrize("data", ["gate", "skip"])
def test_a_plan_leaves_it_to_the_gate(tmp_path: Path, data: str) -> None:
    lay_out(tmp_path, LEAKY)
    made, plan = planned(tmp_path, data=data)
    assert made.warned == []
    assert bool(plan["data_leaks"]) == (data == "gate")


def test_a_missing_file_is_told_once(tmp_path: Path) -> None:
    """Though it may lie in several stages; and nobody looks for it on the host."""
    lay_out(tmp_path, {BENCH: SOUND[BENCH]})
    plan = planned(tmp_path, data="gate")[1]
    assert [(file["file"], file["problem_count"]) for file in plan["data_checked"]] == [
        (STYLE, 1),
        (BENCH, 0),
    ]
    (problem,) = plan["data_checked"][0]["problems"]
    assert problem["reason"] == f"there is no such file in {tmp_path}"
    assert plan["data_on_host"] == []
