"""A real sshd on the loopback interface, unprivileged, with throwaway keys.

    python tools/sshd_host.py start|stop|status DIR

The demo, the integration tests and the Molecule scenario all reach their GPU host through it.
`start` writes these files into DIR (mode 0700):

    port, user                what to connect to (the address is always 127.0.0.1)
    client_key, known_hosts   how to log in, and the one host key that is right
    host_key.pub, sshd.log    the host's side, to look at

A start while the server is running changes nothing; each other start makes fresh keys.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plugins" / "module_utils"))
from remote_train.errors import TrainError

ADDRESS = "127.0.0.1"
START_SECONDS = 15.0
STOP_SECONDS = 10.0
PORT_ATTEMPTS = 5
# Debian keeps sshd out of an ordinary user's PATH.
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/opt/homebrew/sbin")
THROWAWAY = ("port", "user", "client_key", "client_key.pub", "host_key", "authorized_keys")

# What the options are for:
# StrictModes no         it refuses a key file below any group-writable folder, which a checkout
#                        under umask 002 or in /tmp has; the folder itself is ours, mode 0700.
# UsePAM                 no: an unprivileged sshd can't, and needs none. Only root with a locked
#                        password needs it, since sshd refuses a locked account without PAM.
# MaxStartups, -Sessions Ansible opens many connections at once; the defaults drop some of them.
# No AcceptEnv           the host sees nothing of the controller's environment.
CONFIG = """\
ListenAddress {address}:{port}
HostKey {host_key}
PidFile {pid_file}
AuthorizedKeysFile {authorized_keys}
AllowUsers {user}
PermitRootLogin prohibit-password
AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM {pam}
UseDNS no
X11Forwarding no
PermitUserEnvironment no
PrintMotd no
LogLevel VERBOSE
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""
# OpenSSH 9.8 and newer lock an address out after failed logins, and older ones don't know the
# word: a test that shows a wrong key being refused must not lock out the ones after it.
OPTIONAL_CONFIG = "PerSourcePenalties no\n"


@dataclasses.dataclass(frozen=True)
class Sshd:
    """A running server, and all that a client needs to reach it."""

    folder: Path
    port: int
    user: str
    pid: int

    @property
    def address(self) -> str:
        """The loopback address, the only one that is ever listened on."""
        return ADDRESS

    @property
    def client_key(self) -> Path:
        """The private key that the server accepts."""
        return self.folder / "client_key"

    @property
    def known_hosts(self) -> Path:
        """The file that holds this server's host key and no other."""
        return self.folder / "known_hosts"

    def ssh_command(self, *command: str, key: Path | None = None) -> list[str]:
        """The command line that runs ``command`` on the host; ``key`` replaces the right key."""
        return [
            program("ssh", "openssh-client"),
            *ssh_options(self.known_hosts),
            *("-o", f"IdentityFile={quoted(key or self.client_key, tokens=True)}"),
            *("-p", str(self.port)),
            f"{self.user}@{ADDRESS}",
            *command,
        ]


