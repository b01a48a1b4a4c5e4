"""Following provisioning: whose work it is, what is sent, and how it ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import link
from plugins.action import provision as action
from remote_train import detached, provision
from remote_train.errors import TrainError
from tests.unit.wheels import wheel

ROOT = "/srv/tutor"
READY = {
    "steps": [],
    "python": {"path": "/p"},
    "installed": [],
    "needs_pip": False,
    "status": {},
}
LEFT = {**READY, "steps": ["fetches the model a/b"], "python": None}


def work(token: str, **changes: Any) -> dict[str, Any]:
    return {"state": "running", "token": token, "heartbeat": 1.0, "log": "log", **changes}


class Action(action.ActionModule):
    """The action without an Ansible around it: a test says what the host answers."""

    def __init__(self, looks: list[Any], polls: Any, **given: Any) -> None:
        self.said: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self._looks, self._polls, self._given = looks, polls, given
        self._check = False
        self._connection = SimpleNamespace(reset=lambda: None, transport="ssh")

    check = property(lambda self: self._check)
    verbose = False

    def argument(self, name: str, default: Any = None) -> Any:
        given = {"request": REQUEST, "stages": ["style"], "requirements": {}, **self._given}
        return given.get(name, default)

    def line_for(self, *_: Any) -> Any:
        return SimpleNamespace(keep=self.said.append, update=lambda _line: None)

    def call(self, _module: str, arguments: Any, _vars: Any) -> Any:
        self.calls.append(json.loads(json.dumps(arguments)))
        found = self._looks.pop(0)
        if callable(found):
            found = found(arguments)
        if isinstance(found, Exception):
            raise found
        return found

    def _command(self, _line: str) -> str:
        return f"\x1d{json.dumps(self._polls.pop(0))}\x1e0\x1e0\x1e"


MODEL = {"model_name_or_path": "models/mine", "model_revision": "main", "use_modelscope": False}
REQUEST = {
    "project_root": ROOT,
    "reconnect_timeout": 1,
    "stages": [
        {"name": "style", "command": "", "model": MODEL},
        {"name": "other", "command": "", "model": {**MODEL, "model_name_or_path": "x/y"}},
    ],
}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Time passes by sleeping only."""
    now = SimpleNamespace(at=0.0)
    fake = SimpleNamespace(
        monotonic=lambda: now.at,
        time=lambda: now.at,
        sleep=lambda seconds: setattr(now, "at", now.at + seconds),
    )
    monkeypatch.setattr(action, "time", fake)
    monkeypatch.setattr(link, "time", fake)
    return now


def started(arguments: Any, answer: Any = LEFT) -> Any:
    """What the module answers when it starts the work."""
    return {**answer, "status": work(arguments["token"])}


def done(token: str, *lines: str) -> dict[str, Any]:
    result = {"changed": True, "python": {"path": "/p"}, "installed": [], "done": list(lines)}
    return work(token, state="done", result=result)


def test_the_host_is_told_the_stages_and_finds_the_models_itself():
    """A relative folder that only the host has is no name on a hub."""
    made = Action([READY], [])
    assert made.act({})["changed"] is False
    (asked,) = made.calls
    assert asked["stages"] == [{"command": "", "model": MODEL}]
    assert "models" not in asked


def test_other_work_is_waited_for_and_then_ones_own_is_done():
    polls = [done("theirs", "fetched WRONG")]
    looks = [{**LEFT, "status": work("theirs")}, started]
    made = Action(looks, polls)
    made._polls = SimpleNamespace(
        pop=lambda _at: polls.pop(0) if polls else done(made.calls[-1]["token"], "fetched a/b")
    )
    result = made.act({})
    assert result["done"] == ["fetched a/b"]
    assert len({call["token"] for call in made.calls}) == 1
    assert any("Earlier provisioning" in line for line in made.said)
    assert not any("WRONG" in line for line in made.said)


