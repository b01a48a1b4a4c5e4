"""A bare machine of its own: Debian's base system with sshd and python3, and nothing else.

Made by debootstrap, once, and kept; each host is a copy of that, run by ``unshare`` with its own
file system, processes and host name. The network is this machine's: sshd listens on loopback.
It takes root. What it lacks is a reason to skip, and never a failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import sshd_host
from remote_train.errors import TrainError

SUITE = "bookworm"
PACKAGES = "openssh-server,python3"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "remote-train"

SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey /etc/ssh/bare_host_key
PidFile none
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
UseDNS no
StrictModes no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""

INSIDE = """
hostname bare
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f /etc/ssh/bare_config
"""


MIRROR_SECONDS, BOOTSTRAP_SECONDS = 30.0, 900.0
"""Seconds that debootstrap gets until its mirror has answered, and for all of it."""


class MissingError(Exception):
    """Why no bare machine can be made here."""


@dataclasses.dataclass(frozen=True)
class BareHost:
    """A bare machine that runs, and all that a client needs to reach it."""

    folder: Path
    port: int

    @property
    def root(self) -> Path:
        """Its file system, as seen from here."""
        return self.folder / "root"

    @property
    def key(self) -> Path:
        """The private key that it accepts, for root."""
        return self.folder / "client_key"

    @property
    def known_hosts(self) -> Path:
        """The file that pins its key."""
        return self.folder / "known_hosts"

    def ssh(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on it."""
        return subprocess.run(
            [
                "ssh",
                *sshd_host.ssh_options(self.known_hosts),
                *("-i", str(self.key), "-p", str(self.port), "root@127.0.0.1"),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


def base_system() -> Path:
    """The base system, made where it isn't kept yet (about a minute, and 300 MB).

    :raises MissingError: where it can't be.
    """
    kept = CACHE / f"bare-{SUITE}"
    if (kept / "usr/sbin/sshd").exists():
        return kept
    debootstrap = shutil.which("debootstrap", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if debootstrap is None:
        raise MissingError("debootstrap is not installed")
    CACHE.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="bare-", dir=CACHE))
    command = [debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, str(made)]
    try:
        _bootstrap(command)
    except MissingError:
        shutil.rmtree(made, ignore_errors=True)
        raise
    # Only sshd and python3 are left: no pip, no venv's parts, and no way to have them.
    made.chmod(0o755)
    made.rename(kept)
    return kept


def _bootstrap(command: list[str]) -> None:
    """Run debootstrap, which alone would wait for a mirror that doesn't answer for very long."""
    began, lines = time.monotonic(), [b"no word"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        limit = MIRROR_SECONDS
        while process.poll() is None and time.monotonic() - began < limit:
            time.sleep(0.2)
            # The first two lines tell of the mirror's list, which is small.
            if os.fstat(log.fileno()).st_size and len(_lines(log)) > 2:
                limit = BOOTSTRAP_SECONDS
        late = process.poll() is None
        if late:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = _lines(log) or lines
    if process.returncode:
        said = lines[-1].decode(errors="replace").strip()
        after = f" after {limit:.0f} s" if late else ""
        raise MissingError(f"debootstrap can't make a base system{after}: {said}")


def _lines(log: IO[bytes]) -> list[bytes]:
    return os.pread(log.fileno(), 1 << 20, 0).strip().splitlines()


@contextlib.contextmanager
def bare_host(folder: Path) -> Iterator[BareHost]:
    """A bare machine that answers, for as long as the body runs.

    :raises MissingError: where none can be made here.
    """
    if os.geteuid():
        raise MissingError("it takes root")
    if shutil.which("unshare") is None:
        raise MissingError("there is no unshare")
    base = base_system()
    host = BareHost(folder, sshd_host.free_port())
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(host.root)], check=True)
    _set_up(host)
    log = folder / "sshd.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
                f"--mount-proc={host.root}/proc",
                *("chroot", str(host.root), "/bin/sh", "-c", INSIDE),
            ],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    try:
        _wait(host, process, log)
        yield host
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(host.root, ignore_errors=True)


def _set_up(host: BareHost) -> None:
    keygen = sshd_host.program("ssh-keygen", "openssh-client")
    for path in (host.root / "etc/ssh/bare_host_key", host.key):
        command = [keygen, "-q", "-t", "ed25519", "-N", "", "-C", "bare", "-f", str(path)]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
    kind, key = (host.root / "etc/ssh/bare_host_key.pub").read_text().split()[:2]
    host.known_hosts.write_text(f"[127.0.0.1]:{host.port} {kind} {key}\n")
    (host.root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
    shutil.copy(f"{host.key}.pub", host.root / "root/.ssh/authorized_keys")
    config = host.root / "etc/ssh/bare_config"
    config.write_text(SSHD_CONFIG.format(port=host.port))
    (host.root / "dev/shm").mkdir(exist_ok=True)


def _wait(host: BareHost, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    said = ""
    while time.monotonic() < deadline and process.poll() is None:
        answer = host.ssh("hostname")
        if answer.returncode == 0:
            if answer.stdout.strip() != "bare":
                raise TrainError("Another machine answered on the port of the bare one.")
            return
        said = answer.stderr.strip()
        time.sleep(0.1)
    words = log.read_text(errors="replace").strip().splitlines()[-1:] or [said or "no word"]
    raise MissingError(f"a bare machine can't be started here: {words[0]}")
