"""The gate's thresholds, and the checks that are silenced: settings of the role gpu_gate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import TrainError
from .request import boolean, nearest


@dataclass(frozen=True)
class Limits:
    """What is expected of a machine. Each is the setting ``gpu_gate_<name>``, explained there.

    GiB and MiB are powers of two, times are in seconds where the name says nothing else.
    """

    gpus: int = 1
    memory_gib: float = 0.0
    memory_slack: float = 0.15
    min_capability: float = 7.0
    hot_margin: int = 10
    max_retired_pages: int = 60
    min_pcie_generation: int = 2
    min_pcie_width: int = 4
    need_persistence: bool = False
    xid_hours: float = 24.0
    min_disk_gib: float = 1.0
    min_inodes: int = 20_000
    min_memory_gib: float = 0.5
    warn_memory_gib: float = 2.0
    min_shm_mib: float = 16.0
    warn_shm_mib: float = 64.0
    warn_load: float = 2.0
    max_load: float = 16.0
    warn_clock_skew: float = 30.0
    max_clock_skew: float = 3600.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Limits:
        """The limits with some of them given.

        :raises TrainError: for a name that is none, and for a value that is no amount.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        values = {}
        for name, value in given.items():
            if name not in kinds:
                raise TrainError(
                    f"The gate has no threshold {name}.",
                    nearest(name, kinds) or f"They are {', '.join(kinds)}.",
                )
            values[name] = _amount(name, value, str(kinds[name]))
        return cls(**values)


def _amount(name: str, value: Any, kind: str) -> Any:
    """A value in the type of its limit; text is read, since templates give text."""
    if kind == "bool":
        return boolean(f"gpu_gate_{name}", value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (kind == "int" and not number.is_integer()):
        whole = "a whole number" if kind == "int" else "a number"
        raise TrainError(f"gpu_gate_{name} is {value!r}.", f"Give it {whole} of 0 or more.")
    return int(number) if kind == "int" else number


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
