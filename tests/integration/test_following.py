"""What the controller does while a stage runs: shows it, loses it, finds it, lets go of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.cutting_proxy import CuttingProxy
from tests.integration.sites import COMMAND, Site, finish, until
from tests.integration.test_survival import damaged, shown_by, status, wait_for, workers

if TYPE_CHECKING:
    from tests.integration.conftest import GpuHost

pytestmark = pytest.mark.ssh

SPEAKS = f"""
say() {{ [ -z "$REMOTE_TRAIN_PROGRESS_FD" ] || eval "echo '$1' >&$REMOTE_TRAIN_PROGRESS_FD"; }}
[ ! -e ../../many.$STAGE ] || seq -f "early %.0f" 200000
say '{{"phase": "train", "step": 3, "steps": 9, "loss": 2.5, "tokens_per_second": 1234}}'
echo "line one"
{COMMAND}
"""
LATER = """
say '{"phase": "train", "step": 7, "steps": 9, "loss": 0.75, "memory_bytes": 3000000000}'
echo "line two"
while [ -e ../../second.$STAGE ]; do sleep 0.1; done
mkdir -p outputs/adapter/adapter_style
"""
SPEAKING = SPEAKS.replace('mkdir -p "$folder"', LATER + 'mkdir -p "$folder"', 1)
"""The stage of these tests reports progress as a training does, and goes on in two steps."""


@pytest.fixture
def speaking(trained_clone: Callable[..., Site]) -> Iterator[Site]:
    """A site whose stage `style` is to be trained, and reports how far it is."""
    site = trained_clone(stage_command=["sh", "-c", SPEAKING])
    yield site
    for hold in (*site.folder.glob("hold.*"), *site.folder.glob("second.*")):
        hold.unlink(missing_ok=True)


def step(site: Site) -> object:
    """The step that the host knows of."""
    progress = status(site).get("progress")
    return progress.get("step") if isinstance(progress, dict) else None


def record(site: Site) -> dict[str, object]:
    """What is kept at home of the stage that is followed."""
    with contextlib.suppress(OSError, ValueError):
        return dict(json.loads((site.home / "training_sync/followed.json").read_bytes()))
    return {}


# Gone, and back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("verbose", [False, True])
def test_who_comes_back_is_shown_what_happened_meanwhile(speaking: Site, verbose: bool) -> None:
    site = speaking
    hold, second = site.hold("style"), site.folder / "second.style"
    second.touch()
    if verbose:
        (site.folder / "many.style").touch()
    first = site.start("--tags", "style")
    until(lambda: record(site).get("step") == 3, "the record at home")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    until(lambda: workers(site) == [], "the end of the killed playbook's workers", 15)
    seen = int(str(record(site)["offset"]))
    hold.unlink()
    until(lambda: step(site) == 7, "the second half")
    again = site.start("--tags", "style", *(["-v"] if verbose else []))
    shown = shown_by(again, "Meanwhile, in ")
    second.unlink()
    rest = finish(again)
    shown += rest.output
    assert rest.status == 0, shown
    assert re.search(r"Meanwhile, in \d+:\d\d: step 3 -> 7, loss 2\.500 -> 0\.750\.", shown)
    assert ("| line two" in shown) is verbose
    assert "| line one" not in shown  # it was seen before
    assert record(site) == {}
    log = max(site.root.glob("outputs/logs/train_style_*.log"))
    at_home = site.home / "logs" / log.name
    assert at_home.read_bytes() == log.read_bytes()
    assert seen == log.read_bytes().index(b"line two")


def test_a_long_log_is_shown_by_its_end_and_the_rest_is_counted(speaking: Site) -> None:
    site = speaking
    hold = site.hold("style")
    (site.folder / "many.style").touch()
    first = site.start("--tags", "style")
    wait_for(site, "style")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    until(lambda: workers(site) == [], "the end of the killed playbook's workers")
    (site.home / "training_sync/followed.json").unlink(missing_ok=True)
    again = site.start("--tags", "style", "-v")
    shown = shown_by(again, "| line one")
    hold.unlink()
    rest = finish(again)
    assert rest.status == 0, shown + rest.output
    (left_out,) = re.findall(r"([\d,]+) lines of the log before these are left out", shown)
    shown_lines = re.findall(r"\| early (\d+)", shown)
    assert int(left_out.replace(",", "")) + len(shown_lines) == 200_000
    assert shown_lines[-1] == "200000"
    assert 50 < len(shown_lines) <= 100
    assert "| line two" in rest.output


def test_the_live_line_of_a_person_at_a_terminal(speaking: Site) -> None:
    site = speaking
    hold = site.hold("style")
    child = site.spawn("--tags", "style")
    try:
        child.expect(r"style  step 3 of 9  loss 2\.500  1,234 tokens/s  \d:\d\d elapsed")
        (site.folder / "second.style").touch()
        hold.unlink()
        child.expect(r"style  step 7 of 9  loss 0\.750  GPU 3\.0 GB  \d:\d\d elapsed")
        (site.folder / "second.style").unlink()
        child.expect(r"style  done in \d:\d\d  step 7 of 9  loss 0\.750")
        child.wait()
    finally:
        child.close(force=True)
    assert child.exitstatus == 0


# The link ---------------------------------------------------------------------------------------


@pytest.fixture
def proxy(gpu_host: GpuHost) -> Iterator[CuttingProxy]:
    """A link to the host that can be cut."""
    link = CuttingProxy((gpu_host.sshd.address, gpu_host.port))
    yield link
    link.close()


def behind(proxy: CuttingProxy, gpu_host: GpuHost) -> dict[str, object]:
    """Variables that lead through the proxy; how a silence is noticed is ansible.cfg's alone."""
    return {
        "ansible_port": proxy.port,
        "ansible_ssh_common_args": (
            f"-F /dev/null -o UserKnownHostsFile={gpu_host.known_hosts}"
            " -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
            f" -o HostKeyAlias=[{gpu_host.sshd.address}]:{gpu_host.port}"
        ),
    }


