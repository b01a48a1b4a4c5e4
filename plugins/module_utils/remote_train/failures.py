"""The kinds of failures of a stage: what each counts as, and what is done about it by itself.

One table, :data:`KINDS`. The training says what it knows in ``result.json``; what it can't know
(it was killed, the GPU is gone) is told from its end, its log, the kernel's log and the counters
of its control group.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import issues, kernel_log, killable, processes, xid

RETRY, ROOM, STOP, CONTINUE = "retry", "wait for room", "stop", "continue"
"""Start again after a pause; the same once there is room; end; let the stage go on."""


@dataclass(frozen=True)
class Kind:
    """``most`` is how many new attempts there are at the most, beside ``stage_retries``."""

    name: str
    category: str
    policy: str
    meaning: str
    most: int | None = None


KINDS = {
    kind.name: kind
    for kind in (
        Kind("link", "infra", CONTINUE, "The connection broke; the stage goes on without it."),
        Kind("unreachable", "infra", CONTINUE, "The host gave no answer; what runs there goes on."),
        Kind(
            "gpu", "infra", STOP, "The GPU or its driver failed; that passes with a restart only."
        ),
        Kind("oom", "oom", STOP, "Memory didn't suffice, after all that can be done about it."),
        Kind(
            "killed_for_memory",
            "oom",
            RETRY,
            "The system killed it for memory; once more, since another program may have had it.",
            most=1,
        ),
        Kind(
            "disk_full", "infra", ROOM, "The disk is full; it is waited for room, then tried anew."
        ),
        Kind("data", "data", STOP, "The data can't be used, or changed meanwhile."),
        Kind("model_download", "model_download", RETRY, "The model couldn't be had from its hub."),
        Kind("model", "model_download", STOP, "The model's files can't be used as they are."),
        Kind("diverged", "training_logic", STOP, "The loss isn't finite; it would be so again."),
        Kind("signal", "infra", RETRY, "A signal that nobody answers for killed it."),
        Kind("stopped", "ops", STOP, "Somebody has stopped it."),
        Kind("setting", "ops", STOP, "What was asked for can't be done so."),
        Kind("host", "infra", STOP, "The host refuses something: a file's mode, a folder."),
        Kind("unknown", "training_logic", STOP, "Nothing known; the log's end is kept with it."),
    )
}

_GPU = re.compile(
    r"fallen off the bus|CUDA error: (?!out of memory|CUBLAS_STATUS_ALLOC_FAILED)|GPU is lost"
    r"|uncorrectable (?:ECC|NVLINK)|No CUDA GPUs are available"
    r"|Unable to determine the device handle",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"CUDA error: (?:device-side assert|no kernel image|invalid)", re.IGNORECASE)
_DIVERGED = re.compile(r"\b(?:loss|gradient)\b.* (?:is|was) -?(?:nan|inf)\b", re.IGNORECASE)
_FROM_A_HUB = re.compile(r"can't be had")
_DISK_FULL = re.compile(r"disk is full|No space left on device|Disk quota exceeded", re.IGNORECASE)
_OOM_KILLER = re.compile(r"Killed process (\d+) \(([^)]*)\)")

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The errors of a disk that takes no more, of all or of one user."""

ROOM_HINT = "Free space on the GPU host: old runs, checkpoints, model caches."

KERNEL_SECONDS = 8.0
"""Seconds that a look at the kernel's log may take."""

GPU_HINT = (
    "Restart the machine, or rent another one, then give the same command again: it goes on from "
    "the last checkpoint. playbooks/precheck.yml says what is wrong with the GPU."
)
MEMORY_HINT = (
    "End what else needs memory on the host, or rent one with more; lower eval_batch_size or "
    "max_length."
)


@dataclass(frozen=True)
class Failure:
    """What went wrong, in the fields of an issue, and its kind."""

    kind: str
    symptom: str
    cause: str = ""
    action: str = ""
    category: str = ""

    def as_error(self) -> dict[str, str]:
        """The ``error`` of status and record."""
        return {
            "category": self.category or KINDS[self.kind].category,
            "symptom": self.symptom,
            "cause": self.cause,
            "action": self.action,
        }


def of_error(error: Mapping[str, Any], log_tail: list[str]) -> Failure:
    """The failure that the training itself names in its result."""
    category = str(error.get("category", "ops"))
    if category not in issues.CATEGORIES:
        category = "ops"
    symptom = str(error.get("symptom") or "The training failed.")
    cause, action = str(error.get("cause") or ""), str(error.get("action") or "")
    text = f"{symptom}\n{cause}"
    if is_of_the_gpu(text):
        kind = "gpu"
    elif "kind" in error:
        named = str(error["kind"])
        kind = named if named in KINDS else _BY_CATEGORY.get(category, "setting")
    else:
        kind = _kind_by_words(category, symptom, text)
    if kind == "gpu":
        return Failure(kind, symptom, cause, GPU_HINT)
    if kind == "unknown":
        cause = "\n".join(log_tail) or cause
    return Failure(kind, symptom, cause, action, category)


_BY_CATEGORY = {
    "oom": "oom",
    "data": "data",
    "model_download": "model",
    "training_logic": "unknown",
    "infra": "host",
}
"""The kind of an error that names none; what would be so again is not tried again."""


