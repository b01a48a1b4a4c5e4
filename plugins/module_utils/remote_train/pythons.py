"""Which Python on the GPU host can train: the first that has what the training needs.

Rented machines carry a torch that fits their driver, often in a conda folder that a non-login
shell doesn't have on its PATH, so such folders are looked at by name.
"""

from __future__ import annotations

import glob
import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from .killable import DONE, Job, run
from .limited import look

VENV = "outputs/training_sync/venv"
"""The venv of the project's own, under the project root."""

RECORDED = ("torch", "transformers", "peft")
"""The packages whose versions change weights, and so are in the fingerprint."""

FOLDERS_SECONDS, FIRST_SECONDS, OTHERS_SECONDS = 5.0, 10.0, 15.0
"""Seconds for a look at where Pythons may lie, for the best of them, and for all others at once."""

CONDA_FOLDERS = (
    "/opt/conda",
    "/opt/miniconda*",
    "/opt/miniforge*",
    "/root/miniconda*",
    "/root/miniforge*",
    "/venv/*",
    "/workspace/venv",
)

_PROBE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps({"python": ".".join(map(str, sys.version_info[:3])), "packages": found}))
"""


def candidates(root: str, named: str = "") -> list[str]:
    """The Pythons to try, best first. A named one is the only one."""
    if named:
        return [named]
    folders = [folder for pattern in CONDA_FOLDERS for folder in sorted(glob.glob(pattern))]
    paths = [os.path.join(root, VENV, "bin", "python")]
    paths += [os.path.join(folder, "bin", "python") for folder in folders]
    paths += [os.path.join(folder, "python3") for folder in _path()]
    paths += ["/usr/local/bin/python3", "/usr/bin/python3"]
    return [path for path in dict.fromkeys(paths) if os.access(path, os.X_OK)]


def _path() -> list[str]:
    return os.environ.get("PATH", os.defpath).split(os.pathsep)


def parse_requirements(text: str) -> dict[str, str]:
    """The lines of a requirements file as name and bounds: ``{"torch": ">=2.6"}``."""
    found = {}
    for line in text.splitlines():
        bare = line.split("#")[0].strip()
        match = re.match(r"([A-Za-z0-9._-]+)\s*(.*)$", bare)
        if match:
            found[match.group(1)] = match.group(2).replace(" ", "")
    return found


def numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version: ``2.13.0+cpu`` and ``2.13.0a0+git1`` are (2, 13, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def satisfies(version: str, bounds: str) -> bool:
    """Whether ``version`` lies within ``bounds`` such as ``>=5,<6``.

    Release numbers only (PEP 440's pre- and local parts are not looked at): the packages of a
    rented image are often local builds, and those must count.
    """
    for bound in filter(None, bounds.split(",")):
        operator, wanted = re.match(r"(>=|<=|==|<|>)?(.*)", bound).groups()  # type: ignore[union-attr]
        have, want = numbers(version), numbers(wanted)
        width = max(len(have), len(want))
        have += (0,) * (width - len(have))
        want += (0,) * (width - len(want))
        holds = {">=": have >= want, "<=": have <= want, "<": have < want, ">": have > want}
        if not holds.get(operator or "==", have == want):
            return False
    return True


def probe(python: str, requirements: dict[str, str], timeout: float = 20) -> dict[str, Any]:
    """What one Python has.

    :returns: ``path``, ``python`` (its version), ``packages`` (versions found) and ``missing``
        (what it lacks or has in the wrong version, a phrase each); ``python`` is empty where
        the program doesn't run.
    """
    names = list(dict.fromkeys([*requirements, *RECORDED]))
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, *names],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return _silent(python, type(error).__name__)
    packages = answer["packages"]
    missing = []
    for name, bounds in requirements.items():
        if name not in packages:
            missing.append(f"{name}{bounds}")
        elif not satisfies(packages[name], bounds):
            missing.append(f"{name}{bounds} (it has {packages[name]})")
    return {"path": python, "missing": missing, **answer}


def _silent(python: str, why: str) -> dict[str, Any]:
    """The probe of a Python that doesn't answer."""
    missing = [f"{python} doesn't run ({why})"]
    return {"path": python, "python": "", "packages": {}, "missing": missing}


def find(root: str, requirements: dict[str, str], named: str = "") -> dict[str, Any]:
    """The first Python that has what is required.

    The best one is asked alone, and all others at once where it won't do, so that half a minute is
    enough whatever hangs. One that gives no answer is passed over.

    :returns: ``found`` (its probe, or None) and ``tried`` (the probes of all that were tried).
    :raises TrainError: category ``infra``, where a folder in which Pythons may lie hangs.
    """
    paths = [named]
    if not named:
        known = [f if "*" not in f else os.path.dirname(f) for f in CONDA_FOLDERS]
        places = [os.path.join(root, VENV), *known, *_path()]
        paths = look(lambda: candidates(root), places, FOLDERS_SECONDS)
    tried: list[dict[str, Any]] = []
    for some, seconds in ((paths[:1], FIRST_SECONDS), (paths[1:], OTHERS_SECONDS)):
        for answer in _ask(some, requirements, seconds):
            tried.append(answer)
            if answer["python"] and not answer["missing"]:
                return {"found": answer, "tried": tried}
    return {"found": None, "tried": tried}


def _ask(
    paths: Sequence[str], requirements: dict[str, str], seconds: float
) -> list[dict[str, Any]]:
    """The probes of some Pythons, which are asked at once."""

    def job(path: str) -> Job:
        return Job(lambda: probe(path, requirements, seconds), seconds + 1)

    ended = run({path: job(path) for path in paths})
    return [
        one.value if one.state == DONE else _silent(path, f"no answer in {seconds:g} s")
        for path, one in ended.items()
    ]


def recorded(packages: dict[str, str]) -> dict[str, str]:
    """The versions that go into a fingerprint."""
    return {name: packages[name] for name in RECORDED if name in packages}