def test_the_failure_of_other_work_is_not_ones_own():
    error = {"msg": "Theirs.", "hint": "", "category": "infra"}
    polls = [work("theirs", state="failed", error=error)]
    made = Action([{**LEFT, "status": work("theirs")}, READY], polls)
    assert made.act({})["python"] == {"path": "/p"}


def test_who_has_nothing_to_do_waits_for_nobody():
    made = Action([{**READY, "status": work("theirs")}], [])
    assert made.act({})["changed"] is False


def test_ones_own_work_that_ended_at_once_is_told():
    """ssh may send a command twice: the second answer is of a host with nothing left to do."""
    made = Action([lambda a: {**READY, "status": done(a["token"], "fetched a/b")}], [])
    assert made.act({})["done"] == ["fetched a/b"]


def silent(looks: list[Any], last: Any) -> TrainError:
    made = Action([started, *looks], [])
    polls = [work("t")] * 200

    def pop(_at: int) -> Any:
        return last(made.calls[0]["token"]) if len(made.calls) > 1 else polls[0]

    made._polls = SimpleNamespace(pop=pop)
    with pytest.raises(TrainError) as caught:
        made.act({})
    assert "token" not in made.calls[1]
    return caught.value


def test_work_that_ended_without_a_word_is_told_from_work_that_hangs():
    error = silent([LEFT], work)
    assert error.message == "Provisioning ended without a word."
    assert error.hint.startswith(f"Look first whether the host's disk is full: df -h {ROOT}")
    error = silent([{**LEFT, "status": work("t")}], work)
    assert "no sign of life for 60 s" in error.message
    assert "disk is full" in error.hint
    # What holds the lock without working says so itself.
    error = silent([TrainError("Left over: pip.", "End it.", "infra")], work)
    assert error.message == "Left over: pip."
    # The last word may come in between.
    ended = {"msg": "No room.", "hint": "", "category": "infra"}
    error = silent([LEFT], lambda token: work(token, state="failed", error=ended))
    assert error.message == "No room."


class Sending(Action):
    def shell(self, *_: Any) -> str:
        return "0"


def test_wheels_of_one_set_lie_in_a_folder_of_their_own(tmp_path):
    folders = []
    for name in ("one", "two", "one"):
        wheel(tmp_path / name, name, "1.0")
        lacking = {**LEFT, "installed": ["one"]}
        made = Sending([lacking, lambda a: {**READY, "status": done(a["token"])}], [])
        made._given["wheels"] = str(tmp_path / name)
        made.act({})
        folder = made.calls[1]["wheels"]
        assert os.path.dirname(folder) == f"{ROOT}/{provision.INCOMING}"
        assert list(made.calls[1]["digests"]) == [f"{folder}/{name}-1.0-py3-none-any.whl"]
        folders.append(folder)
    assert folders[0] == folders[2] != folders[1]


def test_wheels_are_sent_once_other_work_has_ended(tmp_path):
    """Else it would be installed from an index, which the host may not reach."""
    wheel(tmp_path, "one", "1.0")
    lacking = {**LEFT, "installed": ["one"]}
    theirs = {**lacking, "status": work("theirs")}
    made = Sending(
        [theirs, lacking, lambda a: {**READY, "status": done(a["token"])}], [done("theirs")]
    )
    made._given["wheels"] = str(tmp_path)
    made.act({})
    assert ["token" in call for call in made.calls] == [False, False, True]
    assert made.calls[2]["wheels"].startswith(f"{ROOT}/{provision.INCOMING}/")


def test_a_password_in_the_hubs_address_goes_where_secrets_go():
    made = Action([READY], [], endpoint="https://me:s3cret@mirror", secrets={"HF_TOKEN": ""})
    made.act({})
    assert made.calls[0]["endpoint"] == "https://mirror"
    assert made.calls[0]["secrets"] == {"HF_ENDPOINT": "https://me:s3cret@mirror"}
    made = Action([READY], [], endpoint="https://mirror")
    made.act({})
    assert (made.calls[0]["endpoint"], made.calls[0]["secrets"]) == ("https://mirror", {})


