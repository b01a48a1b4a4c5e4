"""Gathering a run: everything in one folder, under digests that the usual programs check."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from remote_train import gather, issues, kept, live, markers, plan, runs
from remote_train.errors import TrainError
from tests.unit.stage_host import RUN, build, done_marker, put

LOG = "outputs/logs/train_style_20260209T093000Z.log"
FINDING = {
    "check": "gpu_present",
    "scope": "gpu",
    "result": "warn",
    "seen": "there is no GPU",
    "expected": "1 or more",
    "action": "Rent one.",
}


class Run:
    """A host on which ``style`` has just trained, and what the controller knows of it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / runs.SYNC / RUN
        self.changes: dict[str, Any] = {"tags": ["sample", "style"], "acceptance_gate": "off"}
        self.controller: dict[str, Any] = {
            "started": "2026-02-09T09:30:00Z",
            "plan": [
                {"name": name, "action": action, "reasons": [why], "warnings": []}
                for name, action, why in (
                    ("sample", "skip", "up to date"),
                    ("style", "train", "settings.seed 1 -> 42"),
                    ("writing", "leave", "not among the tags"),
                    ("all", "leave", "not among the tags"),
                )
            ],
            "findings": [],
            "gate_stops": False,
            "issues": [],
            "python": {"path": "/opt/python", "python": "3.11.2", "packages": {"torch": "2.13"}},
            "gpus": [],
            "driver_version": "",
            "stopped": False,
            "failure": None,
        }
        request = self.request
        for name in ("sample", "style"):
            done_marker(root, request, name)
        put(root, {LOG: b"log\n"})
        self.record("style", state="done", reasons=["settings.seed 1 -> 42"], log=LOG)
        runs.mark(str(root), RUN, "style", "done")

    @property
    def request(self) -> Any:
        return build(project_root=str(self.root), **self.changes)

    def record(self, stage: str, **fields: Any) -> None:
        runs.record_stage(str(self.root), RUN, stage, fields)

    def gather(self) -> dict[str, Any]:
        return gather.gather(self.request, RUN, self.controller)

    def row(self, name: str) -> dict[str, Any]:
        stages = json.loads((self.folder / "run.json").read_text())["stages"]
        return next(stage for stage in stages if stage["name"] == name)

    def issues(self) -> list[dict[str, Any]]:
        return issues.read(str(self.folder / "issues.jsonl"))

    def symptoms(self) -> list[str]:
        return [issue["symptom"] for issue in self.issues()]


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "root")


def names(folder: Path) -> set[str]:
    """The files below a folder, but for those kept with a run: outputs.sha256 lists them."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(f"{kept.FOLDER}/")}


def checked_by_sha256sum(listing: Path, where: Path) -> set[str]:
    """The names in a list, after coreutils has found each of them as listed."""
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", str(listing)],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.removesuffix(": OK") for line in done.stdout.splitlines()}


# A run that went well


def test_the_page_of_a_run_is_in_no_list_of_the_hosts(run):
    """Home may be the host's own outputs, where the page lies beside what is gathered again."""
    run.gather()
    (run.folder / "report.html").write_text("drawn at home")
    answer = run.gather()
    assert "report.html" not in checked_by_sha256sum(run.folder / "SHA256SUMS", run.folder)
    assert not [one for one in answer["files"] if one["path"].endswith("report.html")]
    assert "report.html" not in (run.folder / "TRAINING_SUMMARY.md").read_text()


def test_what_a_page_needs_is_on_record(run):
    run.gather()
    record = json.loads((run.folder / "run.json").read_text())
    assert (record["acceptance_gate"], record["project_root"]) == ("off", str(run.root))
    assert record["environment"]["torch"] == "2.13"
    assert record["host"]
    style = next(stage for stage in record["stages"] if stage["name"] == "style")
    assert style["thresholds"]["response_format"] == 0.95
    assert style["adapter_dir"] == "outputs/adapter/adapter_style"


def test_the_folder_of_a_run_is_complete_and_sealed(run):
    answer = run.gather()
    assert answer["verdict"] == "done"
    assert answer["against"] == []
    listed = checked_by_sha256sum(run.folder / "SHA256SUMS", run.folder)
    assert listed | {"SHA256SUMS"} == names(run.folder)
    assert {
        "TRAINING_SUMMARY.md",
        "ISSUES.md",
        "issues.jsonl",
        "precheck.json",
        "run.json",
        "outputs.sha256",
        "stage_style.json",
        ".stage_precheck_skipped",
        ".stage_sample_skipped",
        ".stage_style_done",
        ".stage_collect_done",
        os.path.basename(LOG),
    } <= listed


