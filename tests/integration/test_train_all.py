"""The main job over a real sshd: trained, gathered, at home, and done again only where it must."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.sites import ADAPTERS, COMMAND, PROJECT, STAGES, Outcome, Site, tree

pytestmark = pytest.mark.ssh

NewSite = Callable[..., Site]
Clone = Callable[..., Site]


def check_sums(folder: Path, listing: str) -> list[str]:
    """The lines of coreutils' own verdict; every file of the list has to be right."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", listing],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def without_digests(found: dict[str, bytes | str]) -> dict[str, bytes | str]:
    """A tree without what a look at it leaves: the digests of files, which any look may mend."""
    return {
        name: text for name, text in found.items() if not name.endswith("training_sync/digests")
    }


def states(run: Path) -> list[str]:
    """The state files of a run folder."""
    return sorted(path.name for path in run.glob(".stage_*"))


# A whole run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(first_run: tuple[Site, Outcome]) -> tuple[dict[str, bytes | str], Outcome, Site]:
    """The same command again: the site's tree before it, and what it showed."""
    site, _ = first_run
    before = tree(site.folder)
    return before, site.run(), site


def test_every_stage_leaves_a_marker_with_its_outputs(first_run: tuple[Site, Outcome]) -> None:
    site, _ = first_run
    for stage in STAGES:
        marker = json.loads(site.marker(stage).read_text(encoding="utf-8"))
        assert (marker["stage"], marker["status"]) == (stage, "done")
        assert marker["run"] == site.runs()[-1].name
        assert set(marker["outputs"]) == {
            f"outputs/adapter/{ADAPTERS[stage]}/{name}"
            for name in ("adapter_model.safetensors", "adapter_config.json")
        }
        # Of what the user's own command imports, nothing is known.
        assert marker["inputs"]["packages"] == {}


def test_stages_run_in_their_order_each_once(first_run: tuple[Site, Outcome]) -> None:
    site, _ = first_run
    assert site.trained() == list(STAGES)


def test_the_run_folder_says_how_each_step_ended(first_run: tuple[Site, Outcome]) -> None:
    site, _ = first_run
    assert len(site.runs()) == 1
    run = site.runs()[0]
    assert states(run) == sorted(f".stage_{name}_done" for name in ("precheck", *STAGES, "collect"))
    names = {path.name for path in run.iterdir()}
    assert {
        "precheck.json",
        "TRAINING_SUMMARY.md",
        "ISSUES.md",
        "issues.jsonl",
        "SHA256SUMS",
        "outputs.sha256",
    } <= names
    logs = [name for name in names if name.endswith(".log")]
    assert len(logs) == len(STAGES)


def test_sha256sum_agrees_on_the_host_and_at_home(first_run: tuple[Site, Outcome]) -> None:
    site, _ = first_run
    run = site.runs()[0]
    at_home = site.home / "training_sync" / run.name
    own = check_sums(run, "SHA256SUMS")
    listed = {line.rpartition(": ")[0] for line in own}
    there = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert listed == {name for name in there if not name.startswith("kept/")} - {"SHA256SUMS"}
    assert check_sums(at_home, "SHA256SUMS") == own
    # Its paths start at project_root, which is the folder above outputs.
    outputs = check_sums(site.root, str(run / "outputs.sha256"))
    # 4 stages: two files of the adapter, the marker and the log each.
    assert len(outputs) == 16
    for folder in (run, at_home):
        assert check_sums(folder / "kept", str(folder / "outputs.sha256")) == outputs
    as_on_host = site.folder / "as_on_host"
    as_on_host.mkdir()
    (as_on_host / "outputs").symlink_to(site.home)
    assert check_sums(as_on_host, str(at_home / "outputs.sha256")) == outputs
    shutil.rmtree(as_on_host)


