"""The demo: this machine as the GPU host, reached through a real sshd, from base model to report.

    python tools/demo.py [option of ansible-playbook ...]

The sshd is stopped again in every case, and the exit status is the playbook's. Everything lies
under ``build/demo``; a second run finds what the first one left and has nothing to do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import sshd_host
from remote_train.errors import TrainError

PROJECT = Path(__file__).resolve().parent.parent
BUILD = PROJECT / "build" / "demo"
EXAMPLE = PROJECT / "examples" / "tutor"
# These would send the demo to another machine, or into another folder than the demo's.
ELSEWHERE = (
    "REMOTE_HOST",
    "REMOTE_PORT",
    "REMOTE_USER",
    "REMOTE_PROJECT_ROOT",
    "TRAIN_SYNC_PROJECT_ROOT",
)

INTERRUPTED = 99  # what ansible-playbook ends with after Ctrl-C


def main(options: list[str]) -> int:
    """Exit status: the playbook's; 1 when it didn't come to that; 128 + n after signal n."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        BUILD.mkdir(parents=True, exist_ok=True)
        write_base_model(base_model())
        server = sshd_host.start(BUILD / "ssh")
        say(f"the GPU host is this machine, {server.user}@{server.address} port {server.port}")
        status = run_playbook(options)
        if status == INTERRUPTED:
            say("a training that had begun goes on by itself; make demo follows it again")
        name_report()
        return status
    except TrainError as error:
        say(str(error), sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        say("interrupted", sys.stderr)
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    finally:
        stop_server()


def base_model() -> str:
    """The base model to train on: the user's own, else the stand-in, trained once and cached.

    :raises TrainError: when the stand-in could not be made.
    """
    named = os.environ.get("MODEL_NAME_OR_PATH", "")
    if named:
        return named
    command = [sys.executable, str(PROJECT / "tools" / "demo_base.py"), "--project", str(EXAMPLE)]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        try:
            for line in process.stdout or ():
                last = line.rstrip("\n")
                if not Path(last).is_absolute():  # the path, at the end, is for us
                    print(last, flush=True)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode != 0 or not Path(last).is_dir():
        raise TrainError(
            f"The demo's base model could not be made (exit status {process.returncode}).",
            f"Try it alone: {' '.join(command)}",
            category="training_logic",
        )
    return last


def write_base_model(name: str) -> None:
    """Tell the demo's inventory which base model to use."""
    (BUILD / "base_model.path").write_text(f"{name}\n", encoding="utf-8")


def run_playbook(options: list[str]) -> int:
    """Run the whole playbook on the demo's inventory and return its exit status."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    ignored = sorted(name for name in ELSEWHERE if os.environ.get(name))
    if ignored:
        say(f"{', '.join(ignored)} in the environment doesn't count here")
    # Named, since Ansible takes no ansible.cfg out of a folder that everybody may write to.
    environment["ANSIBLE_CONFIG"] = str(PROJECT / "ansible.cfg")
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        *("-i", str(PROJECT / "inventory" / "demo")),
        str(PROJECT / "train_all.yml"),
        *options,
    ]
    with subprocess.Popen(command, cwd=PROJECT, env=environment) as process:
        while True:
            try:
                status = process.wait()
                break
            except KeyboardInterrupt as error:
                # A terminal's Ctrl-C has reached the playbook too; other signals have not. It
                # says itself what goes on and what doesn't, and we stop the sshd after it.
                number = error.args[0] if error.args else signal.SIGINT
                if number != signal.SIGINT:
                    process.terminate()
    return status if status >= 0 else 128 - status


def name_report() -> None:
    """Say where the last run's report is, whether this run drew it or found nothing to do."""
    reports = sorted(BUILD.glob("outputs/training_sync/run_*/report.html"))
    if reports:
        say(f"the report is {reports[-1]}")


def stop_server() -> None:
    """Stop the sshd, deaf to a second Ctrl-C: what is left running would be left for good."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        sshd_host.stop(BUILD / "ssh")
    except TrainError as error:
        say(str(error), sys.stderr)


def interrupt(number: int, _frame: object) -> None:
    """Let a signal unwind the stack as Ctrl-C does."""
    raise KeyboardInterrupt(number)


def say(text: str, stream: TextIO | None = None) -> None:
    """Say one line, before whatever a child process says next."""
    print(f"demo: {text}", file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
