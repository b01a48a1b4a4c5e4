"""File names as manifests and archives hold them: bytes, relative, and nothing that leads out.

A name is kept as ``str`` in UTF-8 with ``surrogateescape``, so that every byte comes back
unchanged, whatever the locale of the machine. Only :func:`to_bytes` goes to the kernel, and
only :func:`shown` goes to a person.
"""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
_PLAIN = {escape: raw for raw, escape in _ESCAPES.items()}
_TO_ESCAPE = re.compile(rb"[\\\n\r]")
_ESCAPED = re.compile(rb"\\(.|$)", re.DOTALL)


class IllegalNameError(ValueError):
    """A name that may not be used.

    :param problem: the stable identifier of the rule, such as ``parent-reference``.
    :param reason: the end of a sentence that begins with the name.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(reason)
        self.problem = problem
        self.reason = reason


def to_bytes(name: str) -> bytes:
    """The bytes of ``name`` as the file system has them."""
    return name.encode("utf-8", "surrogateescape")


def to_name(raw: bytes) -> str:
    """The name whose bytes are ``raw``; any bytes have one."""
    return raw.decode("utf-8", "surrogateescape")


def shown(name: str | bytes) -> str:
    """``name`` for a person: one line, no control characters, no bytes that are not UTF-8."""
    raw = name if isinstance(name, bytes) else to_bytes(name)
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def first_of(names: list[str]) -> str:
    """The first of ``names`` for a person, and how many more there are."""
    return shown(names[0]) + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def clean(raw: bytes) -> str:
    """The relative name that ``raw`` stands for, without ``./`` and doubled slashes.

    :raises IllegalNameError: for a name that is absolute, leads upwards, holds a NUL byte, or can
        only be a folder's.
    """
    if b"\0" in raw:
        raise IllegalNameError("nul", "holds a NUL byte")
    if raw.startswith(b"/"):
        raise IllegalNameError("absolute-path", "is an absolute path")
    parts = raw.split(b"/")
    if b".." in parts:
        raise IllegalNameError("parent-reference", "leads out of its folder with '..'")
    if parts[-1] in {b"", b"."}:
        raise IllegalNameError("folder-name", "is the name of a folder, not of a file")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in {b"", b"."}]
    return to_name(b"/".join(parts))


def collision_key(name: str) -> str:
    """What a file system without case or Unicode form makes of ``name``.

    This is Unicode's canonical caseless matching (The Unicode Standard, 3.13, D145).
    """
    if name.isascii():
        return name.lower()
    folded = unicodedata.normalize("NFD", name).casefold()
    return unicodedata.normalize("NFD", folded)


def differ_in_form_only(one: str, other: str) -> bool:
    """Whether two names that collide are the same but for their Unicode form."""
    return unicodedata.normalize("NFD", one) == unicodedata.normalize("NFD", other)


def is_apple_double(name: str) -> bool:
    """Whether macOS made this file beside another one, for that one's attributes (RFC 1740)."""
    return name.rpartition("/")[2].startswith("._")


def parents(name: str) -> list[str]:
    """The folders above ``name``, outermost first."""
    found = []
    end = name.find("/")
    while end != -1:
        found.append(name[:end])
        end = name.find("/", end + 1)
    return found


def is_within(name: str, folder: str) -> bool:
    """Whether ``name`` is ``folder`` or something in it."""
    return name == folder or name.startswith(folder + "/")


def escaped(raw: bytes) -> bytes | None:
    """``raw`` with GNU's escapes for backslash, newline and return, or None if it needs none."""
    if not _TO_ESCAPE.search(raw):
        return None
    return _TO_ESCAPE.sub(lambda match: _ESCAPES[match.group()], raw)


def unescaped(raw: bytes) -> bytes:
    """The name that GNU's escapes stand for.

    :raises IllegalNameError: for a backslash with anything else behind it.
    """

    def plain(match: re.Match[bytes]) -> bytes:
        try:
            return _PLAIN[match.group()]
        except KeyError:
            raise IllegalNameError(
                "bad-escape", f"has the unknown escape {shown(match.group())}"
            ) from None

    return _ESCAPED.sub(plain, raw)
