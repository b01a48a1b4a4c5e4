"""Ask nvidia-smi, whatever state the driver is in: nothing here hangs, nothing raises.

One call gives nearly all (:func:`ask`). Two small ones give what its XML doesn't have: the
compute capabilities (:func:`capabilities`) and the NVLinks (:func:`links`). The exit codes are
those of the nvidia-smi manual page, section "RETURN VALUE".
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field

from .smi_xml import SmiError, Snapshot, parse

#: Seconds that the program may take. A healthy driver without persistence mode needs up to
#: about ten on a machine with eight GPUs.
DEFAULT_TIMEOUT = 20.0

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
    corrupted infoROM gives XML and exit 14.
    """

    state: str
    program: str = ""
    code: int | None = None
    text: str = ""
    seconds: float = 0.0
    snapshot: Snapshot = field(default_factory=Snapshot)


def find_program(program: str) -> str | None:
    """The path of ``program``, also where a non-login PATH doesn't reach; None when missing."""
    found = shutil.which(program)
    if found is None and os.sep not in program:
        found = shutil.which(program, path=os.pathsep.join(EXTRA_FOLDERS))
    return found


def ask(program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT) -> Answer:
    """Run ``program -q -x``, for at most ``timeout`` seconds, and read what it says.

    Never raises for what the program does or is, and never waits longer than two seconds over
    the limit: the program and its children are killed, and one that can't be killed (stuck in
    the driver) is left behind.
    """
    path = find_program(program)
    if path is None:
        loaded = "the driver is loaded" if os.path.exists(DRIVER_IN_KERNEL) else ""
        return Answer(state="missing", program=program, text=loaded)
    called = run(path, ["-q", "-x"], timeout)
    if called.state != "ended":
        return Answer(called.state, program=path, text=called.text, seconds=timeout)
    return _read(path, called.code, called.output, called.complaint)


def capabilities(
    program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT
) -> dict[int, tuple[int, int]]:
    """Each GPU's compute capability, by its index; empty where the driver doesn't tell.

    Drivers before R510 don't know the question.
    """
    path = find_program(program)
    if path is None:
        return {}
    called = run(path, ["--query-gpu=index,compute_cap", "--format=csv,noheader"], timeout)
    found = re.findall(r"^\s*(\d+)\s*,\s*(\d+)\.(\d+)\s*$", called.lines(), re.M)
    return {int(index): (int(major), int(minor)) for index, major, minor in found}


@dataclass(frozen=True)
class Links:
    """The NVLinks: ``active`` and ``inactive`` count those of each GPU, by its index.

    ``told`` is whether there was an answer; a machine without NVLink answers with none.
    """

    told: bool = False
    active: dict[int, int] = field(default_factory=dict)
    inactive: dict[int, int] = field(default_factory=dict)


def links(program: str = "nvidia-smi", timeout: float = DEFAULT_TIMEOUT) -> Links:
    """Ask ``nvlink --status``, whose answer has a line for each GPU and one for each link."""
    path = find_program(program)
    called = run(path, ["nvlink", "--status"], timeout) if path else Called("missing")
    if called.state != "ended":
        return Links()
    active: dict[int, int] = {}
    inactive: dict[int, int] = {}
    gpu = None
    for line in called.lines().splitlines():
        if start := re.match(r"\s*GPU (\d+):", line):
            gpu = int(start.group(1))
        elif gpu is not None and (link := re.match(r"\s*Link \d+: *(.+)", line)):
            counts = active if re.match(r"[1-9]|0\.\d*[1-9]", link.group(1)) else inactive
            counts[gpu] = counts.get(gpu, 0) + 1
    # "Unable to retrieve NVLink information as all links are inActive" comes with an exit code.
    silent = "inactive" in called.lines().lower() or called.code == 0
    return Links(bool(active or inactive or silent), active, inactive)


@dataclass(frozen=True)
class Called:
    """How a call went: ``ended``, ``hangs`` or ``unusable`` (``text`` says why it can't be run)."""

    state: str
    code: int = 0
    output: bytes = b""
    complaint: bytes = b""
    text: str = ""

    def lines(self) -> str:
        """What it printed, as text."""
        return (self.output + b"\n" + self.complaint).decode("utf-8", "replace")


def run(path: str, words: list[str], timeout: float) -> Called:
    """Run a program for at most ``timeout`` seconds; then it is killed with its children."""
    try:
        process = subprocess.Popen(
            [path, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,  # its own process group, so that its children go with it
        )
    except OSError as error:
        return Called("unusable", text=error.strerror or str(error))
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        return Called("hangs")
    return Called("ended", process.returncode, output, complaint)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its group, and don't wait for what the kernel won't let go."""
    # Gone already, or a set-uid program that isn't ours to kill: nothing more can be done.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _read(path: str, code: int, output: bytes, complaint: bytes) -> Answer:
    """The answer behind an exit code and two streams."""
    said = _first_lines(output + b"\n" + complaint)
    if b"<nvidia_smi_log" not in output:
        if code == 0:
            return Answer("unreadable", path, code, f"it printed no XML but: {said or 'nothing'}")
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
