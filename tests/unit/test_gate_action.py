"""Both parts of the gate, as they are asked from the controller over a link that breaks."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from controller import link
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
