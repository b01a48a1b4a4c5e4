"""Markers: a stage is skipped exactly when its marker, its inputs and its outputs allow it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote_train import fingerprint, markers
from tests.unit.stage_host import (
    BENCHMARK,
    CODE,
    PACKAGES,
    TRAIN,
    build,
    done_marker,
    inputs_of,
    project,
    put,
    stage_of,
)

WEIGHTS = "outputs/adapter/adapter_style/adapter_model.safetensors"


class Stage:
    """The stage ``style`` as a good training left it."""

    def __init__(self, root: Path) -> None:
        self.root = project(root)
        self.request = build(project_root=str(root))
        self.marker = done_marker(root, self.request)
        self.path = Path(markers.marker_path(str(root), "style"))

    def judge(
        self,
        ignored: tuple[str, ...] = (),
        force: bool = False,
        code: tuple[str, str] = CODE,
        packages: Any = PACKAGES,
        **changes: Any,
    ) -> dict[str, Any]:
        wanted = build(project_root=str(self.root), **changes)
        inputs, evaluation = fingerprint.stage_inputs(
            stage_of(wanted), str(self.root), code, packages, self.marker["inputs"]["base_model"]
        )
        return markers.judge(str(self.root), "style", inputs, evaluation, list(ignored), force)

    def change(self, **fields: Any) -> None:
        """Change fields of the marker's file; None takes one out."""
        marker = {**json.loads(self.path.read_text()), **fields}
        self.path.write_text(json.dumps({k: v for k, v in marker.items() if v is not None}))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_good_marker_means_skip(stage):
    assert stage.judge() == {"action": "skip", "reasons": ["up to date"], "warnings": []}


def test_a_marker_has_the_fields_of_the_design_brief(stage):
    marker = json.loads(stage.path.read_text())
    assert marker["schema"] == 1
    assert marker["stage"] == "style"
    assert marker["outputs"][WEIGHTS]["size"] == 7
    assert len(marker["outputs"][WEIGHTS]["sha256"]) == 64
    assert stage.path == stage.root / "outputs/training_sync/stages/style.json"
    assert markers.read(str(stage.root), "style") == (marker, "")


def test_no_marker_is_no_warning(stage):
    stage.path.unlink()
    reasons = ["it has not been trained yet"]
    assert stage.judge() == {"action": "train", "reasons": reasons, "warnings": []}


def truncated(stage: Stage) -> None:
    stage.path.write_bytes(stage.path.read_bytes()[:-20])


def emptied(stage: Stage) -> None:
    stage.path.write_bytes(b"")


def folder(stage: Stage) -> None:
    stage.path.unlink()
    stage.path.mkdir()


def link_to_itself(stage: Stage) -> None:
    stage.path.unlink()
    stage.path.symlink_to(stage.path)


