"""The training process ends, in every way that it can, and so does its supervisor."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from controller.follow import SILENT_AFTER
from remote_train import live
from tests.integration.faults import processes
from tests.integration.faults.direct import Project
from tests.integration.faults.files import DAMAGES
from tests.integration.faults.lab import Lab
from tests.integration.faults.rows import Scenario
from tests.integration.faults.waits import until
from tests.integration.sites import Site, finish

STEPS = 16
"""Steps of an undisturbed training: eight chats, four a step, eight times."""


def project_of(lab: Lab, name: str = "direct") -> Project:
    """A project of an undisturbed site's, to train directly."""
    return Project(lab.fixture("zygote"), lab.fixture("undisturbed"), lab.folder / name)


def killed_at_random(number: int, seeds: range) -> Scenario:
    """Killed at random steps, some of them twice: the same bytes after the resume."""

    def act(lab: Lab) -> None:
        resumed = 0
        for seed in seeds:
            chance = random.Random(seed)  # noqa: S311 - a test's
            for turn in range(5):
                project = project_of(lab, f"seed-{seed}-{turn}")
                ends = [
                    project.train_until(
                        chance.randint(1, STEPS - 1), number, chance.uniform(0, 0.03)
                    )
                    for _ in range(1 + seed % 2)
                ]
                if all(ends):
                    break  # else it ended well before the signal, as a busy machine may have it
            assert all(ends), f"seed {seed} was never hit"
            resumed += bool(project.checkpoints)
            assert project.train() == 0, project.log
            assert project.adapter == lab.right(), f"seed {seed} ends in other bytes"
        assert resumed >= len(seeds) // 2, "most of them must have had a checkpoint"

    return act