def test_everything_comes_home_and_nothing_else(first_run: tuple[Site, Outcome]) -> None:
    site, outcome = first_run
    run = site.runs()[0].name
    wanted = {
        name.partition("/")[2]: content
        for name, content in tree(site.root).items()
        if name.startswith(("outputs/adapter", "outputs/logs", "outputs/training_sync/stages"))
        or name.startswith(f"outputs/training_sync/{run}")
    }
    page = f"training_sync/{run}/report.html"
    at_home = tree(site.home)
    assert b"<!DOCTYPE html>" in at_home.pop(page)
    assert at_home == wanted | {"training_sync": "folder"}
    assert outcome.lines[-1] == f"Report: {site.home}/{page}"


def test_the_project_is_on_the_host_and_its_neighbour_untouched(
    first_run: tuple[Site, Outcome],
) -> None:
    site, _ = first_run
    there = {name: text for name, text in tree(site.root).items() if "outputs" not in name}
    assert there == tree(site.src)
    assert (site.host / "neighbour.txt").read_text(encoding="utf-8") == "not ours\n"
    assert list(site.sync.glob("incoming/*")) == []


def test_a_second_run_has_nothing_to_do(
    second: tuple[dict[str, bytes | str], Outcome, Site],
) -> None:
    before, outcome, site = second
    assert outcome.status == 0, outcome.output
    for stage in STAGES:
        assert "skips: up to date (-e force=true trains it again)" in outcome.plan_of(stage)
    assert all(counts["changed"] == 0 for counts in outcome.recap.values()), outcome.output
    at_home = {name: content for name, content in tree(site.home).items() if content != "folder"}
    # What is kept with the run is what lies beside it, and is in the other list.
    count = sum("/kept/" not in name and not name.endswith("/report.html") for name in at_home)
    assert f"{count} files verified in {site.home} (0 fetched)" in outcome.lines
    assert without_digests(tree(site.folder)) == without_digests(before)


# Done again only where it must ------------------------------------------------------------------


def test_a_file_that_is_missing_at_home_is_fetched_again(trained_clone: Clone) -> None:
    site = trained_clone()
    gone = site.home / "adapter/adapter_style/adapter_model.safetensors"
    wanted = gone.read_bytes()
    gone.unlink()
    before = tree(site.root)
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    assert "(1 fetched)" in outcome.output
    assert gone.read_bytes() == wanted
    assert outcome.recap["gpu"]["changed"] == 1
    after = tree(site.root)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed - {"outputs/training_sync/digests"} <= {
        f"outputs/training_sync/outgoing/home{ending}"
        for ending in (".tar.gz", ".tar.gz.sha256", ".SYNC_MANIFEST.sha256")
    }


def test_a_file_that_was_changed_at_home_is_put_right(trained_clone: Clone) -> None:
    site = trained_clone()
    model = site.home / "adapter/adapter_multitask/adapter_model.safetensors"
    wanted = model.read_bytes()
    model.write_bytes(wanted.upper())
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    assert "(1 fetched)" in outcome.output
    assert model.read_bytes() == wanted


def test_a_damaged_adapter_is_trained_again_and_no_other(trained_clone: Clone) -> None:
    site = trained_clone()
    model = site.adapter("writing")
    right = model.read_bytes()
    model.write_bytes(right[:-1] + b"?")
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    name = f"outputs/adapter/{ADAPTERS['writing']}/adapter_model.safetensors"
    assert outcome.plan_of("writing").endswith(f"trains: {name} is damaged")
    assert site.trained() == ["writing"]
    assert model.read_bytes() == right
    assert (site.home / name.partition("/")[2]).read_bytes() == right
    assert states(site.runs()[-1]) == [
        ".stage_all_skipped",
        ".stage_collect_done",
        ".stage_precheck_done",
        ".stage_sample_skipped",
        ".stage_style_skipped",
        ".stage_writing_done",
    ]


def test_a_changed_setting_is_named_with_both_values(first_run: tuple[Site, Outcome]) -> None:
    site, _ = first_run
    changed = json.dumps({"stage_settings": {"style": {"learning_rate": 0.0002}}})
    outcome = site.run("-e", changed, playbook="playbooks/plan.yml")
    assert outcome.status == 0, outcome.output
    assert outcome.plan_of("style").endswith("trains: settings.learning_rate 0.0001 -> 0.0002")
    for stage in ("sample", "writing", "all"):
        assert "skips: up to date" in outcome.plan_of(stage)


