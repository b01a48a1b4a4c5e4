"""Provisioning: a venv that is really made, with uv and with pip, and installs what is missing."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from remote_train import detached, installer, programs, provision, pythons
from remote_train.errors import TrainError
from remote_train.installer import Source
from tests.unit.command_lines import command_lines
from tests.unit.small_disk import small_disk
from tests.unit.wheels import (
    UV,
    Log,
    Machine,
    distribution,
    served,
    simple_index,
    site_packages,
    wheel,
)

REQUIRED = {"torch": ">=2.6", "small-thing": ">=1,<2"}
PIP = glob.glob(
    os.path.join(
        os.path.dirname(importlib.util.find_spec("ensurepip").origin), "_bundled", "pip-*.whl"
    )
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(params=["pip", "uv"])
def tool(request, monkeypatch):
    """Each program that installs, the other one out of the way."""
    if request.param == "uv":
        if not UV:
            pytest.fail("uv is missing: it is among the packages for development")
        monkeypatch.setattr(installer, "find_uv", lambda _base: UV)
    else:
        monkeypatch.setattr(installer, "find_uv", lambda _base: "")
    return request.param


def wanted(machine: Machine, requirements: Any = REQUIRED, **more: Any) -> provision.Wanted:
    more.setdefault("source", Source(wheels=str(machine.index)))
    base = str(more.pop("cache_on", ""))
    if base:
        more["storage"] = {"runtime_base": base, "hf_home": "", "modelscope_cache": ""}
    return provision.Wanted(str(machine.root), requirements, **more)


def carry_out(asked: provision.Wanted) -> dict[str, Any]:
    os.makedirs(os.path.join(asked.root, detached.FOLDER), exist_ok=True)
    return provision.carry_out(asked, detached.Reporter(asked.root, "token", ("s3cret",)), "")


def log_of(machine: Machine) -> str:
    return Path(detached.path(str(machine.root), "work.log")).read_text(encoding="utf-8")


def imported(python: str, name: str) -> str:
    command = [python, "-c", f"import {name}; print({name}.VERSION)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# What is made


def test_a_venv_is_made_with_what_is_missing_and_the_image_is_left_alone(machine, tool):
    before = {name for name in machine.contents() if name.startswith(str(machine.image))}
    answer = carry_out(wanted(machine))
    assert answer["changed"] is True
    assert answer["installed"] == ["small-thing>=1,<2"]
    python = answer["python"]
    assert python["path"] == str(machine.venv / "bin" / "python")
    assert python["missing"] == []
    assert imported(python["path"], "small_thing") == "1.5"
    # The torch that fits the driver is seen, and neither replaced nor covered by another one.
    assert python["packages"]["torch"] == "2.13.0"
    assert not list(site_packages(machine.venv).glob("torch*"))
    assert before == {name for name in machine.contents() if name.startswith(str(machine.image))}
    assert f"installed with {tool}" in log_of(machine)
    # The second time it is found first, and there is nothing left to do.
    again = provision.look(wanted(machine))
    assert (again.steps, again.python) == ([], python)


def test_torch_is_added_where_there_is_none(tmp_path, monkeypatch, tool):
    machine = Machine(tmp_path, monkeypatch, torch="")
    wheel(machine.index, "torch", "2.14.0")
    answer = carry_out(wanted(machine, {"torch": ">=2.6,<3", "small-thing": ">=1,<2"}))
    assert answer["python"]["packages"] == {"torch": "2.14.0", "small-thing": "1.5"}
    assert imported(answer["python"]["path"], "torch") == "2.14.0"


def test_a_torch_with_a_build_of_its_own_stays(tmp_path, monkeypatch, tool):
    machine = Machine(tmp_path, monkeypatch, torch="2.13.0a0+git1.nv24")
    answer = carry_out(wanted(machine))
    assert answer["python"]["packages"]["torch"] == "2.13.0a0+git1.nv24"


def test_a_package_that_wants_another_torch_does_not_get_one(machine, tool):
    wheel(machine.index, "greedy", "1.0", ["torch>=50"])
    asked = wanted(machine, {"torch": ">=2.6", "greedy": ""})
    with pytest.raises(TrainError) as caught:
        carry_out(asked)
    assert caught.value.message == (
        "greedy needs torch>=50, and the torch 2.13.0 that is there is never replaced."
    )
    assert "provision_python" in caught.value.hint
    for name in ("torch*", "greedy*"):
        assert not list(site_packages(machine.venv).glob(name))


def installed_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> Machine:
    """A machine whose torch was really installed, from a wheel."""
    machine = Machine(tmp_path, monkeypatch, torch="")
    image = wheel(tmp_path / "image wheels", "torch", version)
    command = [UV, "pip", "install", "--python", machine.python, "--no-index", str(image)]
    subprocess.run(command, check=True, capture_output=True)
    assert imported(machine.python, "torch") == version
    return machine


def bytes_of(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path): path.read_bytes() for path in kept}


@pytest.mark.parametrize("version", ["2.5.1", "3.0.0"])
def test_a_torch_that_was_installed_and_will_not_do_is_left_as_it_is(
    tmp_path, monkeypatch, tool, version
):
    machine = installed_torch(tmp_path, monkeypatch, version)
    before = bytes_of(machine.image)
    words = rf"torch {version} of .* is not >=2.6,<3, and a torch that is there is never replaced"
    for act in (provision.look, carry_out):
        with pytest.raises(TrainError, match=words):
            act(wanted(machine, {"torch": ">=2.6,<3", "small-thing": ">=1,<2"}))
    assert bytes_of(machine.image) == before
    assert not machine.venv.exists()


def test_what_is_installed_fits_the_torch_that_was_installed(tmp_path, monkeypatch, tool):
    """Not the newest of a package, which wants another torch, but one that takes this."""
    machine = installed_torch(tmp_path, monkeypatch, "2.13.0+cu128")
    before = bytes_of(machine.image)
    wheel(machine.index, "picky", "1.0", ["torch<3"])
    wheel(machine.index, "picky", "2.0", ["torch>=50"])
    answer = carry_out(wanted(machine, {"torch": ">=2.6", "picky": ">=1"}))
    assert answer["python"]["packages"] == {"torch": "2.13.0+cu128", "picky": "1.0"}
    assert imported(answer["python"]["path"], "torch") == "2.13.0+cu128"
    assert not list(site_packages(machine.venv).glob("torch*"))
    assert bytes_of(machine.image) == before


def test_a_venv_that_was_half_made_is_gone_on_with(machine, tool):
    first = {"torch": ">=2.6"}
    installer.make_venv(machine.python, str(machine.venv))
    kept = machine.venv / "kept"
    kept.touch()
    assert provision.look(wanted(machine, first)).python is not None
    answer = carry_out(wanted(machine))
    assert answer["python"]["missing"] == []
    assert kept.exists()
    assert "going on with the venv" in log_of(machine)


@pytest.mark.parametrize("broken", ["no python", "other base", "cut"])
def test_a_venv_that_is_broken_is_made_anew(machine, broken):
    (machine.venv / "bin").mkdir(parents=True)
    if broken == "other base":
        (machine.venv / "pyvenv.cfg").write_text("home = /nowhere/bin\n")
    if broken == "cut":
        (machine.venv / "pyvenv.cfg").write_text("home")
    python = str(machine.venv / "bin" / "python")
    assert not installer.sees(machine.python, python)
    installer.make_venv(machine.python, str(machine.venv))
    assert installer.sees(machine.python, python)


def test_a_host_without_uv_and_pip_is_helped_by_a_wheel_of_pip(machine, monkeypatch):
    if not PIP:
        pytest.skip("this Python's ensurepip brings no wheel")
    monkeypatch.setattr(installer, "find_uv", lambda _base: "")
    real = installer.modules_of
    hidden = {"pip", "ensurepip"}
    monkeypatch.setattr(
        installer, "modules_of", lambda p, *names: [n for n in real(p, *names) if n not in hidden]
    )
    assert provision.look(wanted(machine)).needs_pip
    answer = carry_out(wanted(machine, pip=PIP[0]))
    assert imported(answer["python"]["path"], "small_thing") == "1.5"
    # One among the carried wheels will do as well, and then none has to be sent.
    shutil.copy(PIP[0], machine.index)
    shutil.rmtree(machine.venv)
    assert not provision.look(wanted(machine)).needs_pip
    assert carry_out(wanted(machine))["python"]["missing"] == []


# Where packages come from


def test_packages_come_from_the_index_that_is_named(machine, tool, tmp_path):
    simple_index(tmp_path / "served", machine.index)
    with served(tmp_path / "served") as server:
        url = f"http://user:s3cret@127.0.0.1:{server.server_port}/simple"
        answer = carry_out(wanted(machine, source=Source(index_url=url)))
        assert answer["python"]["missing"] == []
        asked = [path for path, _ in server.asked]
        assert any(path.endswith("small_thing-1.5-py3-none-any.whl") for path in asked)
        # The torch that is there isn't even asked for.
        assert not any(path.endswith("torch-99.0-py3-none-any.whl") for path in asked)
        assert any(authorization for _, authorization in server.asked)
    assert "s3cret" not in log_of(machine)


def test_with_a_folder_of_wheels_no_index_is_asked(machine, tool, tmp_path, monkeypatch):
    simple_index(tmp_path / "served", machine.index)
    with served(tmp_path / "served") as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        assert carry_out(wanted(machine))["python"]["missing"] == []
        assert server.asked == []


def test_uv_asks_the_index_that_pip_is_set_up_with(monkeypatch, tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = http://mirror:8080/simple\nextra-index-url =\n  http://a/s\n  http://b/s\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    found = installer.uv_environment(Source(), "")
    assert found["UV_DEFAULT_INDEX"] == "http://mirror:8080/simple"
    assert found["UV_INSECURE_HOST"] == "mirror:8080"
    assert found["UV_INDEX"] == "http://a/s http://b/s"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other/simple")
    assert installer.uv_environment(Source(), "")["UV_DEFAULT_INDEX"] == "https://other/simple"
    # What is set up for uv itself, or named, wins.
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv/simple")
    assert "UV_DEFAULT_INDEX" not in installer.uv_environment(Source(), "")
    named = installer.uv_environment(Source("https://named/simple"), "/data/cache")
    assert named["UV_DEFAULT_INDEX"] == "https://named/simple"
    assert named["UV_INDEX"] == "http://a/s http://b/s"
    assert named["UV_CACHE_DIR"] == "/data/cache/uv"


def test_an_index_may_hold_a_password_and_it_is_nowhere(machine, tool, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Log, "log_request", lambda *_: seen.append(b"s3c" + b"ret" in command_lines())
    )
    simple_index(tmp_path / "served", machine.index)
    asked = wanted(machine, cache_on=tmp_path / "data")
    with served(tmp_path / "served") as server:
        url = f"http://user:s3cret@127.0.0.1:{server.server_port}/simple"
        asked = dataclasses.replace(asked, source=Source(url))
        answer = carry_out(asked)
        # A package that isn't there is told with the index's address.
        more = dataclasses.replace(asked, requirements={**REQUIRED, "no-such-thing": ""})
        with pytest.raises(TrainError) as caught:
            carry_out(more)
    assert answer["python"]["missing"] == []
    assert any(authorization for _, authorization in server.asked)
    assert seen
    assert not any(seen)
    assert "s3cret" not in detached.scrubbed(str(caught.value) + str(answer))
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"s3cret" not in path.read_bytes(), path


@pytest.mark.parametrize("content", [None, "readme.txt"])
def test_a_folder_of_wheels_that_is_none_is_refused(machine, tmp_path, content):
    folder = tmp_path / "wheels"
    if content:
        folder.mkdir()
        (folder / content).touch()
    with pytest.raises(TrainError, match=r"provision_wheels is .*, which (is no folder|holds no)"):
        carry_out(wanted(machine, source=Source(wheels=str(folder))))


def test_a_wheel_that_arrived_otherwise_than_it_was_sent_is_not_installed(machine):
    path = next(machine.index.glob("small*.whl"))
    with pytest.raises(TrainError, match="another SHA-256") as caught:
        carry_out(wanted(machine, digests={str(path): "0" * 64}))
    assert caught.value.category == "integrity"
    assert not path.exists()


# What is refused and said


def test_check_mode_changes_nothing_and_says_what_it_would_do(machine):
    before = machine.contents()
    outlook = provision.look(wanted(machine))
    assert outlook.python is None
    assert outlook.install == ["small-thing>=1,<2"]
    assert outlook.steps == [
        f"makes a venv in outputs/training_sync/venv that sees {machine.python}, "
        "with small-thing>=1,<2"
    ]
    assert machine.contents() == before
    assert not machine.root.exists()


def test_a_python_that_has_it_all_is_taken_as_it_is(machine):
    outlook = provision.look(wanted(machine, {"torch": ">=2.6"}))
    assert outlook.steps == []
    assert outlook.python["path"] == machine.python


def test_a_named_python_is_never_installed_into(machine):
    before = machine.contents()
    with pytest.raises(TrainError) as caught:
        provision.look(wanted(machine, python=machine.python))
    assert caught.value.message == (f"The Python {machine.python} can't train: small-thing>=1,<2.")
    assert "provision_python" in caught.value.hint
    assert caught.value.category == "infra"
    assert machine.contents() == before


def test_a_named_python_that_is_not_there(machine):
    with pytest.raises(TrainError, match=r"/nowhere/python doesn't run \(FileNotFoundError\)"):
        provision.look(wanted(machine, python="/nowhere/python"))


def test_an_installation_that_fails_says_why(machine, tool, tmp_path):
    simple_index(tmp_path / "served", machine.index)
    with served(tmp_path / "served") as server:
        source = Source(f"http://127.0.0.1:{server.server_port}/simple")
        asked = wanted(machine, {"torch": ">=2.6", "no-such-thing": ">=1"}, source=source)
        with pytest.raises(TrainError) as caught:
            carry_out(asked)
    assert caught.value.message.startswith("Installing no-such-thing>=1 failed: ")
    assert "no-such-thing" in caught.value.message.partition("failed: ")[2]
    assert "provision_wheels" in caught.value.hint
    assert caught.value.category == "infra"


@pytest.mark.parametrize(
    ("name", "asked", "needs", "held"),
    [
        ("no-such-thing", "no-such-thing>=1", [], []),
        ("upper-one", "absent-thing>=3,<4", ["absent-thing<4,>=3"], []),
        ("old-one", "old-one>=2", [], ["old_one-1.0-py3-none-any.whl"]),
        ("native", "native>=1", [], ["native-2.0-cp36-cp36m-macosx_10_9_x86_64.whl"]),
        ("foreign", "foreign>=1", [], ["foreign-2.0-py3-none-win_amd64.whl"]),
    ],
)
def test_a_folder_that_lacks_a_wheel_is_told_which(machine, tool, name, asked, needs, held):
    folder = machine.index
    if needs:
        wheel(folder, name, "2.0", needs)
    for file in held:
        made = wheel(folder, name, file.split("-")[1])
        made.rename(folder / file)
    bounds = "" if needs else asked.removeprefix(name)
    with pytest.raises(TrainError) as caught:
        carry_out(wanted(machine, {"torch": ">=2.6", name: bounds}))
    version = f"Python {sys.version_info[0]}.{sys.version_info[1]} on linux-"
    message, hint = caught.value.message, caught.value.hint
    asked_for = re.escape(asked) if not needs else r"absent-thing(>=3,<4|<4,>=3)"
    start = rf"provision_wheels \({re.escape(str(folder))}\) has no wheel of {asked_for} for "
    assert re.match(start + re.escape(version), message), message
    for file in held:
        assert message.endswith(f"; of that package it has {file}.")
    assert version in hint
    assert re.search(rf"pip download .* '?{asked_for}'?$", hint), hint
    assert "index" not in hint
    assert caught.value.category == "ops"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", "It failed: no word"),
        ("echo one; echo two; exit 1", "It failed: two"),
        ("echo why >&2; exit 1", "It failed: why"),
        ("echo ERROR: this; echo then that; exit 1", "It failed: ERROR: this"),
        ("echo error: no solution; echo '  cause: because'; exit 1", "It failed: because"),
        ("sleep 30", "It failed: it took longer than 1 s."),
    ],
)
def test_a_program_that_fails_is_one_sentence(script, words):
    with pytest.raises(TrainError) as caught:
        programs.run(["sh", "-c", script], "It failed", "A hint.", within=1)
    assert caught.value.message == words


def test_a_program_that_is_not_there_and_a_full_disk():
    with pytest.raises(TrainError, match=r"It failed: \[Errno 2\]"):
        programs.run(["/nowhere"], "It failed", "A hint.")
    script = "echo 'OSError: [Errno 28] No space left on device'; exit 1"
    with pytest.raises(TrainError) as caught:
        programs.run(["sh", "-c", script], "It failed", "A hint.")
    assert "runtime_base" in caught.value.hint


# Disks


def large(folder: Path) -> None:
    """A package that takes some room."""
    path = wheel(folder, "large-thing", "1.0")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("large_thing.bin", os.urandom(3_000_000))


def test_a_disk_that_an_installation_fills_is_named(machine, tool, tmp_path):
    large(machine.index)
    with small_disk("size=1m") as disk:
        asked = wanted(machine, {"torch": ">=2.6", "large-thing": ""})
        with pytest.raises(TrainError) as caught:
            carry_out(dataclasses.replace(asked, root=str(disk)))
        assert caught.value.message == (
            f"The packages can't be installed: the disk of {disk / pythons.VENV} is full."
        )
        assert caught.value.hint == "Free some space there, or choose another project_root."
        assert caught.value.category == "infra"


def test_a_disk_that_the_downloads_fill_is_named(machine, tmp_path, monkeypatch):
    """uv's, that is: pip does without a cache that takes nothing."""
    monkeypatch.setattr(installer, "find_uv", lambda _base: UV)
    large(machine.index)
    simple_index(tmp_path / "served", machine.index)
    with small_disk("size=1m") as disk, served(tmp_path / "served") as server:
        source = Source(f"http://127.0.0.1:{server.server_port}/simple")
        lacking = {"torch": ">=2.6", "large-thing": ""}
        asked = wanted(machine, lacking, source=source, cache_on=disk)
        with pytest.raises(TrainError) as caught:
            carry_out(asked)
        assert f"the disk of {disk}/cache is full" in caught.value.message
        assert "runtime_base" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "words"), [("ro", "can only be read"), ("nr_inodes=3", "full")]
)
def test_a_disk_that_takes_no_venv_is_named(machine, options, words):
    with small_disk(options) as disk:
        with pytest.raises(TrainError) as caught:
            installer.make_venv(machine.python, str(disk / "venv"))
        assert f"the disk of {disk / 'venv'} " in caught.value.message
        assert words in caught.value.message
        assert "project_root" in caught.value.hint
        assert caught.value.category == "infra"