def file_for_the_folder(stage: Stage) -> None:
    stage.path.unlink()
    stage.path.parent.rmdir()
    stage.path.parent.write_text("")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "can't be read"),
        (emptied, "can't be read"),
        (folder, "can't be read"),
        (link_to_itself, "can't be read"),
        (file_for_the_folder, "can't be read"),
        (lambda s: s.path.write_bytes(b"\xff\xfe{}"), "can't be read"),
        (lambda s: s.path.write_text("[" * 100_000), "can't be read"),
        (lambda s: s.path.write_text("[]"), "is not of schema 1"),
        (lambda s: s.path.write_text("null"), "is not of schema 1"),
        (lambda s: s.change(schema=2), "is not of schema 1"),
        (lambda s: s.change(schema=None), "is not of schema 1"),
        (lambda s: s.change(inputs=None), "lacks one of inputs"),
        (lambda s: s.change(evaluation=[]), "lacks one of inputs"),
        (lambda s: s.change(outputs=None), "lacks one of inputs"),
        (lambda s: s.change(metrics=1), "lacks one of inputs"),
        (lambda s: s.change(outputs={}), "doesn't list what came out"),
        (lambda s: s.change(outputs={WEIGHTS: "abc"}), "doesn't list what came out"),
    ],
)
def test_a_marker_that_cannot_be_used_warns_and_trains(stage, damage, words):
    damage(stage)
    verdict = stage.judge()
    assert verdict["action"] == "train"
    assert verdict["reasons"] == ["its marker can't be read"]
    (warning,) = verdict["warnings"]
    assert words in warning
    assert str(stage.path) in warning


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda s: s.change(status="failed"), "it did not end well"),
        (lambda s: s.change(status=None), "it did not end well"),
        (
            lambda s: s.change(fingerprint="sha256:0"),
            "its marker's fingerprint is not that of its inputs",
        ),
        (
            lambda s: s.change(inputs={**s.marker["inputs"], "code": "sha256:\ud800"}),
            "its marker's fingerprint is not that of its inputs",
        ),
        (lambda s: (s.root / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (lambda s: put(s.root, {WEIGHTS: b"other  "}), f"{WEIGHTS} is damaged"),
        (lambda s: put(s.root, {WEIGHTS: b"weights\n"}), f"{WEIGHTS} is damaged"),
        (lambda s: put(s.root, {WEIGHTS: b""}), f"{WEIGHTS} is damaged"),
        (
            lambda s: ((s.root / WEIGHTS).unlink(), (s.root / WEIGHTS).mkdir()),
            f"{WEIGHTS} is missing",
        ),
        (lambda s: s.change(outputs={WEIGHTS: {}}), f"{WEIGHTS} is damaged"),
    ],
)
def test_a_marker_that_does_not_hold_trains(stage, damage, reason):
    damage(stage)
    assert stage.judge() == {"action": "train", "reasons": [reason], "warnings": []}


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ({"learning_rate": 0.0002}, ["settings.learning_rate 0.0001 -> 0.0002"]),
        (
            {"code": ("sha256:" + "d" * 64, CODE[1])},
            ["code sha256:cccccccc -> sha256:dddddddd"],
        ),
        ({"packages": {"torch": "2.14.0"}}, ["packages.torch 2.13.0 -> 2.14.0"]),
        ({"packages": {**PACKAGES, "peft": "1"}}, ["packages.peft (absent) -> 1"]),
        ({"packages": None}, ["packages {'torch': '2.13.0'} -> (none)"]),
        (
            {"seed": 1, "lora_r": 2},
            ["settings.lora_r 16 -> 2", "settings.seed 42 -> 1"],
        ),
        ({"force": True}, ["force is set"]),
        # Training includes evaluating, so that a difference there is no reason of its own.
        (
            {"seed": 1, "max_new_tokens": 8, "code": (CODE[0], "sha256:new")},
            ["settings.seed 42 -> 1"],
        ),
    ],
    ids=str,
)
def test_other_inputs_train_and_are_named(stage, arguments, reasons):
    verdict = stage.judge(**arguments)
    assert (verdict["action"], verdict["reasons"]) == ("train", reasons)


def test_other_data_trains(stage):
    put(stage.root, {TRAIN: b"{}\n"})
    verdict = stage.judge()
    assert verdict["action"] == "train"
    assert verdict["reasons"][0].startswith(f"data.{TRAIN} sha256:")


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ({"max_new_tokens": 8}, ["evaluation.settings.max_new_tokens 512 -> 8"]),
        (
            {"code": (CODE[0], "sha256:" + "f" * 64)},
            ["evaluation.scorer sha256:eeeeeeee -> sha256:ffffffff"],
        ),
    ],
)
def test_when_only_the_evaluation_differs_only_evaluation_runs(stage, arguments, reasons):
    verdict = stage.judge(**arguments)
    assert (verdict["action"], verdict["reasons"]) == ("evaluate", reasons)


def test_another_benchmark_means_evaluation(stage):
    put(stage.root, {BENCHMARK: b"{}\n"})
    verdict = stage.judge()
    assert verdict["action"] == "evaluate"
    assert verdict["reasons"][0].startswith(f"evaluation.data.{BENCHMARK} sha256:")


def test_an_evaluation_fingerprint_that_is_not_its_evaluations_means_evaluation(stage):
    stage.change(evaluation_fingerprint="sha256:0")
    verdict = stage.judge()
    assert verdict["action"] == "evaluate"
    assert "evaluation_fingerprint" in verdict["reasons"][0]


