"""Bundles: three files that carry a project, built the same every time.

``<name>.tar.gz``, ``<name>.tar.gz.sha256`` and ``<name>.SYNC_MANIFEST.sha256``; the manifest is
also the archive's first member. A delta is such an archive of some of the files, whose manifest
went ahead (:mod:`offer`). How either is applied is in :mod:`bundle_apply`.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Callable

from . import tree
from .atomic import sync_folder, write_bytes
from .bundle_apply import AppliedResult, apply
from .errors import TrainError
from .file_names import shown, to_bytes
from .hashing import new_hash
from .manifest import MODERN, parse, write_manifest
from .problems import Problems, RefusedError
from .project_files import ProjectFile
from .project_sources import examine, open_source

__all__ = [
    "AppliedResult",
    "Bundle",
    "apply",
    "build",
    "build_delta",
    "compare",
    "look",
    "paths_of",
]

# What zlib itself takes for the best trade; fixed, since the bytes depend on it.
COMPRESSION = 6
# A delta passes by once, so that time counts: the fastest level, or none where nothing is gained.
FAST, STORED = 1, 0
_SAMPLES, _SAMPLE = 16, 64 * 1024  # files that are tried, and bytes of each
_GAIN = 0.9  # of its size, that a sample has to come below

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
    project_src: str,
    files: Sequence[ProjectFile],
    out_dir: str,
    name: str = "bundle",
    progress: Callable[[int], object] | None = None,
) -> Bundle:
    """Pack ``files`` of the project; the same files give the same bytes.

    :param files: from :func:`project_files.list_files`.
    :param name: of the three files, without a suffix.
    :param progress: is told how many bytes more were packed, out of all that the files have.
    :raises TrainError: for a file that is no longer what it was when it was listed, for names
        that no receiver would take, and for a bad ``name``.
    """
    digests, listing = _checked(project_src, files, name)
    os.makedirs(out_dir, exist_ok=True)
    paths = paths_of(out_dir, name)
    archive, digest_file, manifest_file = paths
    descriptor, temporary = tempfile.mkstemp(dir=out_dir, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            sink = _Sink(stream)
            _pack(sink, os.fsencode(project_src), files, digests, listing, COMPRESSION, progress)
            stream.flush()
            os.fsync(stream.fileno())
            os.fchmod(stream.fileno(), 0o644)
        os.replace(temporary, archive)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_folder(out_dir)
    write_bytes(manifest_file, listing)
    write_bytes(digest_file, f"{sink.sha256}  {name}.tar.gz\n".encode())
    return _bundle(paths, sink, digests, files)


def look(
    project_src: str,
    files: Sequence[ProjectFile],
    out_dir: str,
    name: str = "bundle",
    progress: Callable[[int], object] | None = None,
) -> Bundle:
    """What :func:`build` would make, without writing a byte; parameters and errors are its own."""
    digests, listing = _checked(project_src, files, name)
    sink = _Sink(None)
    _pack(sink, os.fsencode(project_src), files, digests, listing, COMPRESSION, progress)
    return _bundle(paths_of(out_dir, name), sink, digests, files)


def paths_of(out_dir: str, name: str) -> tuple[str, str, str]:
    """Where the archive, its digest file and the manifest of a bundle lie."""
    start = os.path.join(out_dir, name)
    return f"{start}.tar.gz", f"{start}.tar.gz.sha256", f"{start}.{MODERN}"


def _bundle(
    paths: tuple[str, str, str],
    sink: _Sink,
    digests: dict[str, str],
    files: Sequence[ProjectFile],
) -> Bundle:
    return Bundle(paths, sink.sha256, digests, sink.size, sum(file.size for file in files))


def _checked(
    project_src: str, files: Sequence[ProjectFile], name: str
) -> tuple[dict[str, str], bytes]:
    """The files' digests and the manifest of them."""
    if not _PLAIN_NAME.fullmatch(name):
        raise TrainError(
            f"A bundle can't have the name {name!r}.",
            "Give one of letters, digits, dots, dashes and underscores (bundle_name).",
            "ops",
        )
    if not files:
        raise TrainError("There are no files to put into a bundle.", "", "data")
    digests = _digests(project_src, files)
    listing = write_manifest(digests)
    # Whatever a receiver would refuse (names that differ in case only, say) is refused here.
    checked = parse(listing, MODERN)
    if checked.problems:
        raise RefusedError(
            "The training project", checked.problems, "Rename or exclude those files."
        )
    return digests, listing


