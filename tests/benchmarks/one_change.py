"""One small file changed in a project of 20,000 files, 1 GB: our sync beside `rsync -ac`.

Both go through the same sshd, each over a connection that is open already, and through a proxy
that counts the bytes on the wire, both ways. Both sides of ours know the project from syncs before,
as they do in daily work: what is told of a file that nobody touched is remembered by its inode,
size, mtime and ctime (`sync_cache`); the row without it reads every byte again, as rsync does.

What a sync costs however small the project is, is taken off first: the same playbook, sync.yml, on
a project of one file, which is changed as well. That is more than Ansible's own start: our plan
and apply are in it. What is left is what 20,000 files cost more than one.

Beside it stands what is left when only Ansible's own start is taken off: `ansible -m ping`, and an
`ansible-playbook` run of a play whose one task is ping, which also loads what a playbook needs.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

import sshd_host
from tests.benchmarks.counting_proxy import CountingProxy
from tests.benchmarks.rows import BIN, PROJECT, WORK, BenchError, Row, in_turns, say, seconds

FOLDERS = 200
IN_EACH = 100
SIZE = 50_000  # bytes: 1 GB in all
SMALL = 4096  # bytes of the file that changes
MOST = 1.5
WHITELIST = "scripts/training_sync_whitelist.txt"
CHANGED = "data/changed.json"


def measure(repeats: int) -> list[Row]:
    """Change one file again and again, and bring it over by each side in turns."""
    if shutil.which("rsync") is None:
        raise BenchError("rsync is not installed")
    # A socket's path may have some hundred characters.
    with tempfile.TemporaryDirectory(prefix="rt-") as control:
        server = sshd_host.start(WORK / "ssh")
        proxy = CountingProxy((server.address, server.port))
        try:
            return _measure(_Link(server, proxy, Path(control)), repeats)
        finally:
            proxy.close()
            sshd_host.stop(WORK / "ssh")


class _Cost(NamedTuple):
    seconds: float
    bytes: float


@dataclasses.dataclass(frozen=True)
class _Link:
    """The way to the host."""

    server: sshd_host.Sshd
    proxy: CountingProxy
    control: Path

    @property
    def ssh_options(self) -> list[str]:
        """As in inventory/demo, on the proxy's port, whose name in known_hosts is the server's."""
        known = f"[{self.server.address}]:{self.server.port}"
        return [
            *("-F", "/dev/null"),
            *("-o", f"UserKnownHostsFile={self.server.known_hosts}"),
            *("-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", f"HostKeyAlias={known}"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", "IdentityAgent=none"),
        ]

    @property
    def rsync_ssh(self) -> str:
        """The value of rsync's `-e`."""
        command = ["ssh", *self.ssh_options]
        command += ["-i", str(self.server.client_key), "-p", str(self.proxy.port)]
        command += ["-o", "ControlMaster=auto", "-o", "ControlPersist=60s"]
        return shlex.join([*command, "-o", f"ControlPath={self.control}/rsync"])


class _Project:
    """A training project here, its folder on the host, and an inventory for them."""

    def __init__(self, link: _Link, name: str, files: int) -> None:
        self._link = link
        folder = WORK / name
        self.source, self.root = folder / "source", folder / "host"
        _write(self.source, files)
        # The first transfer is no part of this: the host has the project already.
        shutil.copytree(self.source, self.root)
        self.executions = folder / "executions"
        wrapper = folder / "ssh"
        wrapper.write_text(
            f'#!/bin/sh\necho >>{self.executions}\nexec ssh "$@"\n', encoding="utf-8"
        )
        wrapper.chmod(0o755)
        self.inventory = folder / "inventory.yml"
        variables = {
            "ansible_host": link.server.address,
            "ansible_port": link.proxy.port,
            "ansible_user": link.server.user,
            "ansible_ssh_private_key_file": str(link.server.client_key),
            "ansible_ssh_common_args": shlex.join(link.ssh_options),
            "ansible_ssh_executable": str(wrapper),
            "ansible_python_interpreter": sys.executable,
            "project_src": str(self.source),
            "project_root": str(self.root),
            "provision_python": sys.executable,
            "stages": [],
        }
        content = {"gpu_hosts": {"hosts": {"host": variables}}}
        self.inventory.write_text(yaml.safe_dump(content), encoding="utf-8")
        self.ping_play = folder / "ping.yml"
        tasks = [{"name": "Ping", "ansible.builtin.ping": {}}]
        play = {"name": "Ping", "hosts": "gpu_hosts", "gather_facts": False, "tasks": tasks}
        self.ping_play.write_text(yaml.safe_dump([play]), encoding="utf-8")
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("REMOTE_", "TRAIN_"))},
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "ANSIBLE_HOME": str(WORK / "ansible"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(link.control),
            # What the controller remembers is the bench's own.
            "XDG_CACHE_HOME": str(WORK / "cache"),
        }

    def change(self) -> None:
        """Give the file that changes other bytes, as many as before."""
        (self.source / CHANGED).write_bytes(os.urandom(SMALL))

    def sync(self, *options: str, changed: int = 1) -> float:
        """The seconds that the playbook takes."""
        command = [BIN / "ansible-playbook", "-i", self.inventory, *options]
        taken = seconds(
            [*command, PROJECT / "playbooks" / "sync.yml"],
            env=self.environment,
            must_say=f"changed={changed} ",
        )
        here, there = ((at / CHANGED).read_bytes() for at in (self.source, self.root))
        if here != there:
            raise BenchError("the sync brought nothing")
        return taken

    def ping(self) -> float:
        """The seconds of `ansible -m ping` on the same host."""
        command = [BIN / "ansible", "-i", self.inventory, "gpu_hosts", "-m", "ping"]
        return seconds(command, env=self.environment, must_say="pong")

    def play(self) -> float:
        """The seconds of a playbook whose one task is ping, on the same host."""
        command = [BIN / "ansible-playbook", "-i", self.inventory, self.ping_play]
        return seconds(command, env=self.environment, must_say="ok=1 ")

    def round_trips(self) -> int:
        """How often ssh is started by a sync that finds nothing to bring."""
        self.sync(changed=0)  # whatever the measurements before have left to do is done here
        self.executions.unlink(missing_ok=True)
        self.sync(changed=0)
        return len(self.executions.read_text(encoding="ascii").splitlines())


