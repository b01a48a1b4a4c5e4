"""`remote-train`: a playbook through ansible-runner, and an exit status that means something."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import ansible_runner
import yaml

from . import options
from .interrupt import Interrupt
from .watch import INTERRUPTED, Watch

PROJECT = Path(__file__).resolve().parent.parent
"""Where playbooks, roles and plugins are."""

SETTINGS = {"suppress_output_file": True, "pexpect_timeout": 0.3}
"""ansible-runner's settings: keep no copy of the output, and see after 0.3 s whether to stop, in
place of 5 s."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand."""
    given = options.read(arguments)
    watch = Watch()
    interrupt = Interrupt(lambda: watch.pid)
    with tempfile.TemporaryDirectory(prefix="remote-train-") as private, interrupt.listening():
        _write_settings(private)
        run = ansible_runner.run(
            private_data_dir=private,
            # ansible-runner runs the playbook there: what the inventory or a default gives as a
            # relative path is then the caller's, as it is with ansible-playbook.
            project_dir=os.getcwd(),
            playbook=str(PROJECT / "playbooks" / options.PLAYBOOKS[given.command][0]),
            inventory=_inventory(given, private),
            extravars=options.extra_variables(given) | options.connection_variables(given),
            tags=options.tags(given),
            cmdline="--check --diff" if given.check else None,
            verbosity=given.verbose or None,
            envvars={
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
                "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
                # ansible-runner puts its own callback in front of this one, and its own folder
                # in place of the one that ansible.cfg names.
                "ANSIBLE_STDOUT_CALLBACK": "remote_train",
                "ANSIBLE_CALLBACK_PLUGINS": str(PROJECT / "plugins" / "callback"),
                "ANSIBLE_NOCOLOR": "" if sys.stdout.isatty() else "1",
                # What a Ctrl-C leaves is said here.
                "REMOTE_TRAIN_LAUNCHED": "1",
                # ansible-runner turns this off unless it is told.
                "ANSIBLE_HOST_KEY_CHECKING": "True",
            },
            suppress_env_files=True,
            event_handler=watch,
            cancel_callback=interrupt.must_kill,
        )
    status = watch.status(run.rc, interrupt.happened)
    if interrupt.happened and run.rc != 0:
        sys.stdout.write(_interrupted(status, given.command))
    return status


def _write_settings(private: str) -> None:
    """Put the settings where ansible-runner reads them.

    It ignores its argument of that name together with ``suppress_env_files``, which keeps what
    may be secret out of files.
    """
    path = Path(private, "env", "settings")
    path.parent.mkdir()
    path.write_text(json.dumps(SETTINGS), encoding="utf-8")


def _interrupted(status: int, command: str) -> str:
    """What a person who stopped the run has to know."""
    if command in ("logs", "status"):
        return "The view has ended, and nothing else: what runs there goes on.\n"
    if command == "stop":
        return "Interrupted. A stage that was asked to end ends there by itself.\n"
    if status == INTERRUPTED:
        return (
            "Interrupted. The training goes on there: give the same command again, and it "
            "follows it and brings the results home.\n"
        )
    return "Interrupted. No training was running: the same command goes on from here.\n"


def _inventory(given: Namespace, private: str) -> str:
    """The path of the inventory: the one named, one made for ``--host``, or this machine."""
    made = options.inventory(given)
    if made is None:
        return given.inventory or str(PROJECT / "inventory" / "local")

    path = Path(private, "inventory", "hosts.yml")
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