def build_delta(
    project_src: str,
    files: Sequence[ProjectFile],
    digests: Mapping[str, str],
    path: str,
    progress: Callable[[int], object] | None = None,
) -> str:
    """Pack some of the project's files; the same files give the same bytes.

    :param digests: what each of them must be, SHA-256 in hex.
    :param path: of the archive, which is new.
    :param progress: is told how many bytes more were packed.
    :return: its SHA-256, in lower-case hex.
    :raises TrainError: for a file that is no longer what it was when it was listed.
    """
    root = os.fsencode(project_src)
    with open(path, "xb") as stream:
        sink = _Sink(stream)
        _pack(sink, root, files, digests, None, _level(root, files), progress)
    return sink.sha256


def _level(root: bytes, files: Sequence[ProjectFile]) -> int:
    """Whether compressing is worth it: most large files (images, archives) are small already."""
    # An archive is padded with as many zeros, which cost nothing when they are compressed.
    before, after = tarfile.RECORDSIZE, 0
    path = tree.OpenPath(root)
    largest = sorted(files, key=lambda file: (-file.size, file.name))[:_SAMPLES]
    for file in sorted(largest):
        try:
            descriptor = open_source(path, file)
        except (OSError, tree.UnusableError):
            raise _changed(file.name) from None
        try:
            sample = os.read(descriptor, _SAMPLE)
        except IsADirectoryError:
            raise _changed(file.name) from None
        finally:
            os.close(descriptor)
        before += len(sample)
        after += len(zlib.compress(sample, FAST))
    return STORED if after > _GAIN * before else FAST


def _digests(project_src: str, files: Sequence[ProjectFile]) -> dict[str, str]:
    sizes = {file.name: file.size for file in files}
    digests = {}
    for finding in examine(project_src, files):
        if finding.kind == "unreadable":
            raise TrainError(
                f"{tree.obstacle(finding)[1]}.", "Make it readable, or exclude it.", "data"
            )
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

    def __init__(self, descriptor: int, progress: Callable[[int], object] | None) -> None:
        self._descriptor = descriptor
        self._progress = progress
        self.hash = new_hash("sha256")

    def read(self, size: int) -> bytes:
        """The next bytes, hashed."""
        data = os.read(self._descriptor, size)
        self.hash.update(data)
        if self._progress:
            self._progress(len(data))
        return data


class _Sink:
    """Takes an archive's bytes, hashes and counts them, and writes them where there is a file."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        self._stream = stream
        self._hash = new_hash("sha256")
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far, in lower-case hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> int:
        """Take the next bytes."""
        self._hash.update(data)
        self.size += len(data)
        return self._stream.write(data) if self._stream else len(data)

    def flush(self) -> None:
        """Nothing waits here."""


def _pack(
    stream: IO[bytes] | _Sink,
    root: bytes,
    files: Sequence[ProjectFile],
    digests: Mapping[str, str],
    listing: bytes | None,
    level: int,
    progress: Callable[[int], object] | None = None,
) -> None:
    with (
        gzip.GzipFile(
            filename="", mode="wb", compresslevel=level, fileobj=stream, mtime=0
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
        if listing is not None:
            archive.addfile(_header(MODERN, len(listing), False), io.BytesIO(listing))
        path = tree.OpenPath(root)
        for file in sorted(files, key=lambda file: to_bytes(file.name)):
            _pack_file(archive, path, file, digests[file.name], progress)


def _pack_file(
    archive: tarfile.TarFile,
    path: tree.OpenPath,
    file: ProjectFile,
    digest: str,
    progress: Callable[[int], object] | None,
) -> None:
    try:
        descriptor = open_source(path, file)
    except (OSError, tree.UnusableError):
        raise _changed(file.name) from None
    try:
        source = _HashedFile(descriptor, progress)
        header = _header(file.name, file.size, file.executable)
        archive.addfile(header, source)  # type: ignore[arg-type]
    except (tarfile.ReadError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {None, errno.EISDIR}:
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
