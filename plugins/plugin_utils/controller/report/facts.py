"""JSON that another machine wrote, read without trusting its form.

What is missing or of another type counts as not there: a page about a run is drawn from what there
is. Texts come out without the signs that hide or reorder what stands beside them.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator
from typing import Any

_KEPT = "\n\t"
_HIDING = {"Cc", "Cs", "Co", "Cn"}
"""Control characters, halves of surrogate pairs, and what no font has."""
_REORDERING = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
"""The bidirectional controls (Unicode Standard Annex 9)."""
_NO_SIGN = "\ufffd"


def clean(text: str) -> str:
    """``text`` with a replacement sign for each character that could deceive a reader.

    Everything else stays as it is: markup is made harmless where the page is written.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if _is_harmless(sign) else _NO_SIGN for sign in text)


def _is_harmless(sign: str) -> bool:
    if sign in _REORDERING:
        return False
    return sign in _KEPT or unicodedata.category(sign) not in _HIDING


class Facts:
    """A value out of a JSON file, and what lies in it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    @classmethod
    def parse(cls, content: bytes) -> Facts:
        """The facts in a file; none where it is no JSON."""
        try:
            return cls(json.loads(content))
        except (ValueError, RecursionError):
            return cls()

    def __bool__(self) -> bool:
        return self.value not in (None, "", [], {})

    def at(self, *path: str) -> Facts:
        """What lies at the end of a path of names."""
        value = self.value
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return Facts(value)

    def text(self, *path: str) -> str:
        """A text, or a number as text; empty where there is neither."""
        value = self.at(*path).value
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            return ""
        return clean(value if isinstance(value, str) else f"{value}")

    def number(self, *path: str) -> float | None:
        """A finite number; None where there is none."""
        value = self.at(*path).value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None

    def flag(self, *path: str) -> bool | None:
        """True or false; None where it says neither."""
        value = self.at(*path).value
        return value if isinstance(value, bool) else None

    def items(self, *path: str) -> Iterator[tuple[str, Facts]]:
        """The names of an object with their values, in its order."""
        value = self.at(*path).value
        if isinstance(value, dict):
            for name, one in value.items():
                yield clean(str(name)), Facts(one)

    def each(self, *path: str) -> list[Facts]:
        """The members of a list."""
        value = self.at(*path).value
        return [Facts(one) for one in value] if isinstance(value, list) else []

    def texts(self, *path: str) -> list[str]:
        """The texts in a list, without those that are empty."""
        return [text for text in (one.text() for one in self.each(*path)) if text]


def parse_lines(content: bytes) -> tuple[list[Facts], int]:
    """The objects in a file of JSON lines, and how many lines are none."""
    found, wrong = [], 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        facts = Facts.parse(line)
        if isinstance(facts.value, dict):
            found.append(facts)
        else:
            wrong += 1
    return found, wrong