def test_a_link_that_breaks_says_that_what_was_begun_goes_on():
    made = Action([AnsibleConnectionFailure("gone")] * 9, [])
    with pytest.raises(link.GaveUpError) as caught:
        made.act({})
    assert made.said[0] == "  The connection broke; what was begun goes on there. Reconnecting."
    assert caught.value.hint.startswith("What was begun goes on there: give the same command")


def test_the_newest_pip_is_sent_by_its_number(tmp_path, monkeypatch):
    for version in ("9.0.3", "25.3", "25.10"):
        (tmp_path / f"pip-{version}-py3-none-any.whl").touch()
    monkeypatch.setattr(action.sysconfig, "get_config_var", lambda _name: str(tmp_path))
    assert Path(action._own_pip()).name == "pip-25.10-py3-none-any.whl"
    assert detached.FOLDER in provision.INCOMING


def test_earlier_work_is_told_with_its_age_and_how_to_end_it():
    status = work(
        "t", pid=4711, started_at=100.0, heartbeat=175.0, progress={"text": "making a venv"}
    )
    what, how = action.other(status)
    assert what == (
        "  Earlier provisioning still runs on the host, process 4711, for 1:15 now: making a venv"
    )
    assert how.endswith("To end it instead, on the host: kill 4711")
    # Its process is known a moment after it has begun.
    assert "process" not in action.other(work("t", started_at=1.0))[0]
    assert detached.FOLDER in action.other(work("t", started_at=1.0))[1]


def checked(answer: Any, tmp_path: Path, **given: Any) -> Action:
    made = Action([answer], [], wheels=str(tmp_path / "wheels") if tmp_path else "", **given)
    made._check = True
    made.act({})
    return made


def test_check_mode_says_what_would_be_sent(tmp_path, monkeypatch):
    wheel(tmp_path / "wheels", "one", "1.0")
    wheel(tmp_path / "wheels", "two", "1.0")
    pip = tmp_path / "pip-25.3-py3-none-any.whl"
    pip.write_bytes(bytes(2_000_000))
    monkeypatch.setattr(action, "_own_pip", lambda: str(pip))
    lacking = {**LEFT, "installed": ["one"], "needs_pip": True}
    made = checked(lacking, tmp_path)
    assert len(made.calls) == 1
    assert [line.split(",")[0] for line in made.said] == [
        "  sends 2 wheels",
        "  sends pip-25.3-py3-none-any.whl",
        "  fetches the model a/b",
    ]
    # A pip that is among the wheels needn't be sent, nor anything to a host that lacks nothing.
    pip.rename(tmp_path / "wheels" / pip.name)
    assert [line.split(",")[0] for line in checked(lacking, tmp_path).said] == [
        "  sends 3 wheels",
        "  fetches the model a/b",
    ]
    assert checked(READY, tmp_path).said == []
    # What the run would refuse is refused.
    for path in (tmp_path / "wheels").iterdir():
        path.unlink()
    with pytest.raises(TrainError, match="holds no"):
        checked(lacking, tmp_path)
    # Nor would the run begin at once where another one is at work.
    busy = checked({**LEFT, "status": work("theirs", pid=7)}, Path())
    assert busy.said[0].startswith("  Earlier provisioning still runs on the host, process 7")


def test_a_folder_that_was_sent_is_named_as_the_person_knows_it(tmp_path):
    wheel(tmp_path, "one", "1.0")

    def ended(arguments: Any) -> Any:
        error = {"msg": f"provision_wheels ({arguments['wheels']}) has no wheel of two."}
        error |= {"hint": f"Add it to {arguments['wheels']}.", "category": "ops"}
        return {**READY, "status": work(arguments["token"], state="failed", error=error)}

    made = Sending([{**LEFT, "installed": ["one", "two"]}, ended], [])
    made._given["wheels"] = str(tmp_path)
    with pytest.raises(TrainError) as caught:
        made.act({})
    assert caught.value.message == f"provision_wheels ({tmp_path}) has no wheel of two."
    assert caught.value.hint == f"Add it to {tmp_path}."
