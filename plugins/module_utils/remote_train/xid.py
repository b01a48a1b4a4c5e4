"""NVIDIA's Xid messages: what the driver writes into the kernel's log when a GPU goes wrong.

Numbers and meanings are those of NVIDIA's "Xid Catalog" (docs.nvidia.com/deploy/xid-errors); the
severities are this project's reading of its resolution buckets, for one question: can a training
that starts now be trusted to this GPU?
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .kernel_log import Line

FATAL, SERIOUS, PROGRAM = "fatal", "serious", "program"
"""The hardware or its driver is broken until a reset or for good; it may be; a program's fault."""

SEVERITIES: dict[int, tuple[str, str]] = {
    8: (PROGRAM, "the GPU stopped processing for a program"),
    11: (PROGRAM, "a program sent commands that can't be read"),
    13: (PROGRAM, "a program computed outside of its memory"),
    31: (PROGRAM, "a program used memory that isn't its own"),
    32: (SERIOUS, "commands arrived corrupted over PCIe"),
    37: (PROGRAM, "a driver's error with a program"),
    38: (SERIOUS, "an error of the driver's firmware"),
    43: (PROGRAM, "a program was stopped for its own fault"),
    44: (SERIOUS, "a fault as a context was switched"),
    45: (PROGRAM, "a program was ended"),
    46: (FATAL, "the GPU stopped processing"),
    48: (FATAL, "a memory error that can't be corrected"),
    54: (FATAL, "the power cables aren't attached"),
    56: (SERIOUS, "an error of the display engine"),
    57: (FATAL, "the memory's link could not be trained"),
    58: (SERIOUS, "memory timing is unstable"),
    60: (SERIOUS, "an error of the video engine"),
    61: (FATAL, "the GPU's own controller stopped"),
    62: (FATAL, "the GPU's own controller halted"),
    63: (SERIOUS, "a memory row or page waits to be replaced"),
    64: (FATAL, "a memory row or page could not be replaced"),
    68: (PROGRAM, "a video engine's error with a program"),
    69: (PROGRAM, "a program used the graphics engine wrongly"),
    74: (FATAL, "an NVLink is broken"),
    79: (FATAL, "the GPU has fallen off the bus"),
    80: (SERIOUS, "data arrived corrupted over PCIe"),
    92: (SERIOUS, "many memory errors that were corrected"),
    93: (SERIOUS, "the infoROM can't be written"),
    94: (SERIOUS, "a memory error that ended one program"),
    95: (FATAL, "a memory error that reached other programs"),
    109: (SERIOUS, "a program could not be switched out"),
    110: (FATAL, "a security fault"),
    119: (FATAL, "the GPU's system processor (GSP) doesn't answer"),
    120: (FATAL, "an error of the GPU's system processor (GSP)"),
    121: (SERIOUS, "an error of the link between GPU and CPU"),
    122: (SERIOUS, "the firmware's memory (SPI) can't be read"),
    123: (SERIOUS, "the firmware's memory (SPI) can't be written"),
    124: (SERIOUS, "the firmware's memory (SPI) can't be erased"),
    125: (SERIOUS, "the infoROM is corrupted"),
    137: (PROGRAM, "a program's access over NVLink failed"),
    140: (FATAL, "a memory error from which the GPU did not recover"),
    143: (FATAL, "the GPU could not be started"),
    **dict.fromkeys(range(144, 151), (FATAL, "an NVLink is broken")),
    154: (SERIOUS, "the driver asks for a recovery"),
    156: (SERIOUS, "a part of the GPU is retired"),
    157: (FATAL, "a part of the GPU could not be retired"),
    158: (FATAL, "the GPU stopped answering for good"),
    160: (SERIOUS, "a memory channel is retired"),
    161: (FATAL, "a memory channel could not be retired"),
}
"""Severity and meaning by number; a number that isn't here counts as serious."""

_XID = re.compile(r"NVRM: Xid \(?(?:PCI:)?([0-9A-Fa-f:.]+)\)?: (\d+)(?:, *(.*))?$")
_SXID = re.compile(r"SXid \(PCI:([0-9A-Fa-f:.]+)\): (\d+), *(.*)$")


@dataclass(frozen=True)
class Xid:
    """One message: which GPU (``bus``, as domain:bus:device), which number, what it means.

    ``age`` is in seconds, None where the log has no time.
    """

    bus: str
    number: int
    severity: str
    meaning: str
    age: float | None
    switch: bool = False


def bus(text: str) -> str:
    """The place of a device as both sides write it: ``00000000:3B:00.0`` is ``0000:3b:00``."""
    parts = text.lower().split(".")[0].split(":")
    return f"{parts[-3][-4:].rjust(4, '0')}:{parts[-2]}:{parts[-1]}" if len(parts) > 2 else text


def find(lines: Iterable[Line]) -> list[Xid]:
    """All messages of GPUs and NVSwitches in a log, in its order."""
    found = []
    for line in lines:
        if match := _XID.search(line.text):
            number = int(match.group(2))
            severity, meaning = _judge(number, line.text)
            found.append(Xid(bus(match.group(1)), number, severity, meaning, line.age))
        elif match := _SXID.search(line.text):
            fatal = bool(re.match(r"fatal", match.group(3), re.IGNORECASE))
            severity, meaning = (
                (FATAL, "a fatal error of an NVSwitch")
                if fatal
                else (SERIOUS, "an error of an NVSwitch")
            )
            found.append(
                Xid(bus(match.group(1)), int(match.group(2)), severity, meaning, line.age, True)
            )
    return found


def _judge(number: int, text: str) -> tuple[str, str]:
    """Severity and meaning; some messages say themselves how bad they are."""
    severity, meaning = SEVERITIES.get(number, (SERIOUS, "not in this project's table"))
    if number == 154 and re.search(r"to 0x0+ \(None\)", text):
        return PROGRAM, "the driver asks for nothing any more"
    if number == 154 and re.search(r"to 0x0*[1-9a-f]", text):
        return FATAL, meaning
    if number in range(144, 151) and re.search(r"non-?fatal", text, re.IGNORECASE):
        return SERIOUS, "an NVLink had an error"
    return severity, meaning
