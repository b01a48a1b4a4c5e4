"""Text tables for a terminal, in which Chinese characters take the two columns they take there."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_JOINTS = "/_,-=."


def width(text: str) -> int:
    """How many columns of a terminal a text takes (Unicode Standard Annex 11)."""
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Me", "Mn"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def wrap(text: str, limit: int) -> list[str]:
    """Cut a text into lines of at most ``limit`` columns, at blanks where there are any.

    :param limit: 2 or more, so that any character fits.
    """
    lines: list[str] = []
    line, used = "", 0
    for word in text.split():
        needed = width(word)
        if line and used + 1 + needed <= limit:
            line, used = f"{line} {word}", used + 1 + needed
            continue
        if line:
            lines.append(line)
        line, used = "", 0
        for character in word:
            if used + _columns(character) > limit:
                # A path or a list goes on at one of its joints, where one is near.
                joint = max(line.rfind(sign) for sign in _JOINTS) + 1
                joint = joint if joint * 2 > len(line) else len(line)
                lines.append(line[:joint])
                line = line[joint:]
                used = width(line)
            line, used = line + character, used + _columns(character)
    return [*lines, line] if line or not lines else lines


def text_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    limits: Sequence[int],
    gap: str = "  ",
    below: Sequence[Sequence[str]] = (),
) -> str:
    """A table with a header and a rule below it.

    :param limits: the most columns that each cell takes; longer texts go on in the next line.
    :param below: for each row, the lines that stand below it, as they are.
    """
    cells = [[wrap(text, limit) for text, limit in zip(row, limits)] for row in (header, *rows)]
    widths = [max(width(line) for row in cells for line in row[at]) for at in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        for at in range(max(len(cell) for cell in row)):
            parts = [cell[at] if at < len(cell) else "" for cell in row]
            padded = [part + " " * (most - width(part)) for part, most in zip(parts, widths)]
            lines.append(gap.join(padded).rstrip())
        if number == 0:
            lines.append(gap.join("-" * most for most in widths))
        elif below:
            lines += below[number - 1]
    return "\n".join(lines)