def ssh_options(known_hosts: Path) -> list[str]:
    """The options of ssh that let nothing in but this project's own key and host key.

    The user's own configuration and agent stay out: a ``ProxyJump`` there would lead elsewhere.
    """
    return [
        *("-F", "/dev/null"),
        *("-o", f"UserKnownHostsFile={quoted(known_hosts, tokens=True)}"),
        *("-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "StrictHostKeyChecking=yes"),
        *("-o", "IdentitiesOnly=yes"),
        *("-o", "IdentityAgent=none"),
        *("-o", "BatchMode=yes"),
        *("-o", "ConnectTimeout=5"),
    ]


def start(folder: Path) -> Sshd:
    """Start the server of ``folder``, or find it running; it has answered a login on return.

    :raises TrainError: where OpenSSH is missing, or the server doesn't come up or let us in.
    """
    folder = folder.absolute()
    if any(mark in str(folder) for mark in "\n\r\0"):
        raise TrainError(
            f"{str(folder)!r} can't be written into an sshd_config.",
            "Choose a folder without control characters in its name.",
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with locked(folder):
        running = find(folder)
        if running is not None:
            return running
        sshd = program("sshd", "openssh-server")
        make_keys(folder)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = free_port()
            write_config(folder, sshd, port)
            try:
                return launch(folder, sshd, port)
            except PortTakenError as error:
                if attempt == PORT_ATTEMPTS:
                    raise TrainError(
                        f"sshd found no free port on {ADDRESS} in {attempt} attempts: {error}",
                        "Start again in a moment.",
                        category="infra",
                    ) from None
    raise AssertionError("the loop above returns or raises")


def stop(folder: Path) -> bool:
    """End the server of ``folder`` and its sessions; true when there was one to end.

    A detached process that was started through it goes on: that is what the host promises.

    :raises TrainError: when the server outlives :data:`STOP_SECONDS` and a SIGKILL.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        return False
    with locked(folder):
        running = find(folder)
        if running is not None:
            sessions = children(running.pid)
            end(running.pid)
            # They would linger as long as Ansible's ControlPersist keeps its connection open.
            for pid, started in sessions:
                if started_at(pid) == started:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
        for name in (*THROWAWAY, "state.json", "sshd.pid"):
            (folder / name).unlink(missing_ok=True)
    return running is not None


def find(folder: Path) -> Sshd | None:
    """The running server of ``folder``, or None.

    The process that the state file names counts only with the start time that stands there too:
    a process number is used again.
    """
    folder = folder.absolute()
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        pid, started, port, user = (state[key] for key in ("pid", "started", "port", "user"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(pid, int) or started is None or started_at(pid) != started:
        return None
    if not (folder / "client_key").is_file() or not (folder / "known_hosts").is_file():
        end(pid)  # it is ours and runs, but nobody can log in any more
        return None
    return Sshd(folder=folder, port=int(port), user=str(user), pid=pid)


class PortTakenError(Exception):
    """Somebody else took the port between our choosing it and sshd's binding it."""


def launch(folder: Path, sshd: str, port: int) -> Sshd:
    """Run sshd, wait for its first successful login, and record it."""
    log = folder / "sshd.log"
    log.write_bytes(b"")
    (folder / "sshd.pid").unlink(missing_ok=True)
    kind, key = (folder / "host_key.pub").read_text(encoding="ascii").split()[:2]
    (folder / "known_hosts").write_text(f"[{ADDRESS}]:{port} {kind} {key}\n", encoding="ascii")
    command = [sshd, "-f", str(folder / "sshd_config"), "-E", str(log)]
    subprocess.run(command, stdin=subprocess.DEVNULL, check=False, cwd="/")
    user = user_name()
    deadline = time.monotonic() + START_SECONDS
    pid = wait_for_pid(folder, log, deadline)
    (folder / "state.json").write_text(
        json.dumps({"pid": pid, "started": started_at(pid), "port": port, "user": user}) + "\n",
        encoding="utf-8",
    )
    server = Sshd(folder=folder, port=port, user=user, pid=pid)
    answer = subprocess.run(
        server.ssh_command("true"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=START_SECONDS,
    )
    if answer.returncode != 0:
        reason = last_line_of(answer.stderr) or last_line(log)
        end(pid)
        raise TrainError(
            f"sshd runs on {ADDRESS}:{port} and refuses a login of {user}: {reason}",
            f"See {log}; the account's shell must be one that can run commands.",
            category="infra",
        )
    (folder / "user").write_text(f"{user}\n", encoding="utf-8")
    (folder / "port").write_text(f"{port}\n", encoding="utf-8")
    return server


def wait_for_pid(folder: Path, log: Path, deadline: float) -> int:
    """The process number that sshd writes once it listens."""
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "sshd.pid").read_text(encoding="ascii"))
        text = log.read_text(encoding="utf-8", errors="replace")
        if "Address already in use" in text:
            raise PortTakenError(last_line(log))
        if "Cannot bind any address" in text or "fatal:" in text:
            break
        time.sleep(0.02)
    raise TrainError(
        f"sshd did not start: {last_line(log) or 'it said nothing'}",
        f"See {log}.",
        category="infra",
    )


def write_config(folder: Path, sshd: str, port: int) -> None:
    """Write the sshd_config, in the words that this version of sshd knows.

    :raises TrainError: when sshd refuses it.
    """
    path = folder / "sshd_config"
    text = CONFIG.format(
        address=ADDRESS,
        port=port,
        host_key=quoted(folder / "host_key"),
        pid_file=quoted(folder / "sshd.pid"),
        authorized_keys=quoted(folder / "authorized_keys", tokens=True),
        user=user_name(),
        pam="yes" if locked_password() else "no",
    )
    refusal = ""
    for candidate in (text + OPTIONAL_CONFIG, text):
        path.write_text(candidate, encoding="utf-8")
        for _ in range(2):
            check = subprocess.run(
                [sshd, "-t", "-f", str(path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
            if check.returncode == 0:
                return
            refusal = last_line_of(check.stderr)
            if not made_privilege_separation_folder(refusal):
                break
    raise TrainError(f"sshd refuses its configuration {path}: {refusal}", category="infra")


def made_privilege_separation_folder(refusal: str) -> bool:
    """Make the empty folder that an sshd started by root wants, where it says it is missing.

    It is compiled into sshd and on a tmpfs; the service that makes it at boot never ran in a
    container. An unprivileged sshd doesn't ask for it.
    """
    found = re.search(r"Missing privilege separation directory: (/\S+)", refusal)
    if found is None or os.geteuid() != 0:
        return False
    Path(found[1]).mkdir(mode=0o755, parents=True, exist_ok=True)
    return True


def make_keys(folder: Path) -> None:
    """Make the host's key and the client's, and authorize the second."""
    keygen = program("ssh-keygen", "openssh-client")
    for name in ("host_key", "client_key"):
        key = folder / name
        key.unlink(missing_ok=True)
        result = subprocess.run(
            [keygen, "-q", "-t", "ed25519", "-N", "", "-C", f"remote-train {name}", "-f", str(key)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0:
            raise TrainError(
                f"ssh-keygen could not make {key}: {last_line_of(result.stderr)}", category="infra"
            )
    shutil.copyfile(folder / "client_key.pub", folder / "authorized_keys")


def program(name: str, package: str) -> str:
    """The absolute path of an OpenSSH program, also where PATH lacks the sbin folders.

    :raises TrainError: when it is nowhere; ``package`` is what to install.
    """
    folders = [os.environ.get("PATH", os.defpath), *SBIN]
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise TrainError(f"{name} is not installed here.", f"Install {package}.", category="infra")
    return os.path.abspath(found)


def free_port() -> int:
    """A port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def user_name() -> str:
    """The account that runs this; an unprivileged sshd can let no other in."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise TrainError(
            f"User number {os.geteuid()} has no account on this machine, so sshd can't let it in.",
            "Run as a user that /etc/passwd knows.",
            category="infra",
        ) from None


def locked_password() -> bool:
    """Whether sshd would call our own account locked (only root can see it, and is asked)."""
    try:
        with open("/etc/shadow", encoding="utf-8", errors="replace") as shadow:
            entries = [line.split(":") for line in shadow]
    except OSError:
        return False
    return any(entry[0] == user_name() and entry[1].startswith("!") for entry in entries)


def started_at(pid: int) -> str | None:
    """When a process started, in the system's own words; None when it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            fields = stat.read().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return started_at_by_ps(pid)
    except ProcessLookupError:
        return None
    return None if fields[0] == "Z" else fields[19]


def started_at_by_ps(pid: int) -> str | None:
    """The same where there is no /proc (macOS)."""
    command = [shutil.which("ps") or "/bin/ps", "-o", "state=,lstart=", "-p", str(pid)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    state, _, started = result.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def children(parent: int) -> list[tuple[int, str]]:
    """The processes that ``parent`` started itself, each with its start time (Linux only)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = entry.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append((int(entry.parent.name), fields[19]))
    return found


def end(pid: int) -> None:
    """End a process that is known to be ours, and wait until it is gone."""
    started = started_at(pid)
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS / 2
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
        while time.monotonic() < deadline:
            if started_at(pid) != started or started is None:
                return
            time.sleep(0.01)
    raise TrainError(
        f"sshd (process {pid}) did not end within {STOP_SECONDS:.0f} s.", category="infra"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep two starts of one folder from making two servers."""
    with open(folder / "lock", "w", encoding="ascii") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def quoted(path: Path, tokens: bool = False) -> str:
    """A path as OpenSSH's files want it; ``tokens``: where ``%`` begins a token, it is doubled."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + (text.replace("%", "%%") if tokens else text) + '"'


def last_line(path: Path) -> str:
    """The last line of a log that says anything."""
    return last_line_of(path.read_text(encoding="utf-8", errors="replace"))


def last_line_of(text: str) -> str:
    """The last line of a text that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done; 1 status of a server that isn't running; 2 it could not be done."""
    parser = argparse.ArgumentParser(
        description="A real sshd on 127.0.0.1, unprivileged, with throwaway keys."
    )
    parser.add_argument("action", choices=("start", "stop", "status"))
    parser.add_argument("folder", type=Path, metavar="DIR", help="where its files are")
    options = parser.parse_args(arguments)
    try:
        if options.action == "stop":
            print("stopped" if stop(options.folder) else "not running")
            return 0
        server = start(options.folder) if options.action == "start" else find(options.folder)
    except TrainError as error:
        print(f"sshd_host: {error}", file=sys.stderr)
        return 2
    if server is None:
        print("not running")
        return 1
    print(f"{server.user}@{server.address}:{server.port} (process {server.pid})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
