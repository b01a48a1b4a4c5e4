"""The whole playbook through ansible-runner, as a CI job runs it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ansible_runner
import pytest

from tests.integration.sites import PROJECT, STAGES, Site

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh


@dataclasses.dataclass(frozen=True)
class Run:
    """What ansible-runner tells of a run."""

    site: Site
    status: str
    rc: int
    events: list[dict[str, Any]]
    stats: dict[str, dict[str, int]]
    kept: list[Path]

    def results(self, event: str, action: str) -> list[dict[str, Any]]:
        """The results of one action's events of a kind."""
        return [
            found["event_data"]["res"]
            for found in self.events
            if found["event"] == event and found["event_data"].get("task_action") == action
        ]

    @property
    def shown(self) -> str:
        """All that the events showed."""
        return "\n".join(found.get("stdout", "") for found in self.events)


def run(site: Site, folder: Path, **envvars: str) -> Run:
    """Run the playbook; the handler only keeps the events, since a slow one ends the run."""
    folder.mkdir()
    events: list[dict[str, Any]] = []
    lock = threading.Lock()

    def keep(event: dict[str, Any]) -> bool:
        with lock:
            events.append(event)
        return True

    done = ansible_runner.run(
        private_data_dir=str(folder),
        project_dir=str(PROJECT),
        playbook="train_all.yml",
        inventory=str(site.folder / "hosts.yml"),
        envvars={
            **site.playbooks.environment(),
            "ANSIBLE_HOST_KEY_CHECKING": "True",
            **envvars,
        },
        suppress_env_files=True,
        event_handler=keep,
        quiet=True,
        timeout=100,
    )
    kept = [path for path in folder.rglob("*") if path.is_file() and "artifacts" not in path.parts]
    return Run(site, done.status, done.rc, events, dict(done.stats or {}), kept)


@pytest.fixture(scope="module")
def whole(new_site: Callable[..., Site], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run over a project that has never been synced."""
    site = new_site()
    return run(site, tmp_path_factory.mktemp("runner") / "private")


def test_the_run_is_successful(whole: Run) -> None:
    assert (whole.status, whole.rc) == ("successful", 0), whole.shown
    assert not whole.results("runner_on_failed", "stage")
    assert not [
        e for e in whole.events if e["event"] in ("runner_on_failed", "runner_on_unreachable")
    ]


def test_each_stage_is_an_event_with_its_result(whole: Run) -> None:
    results = whole.results("runner_on_ok", "stage")
    assert [(result["stage"], result["state"]) for result in results] == [
        (stage, "done") for stage in STAGES
    ]
    assert all(result["changed"] for result in results)


def test_the_recap_is_in_the_statistics(whole: Run) -> None:
    (last,) = [event for event in whole.events if event["event"] == "playbook_on_stats"]
    data = last["event_data"]
    assert data["failures"] == {}
    assert data["dark"] == {}
    # Project and engine sent, each stage trained, and the results brought home.
    assert data["changed"] == {"gpu": 2 + len(STAGES)}
    assert whole.stats["changed"] == data["changed"]


def test_what_a_stage_does_is_an_event_while_it_runs(whole: Run) -> None:
    lines = [e["stdout"].strip() for e in whole.events if e["event"] == "verbose"]
    for stage in STAGES:
        assert any(line.startswith(f"{stage}  done in ") for line in lines), lines


def test_nothing_waits_for_a_key(whole: Run) -> None:
    """The stage `sample` asks a person; ansible-runner's terminal has nobody at it."""
    assert whole.site.trained() == list(STAGES)
    assert "Go on with the other stages?" not in whole.shown
    requests = whole.results("runner_on_ok", "settings")
    assert [result["request"]["interactive"] for result in requests] == [False]
    assert requests[0]["request"]["stages"][0]["ask_after"] is True


def test_the_results_are_at_home(whole: Run) -> None:
    for stage in ("sample", "style", "writing", "multitask"):
        assert (whole.site.home / f"adapter/adapter_{stage}/adapter_model.safetensors").is_file()


def test_nothing_is_written_beside_the_artifacts(whole: Run) -> None:
    """Settings and environment may hold secrets."""
    assert whole.kept == []


def test_an_unknown_host_key_ends_the_run_as_unreachable(
    new_site: Callable[..., Site], gpu_host: GpuHost, tmp_path: Path
) -> None:
    site = new_site()
    known = tmp_path / "known_hosts"
    known.touch()
    hosts = site.folder / "hosts.yml"
    text = hosts.read_text(encoding="utf-8")
    assert str(gpu_host.known_hosts) in text
    hosts.write_text(text.replace(str(gpu_host.known_hosts), str(known)), encoding="utf-8")
    control = site.playbooks.control / "unknown"
    control.mkdir()
    done = run(
        site,
        tmp_path / "private",
        ANSIBLE_SSH_CONTROL_PATH_DIR=str(control),
        # ansible-runner's own takes the place of ansible.cfg's, unless it is named.
        ANSIBLE_STDOUT_CALLBACK="remote_train",
        ANSIBLE_CALLBACK_PLUGINS=str(PROJECT / "plugins" / "callback"),
    )
    assert (done.status, done.rc) == ("failed", 4), done.shown
    (result,) = done.results("runner_on_unreachable", "plan")
    assert "host key is known" in result["msg"]
    assert "gpu can't be reached: the host's key is not known yet" in done.shown
    assert not site.root.exists()
