"""Why an installation failed, where its own last words aren't what helps: a disk, a folder."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Mapping, Sequence

from . import disk_errors, programs
from .errors import TrainError

_NO_WHEEL = (
    r"No matching distribution found for (?P<name>[A-Za-z0-9._-]+)",  # pip
    # uv, of which each sentence begins with one of these
    r"(?:Because|And because|and) (?:only )?(?P<name>[A-Za-z0-9._-]+)\S*(?: \S+)? "
    r"(?:was not found in|ha(?:s|ve) no wheels with|(?:is|are) available)",
    r"following versions of (?P<name>[A-Za-z0-9._-]+) are available",
    r"there (?:is|are) no versions? of (?P<name>[A-Za-z0-9._-]+)",
)

_KIND = """
import platform, sys, sysconfig
print("Python %d.%d" % sys.version_info[:2], "on", sysconfig.get_platform(), end="")
print(" (%s %s)" % platform.libc_ver() if platform.libc_ver()[0] else "")
"""


def explained(
    error: TrainError,
    lines: Sequence[str],
    python: str,
    places: Mapping[str, str],
    wanted: Sequence[str] = (),
    wheels: str = "",
    torch: str = "",
) -> TrainError:
    """``error``, or a better one where the program's lines tell more.

    :param places: the folders that are written to (:func:`disk_errors.refused`).
    :param wanted: what was to be installed.
    :param wheels: the folder of wheels, where no index was asked.
    :param torch: the version of the torch that is there and stays.
    """
    text = " ".join(line.strip() for line in [*lines, error.message])
    if found := disk_errors.printed(text):
        return disk_errors.refused("The packages can't be installed", found, places)
    other = re.search(r"([\w.-]+)(?:=\S+| \d\S*)? depends? on (torch[<>=!~][\w.<>=!~,*+]*)", text)
    if torch and other:
        return TrainError(
            f"{other.group(1)} needs {other.group(2).rstrip(',.')}, and the torch {torch} that is "
            "there is never replaced.",
            "Take an image with such a torch, or make a Python that has all of it and name that "
            "with provision_python.",
            "infra",
        )
    if wheels:
        for pattern in _NO_WHEEL:
            match = re.search(pattern, text)
            if match:
                return _lacks(wheels, match.group("name"), [*wanted, text], python)
    return error


def _lacks(folder: str, name: str, texts: Sequence[str], python: str) -> TrainError:
    """The refusal of a folder; what is asked of a package stands in the first text that has it."""
    words = "^|depends? on |you require |distribution found for "
    pattern = re.compile(rf"(?:{words})({re.escape(name)}(?![\w.-])[\w\[\].<>=!~,*+]*)")
    spoken = [found for text in texts for found in pattern.findall(text)]
    asked = spoken[0].rstrip(",.") if spoken else name
    held = [
        os.path.basename(path)
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.whl")))
        if _same(os.path.basename(path).split("-")[0], name)
    ]
    but = f"; of that package it has {', '.join(held)}" if held else ""
    kind = _kind(python)
    return TrainError(
        f"provision_wheels ({folder}) has no wheel of {asked} for {kind}{but}.",
        f"Add one to that folder, on a machine with {kind}: "
        f"python3 -m pip download --only-binary :all: -d . {shlex.quote(asked)}",
        "ops",
    )


def _same(one: str, other: str) -> bool:
    """Whether two names are one package's (PEP 503)."""
    return re.sub(r"[-_.]+", "-", one).lower() == re.sub(r"[-_.]+", "-", other).lower()


def _kind(python: str) -> str:
    """A Python and the machine that it runs on, as a wheel has to fit them."""
    return programs.ask([python, "-c", _KIND], 20).text or "the host's Python"
