"""`playbooks/report.yml`: the page of a run, drawn again from what is at home, without a host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.sites import Outcome
from tests.unit.report_home import RUN, Home

INVENTORY = "gpu_hosts: {hosts: {gpu.invalid: {}}}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "hosts.yml").write_text(INVENTORY, encoding="utf-8")
    made = Home(tmp_path / "home", questions=4, steps=5)
    made.write()
    return made


@pytest.fixture
def draw(
    home: Home, run_playbook: Callable[..., Outcome], tmp_path: Path
) -> Callable[..., Outcome]:
    def run(*arguments: str) -> Outcome:
        places = ["-i", str(tmp_path / "hosts.yml"), "-e", f"collect_dest={home.path}"]
        return run_playbook(*places, *arguments, playbook="playbooks/report.yml")

    return run


def test_the_newest_run_is_drawn_and_no_host_is_reached(
    home: Home, draw: Callable[..., Outcome]
) -> None:
    outcome = draw("-e", "report_language=zh")
    assert outcome.status == 0, outcome.output
    assert outcome.lines[-1] == f"Report: {home.page}"
    assert 'lang="zh-CN"' in home.page.read_text(encoding="utf-8")


def test_a_check_draws_nothing(home: Home, draw: Callable[..., Outcome]) -> None:
    outcome = draw("--check", "-e", f"report_run={RUN}")
    assert outcome.status == 0, outcome.output
    assert f"would draw the page of {RUN} in {home.path}" in outcome.lines
    assert not home.page.exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("report_run=run_20200101T000000Z", "There is no run 'run_20200101T000000Z'"),
        ("report_language=fr", "report_language is 'fr'"),
        ("collect_dest=/nowhere", "There is no run in /nowhere."),
    ],
)
def test_what_is_wrong_is_one_sentence(
    home: Home, draw: Callable[..., Outcome], setting: str, says: str
) -> None:
    outcome = draw("-e", setting)
    assert outcome.status == 2, outcome.output
    assert says in outcome.failures[0]
    assert not home.page.exists()