def _write(source: Path, files: int) -> None:
    (source / WHITELIST).parent.mkdir(parents=True)
    (source / WHITELIST).write_text("data\n", encoding="ascii")
    (source / "data").mkdir()
    (source / CHANGED).write_bytes(os.urandom(SMALL))
    for number in range(files - 1):
        folder = source / "data" / f"part{number // IN_EACH:03}"
        folder.mkdir(exist_ok=True)
        (folder / f"sample{number % IN_EACH:03}.json").write_bytes(os.urandom(SIZE))


def _measure(link: _Link, repeats: int) -> list[Row]:
    files = FOLDERS * IN_EACH
    say(f"one_change: writing {files:,} files, 1 GB, on both sides")
    large, one = _Project(link, "large", files), _Project(link, "one", 1)
    copy = WORK / "rsync"
    shutil.copytree(large.source, copy)
    rsync = ["rsync", "-ac", "-e", link.rsync_ssh, f"{large.source}/"]
    rsync.append(f"{link.server.user}@{link.server.address}:{copy}/")
    seconds(rsync)
    for project in (large, one):
        for _turn in range(3):  # what is young is remembered by the run after the first that saw it
            project.change()
            project.sync()
    large.ping()
    large.play()

    def copied() -> float:
        taken = seconds(rsync)
        if (copy / CHANGED).read_bytes() != (large.source / CHANGED).read_bytes():
            raise BenchError("rsync brought nothing")
        return taken

    def counted(run: Callable[[], float]) -> Callable[[], _Cost]:
        def cost() -> _Cost:
            large.change()
            one.change()
            before = link.proxy.count()
            return _Cost(run(), link.proxy.count() - before)

        return cost

    taken = in_turns(
        {
            "rsync": counted(copied),
            "ours": counted(large.sync),
            "one": counted(one.sync),
            "ping": counted(large.ping),
            "play": counted(large.play),
        },
        repeats,
    )
    forgetful = []
    for _turn in range(2):
        large.change()
        forgetful.append(large.sync("-e", "sync_cache=false"))
    cost = {
        side: _Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))
        for side, costs in taken.items()
    }
    return [
        *_rows(cost, statistics.median(forgetful)),
        Row("nothing changed in 20,000 files: starts of ssh by sync.yml", large.round_trips(), 1),
    ]


def _rows(cost: Mapping[str, _Cost], forgetful: float) -> list[Row]:
    """What ours takes in terms of what rsync takes.

    :param forgetful: seconds of ours that believes no cache.
    """
    for side, text in (
        ("rsync", "rsync -ac"),
        ("ours", "our sync"),
        ("one", "the same playbook on one file"),
        ("ping", "ansible -m ping"),
        ("play", "ansible-playbook, one ping task"),
    ):
        say(f"one_change: {text}: {cost[side].seconds:.2f} s, {cost[side].bytes:,.0f} bytes")

    def left(less: str) -> _Cost:
        """What ours takes on top of something else, in terms of what rsync takes."""
        ours, off, theirs = cost["ours"], cost[less], cost["rsync"]
        return _Cost(
            (ours.seconds - off.seconds) / theirs.seconds, (ours.bytes - off.bytes) / theirs.bytes
        )

    slow = (forgetful - cost["one"].seconds) / cost["rsync"].seconds
    one_file = "sync - the same playbook on one file"
    say("one_change: in the rows are multiples of what rsync -ac takes, but for the last")
    if max(left("ping")) > MOST:
        say(
            f"one_change: not reached: no more than {MOST} times rsync -ac with only Ansible's own"
            f" start taken off; it is {left('ping').seconds:.1f} in seconds, and"
            f" {left('ping').bytes:.1f} in bytes"
        )
    return [
        Row(
            f"1 change in 20,000: seconds, {one_file}",
            left("one").seconds,
            MOST,
        ),
        Row(f"  bytes, {one_file}", left("one").bytes, MOST),
        Row("  seconds, sync - ansible -m ping", left("ping").seconds),
        Row("  bytes, sync - ansible -m ping", left("ping").bytes),
        Row("  seconds, sync - an ansible-playbook run of one ping task", left("play").seconds),
        Row("  bytes, sync - an ansible-playbook run of one ping task", left("play").bytes),
        Row(f"  seconds, sync_cache=false, {one_file}", slow),
    ]
