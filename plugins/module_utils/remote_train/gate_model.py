"""What a check of the gate gets, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .chats import FileReport, Problem
from .host_facts import HostFacts
from .nvidia_smi import Answer, Gpu

OK, WARN, FAIL, UNKNOWN, SKIPPED = RESULTS = ("ok", "warn", "fail", "unknown", "skipped")
"""What a check can say; only ``fail`` can stop a run."""

GPU, HOST, DATA, PACKAGES = SCOPES = ("gpu", "host", "data", "packages")
"""What a check looks at; the gate's mode governs the first, the others always count."""

STRICT, WARN_MODE, OFF = MODES = ("strict", "warn", "off")
"""``gpu_gate``: stop at a failed check of the GPU, report it and go on, or leave it out."""


@dataclass(frozen=True)
class Finding:
    """What one check found: what was seen, what was expected, and what to do about it.

    ``action`` is empty where there is nothing to do.
    """

    check: str
    scope: str
    result: str
    seen: str
    expected: str = ""
    action: str = ""

    def as_dict(self) -> dict[str, str]:
        """For a module's result and precheck.json."""
        return {
            "check": self.check,
            "scope": self.scope,
            "result": self.result,
            "seen": self.seen,
            "expected": self.expected,
            "action": self.action,
        }


@dataclass(frozen=True)
class Verdict:
    """What a check's function returns: a finding without the check's name and scope."""

    result: str
    seen: str
    expected: str = ""
    action: str = ""


@dataclass(frozen=True)
class Context:
    """Everything the checks look at, gathered before: a check itself touches nothing.

    ``smi`` is None where nvidia-smi wasn't asked. ``gpu_memory_gib`` 0 means that nothing is
    asked of a GPU's memory. ``packages`` maps the names of the training's packages to the
    versions found (None: not installed), and is itself None where no Python for the training is
    known yet; ``requirements`` maps names to bounds such as ``>=5,<6`` (empty: any version).
    """

    smi: Answer | None = None
    gpu_count: int = 1
    gpu_memory_gib: float = 0
    min_disk_gib: float = 0
    host: HostFacts = field(default_factory=HostFacts)
    packages: Mapping[str, str | None] | None = None
    requirements: Mapping[str, str] = field(default_factory=dict)
    data_files: tuple[FileReport, ...] = ()
    leaks: tuple[Problem, ...] = ()

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that nvidia-smi told of."""
        return self.smi.snapshot.gpus if self.smi else ()


@dataclass(frozen=True)
class Check:
    """One row of the table of checks."""

    name: str
    scope: str
    function: Callable[[Context], Verdict]

    def run(self, context: Context) -> Finding:
        """The finding of this check."""
        verdict = self.function(context)
        return Finding(
            self.name,
            self.scope,
            verdict.result,
            verdict.seen,
            verdict.expected,
            verdict.action,
        )


def quantity(count: int, noun: str) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def any_of(items: list[Any], most: int = 4) -> str:
    """Some items as a list for a person: the first few, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
