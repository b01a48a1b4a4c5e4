"""Which Python trains: the first that has what is required, whatever stands in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from remote_train import pythons
from remote_train.errors import TrainError
from tests.unit.hanging import hanging_below
from tests.unit.stage_host import HOUSE


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a program that answers as a Python with the packages given would."""
    # Nothing of this machine's own takes part.
    monkeypatch.setattr(pythons, "CONDA_FOLDERS", (str(tmp_path / "conda*"),))
    monkeypatch.setenv("PATH", "")

    def make(path: str, text: str = "", mode: int = 0o755, **packages: str) -> str:
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        answer = '{{"python": "3.11.2", "packages": {}}}'.format(str(packages).replace("'", '"'))
        program.write_text(f"#!/bin/sh\n{text or f'echo {answer!r}'}\n")
        program.chmod(mode)
        return str(program)

    return make


# Requirements


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("torch>=2.6\n", {"torch": ">=2.6"}),
        ("# a comment\n\n  torch >= 2.6 , < 3  # why\n", {"torch": ">=2.6,<3"}),
        ("a\nb==1\r\n", {"a": "", "b": "==1"}),
        ("", {}),
        ("under_score.dot-dash>1", {"under_score.dot-dash": ">1"}),
    ],
)
def test_requirements_as_pip_reads_them(text, meant):
    assert pythons.parse_requirements(text) == meant


def test_the_trainings_own_requirements_are_understood():
    text = (HOUSE / "training" / "requirements.txt").read_text()
    required = pythons.parse_requirements(text)
    assert {"torch", "transformers", "peft"} <= set(required)
    for bounds in required.values():
        SpecifierSet(bounds)
        assert not pythons.satisfies("0.0.1", bounds)


@pytest.mark.parametrize(
    ("version", "bounds", "holds"),
    [
        ("2.6", ">=2.6", True),
        ("2.6.0", ">=2.6", True),
        ("2.6", ">=2.6.0", True),
        ("1", "==1.0", True),
        ("2.5.1", ">=2.6", False),
        ("2.13.0", ">=2.6", True),
        ("2.13.0+cpu", ">=2.6", True),
        ("2.13.0a0+git1", ">=2.13", True),  # a rented image's own build counts
        ("5.23.0", ">=5,<6", True),
        ("6.0", ">=5,<6", False),
        ("4.57.1", ">=5,<6", False),
        ("1.0", "==1", True),
        ("1.1", "==1", False),
        ("1.0", "<=1.0.0", True),
        ("1.0", ">1", False),
        ("anything", "", True),
    ],
)
def test_versions_and_bounds(version, bounds, holds):
    assert pythons.satisfies(version, bounds) is holds


release = st.lists(st.integers(0, 20), min_size=1, max_size=4).map(
    lambda parts: ".".join(map(str, parts))
)


@given(release, st.lists(st.tuples(st.sampled_from([">=", "<=", "==", "<", ">"]), release)))
def test_bounds_mean_what_pip_takes_them_for(version, bounds):
    text = ",".join(operator + wanted for operator, wanted in bounds)
    assert pythons.satisfies(version, text) is SpecifierSet(text).contains(Version(version))


# One Python


def test_a_real_python_says_what_it_has():
    found = pythons.probe(sys.executable, {"pytest": ">=8", "no-such-package": ">=1"})
    assert found["path"] == sys.executable
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["packages"]["pytest"] == pytest.__version__
    assert found["missing"] == ["no-such-package>=1"]


def test_a_version_that_is_too_old_is_missing_and_shown():
    found = pythons.probe(sys.executable, {"pytest": ">=1000"})
    assert found["missing"] == [f"pytest>=1000 (it has {pytest.__version__})"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("exit 1", "ended with status 1: no word"),
        ("echo one; echo no torch here >&2; exit 3", "ended with status 3: no torch here"),
        ("echo out of order; exit 3", "ended with status 3: out of order"),
        ("kill -9 $$", "was killed by SIGKILL"),
        ("echo no JSON", "printed what is no answer: no JSON"),
        ("echo []", "printed what is no answer: []"),
        ("exit 0", "printed what is no answer: no word"),
        ("printf '\\377'", "printed what is no answer: \ufffd"),
        ("sleep 60", "no answer in 0.5 s"),
    ],
)
def test_a_broken_shim_is_a_finding_and_no_crash(fake, text, why):
    path = fake("bin/python3", f"PATH=/bin:/usr/bin; exec sh -c {text!r}")
    found = pythons.probe(path, {"torch": ""}, timeout=0.5)
    assert found["python"] == ""
    assert found["missing"] == [f"{path} doesn't run ({why})"]


@pytest.mark.parametrize("mode", [0o644, None])
def test_a_program_that_cannot_run(fake, tmp_path, mode):
    path = fake("python", mode=mode) if mode else str(tmp_path / "none")
    assert pythons.probe(path, {})["python"] == ""


