"""The sentences of the stdout callback."""

from __future__ import annotations

import importlib.util
import multiprocessing
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from controller import ssh_words
from launcher import main
from launcher.watch import INTERRUPTED
from tests.unit.stage_host import HOUSE, load_yaml

SPEC = importlib.util.spec_from_file_location(
    "callback", HOUSE / "plugins" / "callback" / "remote_train.py"
)
callback = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(callback)

CHANGED = """Failed to connect to the host via ssh: @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
The fingerprint for the ED25519 key sent by the remote host is
SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8.
Please contact your system administrator.
Host key for [127.0.0.1]:2222 has changed and you have requested strict checking.
Host key verification failed."""
UNKNOWN = """Failed to connect to the host via ssh: No ED25519 host key is known for \
[127.0.0.1]:1 and you have requested strict checking.
Host key verification failed."""


@pytest.mark.parametrize(
    ("message", "words", "hint"),
    [
        (CHANGED, "is not the one that is pinned", "somebody may be in between"),
        (UNKNOWN, "host's key is not known yet", "fingerprint"),
        ("Host key verification failed.", "host's key is not known yet", "fingerprint"),
        (
            "root@gpu: Permission denied (publickey,password).",
            "refuses the login",
            "ansible_ssh_private_key_file",
        ),
        (
            "ssh: Could not resolve hostname gpu.exmaple.com: Name or service not known",
            "there is no host of that name",
            "REMOTE_HOST",
        ),
        (
            "ssh: connect to host 127.0.0.1 port 1: Connection refused",
            "nothing listens for SSH",
            "ansible_port",
        ),
        (
            "ssh: connect to host 10.0.0.1 port 22: Connection timed out",
            "doesn't answer",
            "address",
        ),
        ("Timeout: ssh timed out after 20 s", "doesn't answer", "address"),
        ("ssh: connect to host x port 22: No route to host", "doesn't answer", "network"),
        ("ssh: connect to host x port 22: Network is unreachable", "doesn't answer", "network"),
        ("first\nkex_exchange_identification: closed\n\n", "kex_exchange_identification", "-vvv"),
        ("", "no word", "-vvv"),
    ],
)
def test_what_ssh_says_in_one_sentence(message, words, hint):
    sentence, what_to_do = ssh_words.unreachable(message, "gpu")
    assert sentence.startswith("gpu can't be reached: ")
    assert words in sentence
    assert hint in what_to_do
    assert "\n" not in sentence + what_to_do


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-p", "1", "127.0.0.1"], "nothing listens for SSH"),
        (["-p", "1", "no-such-host.invalid"], "there is no host of that name"),
    ],
)
def test_what_the_real_ssh_says_is_understood(options, words):
    done = subprocess.run(
        ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", *options, "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert words in ssh_words.unreachable(done.stderr, "gpu")[0]


def test_the_fingerprint_of_a_changed_key_is_shown():
    shown = ssh_words.fingerprints(CHANGED)
    assert shown == "ED25519 SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8"


@pytest.mark.parametrize("message", ["", "Permission denied", UNKNOWN])
def test_no_fingerprint_where_nobody_says_one(message):
    assert ssh_words.fingerprints(message) == ""


OPTIONS = load_yaml("roles", "settings", "meta", "argument_specs.yml")["argument_specs"]["main"][
    "options"
]
STAGE = {"name": "x", "train": ["a"], "adapter": "x"}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("gpu_gate", "loose", "gpu_gate is 'loose'; it must be one of strict, warn, off."),
        ("on_lock", "", "on_lock is ''; it must be one of attach, wait, fail."),
        ("max_length", "many", "max_length must be a whole number."),
        ("max_length", 2.5, "max_length must be a whole number."),
        ("learning_rate", "fast", "learning_rate must be a number."),
        ("force", "maybe", "force must be true or false."),
        ("fingerprint_ignore", {"a": 1}, "fingerprint_ignore must be a list."),
        ("stage_settings", "x", "stage_settings must be a mapping of names."),
        ("extra_stages", [{"name": "x"}], "An item of extra_stages lacks adapter, train."),
        ("extra_stages", ["x"], "Each item of extra_stages must be a mapping of names."),
        (
            "extra_stages",
            [{**STAGE, "adaptor": "x"}],
            "An item of extra_stages has no field adaptor; the fields are adapter, ask_after, ",
        ),
        ("stages", [{**STAGE, "ask_after": "maybe"}], "ask_after must be true or false."),
    ],
)
def test_what_ansible_says_of_a_wrong_setting(name, value, sentence):
    """The words of Ansible's own validator, so that another version of them is noticed."""
    validator = ArgumentSpecValidator({name: OPTIONS[name]})
    errors = validator.validate({name: value}, validate_role_argument_spec=True).error_messages
    assert errors
    said = callback._sentence({"msg": "Validation failed", "argument_errors": errors})
    assert said.startswith(sentence)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"msg": "It broke."}, "It broke."),
        ({"msg": "Task failed: It broke."}, "It broke."),
        ({"msg": "Task failed: Action failed: It broke."}, "It broke."),
        ({}, "a step failed without a word; -v shows more"),
        ({"msg": None}, "a step failed without a word; -v shows more"),
        ({"argument_errors": ["words of another kind"]}, "words of another kind"),
        ({"results": [{"msg": "good"}, {"failed": True, "msg": "It broke."}]}, "It broke."),
    ],
)
def test_what_failed_in_one_line(answer, words):
    assert callback._sentence(answer) == words


