"""A bundle as it was brought: the archive, what vouches for it as a whole, and its manifest."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import BinaryIO

from . import tree
from .errors import TrainError
from .manifest import MODERN, Manifest
from .manifest_lines import split_line
from .problems import refused
from .staging import MAX_MANIFEST, parse_inner, read_inner_manifest


def open_archive(path: str) -> BinaryIO:
    """The archive, to be read. :raises TrainError: when that isn't possible."""
    try:
        descriptor = os.open(path, tree.FILE_FLAGS & ~os.O_NOFOLLOW)
    except OSError as error:
        raise TrainError(
            f"The bundle {path} can't be read: {error.strerror}.", "", "integrity"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrainError(f"The bundle {path} is not a regular file.", "", "integrity")
    return os.fdopen(descriptor, "rb")


def vouch(bundle_path: str, sha256: str, expected: str | None) -> list[str]:
    """Hold the archive's digest against what it should be; the warning where nothing says.

    :param sha256: of the archive.
    :param expected: by the user; else what stands in the file beside it counts.
    :raises TrainError: when it is another one.
    """
    label = os.path.basename(bundle_path)
    if expected is None:
        expected = _digest_beside(bundle_path + ".sha256")
    if expected is None:
        return [f"Nothing vouches for {label} as a whole: there is no {label}.sha256 beside it."]
    if expected.lower() != sha256:
        raise refused(
            f"The bundle {label}",
            "archive-digest",
            f"its SHA-256 is {sha256}, not {expected.lower()}",
            "Send it again.",
        )
    return []


def _digest_beside(path: str) -> str | None:
    """The digest in a one-line digest file, whose name in it doesn't matter; None without one."""
    try:
        with open(path, "rb") as stream:
            line = stream.read(16 * 1024).strip().partition(b"\n")[0].rstrip(b"\r")
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError):
        line = split_line(line)[0].encode()
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", line):
        raise TrainError(
            f"{path} doesn't begin with a SHA-256 digest.", "Fetch it again.", "integrity"
        )
    return line.decode()


def manifest_of(archive: BinaryIO, bundle_path: str, limit: int) -> Manifest:
    """The bundle's manifest: the one in it, or else the one beside it.

    :param limit: bytes that the archive may unpack to.
    :raises RefusedError: when there is none, there are two, or it isn't as it should be.
    """
    label = os.path.basename(bundle_path)
    beside = re.sub(r"\.(tar\.gz|tgz)$", "", bundle_path) + "." + MODERN
    outer = None
    if os.path.isfile(beside):
        with open(beside, "rb") as stream:
            outer = stream.read(MAX_MANIFEST + 1)
        if len(outer) > MAX_MANIFEST:
            message = f"{os.path.basename(beside)} is larger than {MAX_MANIFEST:,} bytes"
            raise refused(f"The bundle {label}", "manifest-too-large", message)
    found = read_inner_manifest(archive, label, limit)
    if found is None:
        if outer is None:
            raise refused(f"The bundle {label}", "no-manifest", "it holds no manifest")
        return parse_inner(MODERN, outer)
    name, inner = found
    if outer is not None and name == MODERN and outer != inner:
        raise refused(
            f"The bundle {label}",
            "manifest-differs",
            f"{os.path.basename(beside)} beside it is another manifest than the one in it",
        )
    return parse_inner(name, inner)