def test_a_python_that_reads_its_input_does_not_wait(fake):
    path = fake("python", 'read line; echo \'{"python": "3.11.2", "packages": {}}\'')
    reader, writer = os.pipe()
    before = os.dup(0)
    os.dup2(reader, 0)
    try:
        assert pythons.probe(path, {}, timeout=2)["python"] == "3.11.2"
    finally:
        os.dup2(before, 0)
        for descriptor in (reader, writer, before):
            os.close(descriptor)


def test_what_is_recorded_is_what_changes_weights():
    packages = {"torch": "1", "numpy": "2", "peft": "3"}
    assert pythons.recorded(packages) == {"torch": "1", "peft": "3"}


# Which one


def test_the_order_of_the_candidates(fake, tmp_path, monkeypatch):
    own = fake(f"project/{pythons.VENV}/bin/python")
    conda = [fake("conda2/bin/python"), fake("conda1/bin/python")]
    on_path = [fake("b/python3"), fake("a/python3")]
    fake("c/python3", mode=0o644)
    folders = [os.path.dirname(path) for path in (*on_path, on_path[0], str(tmp_path / "c/x"))]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    found = pythons.candidates(str(tmp_path / "project"))
    expected = [own, *sorted(conda), *on_path]
    assert found[: len(expected)] == expected
    assert set(found[len(expected) :]) <= {"/usr/local/bin/python3", "/usr/bin/python3"}


def test_a_named_python_is_the_only_one(fake):
    fake("conda/bin/python")
    assert pythons.candidates("/srv/tutor", "/opt/mine") == ["/opt/mine"]
    assert [t["path"] for t in pythons.find("/srv", {}, "/opt/mine")["tried"]] == ["/opt/mine"]


def test_the_first_that_has_it_all_trains_and_the_others_are_told(fake, tmp_path):
    old = fake("conda1/bin/python", torch="2.5")
    shim = fake("conda2/bin/python", "exit 127")
    good = fake("conda3/bin/python", torch="2.13")
    fake("conda4/bin/python", torch="2.14")
    search = pythons.find(str(tmp_path / "project"), {"torch": ">=2.6"})
    assert search["found"]["path"] == good
    assert [(t["path"], t["missing"]) for t in search["tried"]] == [
        (old, ["torch>=2.6 (it has 2.5)"]),
        (shim, [f"{shim} doesn't run (ended with status 127: no word)"]),
        (good, []),
    ]


def test_none_has_it(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path).startswith(str(tmp_path)))
    only = fake("conda/bin/python")
    search = pythons.find(str(tmp_path), {"torch": ">=2.6"})
    assert search["found"] is None
    assert [t["path"] for t in search["tried"] if t["path"] == only] == [only]


def oldest() -> str:
    installed = sorted(Path.home().glob(".pyenv/versions/3.9.*/bin/python"))
    return str(installed[0]) if installed else ""


def test_the_probe_runs_in_python_3_9():
    python = oldest()
    if not python:
        pytest.skip("there is no Python 3.9 in ~/.pyenv/versions")
    assert pythons.probe(python, {})["python"].startswith("3.9.")


def test_a_python_without_a_way_to_look_counts_as_one_that_does_not_run(fake):
    """Python 3.6 and 3.7 have no importlib.metadata."""
    path = fake("python3.6", "echo No module named importlib.metadata >&2; exit 1")
    answer: dict[str, Any] = pythons.probe(path, {})
    assert answer["packages"] == {}
    assert subprocess.run([path], check=False, capture_output=True).returncode == 1


def test_a_python_that_hangs_is_passed_over_and_all_of_them_together_have_a_limit(
    fake, tmp_path, monkeypatch
):
    monkeypatch.setattr(pythons, "FIRST_SECONDS", 0.5)
    monkeypatch.setattr(pythons, "OTHERS_SECONDS", 1.5)
    hanging = [fake(f"conda{n}/bin/python", "exec sleep 60") for n in (1, 2, 3)]
    good = fake("conda4/bin/python", torch="2.13")
    began = time.monotonic()
    search = pythons.find(str(tmp_path / "project"), {"torch": ">=2.6"})
    assert time.monotonic() - began < 5
    assert search["found"]["path"] == good
    assert [t["path"] for t in search["tried"]] == [*hanging, good]
    assert all("doesn't run" in t["missing"][0] for t in search["tried"][:3])


def test_a_folder_of_pythons_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path / 'dead'}{os.pathsep}/usr/bin")
    monkeypatch.setattr(pythons, "FOLDERS_SECONDS", 1.0)
    hanging_below(monkeypatch, tmp_path / "dead")
    with pytest.raises(TrainError, match="dead gives no answer in") as caught:
        pythons.find(str(tmp_path / "project"), {"torch": ""})
    assert caught.value.category == "infra"
