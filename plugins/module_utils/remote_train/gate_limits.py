"""The gates' thresholds, and the checks that are silenced: settings of the two roles."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from .errors import TrainError
from .request import boolean, nearest

MOST_TIMEOUT = 45.0
"""The most seconds that nvidia-smi may be given, so that a minute is enough whatever hangs."""

MOST_ACTIVE = 50.0
"""The most seconds for all of the active gate, with Ansible's start and what is to be killed."""


def _setting(default: float, least: float, most: float) -> Any:
    """A threshold with its bounds: what lies beyond them is a slip, mostly of the unit."""
    return dataclasses.field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class Limits:
    """What is expected of a machine. Each is the setting ``gpu_gate_<name>``, explained there.

    GiB and MiB are powers of two, times are in seconds where the name says nothing else.
    """

    prefix: ClassVar[str] = "gpu_gate_"
    rising: ClassVar[tuple[tuple[str, str], ...]] = (
        ("min_memory_gib", "warn_memory_gib"),
        ("min_shm_mib", "warn_shm_mib"),
        ("warn_load", "max_load"),
        ("warn_clock_skew", "max_clock_skew"),
    )

    gpus: int = _setting(1, 0, 1024)
    memory_gib: float = _setting(0.0, 0, 1024)
    memory_slack: float = _setting(0.15, 0, 0.9)
    min_capability: float = _setting(7.0, 0, 20)
    hot_margin: int = _setting(10, 0, 60)
    max_retired_pages: int = _setting(60, 1, 64)
    min_pcie_generation: int = _setting(2, 0, 8)
    min_pcie_width: int = _setting(4, 0, 32)
    need_persistence: bool = False
    xid_hours: float = _setting(24.0, 0, 8784)
    min_disk_gib: float = _setting(1.0, 0, 1e6)
    min_inodes: int = _setting(20_000, 0, 1e9)
    min_memory_gib: float = _setting(0.5, 0, 1e5)
    warn_memory_gib: float = _setting(2.0, 0, 1e5)
    min_shm_mib: float = _setting(16.0, 0, 1e7)
    warn_shm_mib: float = _setting(64.0, 0, 1e7)
    warn_load: float = _setting(2.0, 0.1, 1e4)
    max_load: float = _setting(16.0, 0.1, 1e4)
    warn_clock_skew: float = _setting(30.0, 1, 1e8)
    max_clock_skew: float = _setting(3600.0, 1, 1e8)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Limits:
        """The limits with some of them given.

        :raises TrainError: for a name that is none, and for a value that makes no sense.
        """
        return _checked(cls, given)

    def setting(self, name: str) -> str:
        """A threshold for a person, with the value in force: ``gpu_gate_max_load (16)``."""
        return f"{self.prefix}{name} ({getattr(self, name):g})"


@dataclass(frozen=True)
class ActiveLimits:
    """The thresholds of the active gate: the settings ``active_gate_<name>``; GiB/s and seconds."""

    prefix: ClassVar[str] = "active_gate_"
    rising: ClassVar[tuple[tuple[str, str], ...]] = (("min_bandwidth", "warn_bandwidth"),)

    timeout: float = _setting(45.0, 1, MOST_ACTIVE)
    warn_bandwidth: float = _setting(4.0, 0, 1000)
    min_bandwidth: float = _setting(0.5, 0, 1000)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ActiveLimits:
        """The limits with some of them given; see :meth:`Limits.of`."""
        return _checked(cls, given)


_Kind = TypeVar("_Kind", Limits, ActiveLimits)


def _checked(kind: type[_Kind], given: Mapping[str, Any]) -> _Kind:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in given.items():
        if name not in fields:
            raise TrainError(
                f"The gate has no threshold {name}.",
                nearest(name, fields) or f"They are {', '.join(fields)}.",
            )
        values[name] = _amount(kind.prefix + name, value, fields[name])
    limits = kind(**values)
    for lower, higher in kind.rising:
        low, high = getattr(limits, lower), getattr(limits, higher)
        if low > high:
            raise TrainError(
                f"{kind.prefix}{lower} is {low:g}, above {kind.prefix}{higher}, which is {high:g}.",
                f"Set {kind.prefix}{higher} to {low:g} or more as well, "
                f"or {kind.prefix}{lower} to {high:g} or less.",
            )
    return limits


def _amount(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    """A value in the type of its limit; text is read, since templates give text."""
    if str(field.type) == "bool":
        return boolean(name, value)
    return amount(
        name, value, field.metadata["least"], field.metadata["most"], str(field.type) == "int"
    )


def amount(name: str, value: Any, least: float, most: float, whole: bool = False) -> Any:
    """A setting as a number within its bounds.

    :raises TrainError: where it is none, or lies beyond them.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most or (whole and not number.is_integer()):
        kind = "a whole number" if whole else "a number"
        kind += " of seconds" if name.endswith("timeout") else ""
        bounds = f"from {least:,g} to {most:,.0f}" if most >= 1e4 else f"from {least:g} to {most:g}"
        raise TrainError(f"{name} is {value!r}.", f"Give it {kind} {bounds}.")
    return int(number) if whole else number


def timeout(value: Any) -> float:
    """``gpu_gate_timeout`` as a number of seconds.

    :raises TrainError: where it is none, or more than a minute allows.
    """
    return float(amount("gpu_gate_timeout", value, 0.1, MOST_TIMEOUT))


def program(value: Any) -> str:
    """``gpu_gate_nvidia_smi``, which names a program.

    :raises TrainError: where it names none.
    """
    if not isinstance(value, str) or not value.strip():
        raise TrainError(
            f"gpu_gate_nvidia_smi is {value!r}, which names no program.",
            "Give it a path on the host, or leave it out: nvidia-smi is looked for by itself.",
        )
    return value


def silenced(given: Mapping[str, Any] | None, known: Iterable[str]) -> dict[str, str]:
    """The checks that are silenced, with the reasons.

    :param known: the names of all checks.
    :raises TrainError: for a name that is no check, and where a reason is missing.
    """
    known = list(known)
    found = {}
    for name, reason in (given or {}).items():
        if name not in known:
            raise TrainError(
                f"gpu_gate_silence names {name}, which is no check.",
                nearest(str(name), known) or f"The checks are {', '.join(known)}.",
            )
        if not isinstance(reason, str) or not reason.strip():
            raise TrainError(
                f"gpu_gate_silence gives no reason for {name}.",
                f"Say why it may be passed over: {{{name}: known since Monday, not ours}}.",
            )
        found[str(name)] = " ".join(reason.split())
    return found
