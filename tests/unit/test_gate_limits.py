"""Thresholds and silenced checks, as a user gives them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from remote_train import gate_checks
from remote_train.errors import TrainError
from remote_train.gate_limits import ActiveLimits, Limits, program, silenced, timeout

NAMES = gate_checks.NAMES


def test_text_is_read_as_templates_give_it() -> None:
    limits = Limits.of({"gpus": "8", "min_disk_gib": "2.5", "need_persistence": "yes"})
    assert (limits.gpus, limits.min_disk_gib, limits.need_persistence) == (8, 2.5, True)
    assert Limits.of({}) == Limits()
    assert Limits.of(dataclasses.asdict(Limits())) == Limits()


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"gpu": 2}, "The gate has no threshold gpu.", "Did you mean gpus?"),
        ({"gpus": "two"}, "gpu_gate_gpus is 'two'.", "whole number"),
        ({"gpus": 1.5}, "gpu_gate_gpus is 1.5.", "whole number"),
        ({"gpus": -1}, "gpu_gate_gpus is -1.", "from 0 to 1024"),
        ({"memory_slack": 5}, "gpu_gate_memory_slack is 5.", "from 0 to 0.9"),
        ({"memory_gib": 80_000}, "gpu_gate_memory_gib is 80000.", "from 0 to 1024"),
        ({"min_capability": 80}, "gpu_gate_min_capability is 80.", "from 0 to 20"),
        ({"max_retired_pages": 0}, "gpu_gate_max_retired_pages is 0.", "from 1 to 64"),
        ({"min_disk_gib": -0.5}, "gpu_gate_min_disk_gib is -0.5.", "from 0 to 1,000,000"),
        ({"min_disk_gib": float("inf")}, "gpu_gate_min_disk_gib is inf.", "from 0 to 1,000,000"),
        ({"max_load": 0}, "gpu_gate_max_load is 0.", "from 0.1"),
        (
            {"warn_load": 20},
            "gpu_gate_warn_load is 20, above gpu_gate_max_load, which is 16.",
            "Set gpu_gate_max_load to 20 or more as well, or gpu_gate_warn_load to 16 or less.",
        ),
        (
            {"min_memory_gib": 3, "warn_memory_gib": 1},
            "gpu_gate_min_memory_gib is 3, above",
            "1 or",
        ),
        ({"warn_shm_mib": 8}, "gpu_gate_min_shm_mib is 16, above gpu_gate_warn_shm_mib", "8 or"),
        ({"max_clock_skew": 10}, "gpu_gate_warn_clock_skew is 30, above", "or more"),
        ({"gpus": True}, "gpu_gate_gpus is True.", "whole number"),
        ({"min_disk_gib": "nan"}, "gpu_gate_min_disk_gib is 'nan'.", "a number"),
        ({"max_load": None}, "gpu_gate_max_load is None.", "a number"),
        ({"need_persistence": "perhaps"}, "gpu_gate_need_persistence is 'perhaps'", "true or"),
    ],
)
def test_wrong_threshold(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(TrainError) as error:
        Limits.of(given)
    assert message in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize("kind", [Limits, ActiveLimits])
def test_every_threshold_has_bounds_and_its_default_lies_within(kind: Any) -> None:
    for field in dataclasses.fields(kind):
        if field.type == "bool":
            continue
        least, most = field.metadata["least"], field.metadata["most"]
        assert least <= field.default <= most
        for beyond in (least - 1, most * 2):
            with pytest.raises(TrainError, match=f"{kind.prefix}{field.name} is"):
                kind.of({field.name: beyond})


def test_thresholds_of_the_active_gate() -> None:
    assert ActiveLimits.of({"timeout": "30"}).timeout == 30
    with pytest.raises(TrainError, match="active_gate_min_bandwidth is 5, above active_gate_warn"):
        ActiveLimits.of({"min_bandwidth": 5})


@pytest.mark.parametrize("value", [0, -1, 46, "x", None, True, float("nan")])
def test_timeout_that_is_none(value: Any) -> None:
    with pytest.raises(TrainError, match="gpu_gate_timeout is"):
        timeout(value)


@pytest.mark.parametrize("value", ["", " ", None, True, ["nvidia-smi"]])
def test_program_that_is_none(value: Any) -> None:
    with pytest.raises(TrainError, match=r"gpu_gate_nvidia_smi is .* names no program"):
        program(value)


def test_no_two_checks_of_both_gates_have_one_name() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert {"driver", "chat_template"} <= set(NAMES)


def test_silenced_checks_keep_their_reasons() -> None:
    given = {"gpu_ecc": " known\nsince Monday ", "load": "it is ours"}
    assert silenced(given, NAMES) == {"gpu_ecc": "known since Monday", "load": "it is ours"}
    assert silenced({}, NAMES) == {}
    assert silenced(None, NAMES) == {}
    for name in NAMES:
        assert silenced({name: "x"}, NAMES) == {name: "x"}


@pytest.mark.parametrize(
    ("given", "message", "hint"),
    [
        ({"gpu_ec": "x"}, "gpu_gate_silence names gpu_ec, which is no check.", "mean gpu_ecc?"),
        ({"xyz": "x"}, "gpu_gate_silence names xyz, which is no check.", "The checks are driver,"),
        ({"gpu_ecc": ""}, "gpu_gate_silence gives no reason for gpu_ecc.", "Say why"),
        ({"gpu_ecc": "  "}, "gives no reason for gpu_ecc.", "Say why"),
        ({"gpu_ecc": None}, "gives no reason for gpu_ecc.", "Say why"),
        ({"gpu_ecc": True}, "gives no reason for gpu_ecc.", "Say why"),
    ],
)
def test_wrong_silence(given: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(TrainError) as error:
        silenced(given, NAMES)
    assert message in error.value.message
    assert hint in error.value.hint