def _kind_by_words(category: str, symptom: str, text: str) -> str:
    """The kind of an error in a result of before kinds were named."""
    if category == "model_download" and _FROM_A_HUB.search(symptom):
        return "model_download"
    if category == "training_logic" and _DIVERGED.search(symptom):
        return "diverged"
    if category == "infra" and _DISK_FULL.search(text):
        return "disk_full"
    # Somebody has killed it by a signal that it could answer; not the one who stops a stage.
    if category == "ops" and "stopped by a signal" in symptom:
        return "signal"
    return _BY_CATEGORY.get(category, "setting")


def is_of_the_gpu(text: str) -> bool:
    """Whether an error's text is one of a GPU that fails, and not of a program that errs."""
    return bool(_GPU.search(text)) and not _PROGRAM.search(text)


def of_cut(stage: str, seconds: float) -> Failure:
    """A connection that broke for some seconds while a stage was followed."""
    return Failure(
        "link",
        f"The connection broke for {seconds} s while {stage} was followed.",
        action="Nothing to do: the stage went on by itself.",
    )


def of_silence(seconds: float, stays: str, again: str) -> Failure:
    """A host that could not be reached again.

    :param stays: the half of a sentence that says what that doesn't undo.
    :param again: what the same command does, when the host is back.
    """
    return Failure(
        "unreachable",
        f"The host could not be reached again in {seconds:.0f} s.",
        action=f"{stays.capitalize()}: give the same command again when the host can be reached, "
        f"and {again}.",
    )


class Witness:
    """What the system knows of the time since this was made."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._killed = _killed_for_memory()

    def of_signal(self, number: int, pid: int) -> Failure:
        """Why a process was killed by a signal that nobody has sent knowingly."""
        symptom = f"The training was killed by {processes.signal_name(number)}."
        said = self._kernel()
        if number == signal.SIGKILL:
            why = self._for_memory(said, pid)
            if why:
                return Failure("killed_for_memory", symptom, why, MEMORY_HINT)
        broken = self._broken(said)
        if broken:
            return Failure("gpu", symptom, broken, GPU_HINT)
        cause = ""
        if number == signal.SIGKILL:
            cause = "SIGKILL without a word is most often the system running out of memory."
        hint = "Look at the kernel's log, and start the same command again."
        return Failure("signal", symptom, cause, hint)

    def of_end(self, symptom: str, log_tail: list[str], action: str) -> Failure:
        """Why a process ended that says nothing of it."""
        text = "\n".join(log_tail)
        broken = self._broken(self._kernel())
        if broken or is_of_the_gpu(text):
            return Failure("gpu", symptom, "\n".join(filter(None, (broken, text))), GPU_HINT)
        if _DISK_FULL.search(text):
            return Failure("disk_full", symptom, text, ROOM_HINT)
        return Failure("unknown", symptom, text, action)

    def _kernel(self) -> list[kernel_log.Line]:
        """The kernel's lines since then; none where its log can't be read."""
        job = killable.Job(lambda: kernel_log.read(keep=_speaks), KERNEL_SECONDS)
        ended = killable.run({"kernel": job})["kernel"]
        if ended.state != killable.DONE:
            return []
        passed = time.monotonic() - self._since
        return [line for line in ended.value.lines if line.age is not None and line.age <= passed]

    def _for_memory(self, said: list[kernel_log.Line], pid: int) -> str:
        killed = [(line, found) for line in said if (found := _OOM_KILLER.search(line.text))]
        # The kernel's numbers are others than ours in a container.
        ours = processes.has_the_kernels_numbers()
        for line, found in killed:
            if ours and int(found.group(1)) == pid:
                return f"The kernel says: {line.text.strip()}"
        count = _killed_for_memory()
        if count is not None and count > (self._killed or 0):
            return "Its control group counts a process that was killed for memory."
        # Where nothing else can tell, the name has to do.
        for line, found in killed:
            if not ours and count is None and found.group(2).startswith("python"):
                return f"The kernel says: {line.text.strip()}"
        return ""

    def _broken(self, said: list[kernel_log.Line]) -> str:
        found = [x for x in xid.find(said) if x.severity == xid.FATAL]
        if not found:
            return ""
        return f"The driver says Xid {found[-1].number} of {found[-1].bus}: {found[-1].meaning}."


def _speaks(text: str) -> bool:
    return "Xid" in text or "Killed process" in text


def _killed_for_memory() -> int | None:
    """How many processes the kernel has killed for memory in our control group (v2, then v1).

    None where nobody says.
    """
    for file in ("memory.events", "memory/memory.oom_control"):
        try:
            with open(os.path.join("/sys/fs/cgroup", _group(), file), encoding="ascii") as stream:
                found = re.search(r"^oom_kill (\d+)$", stream.read(), re.M)
        except OSError:
            continue
        if found:
            return int(found.group(1))
    return None


def _group() -> str:
    """Our control group's folder (v2), where it can be seen from here."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as stream:
            found = re.search(r"^0::/(.*)$", stream.read(), re.M)
    except OSError:
        return ""
    group = found.group(1) if found else ""
    return group if os.path.exists(os.path.join("/sys/fs/cgroup", group, "memory.events")) else ""
