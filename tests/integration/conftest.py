"""A GPU host for the integration tests: this machine, through a real sshd of their own."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import sshd_host
from tests.integration.sites import Outcome, Playbooks, Site


@dataclasses.dataclass(frozen=True)
class GpuHost:
    """How to reach the host, and inventories that do."""

    sshd: sshd_host.Sshd
    folder: Path
    _numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return self.sshd.port

    @property
    def user(self) -> str:
        """The account to log in as: our own."""
        return self.sshd.user

    @property
    def key(self) -> Path:
        """The private key that the host accepts."""
        return self.sshd.client_key

    @property
    def known_hosts(self) -> Path:
        """The file that pins the host's key."""
        return self.sshd.known_hosts

    def inventory(self, name: str = "gpu", **variables: Any) -> Path:
        """Write an inventory with this one host in ``gpu_hosts``, and ``variables`` as its own.

        A variable given here replaces the connection's of the same name.
        """
        connection = {
            "ansible_host": self.sshd.address,
            "ansible_port": self.port,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.key),
            "ansible_ssh_common_args": (
                f"-F /dev/null -o 'UserKnownHostsFile=\"{self.known_hosts}\"'"
                " -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes"
                " -o IdentitiesOnly=yes -o IdentityAgent=none"
                " -o ServerAliveInterval=3 -o ServerAliveCountMax=2"
            ),
            "ansible_python_interpreter": sys.executable,
        }
        content = {"gpu_hosts": {"hosts": {name: connection | variables}}}
        path = self.folder / f"inventory-{next(self._numbers)}" / "hosts.yml"
        path.parent.mkdir()
        path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def gpu_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuHost]:
    """A running host; stopped at the end of the session, whatever happens in between."""
    folder = tmp_path_factory.mktemp("gpu_host")
    try:
        yield GpuHost(sshd_host.start(folder / "ssh"), folder)
    finally:
        sshd_host.stop(folder / "ssh")


@pytest.fixture(scope="session")
def playbooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playbooks]:
    """Runs playbooks, with an Ansible home of the tests' own."""
    # A socket's path may have some hundred characters, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="rt-") as control:
        yield Playbooks(tmp_path_factory.mktemp("ansible_home"), Path(control))


@pytest.fixture(scope="session")
def run_playbook(playbooks: Playbooks) -> Callable[..., Outcome]:
    """``run_playbook(*arguments, playbook=..., env=...)`` runs one to its end."""
    return playbooks.run


@pytest.fixture(scope="session")
def new_site(
    gpu_host: GpuHost, playbooks: Playbooks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Site]:
    """``new_site(**settings)`` lays out a training project that has never been synced."""

    def make(**settings: Any) -> Site:
        folder = tmp_path_factory.mktemp("site")
        return Site(playbooks, gpu_host.inventory, folder, settings).make()

    return make


@pytest.fixture(scope="session")
def first_run(new_site: Callable[..., Site]) -> tuple[Site, Outcome]:
    """A site whose four stages are trained and at home, and what that run showed.

    To be looked at and planned on; what changes it takes ``trained_clone``.
    """
    site = new_site()
    outcome = site.run()
    assert outcome.status == 0, outcome.output
    return site, outcome


@pytest.fixture
def trained_clone(first_run: tuple[Site, Outcome], tmp_path: Path) -> Callable[..., Site]:
    """``trained_clone(**settings)`` is the same site somewhere else, to be changed."""

    def make(**settings: Any) -> Site:
        return first_run[0].clone(tmp_path / "site", **settings)

    return make
