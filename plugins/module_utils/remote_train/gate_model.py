"""What a check of the gate gets, and what it gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .chats import Problem
from .gate_limits import Limits
from .host_facts import HostFacts
from .kernel_log import KernelLog
from .memory_need import Model, Need
from .nvidia_smi import Answer, Links
from .smi_xml import Gpu

OK, WARN, FAIL, UNKNOWN, SKIPPED = RESULTS = ("ok", "warn", "fail", "unknown", "skipped")
"""What a check can say; only ``fail`` can stop a run."""

GPU, HOST, DATA, PACKAGES = SCOPES = ("gpu", "host", "data", "packages")
"""What a check looks at; the gate's mode governs the first, the others always count."""

STRICT, WARN_MODE, OFF = MODES = ("strict", "warn", "off")
"""``gpu_gate``: stop at a failed check of the GPU, report it and go on, or leave it out."""


def left_out(mode: str, gpus: int) -> str:
    """Why nothing is asked of the GPUs; empty where they are looked at.

    :param gpus: how many the run asks for.
    """
    if mode == OFF:
        return "gpu_gate is off"
    return "" if gpus else "gpu_gate_gpus is 0: the run asks for no GPU"


@dataclass(frozen=True)
class Finding:
    """What one check found: what was seen, what was expected, and what to do about it.

    ``action`` is empty where there is nothing to do. ``silenced`` is the reason for which the
    check was silenced; then the result is ``skipped``, and ``would_be`` is what it would be.
    """

    check: str
    scope: str
    result: str
    seen: str
    expected: str = ""
    action: str = ""
    silenced: str = ""
    would_be: str = ""

    def as_dict(self) -> dict[str, str]:
        """For a module's result and precheck.json."""
        return {
            "check": self.check,
            "scope": self.scope,
            "result": self.result,
            "seen": self.seen,
            "expected": self.expected,
            "action": self.action,
            "silenced": self.silenced,
            "would_be": self.would_be,
        }


@dataclass(frozen=True)
class Verdict:
    """What a check's function returns: a finding without the check's name and scope."""

    result: str
    seen: str
    expected: str = ""
    action: str = ""


@dataclass(frozen=True)
class Data:
    """What is known of the data files, wherever they were looked at.

    ``files`` are their facts (``chats.FileReport.facts``), with ``stages`` and
    ``where`` (``host`` or ``controller``); ``unfinished`` says why the host's could not be read.
    """

    files: tuple[Mapping[str, Any], ...] = ()
    leaks: tuple[Problem, ...] = ()
    unfinished: str = ""


@dataclass(frozen=True)
class Context:
    """Everything the checks look at, gathered before: a check itself touches nothing.

    ``smi`` is None where nvidia-smi wasn't asked. ``capabilities`` are the GPUs' compute
    capabilities by index. ``model`` is the largest base model of the stages and ``need`` the
    stage that takes the most memory of a GPU; both None where no stage of this project's own
    training runs, or no size is known (``unsized`` is then the model's name). ``disk`` is what
    the stages write, in ``disk_files`` files; ``download`` what has to be downloaded, in bytes.
    ``packages`` maps the names of the training's packages to the versions found (None: not
    installed), and is itself None where no Python for the training is known yet;
    ``bare`` is what provisioning will do about that, where the plan has told (:func:`plan.bare`);
    ``requirements`` maps names to bounds such as ``>=5,<6`` (empty: any version).
    ``stages`` are those that run, as the request has them.
    """

    smi: Answer | None = None
    capabilities: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    links: Links = field(default_factory=Links)
    kernel: KernelLog = field(default_factory=KernelLog)
    limits: Limits = field(default_factory=Limits)
    stages: tuple[Mapping[str, Any], ...] = ()
    model: Model | None = None
    unsized: str = ""
    need: Need | None = None
    disk: Need | None = None
    disk_files: int = 0
    download: int = 0
    host: HostFacts = field(default_factory=HostFacts)
    packages: Mapping[str, str | None] | None = None
    bare: Mapping[str, Any] = field(default_factory=dict)
    requirements: Mapping[str, str] = field(default_factory=dict)
    data: Data = field(default_factory=Data)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that nvidia-smi told of."""
        return self.smi.snapshot.gpus if self.smi else ()


Function = Callable[[Context], Verdict]

Looked = TypeVar("Looked")
"""What the checks of a table look at: the passive gate's :class:`Context`, the active's facts."""


@dataclass(frozen=True)
class Check(Generic[Looked]):
    """One row of the table of checks.

    ``fails`` and ``warns`` say when it does, ``limits`` which thresholds it looks at. What it
    looks at is the first sentence of its function's docstring.
    """

    scope: str
    function: Callable[[Looked], Verdict]
    fails: str
    warns: str = ""
    limits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name by which it is silenced."""
        return self.function.__name__

    @property
    def looks_at(self) -> str:
        """What it looks at, in a sentence."""
        text = " ".join((inspect.getdoc(self.function) or "").split())
        return text.split(". ")[0].rstrip(".")

    def run(self, context: Looked, silenced: str = "") -> Finding:
        """The finding of this check.

        :param silenced: the reason for which it is silenced; it is run all the same.
        """
        verdict = self.function(context)
        result, seen = verdict.result, verdict.seen
        if silenced:
            would = f"; it would be {result}: {seen}" if result != OK else ""
            seen = f"silenced: {silenced}{would}"
        return Finding(
            self.name,
            self.scope,
            SKIPPED if silenced else result,
            seen,
            verdict.expected,
            "" if silenced else verdict.action,
            silenced,
            result if silenced else "",
        )


def quantity(count: int, noun: str) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def any_of(items: list[Any], most: int = 4) -> str:
    """Some items as a list for a person: the first few, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def each_once(texts: Iterable[str]) -> list[str]:
    """Texts in their order, none of them twice."""
    return list(dict.fromkeys(texts))
