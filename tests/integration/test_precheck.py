"""Both parts of the gate, as a person runs them; and its record where the host can't take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.sites import Outcome, Site, tree
from tests.integration.test_bad_input import STYLE, append_line
from tests.unit.small_disk import small_disk

pytestmark = pytest.mark.ssh

NewSite = Callable[..., Site]
PRECHECK = "playbooks/precheck.yml"
OWN_TRAINING: dict[str, Any] = {"stage_command": []}
"""The stages run this project's own training, so that its Python is asked."""


def result_of(outcome: Outcome, check: str) -> str:
    """What the last table that has a check says of it."""
    found = [line.split() for line in outcome.lines if line.startswith(f"{check} ")]
    assert found, outcome.output
    return found[-1][1]


def asked(outcome: Outcome) -> bool:
    """Whether the second part was shown."""
    return any(line.startswith("cpu_product ") for line in outcome.lines)


@pytest.mark.training
def test_both_parts_are_shown_though_the_first_fails(new_site: NewSite) -> None:
    site = new_site(**OWN_TRAINING)
    append_line("no JSON")(site)
    before = tree(site.host)
    outcome = site.run("--tags", "precheck", playbook=PRECHECK)
    assert outcome.status == 2, outcome.output
    assert result_of(outcome, "data_files") == "fail"
    assert result_of(outcome, "cpu_product") == "ok"
    (said,) = outcome.failures
    assert said.startswith(f"[gpu] The check data_files failed: {STYLE}, line 37: not JSON")
    assert tree(site.host) == before
    assert not site.home.exists()


@pytest.mark.training
def test_a_broken_tokenizer_fails_one_check(new_site: NewSite) -> None:
    """What depends on it says so, and gives no advice of its own."""
    site = new_site(**OWN_TRAINING)
    base = site.folder / "base"
    base.mkdir()
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2TokenizerFast"}), encoding="utf-8"
    )
    (base / "tokenizer.json").write_text('{"version": "1.0", "model": ', encoding="utf-8")
    (base / "model.safetensors").touch()
    outcome = site.run("-e", f"model_name_or_path={base}", playbook=PRECHECK)
    assert outcome.status == 2, outcome.output
    results = {name: result_of(outcome, name) for name in ("model_config", "tokenizer")}
    assert results == {"model_config": "ok", "tokenizer": "fail"}
    assert result_of(outcome, "chat_template") == result_of(outcome, "chat_tokens") == "skipped"
    (said,) = outcome.failures
    assert said.startswith(f"[gpu] The check tokenizer failed: {base}: ")
    assert said.endswith("Copy or fetch the model anew: its tokenizer.json is needed.")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "only commands of your own run"),
        (
            {**OWN_TRAINING, "provision_python": "/usr/bin/python3"},
            "the host has none that the training can use, see the check packages",
        ),
    ],
)
def test_where_the_second_part_can_not_run_a_line_says_why(
    new_site: NewSite, settings: dict[str, Any], words: str
) -> None:
    outcome = new_site(**settings).run(playbook=PRECHECK)
    assert f"The training's Python is not asked: {words}." in outcome.lines
    assert not asked(outcome)


# A disk that takes nothing ----------------------------------------------------------------------


def at_home(site: Site) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The record of the only run at home: precheck.json, and the issues."""
    (run,) = (site.home / "training_sync").iterdir()
    lines = (run / "issues.jsonl").read_text(encoding="utf-8").splitlines()
    record = json.loads((run / "precheck.json").read_text(encoding="utf-8"))
    assert (run / "ISSUES.md").is_file()
    return record, [json.loads(line) for line in lines]


def fill(folder: Path) -> None:
    """Take all room of the disk that a folder lies on."""
    with (folder / "filler").open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"\0" * 4096)
        except OSError:
            return


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_disk_that_takes_nothing_leaves_its_record_at_home(new_site: NewSite, how: str) -> None:
    with small_disk("size=512k" if how == "full" else "size=512k,ro") as disk:
        if how == "full":
            fill(disk)
        site = new_site(project_root=str(disk / "tutor"))
        outcome = site.run("--tags", "style")
        assert outcome.status == 2, outcome.output
        record, issues = at_home(site)
        assert not (disk / "tutor").exists()
    assert outcome.failures[0].startswith("[gpu] The check disk_writable failed: ")
    failed = [one["check"] for one in record["findings"] if one["result"] == "fail"]
    assert failed[0] == "disk_writable"
    assert record["stops"] is True
    assert {(issue["phase"], issue["severity"]) for issue in issues} == {("precheck", "error")}


def test_a_disk_that_takes_nothing_though_it_was_let_pass(new_site: NewSite) -> None:
    """The sync fails, and then the host can't take the record of that."""
    with small_disk("size=512k") as disk:
        fill(disk)
        site = new_site(
            project_root=str(disk / "tutor"),
            gpu_gate_silence=dict.fromkeys(
                ("disk_writable", "disk_free", "disk_inodes", "disk_models"), "said to be enough"
            ),
        )
        outcome = site.run("--tags", "style")
        assert outcome.status == 2, outcome.output
        record, issues = at_home(site)
    silenced = [one["check"] for one in record["findings"] if one["silenced"]]
    assert silenced[0] == "disk_writable"
    assert [issue["phase"] for issue in issues] == ["sync", "collect"], issues
    assert issues[1]["category"] == "infra"
    assert "there is no room on the target's disk" in issues[1]["symptom"]
    assert "What was seen from here is in " in outcome.output
