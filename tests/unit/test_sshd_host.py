"""The throwaway sshd: a real one, reached with the real ssh."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sshd_host
from remote_train.errors import TrainError

pytestmark = pytest.mark.ssh

SCRIPT = Path(sshd_host.__file__)


def run(command: list[str], given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=30, check=False
    )


def ssh(server: sshd_host.Sshd, *command: str, key: Path | None = None):
    return run(server.ssh_command(*command, key=key))


def listeners(port: int) -> list[str]:
    """The local addresses, as the kernel writes them, of IPv4 and IPv6 sockets on a port."""
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.append(address.rpartition(":")[0])
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # Blanks and percent signs mean something in OpenSSH's files.
    running = sshd_host.start(tmp_path_factory.mktemp("sshd") / "a folder 100%h")
    yield running
    sshd_host.stop(running.folder)


def test_logs_in_with_the_host_key_checked(server):
    result = ssh(server, "echo", "$SSH_CONNECTION")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[2:] == ["127.0.0.1", str(server.port)]


def test_refuses_another_key(server, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    result = ssh(server, "true", key=key)
    assert result.returncode == 255
    assert "Permission denied (publickey)" in result.stderr


def test_still_answers_after_refusals(server, tmp_path):
    """Newer versions of sshd lock out an address that failed to log in."""
    missing = tmp_path / "no_such_key"
    assert {ssh(server, "true", key=missing).returncode for _ in range(3)} == {255}
    assert ssh(server, "true").returncode == 0


@pytest.mark.parametrize("pinned", ["", "another host's key"])
def test_a_host_key_that_is_not_pinned_ends_the_connection(server, tmp_path, pinned):
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("")
    if pinned:
        key = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        kind, text = key.with_suffix(".pub").read_text().split()[:2]
        known_hosts.write_text(f"[127.0.0.1]:{server.port} {kind} {text}\n")
    command = server.ssh_command("true")
    right, wrong = (sshd_host.quoted(p, tokens=True) for p in (server.known_hosts, known_hosts))
    command = [word.replace(right, wrong) for word in command]
    result = run(command)
    assert result.returncode == 255
    assert "Host key verification failed" in result.stderr


def test_refuses_a_password_and_takes_no_environment(server):
    command = server.ssh_command("env")
    command[1:1] = ["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password"]
    refused = run(command)
    assert refused.returncode == 255
    command = server.ssh_command("env")
    command[1:1] = ["-o", "SetEnv=LEAKED=yes"]
    result = run(command)
    assert result.returncode == 0
    assert "LEAKED" not in result.stdout


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's socket table")
def test_listens_on_loopback_only(server):
    assert listeners(server.port) == ["0100007F"]


def test_private_files_are_private(server):
    assert server.folder.stat().st_mode & 0o777 == 0o700
    for name in ("client_key", "host_key"):
        assert (server.folder / name).stat().st_mode & 0o777 == 0o600


def test_writes_down_what_a_client_needs(server):
    assert int((server.folder / "port").read_text()) == server.port
    assert (server.folder / "user").read_text().strip() == server.user
    kind, key = (server.folder / "host_key.pub").read_text().split()[:2]
    assert server.known_hosts.read_text() == f"[127.0.0.1]:{server.port} {kind} {key}\n"
    assert "Accepted publickey" in (server.folder / "sshd.log").read_text()


def test_a_second_start_changes_nothing(server):
    key = server.client_key.read_bytes()
    assert sshd_host.start(server.folder) == server
    assert server.client_key.read_bytes() == key


def test_sftp_works(server, tmp_path):
    sftp = shutil.which("sftp")
    assert sftp, "sftp comes with ssh"
    ssh_command = server.ssh_command()
    options = ssh_command[1:-1]
    options[options.index("-p")] = "-P"
    result = run(
        [sftp, "-b", "-", *options, ssh_command[-1]], given=f"put {SCRIPT} {tmp_path}/copy\n"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "copy").read_bytes() == SCRIPT.read_bytes()


def test_stop_ends_the_server_and_its_sessions_but_no_detached_process(tmp_path):
    server = sshd_host.start(tmp_path / "sshd")
    session = subprocess.Popen(server.ssh_command("sleep", "60"), stdin=subprocess.DEVNULL)
    detached = ssh(server, "setsid sleep 60 </dev/null >/dev/null 2>&1 & echo $!")
    pid = int(detached.stdout)
    try:
        deadline = time.monotonic() + 10
        while not sshd_host.children(server.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sshd_host.stop(server.folder) is True
        assert session.wait(timeout=10) != 0
        assert sshd_host.started_at(pid) is not None
        assert sshd_host.started_at(server.pid) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        session.kill()
        session.wait()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", server.port)) != 0
    assert sshd_host.find(server.folder) is None
    assert sshd_host.stop(server.folder) is False
    assert not (server.folder / "client_key").exists()


def test_a_start_after_a_crash_makes_a_new_server(tmp_path):
    first = sshd_host.start(tmp_path)
    key = first.client_key.read_bytes()
    os.kill(first.pid, signal.SIGKILL)
    while sshd_host.started_at(first.pid) is not None:
        time.sleep(0.01)
    second = sshd_host.start(tmp_path)
    try:
        assert second.pid != first.pid
        assert second.client_key.read_bytes() != key
        assert ssh(second, "true").returncode == 0
    finally:
        sshd_host.stop(tmp_path)


@pytest.mark.parametrize("state", ["", "{", "[]", '"x"', '{"pid": 1}', "ours, started before"])
def test_a_state_file_that_names_no_server_of_ours_is_no_server(tmp_path, state):
    """Nothing is killed on the word of a process number that is used again."""
    bystander = subprocess.Popen(["sleep", "60"])
    if state.startswith("ours"):
        state = json.dumps({"pid": bystander.pid, "started": "1", "port": 1, "user": "x"})
    (tmp_path / "state.json").write_text(state)
    try:
        assert sshd_host.find(tmp_path) is None
        assert sshd_host.stop(tmp_path) is False
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="compares ps with /proc")
def test_ps_and_proc_agree_on_who_is_alive():
    if shutil.which("ps") is None:
        pytest.skip("needs ps")
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert sshd_host.started_at(child.pid)
        first = sshd_host.started_at_by_ps(child.pid)
        assert first == sshd_host.started_at_by_ps(child.pid) != ""
    finally:
        child.kill()
    time.sleep(0.1)
    for ask in (sshd_host.started_at, sshd_host.started_at_by_ps):
        assert ask(child.pid) is None  # a zombie until it is waited for
    child.wait()
    for ask in (sshd_host.started_at, sshd_host.started_at_by_ps):
        assert ask(child.pid) is None


def test_a_port_that_was_taken_in_between_is_no_end(tmp_path, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        choose = sshd_host.free_port
        ports = iter([taken, choose()])
        monkeypatch.setattr(sshd_host, "free_port", lambda: next(ports))
        server = sshd_host.start(tmp_path)
        try:
            assert server.port != taken
        finally:
            sshd_host.stop(tmp_path)


def test_names_the_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sshd_host, "SBIN", ())
    with pytest.raises(TrainError, match=r"sshd is not installed here.*Install openssh-server"):
        sshd_host.start(tmp_path / "sshd")


def test_finds_sshd_off_the_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert os.access(sshd_host.program("sshd", "openssh-server"), os.X_OK)


def test_refuses_a_folder_that_no_config_can_name(tmp_path):
    with pytest.raises(TrainError, match="control characters"):
        sshd_host.start(tmp_path / "a\nPasswordAuthentication yes")


def test_says_what_sshd_says(tmp_path, monkeypatch):
    monkeypatch.setattr(sshd_host, "CONFIG", sshd_host.CONFIG + "NoSuchOption yes\n")
    with pytest.raises(TrainError, match=r"refuses its configuration .*"):
        sshd_host.start(tmp_path)


def test_the_command(tmp_path):
    def do(action):
        return run([sys.executable, str(SCRIPT), action, str(tmp_path)])

    before = do("status")
    assert (before.returncode, before.stdout) == (1, "not running\n")
    try:
        started = do("start")
        assert started.returncode == 0, started.stderr
        assert do("status").stdout == started.stdout
    finally:
        assert do("stop").stdout == "stopped\n"
    assert do("stop").stdout == "not running\n"
