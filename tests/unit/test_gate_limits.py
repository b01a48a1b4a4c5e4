"""Thresholds and silenced checks, as a user gives them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from remote_train import gate_checks
from remote_train.errors import TrainError
from remote_train.gate_limits import Limits, silenced

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
        ({"gpus": -1}, "gpu_gate_gpus is -1.", "0 or more"),
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
