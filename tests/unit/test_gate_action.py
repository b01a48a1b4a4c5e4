"""Both parts of the gate, as they are asked from the controller over a link that breaks."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import gate, link
from controller.action import GaveUpError, failed
from plugins.action import active_gate, gpu_probe
from tests.unit.test_actions import action, cut


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link.time, "sleep", lambda _seconds: None)


@pytest.mark.parametrize("module", [gpu_probe, active_gate])
def test_a_host_that_goes_away_is_a_failure_that_can_be_rescued(module: Any) -> None:
    """Unreachable in Ansible's sense would end the host's part without a record."""
    made = action(module, {"project_root": "/srv/tutor"}, cut, reset=lambda: None)
    with pytest.raises(GaveUpError) as caught:
        made.act({})
    answer = failed(caught.value)  # as every action of ours ends
    assert (answer["failed"], answer["unreachable_host"], answer["category"]) == (
        True,
        True,
        "infra",
    )
    assert "unreachable" not in answer
    assert answer["msg"] == "The host could not be reached again in 0 s."


@pytest.mark.parametrize("module", [gpu_probe, active_gate])
def test_each_try_gets_what_is_left_until_the_answer_is_due(
    monkeypatch: pytest.MonkeyPatch, module: Any
) -> None:
    """A minute is not begun anew by a cut; with too little left of it, nothing is asked."""
    clock = [1000.0]
    monkeypatch.setattr(gate.time, "time", lambda: clock[0])
    asked: list[dict[str, Any]] = []

    def call(_name: str, arguments: dict[str, Any], _vars: Any) -> dict[str, Any]:
        asked.append(arguments)
        clock[0] += 10
        raise AnsibleConnectionFailure("Broken pipe")

    given = {"project_root": "/x", "reconnect_timeout": 60, "until": 1040, "timeout": 25}
    made = action(module, given, call, reset=lambda: None)
    with pytest.raises(GaveUpError, match="too little was left of the minute to ask anew"):
        made.act({})
    limit = {gpu_probe: "seconds", active_gate: "timeout"}[module]
    most = 25 if module is active_gate else 40
    assert [one[limit] for one in asked] == [min(most, 40), min(most, 30), 20]
    assert not any("until" in arguments for arguments in asked)


@pytest.mark.parametrize("module", [gpu_probe, active_gate])
def test_a_cut_link_is_made_again_and_the_host_asked_anew(module: Any) -> None:
    asked: list[dict[str, Any]] = []

    def call(_name: str, arguments: dict[str, Any], _vars: Any) -> dict[str, Any]:
        asked.append(arguments)
        if len(asked) == 1:
            raise AnsibleConnectionFailure("Broken pipe")
        return {"stop": False}

    resets: list[None] = []
    given = {"project_root": "/srv/tutor", "reconnect_timeout": 60}
    made = action(module, given, call, reset=lambda: resets.append(None))
    assert made.act({})["stop"] is False
    assert len(resets) == 1
    assert all(arguments["project_root"] == "/srv/tutor" for arguments in asked)
    assert not any("reconnect_timeout" in arguments for arguments in asked)
    times = [arguments.get("controller_time") for arguments in asked]
    if module is gpu_probe:
        assert 0 < times[0] < times[1]
    else:
        assert times == [None, None]


def test_the_way_there_is_no_fault_of_the_clock_and_tables_fit_the_terminal() -> None:
    clock = {"check": "clock", "scope": "host", "result": "fail", "seen": "4000 s ahead"}

    def call(_name: str, _arguments: dict[str, Any], _vars: Any) -> dict[str, Any]:
        # The way took all of the time that passes in here, and more in the host's own words.
        return {
            "findings": [clock],
            "clock_ahead": ahead,
            "seconds": -4100.0,
            "limits": {},
            "mode": "strict",
        }

    made = action(gpu_probe, {"project_root": "/srv/tutor"}, call, reset=lambda: None)
    ahead = 4000.0
    answer = made.act({"controller_columns": 80})
    (found,) = answer["findings"]
    assert (found["result"], answer["stop"]) == ("ok", False)
    assert found["seen"] == "within 4000 s (the way there took that long)"
    assert max(map(len, answer["full_table"].splitlines())) <= 80
    ahead = 9000.0
    answer = made.act({"controller_columns": 80})
    assert answer["stop"]
    assert answer["findings"][0]["seen"] == "4900 s ahead"