def killed_once(lab: Lab) -> None:
    """Killed after a step that has no checkpoint: on from the one before, to the same bytes."""
    project = project_of(lab)
    status = project.train_until(7, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert project.checkpoints, "no checkpoint at step 6"
    assert project.train() == 0, project.log
    assert project.adapter == lab.right()
    assert project.result["resumed_from"] >= 3


def other_seed(lab: Lab) -> None:
    """The check has teeth: a training with another seed has other bytes."""
    project = project_of(lab)
    project.job["settings"]["seed"] = 43
    assert project.train() == 0, project.log
    assert project.adapter != lab.right()


def checkpoint(damage: str) -> Scenario:
    """The newest checkpoint is damaged: the one before is taken, and that is said."""

    def act(lab: Lab) -> None:
        for name in ("adapter.safetensors", "state.json", "SHA256SUMS"):
            project = project_of(lab, name)
            project.train_until(10, signal.SIGKILL)
            before, newest = project.checkpoints[-2:]
            DAMAGES[damage](newest / name)
            assert project.train() == 0, project.log
            assert project.adapter == lab.right()
            assert project.result["resumed_from"] == int(before.name[5:]), project.log
            assert newest.name in project.log

    return act


def every_checkpoint(lab: Lab) -> None:
    """All checkpoints are damaged: from the start, to the same bytes."""
    project = project_of(lab)
    project.train_until(10, signal.SIGKILL)
    for path in project.checkpoints:
        DAMAGES["emptied"](path / "adapter.safetensors")
    assert project.train() == 0, project.log
    assert project.adapter == lab.right()
    assert not project.result["resumed_from"]


def half_checkpoint(lab: Lab) -> None:
    """A checkpoint that was being written when the lights went out: passed over, and cleared."""
    project = project_of(lab)
    project.train_until(7, signal.SIGKILL)
    newest = project.checkpoints[-1]
    half = newest.with_name(f"step_{int(newest.name[5:]) + 1:08}")
    half.mkdir()
    (half / "adapter.safetensors").write_bytes(b"half")
    assert project.train() == 0, project.log
    assert project.adapter == lab.right()
    assert project.result["resumed_from"] == int(newest.name[5:])


def foreign_checkpoint(lab: Lab) -> None:
    """Checkpoints of other settings are passed over."""
    project = project_of(lab)
    right = dict(project.job["settings"]), dict(project.job["provenance"])
    project.job["settings"]["learning_rate"] = 0.02
    project.job["provenance"]["fingerprint"] = "sha256:" + "1" * 64
    project.train_until(7, signal.SIGKILL)
    assert project.checkpoints
    project.job["settings"], project.job["provenance"] = right
    assert project.train() == 0, project.log
    assert project.adapter == lab.right()
    assert not project.result["resumed_from"]


def while_evaluating(lab: Lab) -> None:
    """Killed after the last step: no step is trained again."""
    project = project_of(lab)

    def kill(pid: int) -> None:
        progress = project.folder / "progress"

        def evaluates() -> bool:
            return '"evaluate"' in (progress.read_text() if progress.exists() else "")

        until(lambda: evaluates() or not processes.lives(pid), "the evaluation")
        processes.kill(pid)

    assert project.train(kill) == -signal.SIGKILL
    assert project.train() == 0, project.log
    assert project.adapter == lab.right()
    assert project.result["resumed_from"] == STEPS


def through_the_playbook(name: str, said: str) -> Scenario:
    """The same to the stage of a real run, which ends in the same bytes.

    It is tried again by itself: the first command ends well.

    :param said: what an issue says of it.
    """

    def act(lab: Lab) -> None:
        site = lab.real({"id": "end", "step": 8, "do": name})
        outcome = site.run()
        assert lab.happened(site, "end"), outcome.output
        assert outcome.status == 0, outcome.output
        assert _record(site)["attempts"] == 2
        lab.settle(site, trained=None, adapter=lab.right())
        lab.issue(site, said)
        assert _resumed(lab, site) >= 3, "it began again at the first step"

    return act


def _record(site: Site) -> dict[str, Any]:
    """What the newest run on the host says of the stage."""
    return live.read_json(str(site.runs()[-1] / "stage_style.json"))


def _resumed(lab: Lab, site: Site) -> int:
    """The step that the stage was resumed from last."""
    return max(lab.marker(site)["effective"].get("resumed_from") or [0])


def supervisor_killed(lab: Lab) -> None:
    """The supervisor is killed, its command lives: another one follows that to its end, and since
    nobody can tell how a command of the user's ended then, it is run once more."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    status = lab.training(site)
    lab.kill(process)
    processes.kill(status["pid"])
    until(lambda: not processes.lives(status["pid"]), "its end")
    assert processes.lives(status["child"]["pid"])
    second = lab.start(site)
    until(lambda: lab.status(site)["pid"] != status["pid"], "another supervisor")
    assert lab.status(site)["child"] == status["child"]
    assert len(site.trained()) == 1
    hold.unlink()
    finish(second)
    lab.settle(site, trained=2)


def supervisor_killed_real(lab: Lab) -> None:
    """The same with the real training: it is not trained a second time."""
    site = lab.real()
    hold = lab.held_at(site)
    lab.faults(site, {"id": "hold", "step": 8, "do": "hold", "path": str(hold)})
    process = lab.start(site)
    until(lambda: lab.happened(site, "hold"), "step 8")
    status = lab.running(site)
    lab.kill(process)
    processes.kill(status["pid"])
    hold.unlink()
    lab.settle(site, trained=None, adapter=lab.right())
    assert len(list((site.root / "outputs/logs").glob("train_style_*.log"))) == 1


def all_killed_real(lab: Lab) -> None:
    """Supervisor and training are killed together: the next start resumes."""
    site = lab.real()
    hold = lab.held_at(site)
    lab.faults(site, {"id": "hold", "step": 8, "do": "hold", "path": str(hold)})
    process = lab.start(site)
    until(lambda: lab.happened(site, "hold"), "step 8")
    lab.kill(process)
    lab.kill_all(site)
    lab.settle(site, trained=None, adapter=lab.right())
    assert _resumed(lab, site) == 6


def hung_supervisor(lab: Lab) -> None:
    """The supervisor is stopped and lives: its silence is said, and later all goes on."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    status = lab.training(site)
    processes.kill(status["pid"], number=signal.SIGSTOP)
    try:
        outcome = finish(process)
    finally:
        processes.kill(status["pid"], number=signal.SIGCONT)
    assert outcome.status == 2, outcome.output
    assert "no sign of life" in outcome.output
    hold.unlink()
    lab.ended(site)
    lab.settle(site)


def hung_training(lab: Lab) -> None:
    """The training is stopped for a while and lives: nothing is started beside it."""
    site = lab.stub()
    hold = site.hold("style")
    process = lab.start(site)
    child = lab.training(site)["child"]["pid"]
    processes.kill(child, number=signal.SIGSTOP)
    hold.unlink()
    time.sleep(4)
    assert lab.status(site)["state"] == "running"
    processes.kill(child, number=signal.SIGCONT)
    outcome = finish(process)
    assert outcome.status == 0, outcome.output
    lab.settle(site)


def hung_real(lab: Lab) -> None:
    """The real training hangs for over a minute: it is followed all the while, playbooks/stop.yml
    kills it after the grace time, and later it resumes."""
    site = lab.real(stop_grace=2)
    hold = lab.held_at(site)
    lab.faults(site, {"id": "hold", "step": 8, "do": "hold", "path": str(hold)})
    process = lab.start(site)
    until(lambda: lab.happened(site, "hold"), "step 8")
    child = lab.running(site)["child"]["pid"]
    processes.kill(child, number=signal.SIGSTOP)
    time.sleep(SILENT_AFTER + 10)
    assert process.poll() is None, finish(process).output
    assert lab.status(site)["state"] == "running"
    stopped = site.run(playbook="playbooks/stop.yml")
    assert stopped.status == 0, stopped.output
    assert finish(process).status == 2
    assert lab.status(site)["stopped"]["killed"]
    assert not processes.lives(child)
    hold.unlink()
    lab.settle(site, trained=None, adapter=lab.right())
    assert _resumed(lab, site) == 6


_KILLS = """
import os, signal
unlink = os.unlink
def removed(path, **options):
    if str(path).endswith("live/result.json"):
        try:
            os.close(os.open({done!r}, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return unlink(path, **options)
os.unlink = removed
"""


def with_the_result_of_before(lab: Lab) -> None:
    """Killed as the result of the training before is to be removed: it isn't taken for the new
    one's, which has another seed and so other bytes."""
    site = lab.real()
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    (site.sync / "live/result.json").stat()
    place, done = lab.folder / "hook", lab.folder / "killed"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_KILLS.format(done=str(done)), encoding="ascii")
    python = place / "python"
    python.write_text(f'#!/bin/sh\nexport PYTHONPATH={place}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    again = ("-e", "seed=43", "-e", f"ansible_python_interpreter={python}")
    site.run(*again)
    assert done.exists(), "nothing was killed"
    last = site.run(*again)
    assert last.status == 0, last.output
    marker = lab.marker(site)
    assert marker["inputs"]["settings"]["seed"] == 43
    assert site.adapter("style").read_bytes() != lab.right(), "the bytes of the training before"


def stopped_while_starting(lab: Lab) -> None:
    """playbooks/stop.yml while a start is under way: it waits for that, and stops its stage."""
    site = lab.trained()
    site.adapter("style").write_bytes(b"damaged")
    site.hold("style")
    lock = Path(live.path(str(site.root), "start.lock"))

    def start_waits() -> bool:
        inode = f":{lock.stat().st_ino} "
        return any("->" in line and inode in line for line in _locks())

    with live.starting(str(site.root)):
        process = lab.start(site)
        until(start_waits, "a start that is under way")
        would = site.run("--check", playbook="playbooks/stop.yml")
        assert "a start is under way" in would.output, would.output
        stopping = lab.start(site, playbook="playbooks/stop.yml")
        time.sleep(5)
        assert stopping.poll() is None, finish(stopping).output
    stopped = finish(stopping)
    assert stopped.status == 0, stopped.output
    assert "nothing to stop" not in stopped.output
    assert finish(process).status == 2
    assert lab.status(site)["stopped"], stopped.output
    (site.folder / "hold.style").unlink()
    lab.settle(site, trained=None)


def _locks() -> list[str]:
    return Path("/proc/locks").read_text(encoding="ascii").splitlines()


def fails_by_itself(lab: Lab) -> None:
    """The command ends with a status: unknown, with the end of its log; then it trains."""
    site = lab.stub(
        stage_command=[
            "sh",
            "-c",
            "echo style >> ../../trace; seq 1 80; [ -e ../../well ] || exit 7; "
            "mkdir -p outputs/adapter/adapter_style; "
            "echo style at 0.0001 > outputs/adapter/adapter_style/adapter_model.safetensors",
        ]
    )
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    issue = lab.issue(site, "status 7")
    said = issue["cause"].split()
    assert "80" in said
    assert "31" in said
    assert "30" not in said
    (site.folder / "well").touch()
    lab.settle(site, trained=2)


def loss_not_finite(lab: Lab) -> None:
    """The loss is not finite: it stops at once and isn't tried again; then it trains."""
    site = lab.real({"id": "nan", "step": 8, "do": "nan"})
    outcome = site.run()
    assert outcome.status == 2, outcome.output
    issue = lab.issue(site, "step 9")
    assert issue["category"] == "training_logic"
    assert len(list((site.root / "outputs/logs").glob("train_style_*.log"))) == 1
    lab.settle(site, trained=None, adapter=lab.right())


def stopped_cleanly(lab: Lab) -> None:
    """playbooks/stop.yml in mid-training: a checkpoint first, then the end; later it resumes."""
    site = lab.real()
    hold = lab.held_at(site)
    lab.faults(site, {"id": "hold", "step": 8, "do": "hold", "path": str(hold)})
    process = lab.start(site)
    until(lambda: lab.happened(site, "hold"), "step 8")
    stopping = lab.start(site, playbook="playbooks/stop.yml")
    until((site.sync / "live/stop.json").exists, "the request to stop")
    time.sleep(1)  # the signal comes right after it
    hold.unlink()
    stopped = finish(stopping)
    assert stopped.status == 0, stopped.output
    outcome = finish(process)
    assert outcome.status == 2, outcome.output
    lab.settle(site, trained=None, adapter=lab.right())
    assert _resumed(lab, site) >= 8, "the steps since the last checkpoint were lost"


def stopped_by_force(lab: Lab) -> None:
    """playbooks/stop.yml, and a training that doesn't listen: KILL after the grace time."""
    site = lab.stub(
        stage_command=[
            "sh",
            "-c",
            "trap '' TERM; echo style >> ../../trace; "
            "while [ -e ../../hold.style ]; do sleep 0.05; done; "
            "mkdir -p outputs/adapter/adapter_style; "
            "echo style at 0.0001 > outputs/adapter/adapter_style/adapter_model.safetensors",
        ],
        stop_grace=1,
    )
    hold = site.hold("style")
    process = lab.start(site)
    lab.training(site)
    stopped = site.run(playbook="playbooks/stop.yml")
    assert stopped.status == 0, stopped.output
    outcome = finish(process)
    assert outcome.status == 2, outcome.output
    assert lab.status(site)["stopped"]["killed"]
    hold.unlink()
    lab.settle(site, trained=2)


def swap_of_the_adapter(lab: Lab) -> None:
    """Killed with the new adapter half moved into its place: the next run trains what is right."""
    site = lab.real()
    first = site.run()
    assert first.status == 0, first.output
    folder: Path = site.adapter("style").parent
    folder.rename(folder.with_name(folder.name + ".old"))
    half = folder.with_name(folder.name + ".partial")
    half.mkdir()
    (half / "adapter_config.json").write_text("{}", encoding="utf-8")
    lab.settle(site, trained=None, adapter=lab.right())


def waiting_worker_left(lab: Lab) -> None:
    """The controller ends before it has collected: the worker waits its time, and ends."""
    site = lab.real(worker_idle_timeout=3)
    lab.killed_at(site, "collect:start")
    until(lambda: not lab.left(site), "the end of the worker that nobody needs")
    lab.settle(site, trained=None, adapter=lab.right())
    assert len(list((site.root / "outputs/logs").glob("train_style_*.log"))) == 1


def waiting_worker_killed(lab: Lab) -> None:
    """The worker is killed while it waits for the next stage: nothing is trained again."""
    site = lab.real(worker_idle_timeout=60)
    lab.killed_at(site, "collect:start")
    worker = [pid for pid, line in lab.left(site).items() if "training --serve" in line]
    assert worker, lab.left(site)
    processes.kill(*worker)
    lab.settle(site, trained=None, adapter=lab.right())
    assert len(list((site.root / "outputs/logs").glob("train_style_*.log"))) == 1