class Shown:
    """Stands in for Ansible's Display."""

    verbosity = 0

    def __init__(self) -> None:
        self.lines: list[str] = []

    def display(self, text: str, **_options: Any) -> None:
        self.lines.append(text)


@pytest.fixture
def screen(monkeypatch):
    made = callback.CallbackModule()
    made._display = Shown()
    return made


class Host(str):
    """One of Ansible's, whose text is its name."""

    def get_name(self) -> str:
        return str(self)


def result(host: str = "gpu", action: str = "plan", **answer: Any) -> Any:
    task = SimpleNamespace(
        action=action,
        get_name=lambda: "role : Plan",
        ignore_unreachable=False,
        ignore_errors=False,
    )
    return SimpleNamespace(result=answer, host=Host(host), task=task)


def test_a_failure_is_one_sentence_and_one_hint(screen):
    screen.v2_runner_on_failed(
        result(msg="The disk is full.", hint="Free some space.", exception="Traceback ...", x="y")
    )
    assert screen._display.lines == [
        "\nFAILED: [gpu] The disk is full.",
        "  Hint: Free some space.",
    ]


def test_a_failure_here_names_no_host_and_invents_no_hint(screen):
    screen.v2_runner_on_failed(result(host="localhost", msg="There are no hosts."))
    assert screen._display.lines == ["\nFAILED: There are no hosts."]


def test_a_host_that_cannot_be_reached(screen):
    screen.v2_runner_on_unreachable(result(msg="ssh: connect to host x port 1: Connection refused"))
    first, hint = screen._display.lines
    assert first.startswith("\nFAILED: [gpu] gpu can't be reached: nothing listens")
    assert hint.startswith("  Hint: Check ansible_host")


def test_a_changed_key_is_shown_with_what_to_do(screen):
    screen.v2_runner_on_unreachable(result(msg=CHANGED))
    assert "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8" in screen._display.lines[1]


@pytest.mark.parametrize(
    ("action", "shown"), [("plan", True), ("stage", True), ("set_fact", False)]
)
def test_titles_come_once_and_for_steps_alone(screen, action, shown):
    for _ in range(2):
        screen.v2_runner_on_start(None, result(action=action).task)
    assert screen._display.lines == (["- Plan"] if shown else [])


def test_what_was_skipped_is_not_shown(screen):
    screen.v2_runner_on_skipped(result())
    screen.v2_runner_item_on_skipped(result())
    screen.v2_playbook_on_include(result())
    assert screen._display.lines == []


