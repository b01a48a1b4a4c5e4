"""The accelerator's memory runs out: PyTorch's own error, raised by a hook of the tests."""

from __future__ import annotations

import signal
from typing import Any

from tests.integration.faults.direct import Project
from tests.integration.faults.lab import Lab
from tests.integration.faults.trainer import project_of

FULL = 256
"""The micro-batch's budget of an undisturbed training, in tokens: two rows of 128."""


def _oom(**fault: Any) -> dict[str, Any]:
    return {"id": "oom", "do": "oom", "when": "forward", "step": 5, **fault}


def _trained(lab: Lab, name: str, *faults: dict[str, Any]) -> Project:
    project = project_of(lab, name)
    project.faults(*faults)
    assert project.train() == 0, project.log
    return project


def _halved(project: Project) -> None:
    effective = project.result["effective"]
    assert effective["micro_batch_tokens"] == FULL // 2, effective
    assert effective["samples_per_step"] == 4
    assert [w for w in project.result["warnings"] if w["category"] == "oom"], project.result
    assert "memory" in project.log.lower()


def wherever_in_the_step(lab: Lab) -> None:
    """Before the first micro-batch, before the second, and after the second's gradients: the
    step is undone whole, since all three end in the same bytes."""
    ends = [
        _trained(lab, "first", _oom(micro=1)),
        _trained(lab, "second", _oom(micro=2)),
        _trained(lab, "gradients", _oom(micro=2, when="backward")),
    ]
    for project in ends:
        _halved(project)
        assert project.adapter == ends[0].adapter


def in_the_first_step(lab: Lab) -> None:
    """In the first step of all."""
    _halved(_trained(lab, "direct", _oom(step=1, micro=2)))


def then_killed(lab: Lab) -> None:
    """Out of memory, then killed: the budget is in the checkpoint, and the bytes are the same."""
    whole = _trained(lab, "whole", _oom(micro=2))
    project = project_of(lab, "killed")
    project.faults(_oom(micro=2))
    assert project.train_until(9, signal.SIGKILL) == -signal.SIGKILL
    assert project.train() == 0, project.log
    assert project.result["resumed_from"] >= 6
    assert project.adapter == whole.adapter
    _halved(project)


def down_to_one_sample(lab: Lab) -> None:
    """Whatever has more than one sample is too much: it ends well, one by one."""
    project = _trained(lab, "direct", {**_oom(), "step": 0, "above": 128})
    assert project.result["effective"]["micro_batch_tokens"] <= 128
    assert project.result["effective"]["samples_per_step"] == 4


def too_small_at_all(lab: Lab) -> None:
    """Even one sample is too much, and checkpointing doesn't help: a clear end."""
    project = project_of(lab)
    project.faults({**_oom(), "step": 0, "above": 1})
    assert project.train() == 1
    error = project.result["error"]
    assert error["category"] == "oom"
    assert "max_length" in error["action"]
    project.faults()
    assert project.train() == 0, project.log


def low_memory(lab: Lab) -> None:
    """On request it starts with one sample straight away; samples per step stay the same."""
    project = project_of(lab)
    project.job["low_memory"] = True
    assert project.train() == 0, project.log
    assert project.result["effective"]["micro_batch_tokens"] <= 128
    assert project.result["effective"]["samples_per_step"] in (4, 16)


def through_the_playbook(lab: Lab) -> None:
    """In a real run: done in one go, with the issue and what was in force."""
    site = lab.real(_oom(micro=2))
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    lab.settle(site, trained=None, adapter=None)
    issue = next(issue for issue in lab.issues(site) if issue["category"] == "oom")
    assert issue["severity"] == "warning"
    marker = lab.marker(site)
    assert marker["effective"]["micro_batch_tokens"] == FULL // 2
    same = _trained(lab, "direct", _oom(micro=2))
    assert same.adapter == site.adapter("style").read_bytes()
