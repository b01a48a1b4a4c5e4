"""Bundles: three files that carry a project, built the same every time.

``<name>.tar.gz``, ``<name>.tar.gz.sha256`` and ``<name>.SYNC_MANIFEST.sha256``; the manifest is
also the archive's first member. How one is applied is in :mod:`bundle_apply`.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from . import tree
from .atomic import sync_folder, write_bytes
from .bundle_apply import AppliedResult, apply
from .errors import TrainError
from .file_names import shown, to_bytes
from .hashing import file_digest, new_hash
from .manifest import MODERN, parse, write_manifest
from .problems import Problems, RefusedError
from .project_files import ProjectFile

__all__ = ["AppliedResult", "Bundle", "apply", "build", "compare"]

# What zlib itself takes for the best trade; fixed, since the bytes depend on it.
COMPRESSION = 6

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Bundle:
    """What :func:`build` made.

    :param paths: the archive, its digest file and the manifest.
    :param sha256: of the archive, in lower-case hex.
    :param digests: of each file in it, by its name.
    :param size: bytes of the archive.
    :param bytes: of the files in it, added up.
    """

    paths: tuple[str, str, str]
    sha256: str
    digests: dict[str, str]
    size: int
    bytes: int


def build(
    project_src: str, files: Sequence[ProjectFile], out_dir: str, name: str = "bundle"
) -> Bundle:
    """Pack ``files`` of the project; the same files give the same bytes.

    :param files: from :func:`project_files.list_files`.
    :param name: of the three files, without a suffix.
    :raises TrainError: for a file that is no longer what it was when it was listed, for names
        that no receiver would take, and for a bad ``name``.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise TrainError(
            f"A bundle can't have the name {name!r}.", "Use letters, digits, dot, dash.", "ops"
        )
    if not files:
        raise TrainError("There are no files to put into a bundle.", "", "data")
    root = os.fsencode(project_src)
    digests = _digests(root, files)
    listing = write_manifest(digests)
    # Whatever a receiver would refuse (names that differ in case only, say) is refused here.
    checked = parse(listing, MODERN)
    if checked.problems:
        raise RefusedError(
            "The training project", checked.problems, "Rename or exclude those files."
        )

    os.makedirs(out_dir, exist_ok=True)
    paths = tuple(
        os.path.join(out_dir, name + end) for end in (".tar.gz", ".tar.gz.sha256", "." + MODERN)
    )
    archive, digest_file, manifest_file = paths
    descriptor, temporary = tempfile.mkstemp(dir=out_dir, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            _pack(stream, root, files, digests, listing)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        sha256 = file_digest(temporary)
        os.replace(temporary, archive)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(out_dir)
    write_bytes(manifest_file, listing)
    write_bytes(digest_file, f"{sha256}  {name}.tar.gz\n".encode())
    return Bundle(
        (archive, digest_file, manifest_file),
        sha256,
        digests,
        os.path.getsize(archive),
        sum(file.size for file in files),
    )


def _digests(root: bytes, files: Sequence[ProjectFile]) -> dict[str, str]:
    sizes = {file.name: file.size for file in files}
    digests = {}
    for finding in tree.examine(root, sizes, lambda _name: ""):
        if finding.kind != "different" or finding.size != sizes[finding.name]:
            raise _changed(finding.name)
        digests[finding.name] = finding.digest
    return digests


def _changed(name: str) -> TrainError:
    return TrainError(
        f"{shown(name)} changed while the training project was being packed.",
        "Run it again when nothing writes there.",
        "data",
    )


class _HashedFile:
    """A file to pack, whose bytes are hashed as they are read."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.hash = new_hash("sha256")

    def read(self, size: int) -> bytes:
        """The next bytes, hashed."""
        data = os.read(self._descriptor, size)
        self.hash.update(data)
        return data


def _pack(
    stream: IO[bytes],
    root: bytes,
    files: Sequence[ProjectFile],
    digests: Mapping[str, str],
    listing: bytes,
) -> None:
    with (
        gzip.GzipFile(
            filename="", mode="wb", compresslevel=COMPRESSION, fileobj=stream, mtime=0
        ) as packed,
        tarfile.open(
            # GNU's format takes names as bytes of any length; pax would need an encoding.
            fileobj=packed,
            mode="w",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive,
    ):
        archive.addfile(_header(MODERN, len(listing), False), io.BytesIO(listing))
        path = tree.OpenPath(root)
        for file in sorted(files, key=lambda file: to_bytes(file.name)):
            _pack_file(archive, path, file, digests[file.name])


def _pack_file(
    archive: tarfile.TarFile, path: tree.OpenPath, file: ProjectFile, digest: str
) -> None:
    try:
        descriptor = path.open_file(file.name)
    except (OSError, tree.UnusableError):
        raise _changed(file.name) from None
    try:
        source = _HashedFile(descriptor)
        header = _header(file.name, file.size, file.executable)
        archive.addfile(header, source)  # type: ignore[arg-type]
    except (tarfile.ReadError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # a full disk, say; a file that became shorter has no number
        raise _changed(file.name) from None
    finally:
        os.close(descriptor)
    if source.hash.hexdigest() != digest:
        raise _changed(file.name)


def _header(name: str, size: int, executable: bool) -> tarfile.TarInfo:
    """A header with nothing of this machine in it: no owner, no time, one of two modes."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o755 if executable else 0o644
    return info


def compare(
    root: str, entries: Mapping[str, str], workers: int | None = None
) -> dict[str, list[str]]:
    """The names of ``entries`` (name, SHA-256 in hex) by what is under ``root``.

    :return: ``missing``, ``different`` and ``same``, each sorted.
    :raises RefusedError: where a symlink or something that is no file stands in the way.
    """
    result: dict[str, list[str]] = {"missing": [], "different": [], "same": []}
    raw_root = os.fsencode(root)
    if not os.path.isdir(raw_root):
        result["missing"] = sorted(entries)
        return result
    problems = Problems()
    place = {"folder": "different", "blocked": "missing"}
    for finding in tree.examine(raw_root, entries, entries.__getitem__, "sha256", workers):
        kind = place.get(finding.kind, finding.kind)
        if kind in result:
            result[kind].append(finding.name)
        else:
            problems.add(*tree.obstacle(finding), name=finding.name)
    if problems:
        raise RefusedError(root, problems, "Put real files and folders there.")
    return {kind: sorted(names) for kind, names in result.items()}