# What check mode says, and what the run then does


PAST = {"makes": "made", "installs": "installed", "keeps": "kept", "links": "linked"}
PAST |= {"fetches": "fetched"}


def past(step: str) -> str:
    verb, rest = step.split(" ", 1)
    return f"{PAST[verb]} {rest}"


@pytest.mark.parametrize("there", ["nothing", "models", "half a venv", "all but a package"])
def test_what_check_mode_says_is_what_the_run_does(machine, tool, tmp_path, monkeypatch, there):
    wheel(machine.index, "other-thing", "2.0")
    asked = wanted(machine, {**REQUIRED, "other-thing": ">=1"}, cache_on=tmp_path / "data")
    model = {"name": "a/b", "revision": "main", "modelscope": False}
    asked = dataclasses.replace(asked, models=[model])
    fetched = []
    monkeypatch.setattr(provision, "fetch", lambda _w, model, *_: fetched.append(model) or "/x")
    if there == "models":
        (machine.root / "models").mkdir(parents=True)
    if there == "half a venv":
        installer.make_venv(machine.python, str(machine.venv))
    if there == "all but a package":
        carry_out(dataclasses.replace(asked, requirements=REQUIRED))
        fetched.clear()
    before = machine.contents()
    outlook = provision.look(asked)
    assert machine.contents() == before
    answer = carry_out(asked)
    said = [re.sub(r"backup-\d{8}T\d{6}Z$", "backup-*", line) for line in answer["done"]]
    assert said == [past(step) for step in outlook.steps]
    assert answer["installed"] == outlook.install
    # And it was so.
    own = {path.name.split("-")[0] for path in site_packages(machine.venv).glob("*.dist-info")}
    assert own == {"small_thing", "other_thing"}
    if there == "all but a package":
        assert outlook.install == ["other-thing>=1"]
        assert outlook.steps[0] == "installs other-thing>=1 into the venv in " + pythons.VENV
    assert fetched == outlook.fetch == [model]
    assert os.readlink(machine.root / "models") == str(tmp_path / "data/models")
    assert bool(list(machine.root.glob("models.backup-*"))) is (there == "models")
    # Then there is nothing left, and the run does nothing.
    again = dataclasses.replace(asked, models=[])
    assert provision.look(again).steps == []
    assert carry_out(again)["changed"] is False


