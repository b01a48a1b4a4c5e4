"""The one question of a run: after `sample` has trained, whether to go on; asked of a person."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
import yaml

from tests.integration.sites import Outcome, Site

pytestmark = pytest.mark.ssh

QUESTION = "sample has trained. Go on with the other stages?"


def answer(site: Site, keys: str, *arguments: str) -> tuple[int, str]:
    """Run the playbook in a terminal and press ``keys`` when it asks.

    :returns: the exit status, and what the terminal showed after that.
    """
    child = site.spawn(*arguments)
    try:
        child.expect_exact(QUESTION)
        assert site.trained()[-1] == "sample"
        child.send(keys)
        child.expect(pexpect.EOF)
        shown = str(child.before)
    finally:
        child.close(force=True)
    assert child.signalstatus is None
    return int(child.exitstatus or 0), shown


def damaged(site: Site, *stages: str) -> Site:
    """The site with the adapters of some stages damaged, so that they train again."""
    for stage in stages:
        site.adapter(stage).write_bytes(b"damaged")
    return site


def states(run: Path) -> set[str]:
    """The state files of a run folder."""
    return {path.name for path in run.glob(".stage_*")}


@pytest.fixture(scope="module")
def stopped(
    first_run: tuple[Site, Outcome], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, int, str]:
    """A run that was answered with "n"."""
    site = first_run[0].clone(tmp_path_factory.mktemp("stopped") / "site")
    status, shown = answer(damaged(site, "sample", "style"), "n\r")
    return site, status, shown


def test_a_no_stops_the_run_and_is_no_failure(stopped: tuple[Site, int, str]) -> None:
    site, status, shown = stopped
    assert status == 0, shown
    assert site.trained() == ["sample"]
    assert "Train style" not in shown
    assert "FAILED" not in shown


def test_after_a_no_the_results_so_far_are_at_home(stopped: tuple[Site, int, str]) -> None:
    site, _, shown = stopped
    run = site.runs()[-1]
    assert {".stage_manual_stop", ".stage_sample_done", ".stage_collect_done"} <= states(run)
    assert not any(name.startswith(".stage_style") for name in states(run))
    at_home = site.home / "training_sync" / run.name
    assert (at_home / ".stage_manual_stop").is_file()
    summary = (at_home / "TRAINING_SUMMARY.md").read_text(encoding="utf-8")
    assert summary.startswith(f"# {run.name}: stopped as asked\n")
    assert re.search(r"^style +not reached", shown, re.MULTILINE)
    model = "adapter/adapter_sample/adapter_model.safetensors"
    assert (site.home / model).read_text(encoding="utf-8") == "sample at 0.0001\n"


def test_enter_goes_on_and_so_does_the_run_after_a_no(stopped: tuple[Site, int, str]) -> None:
    site, _, _ = stopped
    before = len(site.runs())
    # `style` is still damaged.
    status, shown = answer(damaged(site, "sample"), "\r")
    assert status == 0, shown
    assert site.trained() == ["sample", "sample", "style"]
    assert len(site.runs()) == before + 1
    assert not (site.runs()[-1] / ".stage_manual_stop").exists()


def test_a_run_that_is_told_not_to_ask_doesnt(trained_clone: Callable[..., Site]) -> None:
    site = damaged(trained_clone(), "sample", "style")
    child = site.spawn("-e", "assume_yes=true")
    try:
        assert child.expect_exact([QUESTION, pexpect.EOF]) == 1
    finally:
        child.close(force=True)
    assert child.exitstatus == 0
    assert site.trained() == ["sample", "style"]


def test_without_a_terminal_nothing_is_asked(first_run: tuple[Site, Outcome]) -> None:
    site, outcome = first_run
    assert QUESTION not in outcome.output
    assert not (site.runs()[0] / ".stage_manual_stop").exists()


# Several hosts


@pytest.fixture
def pair(trained_clone: Callable[..., Site]) -> tuple[Site, Path]:
    """A site with a second host; that one's project root."""
    site = trained_clone()
    second = site.host / "tutor2"
    shutil.copytree(site.root, second, symlinks=True)
    path = site.folder / "hosts.yml"
    inventory = yaml.safe_load(path.read_text(encoding="utf-8"))
    hosts = inventory["gpu_hosts"]["hosts"]
    home = str(site.folder / "home2")
    hosts["other"] = {**hosts["gpu"], "project_root": str(second), "collect_dest": home}
    path.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    return site, second


def spoil(root: Path, *stages: str) -> None:
    """Damage adapters below a project root, so that they train again."""
    for stage in stages:
        (root / f"outputs/adapter/adapter_{stage}/adapter_model.safetensors").write_bytes(b"x")


@pytest.mark.parametrize(
    ("keys", "trained"),
    [("n\r", ["sample", "sample"]), ("\r", ["sample", "sample", "style", "style"])],
    ids=["no", "yes"],
)
def test_one_answer_holds_for_every_host(
    pair: tuple[Site, Path], keys: str, trained: list[str]
) -> None:
    site, second = pair
    for root in (site.root, second):
        spoil(root, "sample", "style")
    status, shown = answer(site, keys)
    assert status == 0, shown
    assert QUESTION not in shown
    assert site.trained() == trained


@pytest.mark.parametrize(
    "asking",
    [
        pytest.param(0, id="the first asks"),
        pytest.param(
            1,
            id="the last asks",
        ),
    ],
)
def test_a_no_stops_a_host_that_had_nothing_to_ask(pair: tuple[Site, Path], asking: int) -> None:
    site, second = pair
    roots = [site.root, second]
    spoil(roots[asking], "sample", "style")
    spoil(roots[1 - asking], "style")
    status, shown = answer(site, "n\r")
    assert status == 0, shown
    assert site.trained() == ["sample"]


def test_a_host_whose_sample_failed_keeps_no_other_from_asking(pair: tuple[Site, Path]) -> None:
    site, second = pair
    for root in (site.root, second):
        spoil(root, "sample", "style")
    # A file in the way of the first host's adapter: its stage's command can't write it.
    folder = site.adapter("sample").parent
    shutil.rmtree(folder)
    folder.touch()
    status, shown = answer(site, "n\r", "-e", "on_stage_failure=continue")
    assert status != 0, shown
    assert site.trained() == ["sample", "sample"]