# Tags -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def style_alone(new_site: NewSite) -> tuple[Site, Outcome]:
    """``--tags style`` where nothing has been trained."""
    site = new_site()
    return site, site.run("--tags", "style")


def test_a_stages_tag_brings_the_steps_along_and_no_other_stage(
    style_alone: tuple[Site, Outcome],
) -> None:
    site, outcome = style_alone
    assert outcome.status == 0, outcome.output
    # An untrained sample doesn't block it.
    assert site.trained() == ["style"]
    for stage in ("sample", "writing", "all"):
        assert outcome.plan_of(stage).endswith("left out: not among the tags")
    assert states(site.runs()[0]) == [
        ".stage_collect_done",
        ".stage_precheck_done",
        ".stage_style_done",
    ]
    assert (site.home / "adapter/adapter_style/adapter_model.safetensors").is_file()


def test_a_stages_tag_with_a_valid_marker_skips_and_says_what_retrains(
    style_alone: tuple[Site, Outcome],
) -> None:
    site, _ = style_alone
    outcome = site.run("--tags", "style")
    assert outcome.status == 0, outcome.output
    assert outcome.plan_of("style").endswith("skips: up to date (-e force=true trains it again)")
    assert site.trained() == ["style"]
    assert outcome.recap["gpu"]["changed"] == 0
    assert len(site.runs()) == 1


def test_the_tag_multitask_is_the_stage_all_and_force_trains_what_is_up_to_date(
    trained_clone: Clone,
) -> None:
    site = trained_clone()
    outcome = site.run("--tags", "multitask", "-e", "force=true")
    assert outcome.status == 0, outcome.output
    assert outcome.plan_of("all").endswith("trains: force is set")
    assert site.trained() == ["all"]
    assert states(site.runs()[-1]) == [
        ".stage_all_done",
        ".stage_collect_done",
        ".stage_precheck_done",
    ]


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["--skip-tags", "writing,multitask"], ["sample", "style"]),
        (["--tags", "style,writing", "--skip-tags", "style"], ["writing"]),
        (["--tags", "all"], list(STAGES)),
        (["-e", "skip_sample=true"], ["style", "writing", "all"]),
    ],
    ids=" ".join,
)
def test_tags_choose_stages(new_site: NewSite, arguments: list[str], chosen: list[str]) -> None:
    outcome = new_site().run(*arguments, playbook="playbooks/plan.yml")
    assert outcome.status == 0, outcome.output
    assert [stage for stage in STAGES if " trains: " in outcome.plan_of(stage)] == chosen


def test_a_skipped_collect_is_made_up_for_by_the_next_run(trained_clone: Clone) -> None:
    site = trained_clone()
    site.adapter("style").unlink()
    shutil.rmtree(site.home)
    outcome = site.run("--tags", "style", "--skip-tags", "collect")
    assert outcome.status == 0, outcome.output
    assert site.trained() == ["style"]
    assert not site.home.exists()
    run = site.runs()[-1]
    again = site.run("--tags", "style")
    assert again.status == 0, again.output
    assert site.trained() == ["style"]
    assert site.runs()[-1] == run
    check_sums(site.home / "training_sync" / run.name, "SHA256SUMS")
    assert (site.home / "adapter/adapter_style/adapter_model.safetensors").is_file()


def test_skip_sample_leaves_a_damaged_sample_alone(trained_clone: Clone) -> None:
    site = trained_clone()
    site.adapter("sample").write_bytes(b"damaged")
    site.adapter("style").unlink()
    outcome = site.run("-e", "skip_sample=true")
    assert outcome.status == 0, outcome.output
    assert outcome.plan_of("sample").endswith("left out: skip_sample is set")
    assert site.trained() == ["style"]
    assert site.adapter("sample").read_bytes() == b"damaged"