# Which Python the venv is made from


def one(path: str, python: str = "3.11.2", **packages: str) -> dict[str, Any]:
    return {"path": path, "python": python, "packages": packages, "missing": ["x"]}


@pytest.mark.parametrize(
    ("tried", "chosen"),
    [
        ([one("/a"), one("/b")], "/a"),
        ([one("/a"), one("/b", torch="2.7")], "/b"),
        ([one("/a", torch="2.9"), one("/b", torch="2.7")], "/a"),
        ([one("/a", torch="2.5"), one("/b", torch="2.7")], "/b"),
        ([one("/a", "3.9.2", torch="2.7"), one("/b")], "/b"),
        ([one("/own", torch="2.7"), one("/b")], "/b"),
        ([one("/a", ""), one("/b")], "/b"),
    ],
)
def test_the_base_is_one_whose_torch_will_do_else_the_first(tried, chosen):
    assert provision.base_of(tried, {"torch": ">=2.6"}, "/own")["path"] == chosen


@pytest.mark.parametrize(
    ("tried", "words"),
    [
        ([one("/a", "3.9.2", torch="2.8")], "no Python 3.10 or newer"),
        ([], "no Python 3.10 or newer"),
        ([one("/own", torch="2.7")], "no Python 3.10 or newer"),
        ([one("/a", torch="2.5"), one("/b")], "never replaced"),
    ],
)
def test_no_base_will_do(tried, words):
    with pytest.raises(TrainError, match=words):
        provision.base_of(tried, {"torch": ">=2.6"}, "/own")


