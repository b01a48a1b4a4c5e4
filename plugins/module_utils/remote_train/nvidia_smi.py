"""Ask nvidia-smi, whatever state the driver is in: nothing here hangs, nothing raises.

One call gives nearly all (:func:`ask`). Two small ones give what its XML doesn't have: the
compute capabilities (:func:`capabilities`) and the NVLinks (:func:`links`). The exit codes are
those of the nvidia-smi manual page, section "RETURN VALUE".
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import programs
from .programs import ENDED, Ended
from .smi_xml import SmiError, Snapshot, parse

#: Seconds that the program may take. A healthy driver without persistence mode needs up to
#: about ten on a machine with eight GPUs.
DEFAULT_TIMEOUT = 20.0

#: The program's name; whoever sets another one has a reason.
NAME = "nvidia-smi"

#: How the reason begins where there is nothing to read.
NO_XML = "it printed no XML"

#: Where images put the program without putting it on the PATH of a non-login shell.
EXTRA_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/local/nvidia/bin", "/usr/lib/wsl/lib")

#: Where the kernel's part of the driver shows that it is loaded.
DRIVER_IN_KERNEL = "/proc/driver/nvidia/version"


@dataclass(frozen=True)
class Answer:
    """How a call of nvidia-smi went.

    ``state`` is ``ok``, or why there is no snapshot: ``missing`` (no such program; ``text`` says
    so where the driver is loaded all the same), ``unusable`` (it can't be run), ``hangs``,
    ``failed`` (``code`` and ``text`` say how) or ``unreadable`` (``text`` says why its XML can't
    be read). ``seconds`` is the limit for ``hangs``. A call can be ``ok`` with a ``code``: a
    corrupted infoROM gives XML and exit 14. ``named`` is the program that the setting names, empty
    where that is the usual one; ``usual`` is where the usual one is, if the one named is missing.
    """

    state: str
    program: str = ""
    code: int | None = None
    text: str = ""
    seconds: float = 0.0
    named: str = ""
    usual: str = ""
    snapshot: Snapshot = field(default_factory=Snapshot)


def find_program(program: str) -> str | None:
    """The path of ``program``, also where a non-login PATH doesn't reach; None when missing."""
    found = shutil.which(program)
    if found is None and os.sep not in program:
        found = shutil.which(program, path=os.pathsep.join(EXTRA_FOLDERS))
    return found


def ask(program: str = NAME, timeout: float = DEFAULT_TIMEOUT) -> Answer:
    """Run ``program -q -x``, for at most ``timeout`` seconds, and read what it says.

    Never raises for what the program does or is, and never waits longer than two seconds over
    the limit: the program and its children are killed, and one that can't be killed (stuck in
    the driver) is left behind.
    """
    named = program if program != NAME else ""
    path = find_program(program)
    if path is None:
        loaded = "the driver is loaded" if os.path.exists(DRIVER_IN_KERNEL) else ""
        usual = (find_program(NAME) or "") if named else ""
        return Answer("missing", program, text=loaded, named=named, usual=usual)
    asked = _ask([path, "-q", "-x"], timeout)
    if asked.state != ENDED:
        return Answer(asked.state, path, text=asked.reason, seconds=timeout, named=named)
    answer = _read(path, asked.status, asked.output, asked.complaint)
    return dataclasses.replace(answer, named=named)


def _ask(command: Sequence[str], timeout: float) -> Ended:
    return programs.ask(command, timeout, {"LC_ALL": "C"})


def capabilities(
    program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT
) -> dict[int, tuple[int, int]]:
    """Each GPU's compute capability, by its index; empty where the driver doesn't tell.

    Drivers before R510 don't know the question.
    """
    path = find_program(program)
    if path is None:
        return {}
    asked = _ask([path, "--query-gpu=index,compute_cap", "--format=csv,noheader"], timeout)
    found = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\.(\d+)\s*$", asked.text, re.M)
    return {int(index): (int(major), int(minor)) for index, major, minor in found}


@dataclass(frozen=True)
class Links:
    """The NVLinks: ``active`` and ``inactive`` count those of each GPU, by its index.

    ``told`` is whether there was an answer; a machine without NVLink answers with none. ``dark``
    are the GPUs of which the driver says that all their links are inactive, without a number.
    """

    told: bool = False
    active: dict[int, int] = field(default_factory=dict)
    inactive: dict[int, int] = field(default_factory=dict)
    dark: tuple[int, ...] = ()


def links(program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT) -> Links:
    """Ask ``nvlink --status``, whose answer has a line for each GPU and one for each link."""
    path = find_program(program)
    if path is None:
        return Links()
    asked = _ask([path, "nvlink", "--status"], timeout)
    if asked.state != ENDED:
        return Links()
    active: dict[int, int] = {}
    inactive: dict[int, int] = {}
    dark: list[int] = []
    gpu = None
    said = f"{asked.text}\n{asked.complaints}".lower()
    for line in said.splitlines():
        if start := re.match(r"\s*gpu (\d+):", line):
            gpu = int(start.group(1))
        elif gpu is not None and (link := re.match(r"\s*link \d+: *(.+)", line)):
            counts = active if re.match(r"[1-9]|0\.\d*[1-9]", link.group(1)) else inactive
            counts[gpu] = counts.get(gpu, 0) + 1
        elif gpu is not None and "all links are inactive" in line:
            dark.append(gpu)
    # "Unable to retrieve NVLink information as all links are inActive", and "... information: Not
    # Supported" of cards that have none, can come with an exit code.
    none = "inactive" in said or "nvlink information: not supported" in said
    told = bool(active or inactive or none or asked.status == 0)
    return Links(told, active, inactive, tuple(dark))


def _read(path: str, code: int, output: bytes, complaint: bytes) -> Answer:
    """The answer behind an exit code and two streams."""
    said = _first_lines(output + b"\n" + complaint)
    if b"<nvidia_smi_log" not in output:
        if code == 0:
            return Answer("unreadable", path, code, f"{NO_XML} but: {said or 'nothing'}")
        return Answer("failed", path, code, said)
    try:
        snapshot = parse(output)
    except SmiError as error:
        return Answer("unreadable", path, code, str(error))
    return Answer("ok", path, code, _first_lines(complaint), snapshot=snapshot)


def _first_lines(output: bytes, lines: int = 3, longest: int = 300) -> str:
    """The first lines that say something, as one line."""
    text = output.decode("utf-8", "replace")
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(said[:lines])[:longest]