@pytest.mark.parametrize(("how", "within"), [("silence", 16.0), ("reset", 4.0)])
def test_a_cut_is_said_in_time_and_so_is_its_end(
    trained_clone: Callable[..., Site],
    proxy: CuttingProxy,
    gpu_host: GpuHost,
    how: str,
    within: float,
) -> None:
    site = damaged(trained_clone(**behind(proxy, gpu_host)), "style")
    hold = site.hold("style")
    process = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: record(site), "the first poll")
    began = time.monotonic()
    getattr(proxy, how)()
    shown = shown_by(process, "The connection broke; the training goes on there.")
    noticed = time.monotonic() - began
    proxy.mend()
    shown += shown_by(process, "Connected again after ")
    hold.unlink()
    rest = finish(process)
    assert rest.status == 0, shown + rest.output
    assert noticed < within
    gone = int(re.findall(r"Connected again after (\d+) s", shown)[0])
    assert noticed - 3 < gone < time.monotonic() - began + 1
    assert site.trained() == ["style"]


def test_a_stop_over_a_silent_link_says_so_as_soon(
    trained_clone: Callable[..., Site], proxy: CuttingProxy, gpu_host: GpuHost
) -> None:
    """The connection that is kept is silent, and nobody knows it yet."""
    site = damaged(trained_clone(**behind(proxy, gpu_host)), "style")
    hold = site.hold("style")
    first = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: record(site), "the first poll")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    proxy.silence()
    began = time.monotonic()
    process = site.start("-e", "stop_grace=1", playbook="playbooks/stop.yml")
    shown = shown_by(process, "a stage that was asked to end ends there by itself")
    noticed = time.monotonic() - began
    proxy.mend()
    rest = finish(process)
    hold.unlink()
    assert rest.status == 0, shown + rest.output
    assert "stopped style" in rest.output
    assert noticed < 20  # 13, and the start of a playbook; by patience alone it would be 29


def test_who_attaches_and_gives_up_leaves_a_record_at_home(
    trained_clone: Callable[..., Site], proxy: CuttingProxy, gpu_host: GpuHost
) -> None:
    site = damaged(trained_clone(**behind(proxy, gpu_host), reconnect_timeout=2), "style")
    hold = site.hold("style")
    first = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: record(site), "the first poll")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    process = site.start()
    shown = shown_by(process, "following it.")
    proxy.reset()
    rest = finish(process)
    shown += rest.output
    run = str(status(site)["run"])
    assert not (site.sync / run).exists()  # no stage of it has ended
    hold.unlink()
    assert rest.status == 2, shown
    assert "The host could not be reached again in 2 s." in shown
    issues = site.home / "training_sync" / run / "issues.jsonl"
    assert "could not be reached again" in issues.read_text(encoding="utf-8")
    assert record(site)["run"] == run
    proxy.mend()
    last = site.run()
    assert last.status == 0, last.output
    assert site.trained() == ["style"]