@pytest.mark.parametrize(
    ("phrase", "name", "is_lacking"),
    [
        ("torch>=2.6", "torch", True),
        ("torch", "torch", True),
        ("torch>=2.6 (it has 2.5)", "torch", True),
        ("modelscope (it has 1)", "modelscope", True),
        ("torchvision>=1", "torch", False),
        ("torch-extra", "torch", False),
    ],
)
def test_what_a_probe_says_is_lacking(phrase, name, is_lacking):
    assert provision.lacks([phrase], name) is is_lacking


def test_the_tools_are_looked_for_where_images_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(installer, "UV_FOLDERS", ("~/.local/bin",))
    base = str(tmp_path / "conda/bin/python")
    assert installer.find_uv(base) == ""
    for place in (".local/bin/uv", "conda/bin/uv"):  # beside the Python itself comes first
        program = tmp_path / place
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert installer.find_uv(base) == str(program)


def test_the_module_starts_nothing_without_a_token_or_in_check_mode(
    machine, run_module, monkeypatch
):
    monkeypatch.setenv("PATH", f"{machine.image}/bin:/bin:/usr/bin")
    arguments = {"project_root": str(machine.root), "requirements": REQUIRED}
    for more in ({}, {"token": "t", "check": True}):
        found = run_module("provision", **arguments, **more)
        assert found["status"] == {}
        assert found["installed"] == ["small-thing>=1,<2"]
        assert found["changed"] is bool(more)
        assert not machine.root.exists()


