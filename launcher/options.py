"""The options of `remote-train`, and the Ansible variables that they set."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any

PLAYBOOKS = {
    "run": ("train_all.yml", "train what has to be trained, and bring it home (the default)"),
    "plan": ("plan.yml", "say what a run would do, and why"),
    "precheck": ("precheck.yml", "see whether the machine is fit"),
    "sync": ("sync.yml", "bring the training project to the host"),
    "collect": ("collect.yml", "bring the results home, or verify what is there"),
    "restore": ("restore.yml", "give a run that is at home back to a host"),
    "report": ("report.yml", "draw the page of a run again, from what is at home"),
    "status": ("status.yml", "say where each stage stands, and what the machine does"),
    "stop": ("stop.yml", "end the stage that runs, and nothing else"),
    "logs": ("logs.yml", "show the log of a stage; with -f, what comes to it as well"),
}
"""Each subcommand with its playbook and what it does."""

CONNECTION = {
    "host": "ansible_host",
    "port": "ansible_port",
    "user": "ansible_user",
    "key": "ansible_ssh_private_key_file",
}
"""The options that say how to reach the host, with the variables they set."""

PATHS = ("inventory", "key", "project_src", "collect_dest")
"""The options that name a file or folder on this machine."""

NO_STAGES = ("precheck", "sync", "provision", "collect", "always", "never", "tagged", "untagged")
"""Tags that would be taken for a stage: the run's own steps, and words of Ansible's."""

QUESTION = (
    "remote-train never asks anything: with ansible-playbook, a person at a terminal is asked "
    "once,\nafter the stage sample, whether to go on."
)
"""What is different from ansible-playbook, whose terminal ansible-runner can't pass on."""

SETTINGS = (
    "project_root",
    "project_src",
    "collect_dest",
    "non_interactive",
    "assume_yes",
    "skip_sample",
    "force",
    "gpu_gate",
    "acceptance_gate",
    "follow",
    "log_lines",
    "stop_grace",
    "report_run",
    "report_language",
)
"""The options that are settings of the same name."""


ONLY_FOR = {
    "follow": "logs",
    "log_lines": "logs",
    "stop_grace": "stop",
    "report_run": "report",
}
"""The options of one subcommand alone."""


def parser() -> argparse.ArgumentParser:
    """The command line of `remote-train`."""
    known = argparse.ArgumentParser(
        prog="remote-train",
        description="Train LoRA adapters on a rented GPU machine over SSH, and bring them home.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{name:10} {text}" for name, (_, text) in PLAYBOOKS.items())
        + f"\n\n{QUESTION}",
        allow_abbrev=False,
    )
    known.add_argument("command", nargs="?", choices=PLAYBOOKS, default="run", metavar="COMMAND")
    known.add_argument("-i", "--inventory", help="an inventory, in place of --host")
    known.add_argument("--host", help="the GPU host's name or address; needs no inventory")
    known.add_argument("--port", type=int, help="its SSH port")
    known.add_argument("--user", help="the user to log in as")
    known.add_argument("--key", help="the private key to log in with")
    known.add_argument("--project-root", help="the training project's folder on the host")
    known.add_argument("--project-src", help="the training project's folder here")
    known.add_argument("--collect-dest", help="where results come home to")
    known.add_argument("--non-interactive", action="store_true", help="ask nothing")
    known.add_argument(
        "--yes", dest="assume_yes", action="store_true", help="yes to everything; asks nothing"
    )
    known.add_argument("--skip-sample", action="store_true", help="leave out the sample stage")
    known.add_argument("--gpu-gate", help="strict, warn or off")
    known.add_argument("--acceptance-gate", help="strict, warn or off")
    known.add_argument(
        "--stage", action="append", default=[], help="this stage alone; may be given again"
    )
    known.add_argument("--force", action="store_true", help="train again what is up to date")
    known.add_argument("--check", action="store_true", help="change nothing, say what would")
    known.add_argument("-f", "--follow", action="store_true", help="logs: until the stage ends")
    known.add_argument("-n", "--lines", dest="log_lines", type=int, help="logs: how many")
    known.add_argument("--grace", dest="stop_grace", type=int, help="stop: seconds before a kill")
    known.add_argument("--run", dest="report_run", help="report: which one; the newest by default")
    known.add_argument("--report-language", help="the language of report.html: en or zh")
    known.add_argument("-v", "--verbose", action="count", default=0, help="show Ansible's output")
    return known


def read(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options, checked, with paths made absolute from the current folder.

    :raises SystemExit: with status 2 where they make no sense, after a sentence that says why.
    """
    known = parser()
    given = known.parse_args(arguments)
    for name in PATHS:
        path = getattr(given, name)
        if path is not None:
            setattr(given, name, os.path.abspath(os.path.expanduser(path)) if path else "")
    if given.host == "":
        known.error("--host is empty: name the GPU host")
    if given.host is not None and given.inventory is not None:
        known.error("--host and --inventory both name the host: give one of them")
    for name in ("inventory", "key"):
        path = getattr(given, name)
        if path is not None and not os.path.exists(path):
            known.error(f"--{name}: there is no {path}")
    for stage in given.stage:
        if stage in NO_STAGES or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", stage):
            known.error(f"--stage: {stage!r} is no stage; give --stage again for another one")
    _check_command(known, given)
    return given


def _check_command(known: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse an option that the subcommand has no use for."""
    for name, command in ONLY_FOR.items():
        if getattr(given, name) != known.get_default(name) and given.command != command:
            known.error(f"--{name.rpartition('_')[2]} is for {command}, not for {given.command}")
    if given.stage and given.command in ("status", "stop"):
        known.error(f"--stage is not for {given.command}, which looks at whatever runs")
    if given.stage and given.command == "report":
        known.error("--stage is not for report, whose page is about a whole run")
    if given.command == "logs" and len(given.stage) > 1:
        known.error("--stage: there is one log at a time; give it once")


def extra_variables(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line gives; what it doesn't name stays as it is."""
    given = {name: getattr(options, name) for name in SETTINGS}
    chosen = {
        name: value for name, value in given.items() if value is not None and value is not False
    }
    if options.command == "logs" and options.stage:
        chosen["log_stage"] = options.stage[0]
    return chosen


def tags(options: argparse.Namespace) -> str | None:
    """What goes to Ansible's ``--tags``; None for everything."""
    if options.command == "logs":
        return None
    return ",".join(tag_of(stage) for stage in options.stage) or None


def inventory(options: argparse.Namespace) -> dict[str, Any] | None:
    """An inventory for ``--host``, or None where the command line names no host.

    How to reach it is not in there: the environment would beat that.
    """
    return {"gpu_hosts": {"hosts": {options.host: {}}}} if options.host else None


def connection_variables(options: argparse.Namespace) -> dict[str, Any]:
    """How to reach the host, as far as the command line says it.

    For Ansible's ``-e``, which beats environment and inventory.
    """
    given = {variable: getattr(options, option) for option, variable in CONNECTION.items()}
    return {variable: value for variable, value in given.items() if value is not None}


def tag_of(stage: str) -> str:
    """The tag of a stage on the command line: ``all`` is a word of Ansible's own."""
    return "multitask" if stage == "all" else stage