# A lock that somebody else holds ----------------------------------------------------------------


def test_who_waits_sees_no_line_and_plans_anew(speaking: Site) -> None:
    site = damaged(speaking, "style")
    hold = site.hold("style")
    first = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: status(site).get("state") == "running", "the status")
    waiting = site.start("--tags", "style", "-e", "on_lock=wait", "-v")
    shown = shown_by(waiting, ": waiting for it.")
    hold.unlink()
    outcomes = [finish(first), finish(waiting)]
    shown += outcomes[1].output
    assert [outcome.status for outcome in outcomes] == [0, 0], shown
    assert re.search(r"The stage style of run_\S+ is running on \S+ as process \d+ since ", shown)
    assert "| line two" not in shown
    assert not re.search(r"style  step", shown)
    assert re.search(r"style  done in \d+:\d\d  step 7 of 9", shown)  # the wait is over
    assert "skips: up to date" in outcomes[1].plan_of("style")
    assert site.trained() == ["style"]


@pytest.mark.parametrize("on_lock", ["attach", "wait", "fail"])
def test_a_start_that_finds_another_ones_training(speaking: Site, on_lock: str) -> None:
    """It began after this one's plan: that stands still meanwhile, and starts afterwards."""
    site = damaged(speaking, "style")
    hold = site.hold("style")
    late = site.start("--tags", "style", "-e", f"on_lock={on_lock}")
    os.set_blocking(late.stdout.fileno(), True)  # type: ignore[union-attr]
    shown = shown_by(late, "  trains: ")
    os.killpg(late.pid, signal.SIGSTOP)
    first = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: status(site).get("state") == "running", "the status")
    os.killpg(late.pid, signal.SIGCONT)
    if on_lock != "fail":
        shown += shown_by(late, f": {'following' if on_lock == 'attach' else 'waiting for'} it.")
        hold.unlink()
    rest = finish(late)
    shown += rest.output
    hold.unlink(missing_ok=True)
    assert finish(first).status == 0
    assert "The stage style of run_" in shown
    assert rest.status == (2 if on_lock == "fail" else 0), shown
    assert ("Wait for it, or leave out on_lock=fail" in shown) is (on_lock == "fail")
    assert site.trained() == ["style"]


# Ctrl-C -----------------------------------------------------------------------------------------


def test_one_ctrl_c_ends_the_view_at_once_and_leaves_nothing_behind_here(speaking: Site) -> None:
    """Pressed right after a line has appeared: the worker that wrote it still holds the queue."""
    site = damaged(speaking, "style")
    hold = site.hold("style")
    process = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: record(site), "the first poll")
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    rest = finish(process)
    assert rest.status == 99, rest.output
    assert "User interrupted execution" in rest.output
    assert time.monotonic() - began < 5
    assert workers(site) == []
    left = subprocess.run(["pgrep", "-f", f"^ssh .*{site.root}"], capture_output=True, check=False)
    assert left.stdout == b""
    child = status(site)["child"]
    assert Path(f"/proc/{child['pid']}").exists()  # type: ignore[index]
    hold.unlink()
    again = site.run("--tags", "style")
    assert again.status == 0, again.output
    assert site.trained() == ["style"]


# A stage that fails -----------------------------------------------------------------------------


def test_who_comes_back_to_a_failure_is_told_its_cause_and_trains_nothing_anew(
    trained_clone: Callable[..., Site],
) -> None:
    fails = COMMAND.replace('mkdir -p "$folder"', 'exit 3; mkdir -p "$folder"', 1)
    assert fails != COMMAND
    site = damaged(trained_clone(stage_command=["sh", "-c", fails], stage_retries=0), "style")
    hold = site.hold("style")
    first = site.start("--tags", "style")
    wait_for(site, "style")
    until(lambda: record(site), "the first poll")
    os.kill(first.pid, signal.SIGINT)
    finish(first)
    again = site.start("--tags", "style")
    shown = shown_by(again, "following it.")
    hold.unlink()
    rest = finish(again)
    shown += rest.output
    assert rest.status == 2, shown
    assert "The stage style failed: " in shown
    assert site.trained() == ["style"]
    assert list((site.home / "logs").glob("train_style_*.log"))  # it was collected