def test_outputs_are_listed_by_their_paths_under_the_root(run):
    run.gather()
    assert checked_by_sha256sum(run.folder / "outputs.sha256", run.root) == {
        "outputs/adapter/adapter_sample/adapter_model.safetensors",
        "outputs/adapter/adapter_style/adapter_model.safetensors",
        "outputs/training_sync/stages/sample.json",
        "outputs/training_sync/stages/style.json",
        LOG,
    }


def test_what_is_to_be_brought_is_all_of_it_and_is_there(run):
    files = run.gather()["files"]
    for file in files:
        content = (run.root / file["path"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["size"] == len(content)
    own = {f"{runs.SYNC}/{RUN}/{name}" for name in names(run.folder)}
    assert own <= {file["path"] for file in files}
    assert len({file["path"] for file in files}) == len(files)


def test_the_next_plan_knows_what_was_gathered(run):
    files = run.gather()["files"]
    at_home = {file["path"]: file["sha256"] for file in plan.at_home(str(run.root))}
    assert at_home == {file["path"]: file["sha256"] for file in files}
    assert plan.uncollected(str(run.root)) is None


def test_what_ended_after_the_gathering_is_gathered_by_the_next_command(run):
    root = str(run.root)
    run.gather()
    run.record("style", state="done", log=LOG, ended="later")
    assert plan.at_home(root) == []
    assert plan.uncollected(root) == RUN
    run.gather()
    assert plan.uncollected(root) is None


def test_gathering_twice_says_the_same(run, monkeypatch):
    times = itertools.count(10)
    monkeypatch.setattr(issues, "now", lambda: f"2026-02-09T09:40:{next(times)}Z")
    run.controller["findings"] = [FINDING]
    run.controller["issues"] = [issues.make("train", "A cut.", category="infra")]
    run.gather()
    before = run.issues()
    run.gather()
    assert run.issues() == before
    assert len(before) == 2


def test_the_states_of_stages(run):
    run.gather()
    states = {name: run.row(name)["state"] for name in ("sample", "style", "writing", "all")}
    assert states == {
        "sample": "up to date",
        "style": "done",
        "writing": "left out",
        "all": "left out",
    }
    assert run.row("style")["metrics"]["steps"] == 8
    assert run.row("sample")["reasons"] == ["up to date"]
    assert run.row("writing")["metrics"] == {}


def test_reports_are_copied_so_that_the_folder_stands_alone(run):
    report = "outputs/adapter/adapter_style/eval_report_style"
    put(run.root, {f"{report}.json": b"{}", f"{report}.md": b"# Report\n"})
    run.gather()
    assert (run.folder / "eval_report_style.md").read_text() == "# Report\n"
    assert (run.folder / os.path.basename(LOG)).read_text() == "log\n"


def test_the_summary_says_with_what_it_was_trained(run):
    run.controller["gpus"] = [{"name": "NVIDIA H100"}, {"name": "NVIDIA H100"}]
    run.controller["driver_version"] = "570.1"
    answer = run.gather()
    page = (run.root / answer["summary"]).read_text()
    for words in ("NVIDIA H100, NVIDIA H100", "570.1", "3.11.2 (/opt/python)", "| torch | 2.13 |"):
        assert words in page
    assert "style" in answer["table"]


# What stays on the host

ADAPTER = "outputs/adapter/adapter_style"


@pytest.mark.parametrize(
    ("name", "comes"),
    [
        (f"{ADAPTER}/adapter_config.json", True),
        (f"{ADAPTER}/README.md", True),
        (f"{ADAPTER}/metrics.jsonl", True),
        (f"{ADAPTER}/runs/events.out.tfevents.1.gpu", True),
        (f"{ADAPTER}/training_args.bin", False),
        (f"{ADAPTER}/optimizer.pt", False),
        (f"{ADAPTER}/checkpoint-8/scheduler.pkl", False),
        (f"{ADAPTER}/rng_state.pth", False),
        (f"{ADAPTER}/.x.tmp", False),
        ("outputs/adapter/adapter_style.partial/adapter_config.json", False),
        ("outputs/adapter/somebody_elses/adapter_config.json", False),
        ("outputs/logs/train_all_1.log", True),
        ("outputs/logs/core", False),
        ("outputs/training_sync/stages/other.json", False),
        ("outputs/training_sync/live/job.json", False),
        ("data/training/secret.json", False),
    ],
)
def test_what_comes_home(run, name, comes):
    put(run.root, {name: b"x"})
    assert (name in {file["path"] for file in run.gather()["files"]}) is comes


def test_links_are_not_followed_out_of_the_project(run, tmp_path):
    put(tmp_path, {"secret.json": b"secret", "folder/secret.json": b"secret"})
    (run.root / ADAPTER / "link.json").symlink_to(tmp_path / "secret.json")
    (run.root / ADAPTER / "folder").symlink_to(tmp_path / "folder")
    assert not [file for file in run.gather()["files"] if "link" in file["path"]]
    assert not [file for file in run.gather()["files"] if "secret" in file["path"]]


def test_the_log_of_a_running_stage_is_not_finished(run):
    put(run.root, {"outputs/logs/train_all_2.log": b"x"})
    lock = live.take(str(run.root), {})
    status = {"state": "running", "log": "outputs/logs/train_all_2.log"}
    put(run.root, {f"{live.FOLDER}/status.json": json.dumps(status).encode()})
    try:
        paths = {file["path"] for file in run.gather()["files"]}
    finally:
        os.close(lock)
    assert "outputs/logs/train_all_2.log" not in paths
    assert LOG in paths


# Runs that did not go well

FAILURE = {
    "phase": "sync",
    "msg": "The disk is full.",
    "hint": "Free some space.",
    "category": "infra",
    "stage": None,
    "recorded": False,
}


def test_a_step_that_failed_is_an_issue_and_speaks_against_the_run(run):
    run.controller["failure"] = FAILURE
    run.controller["plan"][1]["action"] = "train"
    answer = run.gather()
    assert answer["verdict"] == "failed"
    assert answer["against"][0] == "The disk is full"
    (issue,) = run.issues()
    assert (issue["phase"], issue["category"]) == ("sync", "infra")
    assert issue["action"] == "Free some space."


def test_a_stage_that_failed_is_recorded_once(run):
    error = issues.make("train", "No memory is left.", category="oom", stage="style")
    issues.append(str(run.folder / "issues.jsonl"), error)
    run.record("style", state="failed", reasons=[], metrics={}, seconds=3, error=error, log=LOG)
    run.controller["failure"] = {
        **FAILURE,
        "phase": "train",
        "stage": "style",
        "msg": "The stage style failed: No memory is left.",
        "recorded": True,
    }
    answer = run.gather()
    assert answer["against"] == ["the stage style failed"]
    assert run.symptoms() == ["No memory is left."]
    assert run.row("style")["acceptance"] == ""
    page = (run.folder / "TRAINING_SUMMARY.md").read_text()
    assert "Read the issue of style" in page


@pytest.mark.parametrize("stops", [True, False], ids=["stop", "continue"])
def test_a_stage_that_failed_before_its_supervisor_began_is_on_record(run, stops):
    run.changes.update({"tags": ["style", "writing"]})
    run.controller["plan"][2].update(action="train", reasons=["it has not been trained yet"])
    failure = {**FAILURE, "phase": "train", "stage": "writing", "msg": "No Python trains."}
    if stops:
        run.controller["failure"] = failure
    else:
        run.controller["failed"] = [{k: v for k, v in failure.items() if k != "phase"}]
    answer = run.gather()
    assert answer["against"] == ["the stage writing failed: No Python trains"]
    assert run.row("writing")["state"] == "failed"
    assert (run.folder / ".stage_writing_failed").is_file()
    (issue,) = run.issues()
    assert (issue["phase"], issue["stage"]) == ("train", "writing")
    assert (issue["symptom"], issue["action"]) == ("No Python trains.", "Free some space.")


def test_a_stage_that_failed_on_the_host_needs_no_second_word(run):
    error = issues.make("train", "No memory is left.", category="oom", stage="style")
    issues.append(str(run.folder / "issues.jsonl"), error)
    run.record("style", state="failed", error=error)
    run.controller["failed"] = [{**FAILURE, "stage": "style", "recorded": True}]
    assert run.gather()["against"] == ["the stage style failed"]
    assert run.symptoms() == ["No memory is left."]


@pytest.mark.parametrize(
    ("started", "state"), [("2026-02-09T09:30:00Z", "done"), ("2026-02-09T11:00:00Z", "failed")]
)
def test_a_stage_that_was_lost_sight_of_is_what_it_says_itself(run, started, state):
    # It ended after this controller began; a record from before says nothing of this start.
    run.record("style", state="done", started="2026-02-09T09:31:00Z", ended="2026-02-09T10:00:00Z")
    run.controller["started"] = started
    run.controller["failed"] = [{**FAILURE, "stage": "style", "msg": "It gave no sign."}]
    run.gather()
    assert run.row("style")["state"] == state
    assert run.symptoms() == ["It gave no sign."]


def test_a_stage_that_runs_still_has_not_failed(run):
    run.controller["failed"] = [{**FAILURE, "stage": "all"}]
    lock = live.take(str(run.root), {})
    status = {"state": "running", "stage": "all"}
    put(run.root, {f"{live.FOLDER}/status.json": json.dumps(status).encode()})
    try:
        run.gather()
    finally:
        os.close(lock)
    assert not (run.folder / ".stage_all_failed").exists()


def test_a_run_that_is_only_collected_keeps_its_start_and_its_gate(run):
    run.controller["findings"] = [FINDING]
    run.gather()
    before = (run.folder / "precheck.json").read_text()
    run.record("style", state="done", started="2026-02-09T09:31:00Z")
    run.controller.update(findings=[], started="")
    run.gather()
    assert (run.folder / "precheck.json").read_text() == before
    assert (run.folder / ".stage_precheck_done").is_file()
    assert json.loads((run.folder / "run.json").read_text())["started"] == "2026-02-09T09:31:00Z"
    assert "there is no GPU" in (run.folder / "TRAINING_SUMMARY.md").read_text()


def test_what_a_run_did_stands_though_its_stage_is_not_chosen_now(run):
    run.controller["plan"][1]["action"] = "leave"
    run.gather()
    assert run.row("style")["state"] == "done"


def test_a_stage_that_was_not_reached_speaks_against_the_run(run):
    run.changes.update({"tags": ["style", "writing"]})
    run.controller["plan"][2].update(action="train", reasons=["it has not been trained yet"])
    answer = run.gather()
    assert answer["against"] == ["the stage writing was not reached"]
    assert run.row("writing")["state"] == "not reached"


def test_a_no_after_the_sample_is_a_good_end(run):
    run.changes.update({"tags": ["style", "writing"]})
    run.controller["plan"][2].update(action="train", reasons=["it has not been trained yet"])
    run.controller["stopped"] = True
    answer = run.gather()
    assert (answer["verdict"], answer["against"]) == ("stopped as asked", [])
    assert (run.folder / ".stage_manual_stop").is_file()


def test_a_damaged_marker_is_an_issue(run):
    run.controller["plan"][1]["warnings"] = ["The marker x can't be read (y)."]
    assert run.gather()["against"] == []
    (issue,) = run.issues()
    assert (issue["phase"], issue["category"], issue["severity"], issue["stage"]) == (
        "plan",
        "integrity",
        "warning",
        "style",
    )


def test_what_else_the_gate_told_is_kept(run):
    silenced = {**FINDING, "result": "skipped", "silenced": "known", "seen": "silenced: known"}
    run.controller.update(findings=[silenced], gate={"mode": "warn", "limits": {"gpus": 1}})
    run.gather()
    record = json.loads((run.folder / "precheck.json").read_text())
    assert (record["mode"], record["limits"]) == ("warn", {"gpus": 1})
    assert record["findings"] == [silenced]
    # What was silenced is said in the summary, and is no issue.
    assert "silenced: known" in (run.folder / "TRAINING_SUMMARY.md").read_text()
    assert run.issues() == []


@pytest.mark.parametrize(
    ("findings", "stops", "state", "severity"),
    [
        ([], False, "skipped", None),
        ([{**FINDING, "result": "ok"}], False, "done", None),
        ([FINDING], False, "done", "warning"),
        ([{**FINDING, "result": "fail"}], False, "done", "warning"),
        ([{**FINDING, "result": "fail"}], True, "failed", "error"),
        ([{**FINDING, "result": "unknown"}], False, "done", None),
    ],
)
def test_the_gates_findings(run, findings, stops, state, severity):
    run.controller.update(findings=findings, gate_stops=stops)
    run.gather()
    assert (run.folder / f".stage_precheck_{state}").is_file()
    record = json.loads((run.folder / "precheck.json").read_text())
    assert (record["findings"], record["stops"]) == (findings, stops)
    found = run.issues()
    assert [issue["severity"] for issue in found] == ([severity] if severity else [])
    if severity:
        assert found[0]["symptom"] == "gpu_present: there is no GPU"
        assert "there is no GPU" in (run.folder / "TRAINING_SUMMARY.md").read_text()


@pytest.mark.parametrize(
    ("mode", "verdict", "against", "count"),
    [
        (
            "strict",
            "failed",
            ["the acceptance gate fails style (key_point_coverage is absent: the benchmark has"],
            3,
        ),
        ("warn", "done", [], 3),
        ("off", "done", [], 0),
    ],
)
def test_the_acceptance_gate(run, mode, verdict, against, count):
    run.changes.update({"acceptance_gate": mode})
    answer = run.gather()
    assert answer["verdict"] == verdict
    assert [words[: len(against[0])] for words in answer["against"]] == against
    assert len(run.issues()) == count
    assert run.row("style")["acceptance"] == ("off" if mode == "off" else "failed")
    assert run.row("style")["state"] == "done"
    # The sample has no thresholds.
    assert run.row("sample")["acceptance"] == ("off" if mode == "off" else "no thresholds")


@pytest.mark.parametrize(("mode", "against"), [("strict", 1), ("warn", 0), ("off", 0)])
def test_a_stage_without_any_scores_fails_the_strict_gate_alone(run, mode, against):
    run.changes.update({"acceptance_gate": mode})
    path = markers.marker_path(str(run.root), "style")
    marker = json.loads(Path(path).read_text()) | {"metrics": {}}
    Path(path).write_text(json.dumps(marker))
    answer = run.gather()
    assert len(answer["against"]) == against
    assert run.row("style")["acceptance"] == ("failed" if against else "")
    assert all("its command reports no scores" in words for words in answer["against"])


def test_what_the_controller_saw_is_merged_in_the_order_of_time(run):
    early = {**issues.make("train", "A cut.", category="infra"), "time": "2026-02-09T09:00:00Z"}
    late = {**issues.make("train", "Late.", category="data"), "time": "2026-02-09T10:00:00Z"}
    issues.append(str(run.folder / "issues.jsonl"), late)
    run.controller["issues"] = [early]
    run.gather()
    assert run.symptoms() == ["A cut.", "Late."]
    assert "## 1. A cut." in (run.folder / "ISSUES.md").read_text()


def test_a_run_of_another_name_is_refused(run):
    with pytest.raises(TrainError, match="is not the name of a run"):
        gather.gather(run.request, "../../etc", run.controller)


# Packing


def test_a_pack_holds_what_is_named(run, tmp_path):
    files = [file["path"] for file in run.gather()["files"]]
    packed = gather.pack(str(run.root), files)
    assert packed["size"] == os.path.getsize(packed["bundle"])
    assert packed["sha256"] == hashlib.sha256(Path(packed["bundle"]).read_bytes()).hexdigest()
    with tarfile.open(packed["bundle"]) as archive:
        assert set(archive.getnames()) == {*files, "SYNC_MANIFEST.sha256"}
    assert gather.OUTGOING in packed["bundle"]


def test_a_file_that_is_gone_by_then_is_named(run):
    with pytest.raises(TrainError, match=r"^outputs/none\.json is no longer on the host") as caught:
        gather.pack(str(run.root), ["outputs/none.json"])
    assert caught.value.category == "integrity"
    assert list((run.root / gather.OUTGOING).iterdir()) == []


@pytest.mark.parametrize("link", ["outputs", "outputs/adapter", "outputs/logs"])
@pytest.mark.parametrize("hard_links", [True, False])
def test_outputs_may_lie_on_another_disk(run, tmp_path, monkeypatch, link, hard_links):
    (run.root / link).rename(tmp_path / "disk")
    (run.root / link).symlink_to(tmp_path / "disk")
    if not hard_links:

        def refuse(*_: Any, **_options: Any) -> None:
            raise OSError(18, "another disk")

        monkeypatch.setattr(os, "link", refuse)
    files = {file["path"]: file["sha256"] for file in run.gather()["files"]}
    packed = gather.pack(str(run.root), list(files))
    with tarfile.open(packed["bundle"]) as archive:
        for name, digest in files.items():
            content = archive.extractfile(name).read()
            assert hashlib.sha256(content).hexdigest() == digest
    assert len(list(Path(packed["bundle"]).parent.iterdir())) == 3


def test_a_bundle_that_was_left_behind_is_removed_the_next_day(run):
    outgoing = run.root / gather.OUTGOING
    put(outgoing, {"old/home.tar.gz": b"x", "home.tar.gz": b"x", "new/home.tar.gz": b"x"})
    yesterday = time.time() - gather.OUTGOING_SECONDS - 60
    for name in ("old", "home.tar.gz"):
        os.utime(outgoing / name, (yesterday, yesterday))
    packed = gather.pack(str(run.root), [LOG])
    assert {p.name for p in outgoing.iterdir()} == {"new", Path(packed["bundle"]).parent.name}