# Check mode -------------------------------------------------------------------------------------


def test_check_mode_changes_nothing_and_shows_the_files(new_site: NewSite) -> None:
    site = new_site()
    before = tree(site.folder)
    outcome = site.run("--check", "--diff")
    assert outcome.status == 0, outcome.output
    assert tree(site.folder) == before
    for name in tree(site.src):
        assert ((site.src / name).is_dir()) != (f"+ {name}" in outcome.lines), name
    assert "~ outputs/training_sync/engine/ (this project's own code)" in outcome.lines
    for stage in STAGES:
        assert "trains: it has not been trained yet" in outcome.plan_of(stage)


def test_check_mode_shows_what_would_be_changed_and_removed(trained_clone: Clone) -> None:
    site = trained_clone()
    (site.src / "README.md").write_text("changed\n", encoding="utf-8")
    (site.src / "scripts/build_all_sft.py").unlink()
    before = tree(site.folder)
    outcome = site.run("--check", "--diff")
    assert outcome.status == 0, outcome.output
    assert tree(site.folder) == before
    assert "~ README.md" in outcome.lines
    assert "- scripts/build_all_sft.py" in outcome.lines


# Failures ---------------------------------------------------------------------------------------


def failed_run(site: Site, stage: str, damaged: tuple[str, ...]) -> tuple[Outcome, Path, Path]:
    """A run over some damaged adapters in which one stage fails.

    :returns: what it showed, its folder on the host, and that at home.
    """
    for name in damaged:
        site.adapter(name).write_bytes(b"damaged")
    site.fail(stage)
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    run = site.runs()[-1]
    return outcome, run, site.home / "training_sync" / run.name


def check_evidence(at_home: Path, stage: str) -> None:
    """What a failed stage leaves at home: verified, with the log's last lines in its issue."""
    check_sums(at_home, "SHA256SUMS")
    (log,) = at_home.glob(f"train_{stage}_*.log")
    assert "out of luck" in log.read_text(encoding="utf-8")
    issues = [json.loads(line) for line in (at_home / "issues.jsonl").open(encoding="utf-8")]
    (issue,) = [issue for issue in issues if issue["stage"] == stage]
    assert issue["symptom"] == "The command ended with exit status 7."
    assert (issue["phase"], issue["severity"]) == ("train", "error")
    assert "out of luck" in issue["cause"]
    assert issue["symptom"] in (at_home / "ISSUES.md").read_text(encoding="utf-8")


def test_a_failed_stage_stops_the_run_and_its_evidence_comes_home(trained_clone: Clone) -> None:
    site = trained_clone()
    outcome, run, at_home = failed_run(site, "style", ("style", "writing"))
    assert site.trained() == ["style"]
    assert states(run) == [
        ".stage_all_skipped",
        ".stage_collect_done",
        ".stage_precheck_done",
        ".stage_sample_skipped",
        ".stage_style_failed",
    ]
    check_evidence(at_home, "style")
    assert outcome.failures[0] == (
        "[gpu] The stage style failed: The command ended with exit status 7."
    )
    assert outcome.failures[-1] == (
        "[gpu] The run did not end well: the stage style failed; the stage writing was not reached."
    )
    # Mended, the same command goes on where it stopped.
    (site.folder / "fail.style").unlink()
    again = site.run()
    assert again.status == 0, again.output
    assert site.trained() == ["style", "style", "writing"]


def test_continue_runs_the_stages_that_dont_need_the_failed_one(trained_clone: Clone) -> None:
    site = trained_clone(on_stage_failure="continue")
    outcome, run, at_home = failed_run(site, "style", ("style", "writing"))
    assert site.trained() == ["style", "writing"]
    assert {".stage_style_failed", ".stage_writing_done"} <= set(states(run))
    check_evidence(at_home, "style")
    assert outcome.failures[-1] == "[gpu] The run did not end well: the stage style failed."


