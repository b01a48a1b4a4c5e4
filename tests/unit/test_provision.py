"""Provisioning: a venv that is really made, and installs only what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from remote_train import provision, pythons
from remote_train.errors import TrainError

REQUIRED = {"torch": ">=2.6", "small-thing": ">=1,<2"}


def distribution(folder: Path, name: str, version: str) -> None:
    """What importlib.metadata takes for an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("by hand\n")


def wheel(folder: Path, name: str, version: str) -> None:
    """A wheel that pip installs (the binary distribution format of PyPA)."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    files = {
        f"{name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
        f"{stem}.dist-info/METADATA": (
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        ),
        f"{stem}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    files[f"{stem}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files)
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


def site_packages(venv: Path) -> Path:
    return next(venv.glob("lib/python*/site-packages"))


class Machine:
    """A rented machine: one Python with a torch of its own, and an index of packages."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, torch: str = "2.13.0") -> None:
        self.root = folder / "project root"
        self.index = folder / "index"
        self.image = folder / "venv" / "main"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.image)], check=True)
        self.python = str(self.image / "bin" / "python")
        if torch:
            distribution(site_packages(self.image), "torch", torch)
        wheel(self.index, "small-thing", "1.5")
        wheel(self.index, "torch", "99.0")  # a newer one, which must not be taken
        patch.setattr(pythons, "CONDA_FOLDERS", (str(folder / "venv" / "*"),))
        patch.setenv("PATH", "/bin:/usr/bin")
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(self.index))
        patch.setenv("PIP_CONFIG_FILE", os.devnull)

    def contents(self) -> set[str]:
        return {str(path) for folder in (self.root, self.image) for path in folder.rglob("*")}

    @property
    def venv(self) -> Path:
        return self.root / pythons.VENV


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A machine on which the venv has been made, and the answer; it takes some seconds."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(tmp_path_factory.mktemp("machine"), patch)
        machine.before = machine.contents()
        yield machine, provision.ensure(str(machine.root), REQUIRED)