# Ctrl-C


def test_a_ctrl_c_that_python_drops_ends_the_run_before_its_next_step(monkeypatch):
    """It came in a finalizer inside Ansible's logging, once, and the run went on to train."""
    plugin = callback.CallbackModule()
    plugin._display = SimpleNamespace(verbosity=0)
    monkeypatch.setattr(callback.Default, "v2_playbook_on_start", lambda *_: None)
    before = signal.getsignal(signal.SIGINT)

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            for _ in range(1000):  # the handler runs at one of these turns
                pass

    ignored: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, ignored.append
    try:
        plugin.v2_playbook_on_start(None)
        plugin.v2_playbook_on_task_start(None, False)
        Dropped()
        with pytest.raises(KeyboardInterrupt):
            plugin.v2_playbook_on_task_start(None, False)
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
    assert [one.exc_type for one in ignored] == [KeyboardInterrupt]


class Manager:
    """What the callback knows of Ansible's task queue manager."""

    def __init__(self, workers: list[Any]) -> None:
        self._final_q = multiprocessing.SimpleQueue()
        self._workers = workers

    def handle(self, _number: int, _frame: Any) -> None:
        for worker in self._workers:
            worker.kill()
        raise KeyboardInterrupt


def test_no_worker_dies_with_the_queue_that_all_share_locked(monkeypatch):
    """A worker is killed while it writes; the playbook's own last word must still find its way."""
    plugin = callback.CallbackModule()
    monkeypatch.setattr(callback.Default, "v2_playbook_on_start", lambda *_: None)
    manager = Manager([])
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()

    def write() -> None:
        with manager._final_q._wlock:
            begun.set()
            time.sleep(0.3)
        while True:  # and goes on writing
            with manager._final_q._wlock:
                pass

    manager._workers.append(fork.Process(target=write, daemon=True))
    manager._workers[0].start()
    begun.wait(5)
    before = signal.signal(signal.SIGINT, manager.handle)
    try:
        plugin.v2_playbook_on_start(None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not manager._workers[0].is_alive()
    assert manager._final_q._wlock.acquire(timeout=2)


@pytest.mark.parametrize("plain", [False, True])
def test_the_report_is_named_in_the_last_line_of_all(screen, plain, monkeypatch):
    recap = "PLAY RECAP"
    monkeypatch.setattr(
        callback.Default, "v2_playbook_on_stats", lambda self, _: self._display.display(recap)
    )
    monkeypatch.setattr(callback.Default, "v2_runner_on_ok", lambda *_: None)
    screen._display.verbosity = int(plain)
    for _ in range(2):
        screen.v2_runner_on_ok(result(action="collect", report="/home/run/report.html"))
    screen.v2_runner_on_ok(result(action="plan", report="/elsewhere"))
    screen.v2_runner_on_ok(result(action="collect", changed=False))
    screen.v2_playbook_on_stats(None)
    assert screen._display.lines[-2:] == [recap, "Report: /home/run/report.html"]
    assert "/elsewhere" not in "".join(screen._display.lines)


@pytest.mark.parametrize(
    ("action", "over", "launched", "said"),
    [
        ("stage", False, "", True),
        ("stage", True, "", False),
        ("stage", False, "1", False),
        ("plan", False, "", False),
    ],
)
def test_a_ctrl_c_says_that_the_training_goes_on(
    capfd, monkeypatch, screen, action, over, launched, said
):
    monkeypatch.setenv(callback.LAUNCHED, launched)
    monkeypatch.setattr(callback.Default, "v2_playbook_on_start", lambda *_: None)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    of_stage = result(action=action)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        screen.v2_playbook_on_start(None)
        screen.v2_runner_on_start(of_stage.host, of_stage.task)
        if over:
            screen.v2_runner_on_failed(result(action=action, msg="x"))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().out == (f"{callback.INTERRUPTED}\n" if said else "")


def test_the_launcher_says_the_same():
    assert main._interrupted(INTERRUPTED, "run") == f"{callback.INTERRUPTED}\n"
