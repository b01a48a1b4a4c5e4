"""A training project here, and how it gets to a bare machine and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.bare.bare_host import BareHost
from tests.integration.sites import Outcome, Playbooks


class Site:
    """A training project here, and how it gets to the bare machine and back."""

    def __init__(self, bare: BareHost, folder: Path, playbooks: Playbooks, **settings: Any) -> None:
        self.bare = bare
        self.folder = folder
        self.playbooks = playbooks
        self.home = folder / "home"
        self.root = bare.root / "srv/tutor"
        connection = {
            "ansible_host": "127.0.0.1",
            "ansible_port": bare.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(bare.key),
            "ansible_ssh_common_args": (
                f"-F /dev/null -o UserKnownHostsFile={bare.known_hosts}"
                " -o GlobalKnownHostsFile=/dev/null -o IdentitiesOnly=yes -o IdentityAgent=none"
            ),
            "project_src": str(folder / "src"),
            "project_root": "/srv/tutor",
            "collect_dest": str(self.home),
            "runtime_base": "/data",
            "gpu_gate": "off",
            "non_interactive": True,
            **settings,
        }
        content = {"gpu_hosts": {"hosts": {"bare": connection}}}
        (folder / "hosts.yml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def run(self, *arguments: str, playbook: str = "train_all.yml") -> Outcome:
        """A playbook over the bare machine."""
        process = self.playbooks.start(
            "-i", str(self.folder / "hosts.yml"), *arguments, playbook=playbook, cwd=self.folder
        )
        output, _ = process.communicate(timeout=1200)
        return Outcome(process.returncode, output, 0.0)

    def contents(self) -> set[str]:
        """Every name on the bare machine's disk, its own changes apart."""
        places = ("srv", "data", "opt", "usr", "home")
        return {str(path) for place in places for path in (self.bare.root / place).rglob("*")}
