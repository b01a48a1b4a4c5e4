"""An index that can't be reached is said in seconds, with its name, by uv and by pip alike."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_train import installer, package_index
from remote_train.errors import TrainError
from remote_train.installer import Source
from tests.unit.wheels import UV, Machine, served, simple_index

SECRET = "s3c" + "ret"


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """A port that accepts, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def refusing() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(package_index, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(package_index, "PAUSE", 0.05)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(params=["pip", "uv"])
def tool(request, monkeypatch):
    monkeypatch.setattr(installer, "find_uv", lambda _base: UV if request.param == "uv" else "")
    return request.param


def install(machine: Machine, url: str) -> list[str]:
    """Install from an index; the lines that were said."""
    if not machine.venv.exists():
        installer.make_venv(machine.python, str(machine.venv))
    python = str(machine.venv / "bin/python")
    said: list[str] = []
    pip = subprocess.run(
        [sys.executable, "-c", "import pip; print(pip.__path__[0])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    installer.install(
        machine.python,
        python,
        ["small-thing>=1"],
        "2.13.0",
        Source(url),
        pip=os.path.dirname(pip),
        on_line=said.append,
    )
    return said


def refusal(machine: Machine, url: str) -> TrainError:
    began = time.monotonic()
    with pytest.raises(TrainError) as caught:
        install(machine, url)
    assert time.monotonic() - began < 30
    error = caught.value
    assert error.message.startswith("The package index ")
    assert error.category == "infra"
    assert "provision_index_url" in error.hint
    assert "mirror" in error.hint
    assert "provision_wheels" in error.hint
    assert SECRET not in str(error)
    return error


def test_a_port_that_refuses(machine, tool):
    address = f"127.0.0.1:{refusing()}/simple"
    error = refusal(machine, f"http://me:{SECRET}@{address}")
    assert error.message == (
        f"The package index http://{address} can't be reached from the host: connection refused."
    )


def test_a_port_that_accepts_and_never_answers(machine, tool):
    with silent() as port:
        for scheme in ("http", "https"):
            error = refusal(machine, f"{scheme}://me:{SECRET}@127.0.0.1:{port}/simple")
            assert "no answer within" in error.message
            assert f"{scheme}://127.0.0.1:{port}/simple" in error.message


def test_a_name_that_does_not_resolve(machine, tool):
    error = refusal(machine, f"https://me:{SECRET}@mirror.invalid/simple?key={SECRET}")
    assert "https://mirror.invalid/simple can't be reached" in error.message
    assert "the name mirror.invalid can't be resolved" in error.message


def test_a_name_server_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(package_index, "LIMIT", 0.5)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(TrainError, match="https://mirror/simple can't be reached"):
        package_index.check(["https://mirror/simple"], "torch", all_of_them=False)
    assert time.monotonic() - began < 10


def test_the_longest_wait_is_a_minute():
    """What is said of it in the documentation holds with the module's own numbers."""
    source = Path(package_index.__file__).read_text(encoding="utf-8")
    seconds, tries, pause = map(
        float, re.search(r"PAUSE = ([\d.]+), ([\d.]+), ([\d.]+)", source).groups()
    )
    assert seconds * tries + pause * (tries - 1) < package_index.LIMIT < 55


def test_an_index_that_answers_with_a_refusal_is_left_to_the_installer(machine, tool):
    """One that wants another password, or has no such page, can be reached."""
    with served(machine.index) as server, pytest.raises(TrainError) as caught:
        install(machine, f"http://127.0.0.1:{server.server_port}/nowhere")
    assert caught.value.message.startswith("Installing small-thing>=1 failed: ")


def test_the_index_of_pips_own_configuration_is_the_one_that_is_looked_at(
    machine, tool, tmp_path, monkeypatch
):
    port = refusing()
    config = tmp_path / "pip.conf"
    config.write_text(f"[global]\nindex-url = http://me:{SECRET}@127.0.0.1:{port}/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert f"http://127.0.0.1:{port}/simple can't" in refusal(machine, "").message


def test_the_index_that_counts_where_none_is_named(machine, tool, monkeypatch):
    asked: list[str] = []

    def check(urls, package, *_more):
        asked.extend([*urls, package])
        raise TrainError("Enough.")

    monkeypatch.setattr(package_index, "check", check)
    with pytest.raises(TrainError, match="Enough"):
        install(machine, "")
    url, package = asked
    assert re.fullmatch(r"https://[a-z.]+/simple", url)
    assert package == "small-thing>=1"


@pytest.mark.parametrize("first", [True, False])
def test_pip_leaves_out_an_index_that_is_dead_and_uv_does_not(
    machine, tool, tmp_path, monkeypatch, first
):
    """pip tries each package there for a minute; for uv it may be the only one for a package."""
    simple_index(tmp_path / "served", machine.index)
    dead = f"http://127.0.0.1:{refusing()}/simple"
    config = tmp_path / "pip.conf"
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    with served(tmp_path / "served") as server:
        live = f"http://127.0.0.1:{server.server_port}/simple"
        one, other = (live, dead) if first else (dead, live)
        config.write_text(f"[global]\nindex-url = {one}\nextra-index-url = {other}\n")
        if tool == "uv":
            assert dead in refusal(machine, "").message
        else:
            began = time.monotonic()
            said = install(machine, "")
            assert f"left out the index {dead}: connection refused" in said
            assert time.monotonic() - began < 30


def test_the_way_leads_through_the_proxy(machine, tool, tmp_path, monkeypatch):
    """What the environment names; pip has a setting of its own, which uv is handed."""
    simple_index(tmp_path / "served", machine.index)
    with served(tmp_path / "served") as server:
        proxy = f"http://me:{SECRET}@127.0.0.1:{server.server_port}"
        for name in ("http_proxy", "PIP_PROXY"):
            server.asked.clear()
            monkeypatch.setenv(name, proxy)
            with contextlib.suppress(TrainError):
                install(machine, "http://mirror.invalid/simple")
            paths = [path for path, _ in server.asked]
            assert any(p.startswith("http://mirror.invalid/simple/small-thing/") for p in paths)
            monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", f"http://me:{SECRET}@127.0.0.1:{refusing()}")
    error = refusal(machine, "http://mirror.invalid/simple")
    assert re.search(r"connection refused \(through the proxy 127\.0\.0\.1:\d+\)\.$", error.message)
    # Nor does a proxy stand in the way of what it isn't for.
    simple_index(tmp_path / "again", machine.index)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served(tmp_path / "again") as server:
        install(machine, f"http://127.0.0.1:{server.server_port}/simple")


def test_an_index_that_comes_up_in_between_is_one(monkeypatch):
    """A hiccup is no reason to stop."""
    port = refusing()
    monkeypatch.setattr(package_index, "PAUSE", 1.0)

    def answer() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 404 No\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert package_index.why(f"http://127.0.0.1:{port}/simple", "torch") == ""
    thread.join()


def test_what_speaks_no_tls_or_nothing_known_can_be_reached(machine):
    with served(machine.index) as server:
        url = f"https://127.0.0.1:{server.server_port}/simple"
        assert package_index.why(url, "torch") == ""


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://me:pw@host:8443/a/simple?key=pw#x", "https://host:8443/a/simple"),
        ("https://token@host/simple", "https://host/simple"),
        ("file:///srv/index", "file:///srv/index"),
    ],
)
def test_an_address_as_a_person_may_see_it(url, words):
    assert package_index.shown(url) == words


def test_an_index_that_is_a_folder_is_not_asked():
    assert package_index.check(["file:///nowhere/simple"], "torch", all_of_them=True) == {}