def test_continue_runs_no_stage_that_needs_the_failed_one(trained_clone: Clone) -> None:
    site = trained_clone(on_stage_failure="continue")
    outcome, run, at_home = failed_run(site, "sample", ("sample", "style"))
    assert site.trained() == ["sample"]
    assert ".stage_sample_failed" in states(run)
    assert ".stage_style_done" not in states(run)
    check_evidence(at_home, "sample")
    assert "the stage sample failed; " in outcome.failures[-1]


SCORED = """
mkdir -p outputs/adapter/adapter_style
echo "$STAGE" > outputs/adapter/adapter_style/adapter_model.safetensors
cat > outputs/training_sync/live/result.json <<'END'
{"status": "done", "metrics": {"scores": {"response_format": {"value": 0.25, "n": 8}}}}
END
"""
"""A training that reports a score, as this project's own does."""


@pytest.fixture(scope="module")
def scored(first_run: tuple[Site, Outcome], tmp_path_factory: pytest.TempPathFactory) -> Site:
    """``style``, trained, with a score of 0.25 and a threshold of 0.5."""
    site = first_run[0].clone(
        tmp_path_factory.mktemp("scored") / "site",
        stage_command=["sh", "-c", SCORED],
        stage_thresholds={"style": {"response_format": 0.5}},
        acceptance_gate="strict",
    )
    outcome = site.run("--tags", "style")
    assert outcome.status == 2, outcome.output
    assert outcome.failures == [
        "[gpu] The run did not end well: the acceptance gate fails style "
        "(response_format 0.25 is below 0.50)."
    ]
    return site


def test_a_strict_acceptance_gate_fails_the_run_and_not_the_stage(scored: Site) -> None:
    run = scored.runs()[-1]
    assert ".stage_style_done" in states(run)
    assert json.loads(scored.marker("style").read_text(encoding="utf-8"))["status"] == "done"
    summary = scored.home / "training_sync" / run.name / "TRAINING_SUMMARY.md"
    assert "response_format 0.25 is below 0.50" in summary.read_text(encoding="utf-8")


def test_a_score_below_its_threshold_is_no_reason_to_train_again(scored: Site) -> None:
    outcome = scored.run("--tags", "style", playbook="playbooks/plan.yml")
    assert "skips: up to date" in outcome.plan_of("style")


# On the GPU machine itself ----------------------------------------------------------------------


def test_it_runs_on_the_gpu_machine_itself(new_site: NewSite) -> None:
    site = new_site()
    # The project lies there already: nothing is synced, since project_src isn't given.
    shutil.copytree(site.src, site.root)
    given = {
        "project_root": str(site.root),
        "collect_dest": str(site.home),
        "gpu_gate": "off",
        "provision_python": "{{ ansible_playbook_python }}",
        "stage_command": ["sh", "-c", COMMAND],
    }
    arguments = ["-i", str(PROJECT / "inventory" / "local"), "-e", json.dumps(given)]
    outcome = site.playbooks.run(*arguments, cwd=site.folder)
    assert outcome.status == 0, outcome.output
    assert site.trained() == list(STAGES)
    assert "  sync sends: this project's own code" in outcome.output
    assert set(outcome.recap) == {"localhost"}
    check_sums(site.home / "training_sync" / site.runs()[0].name, "SHA256SUMS")
    assert (site.home / "adapter/adapter_multitask/adapter_model.safetensors").is_file()
    again = site.playbooks.run(*arguments, cwd=site.folder)
    assert again.status == 0, again.output
    assert again.recap["localhost"]["changed"] == 0
    assert len(site.runs()) == 1


def test_a_project_that_is_run_where_it_lies_is_not_synced_onto_itself(new_site: NewSite) -> None:
    site = new_site()
    before = tree(site.src)
    given = {"project_root": str(site.src), "project_src": str(site.src)}
    outcome = site.playbooks.run(
        *("-i", str(PROJECT / "inventory" / "local"), "-e", json.dumps(given)),
        playbook="playbooks/plan.yml",
        cwd=site.folder,
    )
    assert outcome.status == 0, outcome.output
    assert "  sync sends: this project's own code" in outcome.output
    assert tree(site.src) == before


