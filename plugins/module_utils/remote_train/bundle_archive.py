"""A bundle as it was brought: the archive, what vouches for it as a whole, and its manifest."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import BinaryIO, NamedTuple

from . import parts, tree
from .errors import TrainError
from .file_names import shown
from .manifest import LEGACY, MODERN, Manifest
from .manifest_lines import split_line
from .problems import refused
from .signature import MAX_SIGNATURE
from .staging import MAX_MANIFEST, folder_of_all, parse_inner, read_inner


def beside(path: str) -> list[str]:
    """The files that may lie beside a bundle and speak of it: manifests, and their signatures."""
    stem = _stem(path)
    return [f"{stem}{name}{end}" for name in (MODERN, LEGACY) for end in ("", ".sig")]


def _stem(path: str) -> str:
    """What a bundle's path and those of the files beside it begin with, the dot included."""
    return re.sub(r"\.(tar\.gz|tgz)$", "", path) + "."


def open_archive(path: str) -> BinaryIO:
    """The archive, to be read, be it a file or a folder of parts.

    :raises TrainError: when that isn't possible.
    """
    if os.path.isdir(path) and parts.arrived(os.listdir(path)):
        return parts.open_parts(path)
    return _open(path, f"The bundle {path}")


def _open(path: str, label: str) -> BinaryIO:
    """A regular file, or a link to one, to be read; nothing else is waited for or read.

    :raises TrainError: when it is none, or can't be read.
    """
    try:
        descriptor = os.open(path, tree.FILE_FLAGS & ~os.O_NOFOLLOW)
    except OSError as error:
        raise TrainError(f"{label} can't be read: {error.strerror}.", "", "integrity") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrainError(f"{label} is not a regular file.", "", "integrity")
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
    content = _beside(path, 16 * 1024)
    if content is None:
        return None
    line = content.strip().partition(b"\n")[0].rstrip(b"\r")
    with contextlib.suppress(ValueError):
        line = split_line(line)[0].encode()
    if not re.fullmatch(rb"[0-9A-Fa-f]{64}", line):
        raise TrainError(
            f"{path} doesn't begin with a SHA-256 digest.", "Fetch it again.", "integrity"
        )
    return line.decode()


class Carried(NamedTuple):
    """What a bundle brings to say what its files are.

    :param raw: the manifest's bytes, which are what a signature is over.
    :param signature: of the manifest; None where there is none, or none was looked for.
    """

    manifest: Manifest
    raw: bytes
    signature: bytes | None


def manifest_of(archive: BinaryIO, bundle_path: str, limit: int, signed: bool = False) -> Carried:
    """The bundle's manifest: the SHA-256 one, in it or beside it, or else the legacy one.

    :param limit: bytes that the archive may unpack to.
    :param signed: whether to look for its signature: beside the bundle, or else at the top of the
        archive, which may have to be read to its end for that.
    :raises RefusedError: when there is none, when the one in the archive and the one beside it
        differ, or when it isn't as it should be.
    :raises TrainError: when a file beside the bundle can't be read.
    """
    label, stem = os.path.basename(bundle_path), _stem(bundle_path)
    outer = {name: _manifest_beside(stem + name, label) for name in (MODERN, LEGACY)}
    search = signed and not os.path.isfile(f"{stem}{MODERN}.sig")
    inner = read_inner(archive, label, limit, search)
    top = ""
    if outer[MODERN] is None and not {MODERN, LEGACY} & inner.keys():
        archive.seek(0)
        top = folder_of_all(archive, label, limit)
    if top:
        archive.seek(0)
        inner = read_inner(archive, label, limit, search, top)
    name = LEGACY if outer[MODERN] is None and MODERN not in inner else MODERN
    beside_it = outer[name]
    raw = inner.get(name, beside_it)
    if raw is None:
        raise refused(f"The bundle {label}", "no-manifest", "it holds no manifest")
    if beside_it is not None and beside_it != raw:
        raise refused(
            f"The bundle {label}",
            "manifest-differs",
            f"{os.path.basename(stem)}{name} beside it is another manifest than the one in it",
        )
    signature = None
    if signed:
        signature = _beside(f"{stem}{name}.sig", MAX_SIGNATURE)
        if signature is None:
            signature = inner.get(name + ".sig")
    manifest = parse_inner(name, raw)
    if top:
        manifest.top = top
        manifest.warnings.append(
            f"All of {label} lies in {shown(top)}/, which is left out of the files' names."
        )
    return Carried(manifest, raw, signature)


def _manifest_beside(path: str, label: str) -> bytes | None:
    """A manifest beside the bundle; None without one."""
    content = _beside(path, MAX_MANIFEST)
    if content is not None and len(content) > MAX_MANIFEST:
        message = f"{os.path.basename(path)} is larger than {MAX_MANIFEST:,} bytes"
        raise refused(f"The bundle {label}", "manifest-too-large", message)
    return content


def _beside(path: str, most: int) -> bytes | None:
    """A file beside the bundle, or its beginning where it has over ``most`` bytes; None if none.

    What is there in whatever form counts, so that a broken one doesn't make way for another.
    """
    if not os.path.lexists(path):
        return None
    try:
        with _open(path, path) as stream:
            return stream.read(most + 1)
    except OSError as error:
        raise TrainError(f"{path} can't be read: {error.strerror}.", "", "integrity") from error