def test_a_venv_is_made_with_what_is_missing(made):
    machine, answer = made
    assert answer["changed"] is True
    assert answer["installed"] == ["small-thing>=1,<2"]
    python = answer["python"]
    assert python["path"] == str(machine.venv / "bin" / "python")
    assert python["missing"] == []
    done = subprocess.run(
        [python["path"], "-c", "import small_thing; print(small_thing.VERSION)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1.5\n"


def test_the_torch_that_fits_the_driver_stays_and_is_seen(made):
    machine, answer = made
    assert answer["python"]["packages"]["torch"] == "2.13.0"
    assert not list(site_packages(machine.venv).glob("torch*"))
    # Nothing of the image's own was touched.
    image = {name for name in machine.contents() if name.startswith(str(machine.image))}
    assert image == {name for name in machine.before if name.startswith(str(machine.image))}


def test_the_second_time_it_is_found_first(made):
    machine, answer = made
    again = provision.ensure(str(machine.root), REQUIRED)
    assert again == {"changed": False, "python": answer["python"], "installed": []}


def test_check_mode_changes_nothing_and_says_what_it_would_install(machine):
    before = machine.contents()
    answer = provision.ensure(str(machine.root), REQUIRED, check=True)
    assert answer == {"changed": True, "python": None, "installed": ["small-thing>=1,<2"]}
    assert machine.contents() == before
    assert not machine.root.exists()


def test_a_python_that_has_it_all_is_taken_as_it_is(machine):
    answer = provision.ensure(str(machine.root), {"torch": ">=2.6"})
    assert (answer["changed"], answer["installed"]) == (False, [])
    assert answer["python"]["path"] == machine.python
    assert not machine.root.exists()


@pytest.mark.parametrize("check", [True, False])
def test_a_named_python_is_never_installed_into(machine, check):
    before = machine.contents()
    with pytest.raises(TrainError) as caught:
        provision.ensure(str(machine.root), REQUIRED, named=machine.python, check=check)
    assert caught.value.message == (f"The Python {machine.python} can't train: small-thing>=1,<2.")
    assert "provision_python" in caught.value.hint
    assert caught.value.category == "infra"
    assert machine.contents() == before


def test_a_named_python_that_is_not_there(machine):
    with pytest.raises(TrainError, match=r"/nowhere/python doesn't run \(FileNotFoundError\)"):
        provision.ensure(str(machine.root), REQUIRED, named="/nowhere/python")


def installed(monkeypatch: pytest.MonkeyPatch, machine: Machine, *args: Any) -> list[list[str]]:
    """The commands that provisioning runs, none of which does anything."""
    commands: list[list[str]] = []

    def note(command: list[str], _failure: str, _hint: str, environment: Any = None) -> None:
        commands.append([*command, *(f"{k}={v}" for k, v in (environment or {}).items())])

    monkeypatch.setattr(provision, "_run", note)
    monkeypatch.setattr(provision, "_see_packages_of", lambda *_: None)
    python = machine.venv / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{machine.python}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(pythons, "candidates", lambda *_: [machine.python])
    with pytest.raises(TrainError, match="still lacks"):
        provision.ensure(str(machine.root), *args)
    return commands


def test_a_requirement_without_bounds_is_installed_as_well(machine, monkeypatch):
    _, pip = installed(monkeypatch, machine, {"small-thing": "", "other": ">=1"})
    assert {"small-thing", "other>=1", "torch==2.13.0"} <= set(pip)


def test_packages_come_from_the_index_that_is_named(machine, monkeypatch):
    venv, pip = installed(monkeypatch, machine, REQUIRED, "", "http://mirror/simple")
    # In the environment: an address with a password in it must not be on a command line.
    assert pip[-1] == "PIP_INDEX_URL=http://mirror/simple"
    assert "--index-url" not in pip
    # No other index is asked on the way there.
    assert "--upgrade-deps" not in venv


def test_the_venv_is_made_from_the_python_that_has_torch(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    first = tmp_path / "venv" / "a_first_one"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(first)], check=True)
    venv, _ = installed(monkeypatch, machine, REQUIRED)
    assert venv[0] == machine.python


def test_an_installation_that_fails_says_why(machine, monkeypatch):
    real = provision._run

    def run(command: list[str], failure: str, hint: str, environment: Any = None) -> None:
        if "pip" in command:
            error = "ERROR: No matching thing at https://user:secret@mirror/simple"
            command = ["sh", "-c", f"echo a; echo '{error}' >&2; exit 1"]
            real(command, failure, hint, environment)

    monkeypatch.setattr(provision, "_run", run)
    monkeypatch.setattr(provision, "_see_packages_of", lambda *_: None)
    with pytest.raises(TrainError) as caught:
        provision.ensure(str(machine.root), REQUIRED)
    assert caught.value.message.endswith(
        "failed: ERROR: No matching thing at https://mirror/simple"
    )
    assert "provision_index_url" in caught.value.hint
    assert caught.value.category == "infra"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["sh", "-c", "exit 1"], "It failed: no word"),
        (["sh", "-c", "echo one; echo two; exit 1"], "It failed: two"),
        (["sh", "-c", "echo why >&2; exit 1"], "It failed: why"),
        (["/nowhere"], "It failed: [Errno 2]"),
    ],
)
def test_a_program_that_fails_is_one_sentence(command, words):
    with pytest.raises(TrainError) as caught:
        provision._run(command, "It failed", "A hint.")
    assert caught.value.message.startswith(words)
    assert "\n" not in caught.value.message


def test_a_host_without_a_python_that_is_new_enough(tmp_path, monkeypatch):
    old = tmp_path / "conda" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text('#!/bin/sh\necho \'{"python": "3.9.2", "packages": {"torch": "2.8"}}\'\n')
    old.chmod(0o755)
    monkeypatch.setattr(pythons, "CONDA_FOLDERS", ())
    monkeypatch.setattr(pythons, "candidates", lambda *_: [str(old)])
    with pytest.raises(TrainError, match=r"The host has no Python 3.10 or newer"):
        provision.ensure(str(tmp_path), REQUIRED)
