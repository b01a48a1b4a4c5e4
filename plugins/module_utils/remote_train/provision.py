"""Make a Python that can train, where the host has none.

Rented images carry a torch that fits their driver: the venv sees the packages of the Python
that it is made from, and a torch that is there is held at its version, never replaced.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any

from . import pythons
from .atomic import write_text
from .errors import TrainError

_VENV_PACKAGES = """
import sys, sysconfig
print(sysconfig.get_path("purelib") if sys.prefix != sys.base_prefix else "")
"""

_PASSWORD = re.compile(r"//[^/@\s]+@")

INSTALL_WITHIN = 3600.0
"""Seconds that an installation may take; torch alone is gigabytes with CUDA."""


def ensure(
    root: str,
    requirements: dict[str, str],
    named: str = "",
    index_url: str = "",
    check: bool = False,
) -> dict[str, Any]:
    """A Python that has what is required, made where there is none.

    :param named: the only Python to use; it is never installed into.
    :param index_url: where packages come from; by default as pip is set up on the host.
    :returns: ``changed``, ``python`` (its probe; None in check mode where it would be made) and
        ``installed``.
    :raises TrainError: when a named Python lacks something, or an installation fails.
    """
    search = pythons.find(root, requirements, named)
    if search["found"]:
        return {"changed": False, "python": search["found"], "installed": []}
    if named:
        raise TrainError(
            f"The Python {named} can't train: {', '.join(search['tried'][0]['missing'])}.",
            "Install that there, or leave provision_python out to have a venv made.",
            "infra",
        )
    base = _base(search["tried"])
    if check:
        return {"changed": True, "python": None, "installed": base["missing"]}
    python = _venv(root, base["path"])
    missing = pythons.probe(python, requirements)["missing"]
    wanted = [name + requirements[name] for name in requirements if _lacks(missing, name)]
    _install(python, wanted, base["packages"], index_url)
    made = pythons.probe(python, requirements)
    if made["missing"]:
        raise TrainError(
            f"After the installation {python} still lacks {', '.join(made['missing'])}.",
            "Install by hand into a Python of yours and name it with provision_python.",
            "infra",
        )
    return {"changed": True, "python": made, "installed": wanted}


def _lacks(missing: list[str], name: str) -> bool:
    starts = (f"{name}>", f"{name}<", f"{name}=")
    return any(phrase == name or phrase.startswith(starts) for phrase in missing)


def _base(tried: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The Python to make the venv from: one that has torch, else the newest."""
    usable = [t for t in tried if t["python"] and pythons.satisfies(t["python"], ">=3.10")]
    if not usable:
        raise TrainError(
            "The host has no Python 3.10 or newer.",
            "Install one, or name one with provision_python.",
            "infra",
        )
    return max(usable, key=lambda t: ("torch" in t["packages"], -tried.index(t)))


def _venv(root: str, base: str) -> str:
    folder = os.path.join(root, pythons.VENV)
    _run(
        [base, "-m", "venv", "--system-site-packages", folder],
        "The venv for the training can't be made",
        "On Debian and Ubuntu that takes the package python3-venv.",
    )
    python = os.path.join(folder, "bin", "python")
    _see_packages_of(base, python)
    return python


def _see_packages_of(base: str, python: str) -> None:
    """Let a venv that was made from a venv see the packages of that one, not only of its base."""
    theirs, ours = (
        subprocess.run(
            [path, "-c", _VENV_PACKAGES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        for path in (base, python)
    )
    if theirs and ours:
        # A .pth file's line that begins with "import" is run (the module site), so that their
        # own .pth files count as well.
        line = f"import site; site.addsitedir({theirs!r})\n"
        write_text(os.path.join(ours, "packages_of_base.pth"), line)


def _install(python: str, wanted: list[str], present: Mapping[str, str], index_url: str) -> None:
    """Install ``wanted``; what is there already keeps its version where it is torch."""
    held = [f"torch=={present['torch']}"] if "torch" in present else []
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    _run(
        [*command, *wanted, *held],
        f"Installing {', '.join(wanted)} failed",
        "Check the host's way to a package index (provision_index_url names another).",
        # In the environment and not on the command line: an index's address may hold a password,
        # and every user of the host can read command lines.
        {"PIP_INDEX_URL": index_url} if index_url else {},
    )


def _run(
    command: list[str], failure: str, hint: str, environment: Mapping[str, str] | None = None
) -> None:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=INSTALL_WITHIN,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise TrainError(f"{failure}: {error}.", hint, "infra") from error
    if done.returncode:
        text = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        errors = [line for line in text if "error" in line.lower()] or text[-1:] or ["no word"]
        said = _PASSWORD.sub("//", errors[-1])
        raise TrainError(f"{failure}: {said}", hint, "infra")
