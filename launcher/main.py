"""`remote-train`: a playbook through ansible-runner, and an exit status that means something."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ansible_runner
import yaml

from . import options

PROJECT = Path(__file__).resolve().parent.parent
"""Where playbooks, roles and plugins are."""

DONE, FAILED, WRONG, UNREACHABLE, INTERRUPTED = range(5)
"""The exit statuses (design brief, section 9)."""

REQUEST_ACTIONS = (
    "settings",
    "ansible.builtin.validate_argument_spec",
    "ansible.builtin.assert",
)
"""A failure of one of these means that the request was wrong."""


class Watch:
    """Remembers of the events what the exit status depends on."""

    def __init__(self) -> None:
        self.request_was_wrong = False
        self.unreachable = False
        self.in_stage = False

    def __call__(self, event: dict[str, Any]) -> bool:
        """Look at one event; False keeps ansible-runner from writing it to a file."""
        data = event.get("event_data") or {}
        name, action = event.get("event"), data.get("task_action")
        if name == "runner_on_start":
            self.in_stage = action == "stage"
        elif name == "runner_on_failed" and not data.get("ignore_errors"):
            self.request_was_wrong |= action in REQUEST_ACTIONS
        elif name == "runner_on_unreachable":
            self.unreachable = True
        return False

    def status(self, return_code: int) -> int:
        """The exit status of the whole command."""
        if return_code == 0:
            return DONE
        if self.unreachable:
            return UNREACHABLE
        return WRONG if self.request_was_wrong else FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand."""
    given = options.parser().parse_args(arguments)
    if given.host and given.inventory:
        options.parser().error("--host and --inventory both name the host: give one of them")
    if given.inventory and not os.path.exists(given.inventory):
        options.parser().error(f"there is no inventory {given.inventory}")
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="remote-train-") as private:
        run = ansible_runner.run(
            private_data_dir=private,
            project_dir=str(PROJECT / "playbooks"),
            playbook=options.PLAYBOOKS[given.command][0],
            inventory=_inventory(given, private),
            extravars=options.extra_variables(given) | options.connection_variables(given),
            tags=",".join(options.tag_of(stage) for stage in given.stage) or None,
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
                # ansible-runner turns this off unless it is told.
                "ANSIBLE_HOST_KEY_CHECKING": "True",
            },
            settings={"suppress_output_file": True, "idle_timeout": None},
            suppress_env_files=True,
            event_handler=watch,
        )
    if run.status == "canceled":
        if watch.in_stage:
            sys.stdout.write("The training goes on there; the same command follows it again.\n")
        return INTERRUPTED
    return watch.status(run.rc)


def _inventory(given: Any, private: str) -> str:
    """The path of the inventory: the one named, one made for ``--host``, or this machine."""
    made = options.inventory(given)
    if made is None:
        return os.path.abspath(given.inventory or PROJECT / "inventory" / "local")

    path = Path(private, "inventory", "hosts.yml")
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
