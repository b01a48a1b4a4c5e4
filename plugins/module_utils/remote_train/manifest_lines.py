"""One line of a manifest: read in every form that the usual programs write, written in one.

The forms are those of ``sha256sum``, ``sha1sum`` and ``shasum``: text or binary marker, BSD tag,
and a backslash in front where the name holds escapes (GNU coreutils manual, "cksum output modes").
"""

from __future__ import annotations

import re

from .file_names import IllegalNameError, escaped, unescaped

_TAGS = {b"SHA256": "sha256", b"SHA1": "sha1"}

_PLAIN = re.compile(rb"([0-9A-Fa-f]+) [ *](.+)", re.DOTALL)
_TAGGED = re.compile(rb"([A-Z][A-Z0-9/-]*) \((.+)\) = ([0-9A-Fa-f]+)", re.DOTALL)
# What most lines are: a digest in lower case, and a name that is what it says: no escape, no part
# that begins with a dot, nothing before the newline that could belong to the line's end.
_COMMON_256 = re.compile(
    rb"([0-9a-f]{64})  ((?:[^/.\\\0\r\n][^/\\\0\r\n]*/)*[^/.\\\0\r\n][^/\\\0\r\n]*)\n"
)
_SHASUM_MODE = re.compile(rb"[0-9A-Fa-f]{40,} [U^?]")
_ONE_BLANK = re.compile(rb"[0-9A-Fa-f]{40,} [^ *]")


def common_sha256(raw: bytes) -> tuple[bytes, bytes] | None:
    """Digest and clean name of a line, newline included, if it has the commonest form of all.

    What it gives is what :func:`split_line` and :func:`file_names.clean` give, in a third of the
    time; the name is no AppleDouble's.
    """
    match = _COMMON_256.fullmatch(raw)
    return (match[1], match[2]) if match else None


def split_line(raw: bytes) -> tuple[str, str, bytes]:
    """Digest, algorithm named by a BSD tag (else empty), and name of one line.

    :raises IllegalNameError: when the line has none of the forms.
    """
    body = raw[1:] if raw.startswith(b"\\") else raw
    if match := _PLAIN.fullmatch(body):
        digest, name, tag = match[1], match[2], ""
    elif match := _TAGGED.fullmatch(body):
        digest, name = match[3], match[2]
        tag = _TAGS.get(match[1], match[1].decode())
    else:
        raise IllegalNameError("malformed-line", _why_malformed(body))
    if body is not raw:
        name = unescaped(name)
    return digest.decode().lower(), tag, name


def _why_malformed(body: bytes) -> str:
    if b"\0" in body:
        return "not a line of a manifest: it holds NUL bytes (sha256sum -z writes such)"
    if body.startswith(b"#"):
        return "not a line of a manifest: comments have no place in one"
    if _SHASUM_MODE.match(body):
        return "shasum wrote this digest in a mode (-U, -0) that hashes other bytes than the file's"
    if _ONE_BLANK.match(body):
        return "one blank between digest and name; sha256sum writes two, or a blank and an asterisk"
    return "not a line that sha256sum writes"


def join_line(digest: str, name: bytes) -> bytes:
    """The line that ``sha256sum`` writes for ``name``, with its newline."""
    escape = escaped(name)
    start = b"\\" if escape else b""
    return start + digest.encode() + b"  " + (escape or name) + b"\n"