@pytest.mark.parametrize(
    ("ignored", "arguments", "note"),
    [
        (
            ["packages.torch"],
            {"packages": {"torch": "2.14.0"}},
            "packages.torch 2.13.0 -> 2.14.0 (ignored by fingerprint_ignore)",
        ),
        (
            ["settings"],
            {"seed": 1},
            "settings.seed 42 -> 1 (ignored by fingerprint_ignore)",
        ),
        (
            ["code", "settings.seed"],
            {"code": ("sha256:" + "d" * 64, CODE[1])},
            "code sha256:cccccccc -> sha256:dddddddd (ignored by fingerprint_ignore)",
        ),
    ],
)
def test_ignored_fields_skip_and_are_shown(stage, ignored, arguments, note):
    verdict = stage.judge(ignored=tuple(ignored), **arguments)
    assert (verdict["action"], verdict["reasons"]) == ("skip", ["up to date", note])
    # Where something else counts, that alone is the reason.
    verdict = stage.judge(ignored=tuple(ignored), **{"lora_alpha": 1, **arguments})
    if "settings" not in ignored:
        assert (verdict["action"], verdict["reasons"]) == (
            "train",
            ["settings.lora_alpha 32 -> 1"],
        )


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("use_dora", True, "settings.use_dora False -> True"),
        ("use_rslora", True, "settings.use_rslora False -> True"),
        ("init_seed", 7, "settings.init_seed -1 -> 7"),
    ],
)
def test_a_setting_of_the_adapter_is_named_as_the_reason(stage, setting, value, reason):
    verdict = stage.judge(**{setting: value})
    assert (verdict["action"], verdict["reasons"]) == ("train", [reason])


def test_an_ignored_data_file_is_named_as_the_reason_names_it(stage):
    put(stage.root, {TRAIN: b"{}\n"})
    field = stage.judge()["reasons"][0].split(" ")[0]
    verdict = stage.judge(ignored=(field,))
    assert verdict["action"] == "skip"
    assert verdict["reasons"][1].startswith(field)


def test_ignored_fields_are_shown_beside_an_evaluation(stage):
    verdict = stage.judge(ignored=("settings.seed",), seed=1, max_new_tokens=8)
    assert verdict["action"] == "evaluate"
    assert verdict["reasons"] == [
        "evaluation.settings.max_new_tokens 512 -> 8",
        "settings.seed 42 -> 1 (ignored by fingerprint_ignore)",
    ]


def test_outputs_are_looked_at_although_fields_are_ignored(stage):
    (stage.root / WEIGHTS).unlink()
    assert stage.judge(ignored=("settings", "code", "data"))["action"] == "train"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_no_marker_whatever_is_in_it_breaks_the_plan(stage, data):
    field = data.draw(st.sampled_from(sorted(json.loads(stage.path.read_text()))))
    value = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3),
            lambda v: st.lists(v, max_size=2) | st.dictionaries(st.text(max_size=3), v, max_size=2),
            max_leaves=4,
        )
    )
    before = stage.path.read_bytes()
    try:
        stage.change(**{field: value})
        verdict = stage.judge()
        assert verdict["action"] in ("train", "evaluate", "skip")
        assert verdict["reasons"]
    finally:
        stage.path.write_bytes(before)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(cut=st.integers(min_value=0), content=st.binary(max_size=20))
def test_no_bytes_in_place_of_a_marker_break_the_plan(stage, cut, content):
    before = stage.path.read_bytes()
    try:
        at = cut % len(before)
        stage.path.write_bytes(before[:at] + content)
        assert stage.judge()["action"] == "train"
    finally:
        stage.path.write_bytes(before)


def test_a_marker_replaces_the_old_one_at_once(stage, monkeypatch):
    """A crash while it is written leaves the old marker, whole, and no temporary file."""
    before = stage.path.read_bytes()

    def crash(*_arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space"):
        markers.write(str(stage.root), "style", {**stage.marker, "status": "failed"})
    assert stage.path.read_bytes() == before
    assert os.listdir(stage.path.parent) == ["style.json"]


def test_names_in_other_encodings_can_be_outputs(stage):
    """A program of the user's may leave a file whose name is no UTF-8 in the adapter's folder."""
    name = "outputs/adapter/adapter_style/" + os.fsdecode(b"odd\xff")
    put(stage.root, {name: b"x"})
    marker = {**stage.marker, "outputs": markers.outputs_of(str(stage.root), [name, WEIGHTS])}
    markers.write(str(stage.root), "style", marker)
    assert stage.judge()["action"] == "skip"
    (stage.root / name).unlink()
    assert stage.judge()["reasons"] == [f"{name} is missing"]


def test_inputs_of_a_request_are_those_of_its_marker(stage):
    assert inputs_of(stage.root, stage.request)[0] == stage.marker["inputs"]