# Steps by themselves, and hosts of a kind of their own -------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "playbook"),
    [(["--tags", "collect"], "train_all.yml"), ([], "playbooks/collect.yml")],
    ids=["tag", "playbook"],
)
def test_where_nothing_was_trained_collect_says_so_and_makes_nothing(
    new_site: NewSite, arguments: list[str], playbook: str
) -> None:
    site = new_site()
    outcome = site.run(*arguments, playbook=playbook)
    assert outcome.status == 0, outcome.output
    said = "nothing to collect: nothing has been trained on the host yet"
    assert outcome.lines.count(said) == 1
    assert not site.sync.exists()
    assert not site.home.exists()


def test_provision_alone_does_what_it_is_asked_for(trained_clone: Clone) -> None:
    nowhere = "/nowhere/bin/python"
    site = trained_clone(provision_python=nowhere)
    outcome = site.run("--tags", "provision")
    assert outcome.status == 2, outcome.output
    assert nowhere in outcome.failures[0]
    # The last word repeats the one step's sentence.
    assert outcome.failures[-1].startswith("[gpu] The run did not end well: ")
    assert outcome.failures[0].removeprefix("[gpu] ").rstrip(".") in outcome.failures[-1]


def test_a_precheck_alone_looks_at_the_data_and_collect_does_not_mind_it(
    trained_clone: Clone,
) -> None:
    site = trained_clone()
    data = site.src / "data/training/processed/style_sft.jsonl"
    data.write_text("{broken\n", encoding="utf-8")
    for step in ("precheck", "sync"):
        outcome = site.run("--tags", step)
        assert outcome.status == 2, outcome.output
        assert "data/training/processed/style_sft.jsonl" in outcome.failures[0]
    (site.home / "adapter/adapter_style/adapter_model.safetensors").unlink()
    outcome = site.run(playbook="playbooks/collect.yml")
    assert outcome.status == 0, outcome.output
    assert "(1 fetched)" in outcome.output


def test_a_log_that_was_removed_on_the_host_is_no_obstacle(trained_clone: Clone) -> None:
    site = trained_clone()
    next(site.root.glob("outputs/logs/*.log")).unlink()
    shutil.rmtree(site.home)
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    assert site.trained() == []
    assert len(site.runs()) == 1
    check_sums(site.home / "training_sync" / site.runs()[0].name, "SHA256SUMS")
    again = site.run()
    assert again.recap["gpu"]["changed"] == 0, again.output


def test_outputs_may_be_a_link_to_a_bigger_disk(new_site: NewSite) -> None:
    site = new_site()
    disk = site.folder / "disk"
    disk.mkdir()
    site.root.mkdir()
    (site.root / "outputs").symlink_to(disk)
    outcome = site.run("--tags", "style")
    assert outcome.status == 0, outcome.output
    assert (site.home / "adapter/adapter_style/adapter_model.safetensors").is_file()
    check_sums(site.home / "training_sync" / site.runs()[0].name, "SHA256SUMS")
    assert list((disk / "training_sync/outgoing").iterdir()) == []


def test_a_run_that_is_over_is_collected_before_the_gate_stops_the_next(
    trained_clone: Clone,
) -> None:
    site = trained_clone()
    site.adapter("style").unlink()
    assert site.run("--tags", "style", "--skip-tags", "collect").status == 0
    run = site.runs()[-1]
    assert not (run / "SHA256SUMS").exists()
    outcome = site.run("-e", "gpu_gate=strict", "-e", "gpu_gate_min_disk_gib=1000000")
    assert outcome.status == 2, outcome.output
    at_home = site.home / "training_sync" / run.name
    assert at_home.is_dir(), outcome.output
    check_sums(at_home, "SHA256SUMS")
    record = json.loads((at_home / "run.json").read_text(encoding="utf-8"))
    assert record["verdict"] == "done"
    assert record["started"] == json.loads((run / "stage_style.json").read_text())["started"]
    assert "None" in (at_home / "ISSUES.md").read_text(encoding="utf-8")
