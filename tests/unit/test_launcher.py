"""The options of `remote-train` as variables, and its exit statuses, of made events."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import options
from launcher.interrupt import Interrupt
from launcher.watch import DONE, FAILED, INTERRUPTED, UNREACHABLE, WRONG, Watch
from plugins.vars.environment import ENVIRONMENT
from remote_train import request

# Options ----------------------------------------------------------------------------------------


def variables(*arguments: str) -> dict[str, Any]:
    """What a command line gives Ansible with ``-e``."""
    given = options.read(arguments)
    return options.extra_variables(given) | options.connection_variables(given)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--host", "gpu"], {"ansible_host": "gpu"}),
        (["--host", "gpu", "--port", "43821"], {"ansible_host": "gpu", "ansible_port": 43821}),
        (["--port", "43821", "--user", "me"], {"ansible_port": 43821, "ansible_user": "me"}),
        (["--gpu-gate", "off", "--yes"], {"gpu_gate": "off", "assume_yes": True}),
        (["--project-src", ""], {"project_src": ""}),
        (["--project-root", "/srv/tutor"], {"project_root": "/srv/tutor"}),
        (["plan", "--force", "--skip-sample"], {"force": True, "skip_sample": True}),
        (["logs", "-f", "-n", "7"], {"follow": True, "log_lines": 7}),
        (["logs", "--stage", "all"], {"log_stage": "all"}),
        (["stop", "--grace", "0"], {"stop_grace": 0}),
        (["status"], {}),
        (["report", "--run", "run_1"], {"report_run": "run_1"}),
        (["report", "--report-language", "zh"], {"report_language": "zh"}),
    ],
)
def test_what_is_given_is_an_extra_variable(
    arguments: Sequence[str], expected: dict[str, Any]
) -> None:
    assert variables(*arguments) == expected


def test_the_made_inventory_holds_nothing_that_the_environment_beats() -> None:
    given = options.read(["--host", "gpu", "--port", "2222", "--user", "me"])
    assert options.inventory(given) == {"gpu_hosts": {"hosts": {"gpu": {}}}}
    assert set(options.connection_variables(given)) <= set(ENVIRONMENT)


def test_paths_are_the_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("hosts.yml", "key"):
        (here / name).touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = options.read(
        [
            "-i",
            "hosts.yml",
            "--key",
            "~/here/key",
            "--project-src",
            "../src",
            "--collect-dest",
            "~/home",
        ]
    )
    assert given.inventory == str(here / "hosts.yml")
    assert given.key == str(here / "key")
    assert given.project_src == str(tmp_path / "src")
    assert given.collect_dest == str(tmp_path / "home")
    assert options.connection_variables(given) == {
        "ansible_ssh_private_key_file": str(here / "key")
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "gpu", "-i", "."], "give one of them"),
        (["--host", ""], "--host is empty"),
        (["-i", "nowhere"], "nowhere"),
        (["-i", ""], "--inventory"),
        (["--key", "nowhere"], "nowhere"),
        (["--port", "ssh"], "--port"),
        (["--stage", ""], "no stage"),
        (["--stage", "style,all"], "no stage"),
        (["--stage", "always"], "no stage"),
        (["train"], "train"),
        (["-f"], "--follow is for logs"),
        (["status", "-n", "7"], "--lines is for logs"),
        (["logs", "--grace", "7"], "--grace is for stop"),
        (["stop", "--stage", "style"], "--stage is not for stop"),
        (["logs", "--stage", "style", "--stage", "all"], "one log at a time"),
    ],
)
def test_a_senseless_command_line_ends_with_2(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options.read(arguments)
    assert ended.value.code == WRONG
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--stage", "style", "--stage", "all"], "style,multitask"),
        (["logs", "--stage", "style"], None),
    ],
)
def test_stages_are_tags_but_for_logs(arguments: Sequence[str], expected: str | None) -> None:
    assert options.tags(options.read(arguments)) == expected


@pytest.mark.parametrize("command", options.PLAYBOOKS)
def test_every_subcommand_has_its_playbook(command: str) -> None:
    folder = Path(__file__).parents[2] / "playbooks"
    assert (folder / options.PLAYBOOKS[command][0]).is_file()


def test_the_runs_own_steps_are_no_stages() -> None:
    assert set(request.STEPS) <= set(options.NO_STAGES)


def test_the_help_says_that_nothing_is_asked() -> None:
    assert "remote-train never asks" in options.parser().format_help()


# Exit statuses ----------------------------------------------------------------------------------


def event(name: str, action: str, host: str = "gpu", **result: Any) -> dict[str, Any]:
    """An event as ansible-runner gives it."""
    data = {"task_action": action, "host": host, "res": result}
    return {"event": f"runner_on_{name}", "pid": 4321, "event_data": data}


def watched(*events: dict[str, Any]) -> Watch:
    """A watch that has seen events."""
    watch = Watch()
    for one in events:
        assert watch(one) is False
    return watch


PLAN_DATA = event("failed", "plan", category="data", msg="line 3 is no JSON")
LOST = event("failed", "stage", category="infra", unreachable_host=True)


@pytest.mark.parametrize(
    ("events", "return_code", "expected"),
    [
        ([], 0, DONE),
        ([], 2, FAILED),
        ([event("failed", "stage", category="oom")], 2, FAILED),
        ([event("failed", "stage", category="ops")], 2, FAILED),  # on_lock is fail
        ([event("failed", "gpu_probe", category="infra")], 2, FAILED),
        ([event("failed", "settings")], 2, WRONG),
        ([event("failed", "ansible.builtin.assert")], 2, WRONG),
        ([event("failed", "ansible.builtin.validate_argument_spec")], 2, WRONG),
        ([PLAN_DATA], 2, WRONG),
        ([event("failed", "plan", category="ops")], 2, WRONG),
        ([event("failed", "plan", category="infra")], 2, FAILED),
        ([event("failed", "collect", category="data")], 2, FAILED),
        ([event("ok", "code_sync", changed=True), PLAN_DATA], 2, FAILED),
        ([event("ok", "settings", changed=False), PLAN_DATA], 2, WRONG),
        ([event("unreachable", "plan", msg="no route")], 4, UNREACHABLE),
        ([LOST], 2, UNREACHABLE),
        ([LOST, event("failed", "collect")], 2, UNREACHABLE),
        ([event("ok", "stage", unreachable_host=True, failed=False)], 2, UNREACHABLE),
        # ansible-playbook says 4 as well where it can't read the inventory.
        ([], 4, WRONG),
        ([], 5, WRONG),
        ([], 127, FAILED),
    ],
)
def test_the_exit_status(events: list[dict[str, Any]], return_code: int, expected: int) -> None:
    assert watched(*events).status(return_code) == expected


def test_an_ignored_failure_counts_for_nothing() -> None:
    ignored = event("failed", "settings")
    ignored["event_data"]["ignore_errors"] = True
    assert watched(ignored).status(2) == FAILED


START = event("start", "stage")


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], FAILED),
        ([event("start", "plan")], FAILED),
        ([START], INTERRUPTED),
        ([event("start", "logs")], INTERRUPTED),
        ([START, event("ok", "stage")], FAILED),
        ([START, event("failed", "stage")], FAILED),
        ([START, event("ok", "stage"), event("start", "collect")], FAILED),
        ([START, event("start", "stage", "other"), event("ok", "stage")], INTERRUPTED),
    ],
)
def test_4_only_where_a_training_runs_there(events: list[dict[str, Any]], expected: int) -> None:
    watch = watched(*events)
    assert watch.status(99, interrupted=True) == expected
    assert watch.status(0, interrupted=True) == DONE


def test_the_playbooks_process_is_known_from_the_first_event_that_has_one() -> None:
    assert watched({"event": "verbose"}).pid is None
    assert watched(START, {"event": "verbose"}).pid == 4321


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_playbook_is_asked_and_killed_for_the_impatient(number: signal.Signals) -> None:
    script = "import signal,sys,time\ntry: print(1, flush=True); time.sleep(60)\n"
    script += "except KeyboardInterrupt: sys.exit(7)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as playbook:
        assert playbook.stdout is not None
        playbook.stdout.readline()
        before = signal.getsignal(number)
        interrupt = Interrupt(lambda: playbook.pid)
        with interrupt.listening():
            assert not interrupt.must_kill()
            assert not interrupt.happened
            signal.raise_signal(number)
            assert not interrupt.must_kill()
            assert interrupt.happened
            assert playbook.wait(10) == 7
            for kill in (False, True):
                signal.raise_signal(number)
                assert interrupt.must_kill() == kill
        assert signal.getsignal(number) is before


def test_a_playbook_that_does_not_stop_is_asked_again_and_then_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    now = 100.0
    monkeypatch.setattr("launcher.interrupt.os.kill", lambda *a: asked.append(a))
    monkeypatch.setattr("launcher.interrupt.time.monotonic", lambda: now)
    interrupt = Interrupt(lambda: 4321)
    with interrupt.listening():
        signal.raise_signal(signal.SIGINT)
        seen = []
        for now in (100.0, 100.5, 101.1, 104.9, 105.1):  # noqa: B007 - the clock reads it
            seen.append((interrupt.must_kill(), len(asked)))
    assert seen == [(False, 1), (False, 1), (False, 2), (False, 2), (True, 2)]
    assert asked == [(4321, signal.SIGINT), (4321, signal.SIGTERM)]


def test_a_playbook_that_has_said_nothing_is_killed() -> None:
    interrupt = Interrupt(lambda: None)
    with interrupt.listening():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.must_kill()


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt(lambda: None)
        with interrupt.listening():
            signal.raise_signal(signal.SIGHUP)
        assert not interrupt.happened
    finally:
        signal.signal(signal.SIGHUP, before)
