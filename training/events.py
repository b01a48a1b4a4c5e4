"""Writes the steps for TensorBoard as well: ``events.out.tfevents.1`` beside ``metrics.jsonl``.

The format is written out here as far as the numbers of a step need it. The packages that write it
would have to be on every rented host (tensorboard brings grpc and a web server along), and write
from a thread, whose errors come late. A test reads the file with TensorBoard's own reader.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.log import say
from training.metrics import Metrics

NAME = "events.out.tfevents.1"


class Steps(Metrics):
    """``metrics.jsonl``, and the same for TensorBoard."""

    def __init__(self, path: Path) -> None:
        """:param path: of ``metrics.jsonl``; neither file is there yet."""
        super().__init__(path)
        self._events = Events(path.with_name(NAME))

    def restore(self, lines: list[str]) -> None:
        """Begin with the lines of an earlier attempt."""
        super().restore(lines)
        records = [json.loads(line) for line in lines]
        # When they were done isn't written there, but how long they took is.
        at = time.time() - sum(map(_duration, records))
        for record in records:
            at += _duration(record)
            self._events.add(record, at)

    def add(self, record: dict[str, Any]) -> None:
        """Write the record of a step."""
        super().add(record)
        self._events.add(record, time.time())

    def finish(self) -> None:
        """Make both files whole, if they aren't.

        :raises OSError: if the disk still doesn't take them.
        """
        super().finish()
        self._events.write()


class Events:
    """An event file. What the disk doesn't take ends no training: it is written later."""

    def __init__(self, path: Path) -> None:
        """:param path: the file, which is not there yet."""
        self._path = path
        self._left = _framed(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))
        self._told = False

    def add(self, record: dict[str, Any], at: float) -> None:
        """Write all the numbers of a step; ``seconds.forward`` becomes ``seconds/forward``.

        :param at: when it was done, in seconds since 1970.
        """
        values = b"".join(
            _bytes(1, _bytes(1, name.encode()) + _float(2, value))
            for name, value in _numbers(record)
        )
        self._left += _framed(
            _double(1, at) + b"\x10" + _varint(record["step"]) + _bytes(5, values)
        )
        try:
            self.write()
        except OSError as error:
            if not self._told:
                say(
                    f"warning: {self._path.name} can't be written: {error.strerror}."
                    " It is tried again after each step."
                )
            self._told = True

    def write(self) -> None:
        """Write what is left to write.

        :raises OSError: if the disk doesn't take it.
        """
        with self._path.open("ab", buffering=0) as file:
            while self._left:  # a full disk takes a part, and fails at the next
                self._left = self._left[file.write(self._left) :]


def _numbers(record: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{before}{name}/")
        elif isinstance(value, (int, float)) and name != "step":
            yield before + name, value


def _duration(record: dict[str, Any]) -> float:
    return float(sum((record.get("seconds") or {}).values()))


# Fields of protobuf's wire format: number and kind, then the value. An Event has wall_time = 1,
# step = 2, file_version = 3, summary = 5; a Summary has value = 1, of tag = 1, simple_value = 2.


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return bytes([field << 3 | 5]) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _framed(data: bytes) -> bytes:
    """A record of TensorFlow's: its length and itself, each with its checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _table() -> list[int]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)  # noqa: PLW2901
        table.append(number)
    return table


_TABLE = _table()


def _checksum(data: bytes) -> bytes:
    """CRC-32C (that of zlib has another polynomial), masked as TensorFlow does."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