def test_the_module_says_a_refusal_in_one_sentence(machine, run_module):
    found = run_module(
        "provision", project_root=str(machine.root), requirements=REQUIRED, python="/nowhere"
    )
    assert found["failed"]
    assert found["msg"].startswith("The Python /nowhere can't train")
    assert found["category"] == "infra"


def test_an_own_package_is_seen_through_two_venvs(machine):
    distribution(site_packages(machine.image), "other", "3.0")
    python = installer.make_venv(machine.python, str(machine.venv))
    assert pythons.probe(python, {"other": "==3.0"})["missing"] == []
    assert pythons.probe(sys.executable, {"other": ""})["missing"] == ["other"]


def test_the_newest_pip_is_the_one_with_the_highest_number(tmp_path):
    for version in ("9.0.3", "25.3", "25.10"):
        (tmp_path / f"pip-{version}-py3-none-any.whl").touch()
    assert Path(installer.pip_wheel(str(tmp_path))).name == "pip-25.10-py3-none-any.whl"
    assert installer.pip_wheel(str(tmp_path / "none")) == ""


def test_no_password_of_the_hub_stands_in_the_steps(tmp_path):
    model = {"name": "a/b", "revision": "main", "modelscope": False}
    asked = provision.Wanted(
        str(tmp_path), {}, endpoint="https://me:s3cret@mirror.example", models=[model]
    )
    (step,) = provision.look(asked).steps
    assert step == "fetches the model a/b@main from https://mirror.example"


def test_the_module_takes_a_folder_of_the_hosts_for_a_model(tmp_path, run_module):
    model = {"model_revision": "main", "use_modelscope": False}
    stages = [{"command": "", "model": {**model, "model_name_or_path": "models/mine"}}]
    arguments = {"project_root": str(tmp_path), "requirements": {}, "stages": stages}
    assert run_module("provision", **arguments)["steps"] == [
        "fetches the model models/mine@main from the hub"
    ]
    (tmp_path / "models/mine").mkdir(parents=True)
    assert run_module("provision", **arguments)["steps"] == []


def test_a_program_is_ended_with_the_one_who_listens(tmp_path):
    def full(_line: str) -> None:
        raise OSError(28, "No space left on device")

    script = f"echo $$ > {tmp_path}/pid; echo hi; sleep 60"
    with pytest.raises(OSError, match="No space"):
        programs.run(["sh", "-c", script], "It failed", "A hint.", on_line=full)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
