"""Manifests: the list of digests that code and data travel under.

The lines are those that ``sha256sum``, ``sha1sum`` and ``shasum`` write (GNU coreutils manual,
"cksum output modes"). What those programs let pass and a receiver must not (paths that lead out,
symlinks, garbage lines, files that no line names) is refused here, each by its own rule.
"""

from __future__ import annotations

import array
import io
import os
import stat
import time
from binascii import unhexlify
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from . import tree
from .errors import TrainError
from .file_names import (
    IllegalNameError,
    clean,
    collision_key,
    differ_in_form_only,
    is_apple_double,
    shown,
    to_bytes,
    to_name,
)
from .manifest_lines import common_sha256, join_line, split_line
from .problems import Problem, Problems

MODERN = "SYNC_MANIFEST.sha256"
LEGACY = "SYNC_MANIFEST.txt"

MAX_LINES = 1_000_000
MAX_LINE = 16 * 1024  # bytes; twice the longest path, were every byte of it escaped

_ALGORITHM = {64: "sha256", 40: "sha1"}
_BYTES = {"sha256": 32, "sha1": 20}
_SHOWN = {"sha256": "SHA-256", "sha1": "SHA-1"}


class Manifest:
    """The names and digests that a manifest lists, and what is wrong with it.

    Kept small for a million lines: digests lie in one block of memory, by the line's place.

    :ivar algorithm: ``sha256`` or ``sha1``; empty when no line says.
    :ivar lines: each name with the number of its line, in the manifest's order.
    :ivar mentioned: names on lines that were refused for another reason than the name.
    :ivar top: the folder of an archive that its names start from; empty for the archive's own top.
    :ivar complete: whether the manifest was read to its end.
    """

    def __init__(self, label: str, algorithm: str = "") -> None:
        self.label = label
        self.algorithm = algorithm
        self.lines: dict[str, int] = {}
        self.mentioned: set[str] = set()
        self.problems = Problems()
        self.warnings: list[str] = []
        self.top = ""
        self.complete = True
        self._digests = bytearray()
        self._places = array.array("I")

    @property
    def legacy(self) -> bool:
        """Whether the digests are SHA-1, which no longer withstands an attacker."""
        return self.algorithm == "sha1"

    def digest_of(self, name: str) -> str:
        """The listed digest in lower-case hex. :raises KeyError: for a name that isn't listed."""
        size = _BYTES[self.algorithm]
        start = self._places[self.lines[name]] * size
        return self._digests[start : start + size].hex()

    def items(self) -> Iterator[tuple[str, str]]:
        """Each name with its digest."""
        return ((name, self.digest_of(name)) for name in self.lines)

    def add(self, name: str, digest: str, line: int) -> None:
        """List ``name``."""
        self.add_packed(name, bytes.fromhex(digest), line)

    def add_packed(self, name: str, digest: bytes, line: int) -> None:
        """List ``name`` with a digest that isn't in hex."""
        self._places.extend([0] * (line + 1 - len(self._places)))
        self._places[line] = len(self._digests) // _BYTES[self.algorithm]
        self._digests += digest
        self.lines[name] = line


@dataclass
class VerifyResult:
    """What :func:`verify` found.

    :param verified: files whose digest is the listed one.
    :param bytes: their sizes, added up.
    :param problems: the first 1,000; ``problem_count`` counts all.
    """

    algorithm: str
    legacy: bool
    manifest: str
    verified: int = 0
    bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    warnings: list[str] = field(default_factory=list)
    summary: str = ""


# -- reading ---------------------------------------------------------------------------------


def find_manifest(root: str) -> str:
    """The path of the manifest in ``root``: the SHA-256 one if it is there, else the legacy one.

    A name that is there in whatever form is taken, so that a broken one doesn't make way for
    another.

    :raises TrainError: when there is neither.
    """
    for name in (MODERN, LEGACY):
        path = os.path.join(root, name)
        if os.path.lexists(path):
            return path
    raise TrainError(
        f"There is no manifest in {root}.",
        f"Make one with `sha256sum` under the name {MODERN}, or name another with `manifest`.",
        "integrity",
    )


def parse(source: bytes | BinaryIO, label: str = MODERN) -> Manifest:
    """Read a manifest. Never raises for what is in it: all that is wrong is in ``.problems``.

    :param label: its file name; one that ends in ``.sha256`` holds SHA-256 and nothing else.
    """
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    modern = label.endswith(".sha256")
    manifest = Manifest(label, "sha256" if modern else "")
    reader = _Reader(manifest, modern)
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if number > MAX_LINES:
            manifest.problems.add(
                "too-many-lines", f"a manifest has at most {MAX_LINES:,} lines", number
            )
            manifest.complete = False
            break
        if len(raw) > MAX_LINE:
            manifest.problems.add(
                "line-too-long", f"the line is longer than {MAX_LINE:,} bytes", number
            )
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_LINE)
            continue
        if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            manifest.problems.add(
                "utf-16", "the manifest is in UTF-16; save it as UTF-8 without BOM", 1
            )
            manifest.complete = False
            break
        reader.line(raw, number)
    reader.finish()
    return manifest


class _Reader:
    """Takes the lines of one manifest in order."""

    def __init__(self, manifest: Manifest, modern: bool) -> None:
        self.manifest = manifest
        self.modern = modern
        self.own_names = {os.path.basename(manifest.label)}
        self.crlf = 0
        self.apple = 0

    def line(self, raw: bytes, number: int) -> None:
        """Read one line, and list its file or add its problem."""
        if self.manifest.algorithm == "sha256" and self._take_common(raw, number):
            return
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            raw = raw[3:]
            self.manifest.warnings.append(f"{self.manifest.label} begins with a byte order mark.")
        raw = raw[:-1] if raw.endswith(b"\n") else raw
        if raw.endswith(b"\r"):  # a name's own is escaped, so this one belongs to the line's end
            raw = raw[:-1]
            self.crlf += 1
        if not raw.strip(b" \t"):
            return
        try:
            digest, tag, written = split_line(raw)
            name = clean(written)
        except IllegalNameError as error:
            self._refuse(error.problem, error.reason, number)
            return
        if self._accept_digest(digest, tag, name, number):
            self._accept_name(digest, name, number)
        else:
            self.manifest.mentioned.add(name)

    def _take_common(self, raw: bytes, number: int) -> bool:
        """List the file of a line that nothing can be wrong with."""
        common = common_sha256(raw)
        if not common:
            return False
        name = to_name(common[1])
        if name in self.manifest.lines or name in self.own_names:
            return False
        self.manifest.add_packed(name, unhexlify(common[0]), number)
        return True

    def _refuse(self, problem: str, message: str, number: int, name: str = "") -> None:
        self.manifest.problems.add(problem, message, number, name)

    def _accept_digest(self, digest: str, tag: str, name: str, number: int) -> bool:
        manifest = self.manifest
        algorithm = _ALGORITHM.get(len(digest))
        if tag not in {"", "sha256", "sha1"}:
            self._refuse(
                "unknown-algorithm", f"a digest by {tag}; SHA-256 and SHA-1 are read", number, name
            )
        elif not algorithm or (self.modern and algorithm != "sha256"):
            legal = "SHA-256 has 64" if self.modern else "SHA-256 has 64, SHA-1 has 40"
            self._refuse(
                "digest-length", f"a digest of {len(digest)} hex digits; {legal}", number, name
            )
        elif tag and tag != algorithm:
            self._refuse(
                "digest-length",
                f"a digest of {len(digest)} hex digits, said to be {_SHOWN[tag]}",
                number,
                name,
            )
        elif manifest.algorithm and algorithm != manifest.algorithm:
            self._refuse(
                "mixed-algorithms",
                f"{_SHOWN[algorithm]} in a manifest that began with {_SHOWN[manifest.algorithm]}",
                number,
                name,
            )
        else:
            manifest.algorithm = algorithm
            return True
        return False

    def _accept_name(self, digest: str, name: str, number: int) -> None:
        manifest = self.manifest
        if name in self.own_names:
            manifest.warnings.append(
                f"{manifest.label} lists itself on line {number}; no file can hold its own digest,"
                " so the line is passed over."
            )
        elif is_apple_double(name):
            self.apple += 1
        elif name in manifest.lines:
            first = manifest.lines[name]
            self._refuse(
                "duplicate", f"{shown(name)} is listed already on line {first}", number, name
            )
        else:
            manifest.add(name, digest, number)

    def finish(self) -> None:
        """Say what can be said only at the end."""
        manifest = self.manifest
        if self.crlf:
            manifest.warnings.append(
                f"{manifest.label} has Windows line ends (CRLF) on {self.crlf} lines."
            )
        if self.apple:
            manifest.warnings.append(
                f"{manifest.label} lists {self.apple} AppleDouble files (._*); they are left out."
            )
        if not manifest.lines and not manifest.problems:
            manifest.problems.add("empty-manifest", "the manifest lists no file", 1)
        self._find_collisions()
        self._find_files_as_folders()
        manifest.problems.items.sort(key=lambda problem: problem.line or 0)

    def _find_collisions(self) -> None:
        # Hashes in one array take a tenth of what a dictionary of folded names would; sorted in
        # parts, they never are a list of a million numbers.
        lines = self.manifest.lines
        hashes = array.array("q", (hash(collision_key(name)) for name in lines))
        parts = 1 + len(hashes) // 100_000
        twice: set[int] = set()
        for part in range(parts):
            some = sorted(one for one in hashes if one % parts == part)
            twice.update(one for one, other in zip(some, some[1:]) if one == other)
        first: dict[str, str] = {}
        for name in lines if twice else ():
            key = collision_key(name)
            if hash(key) not in twice:
                continue
            other = first.setdefault(key, name)
            if other != name:
                form = differ_in_form_only(name, other)
                self._refuse(
                    "unicode-collision" if form else "case-collision",
                    f"{shown(name)} differs from line {lines[other]} in"
                    f" {'Unicode form' if form else 'case'} only",
                    lines[name],
                    name,
                )

    def _find_files_as_folders(self) -> None:
        lines = self.manifest.lines
        folders: set[str] = set()
        for name in lines:
            above = name.rpartition("/")[0]
            while above and above not in folders:
                folders.add(above)
                above = above.rpartition("/")[0]
        for name in sorted(folders & lines.keys(), key=lines.__getitem__):
            self._refuse(
                "file-and-folder",
                f"{shown(name)} is listed as a file, and other lines list files in it",
                lines[name],
                name,
            )


# -- writing ---------------------------------------------------------------------------------


def write_manifest(entries: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """The manifest of ``entries`` (name, digest in hex), as ``sha256sum`` would write it.

    Sorted by the names' bytes; the same entries give the same bytes.

    :raises TrainError: for a name that :func:`parse` would refuse.
    """
    pairs = entries.items() if isinstance(entries, Mapping) else entries
    lines = []
    for name, digest in sorted((to_bytes(name), digest) for name, digest in pairs):
        try:
            plain = to_bytes(clean(name)) == name
        except IllegalNameError as error:
            raise TrainError(
                f"A file's name can't be in a manifest: {shown(name)} {error.reason}.",
                "Rename the file, or leave it out.",
                "integrity",
            ) from None
        if not plain:
            raise TrainError(f"A file's name is not in its plain form: {shown(name)}.")
        lines.append(join_line(digest, name))
    return b"".join(lines)


# -- verifying -------------------------------------------------------------------------------


def read_manifest(path: str) -> Manifest:
    """Parse the manifest at ``path``, which must be a regular file and no symlink.

    :raises TrainError: when it can't be read.
    """
    try:
        descriptor = os.open(path, tree.FILE_FLAGS)
    except OSError as error:
        reason = "it is a symlink" if os.path.islink(path) else error.strerror
        raise TrainError(
            f"The manifest {path} can't be read: {reason}.", "", "integrity"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrainError(f"The manifest {path} is not a regular file.", "", "integrity")
    with os.fdopen(descriptor, "rb") as stream:
        return parse(stream, os.path.basename(path))


def verify(
    root: str,
    manifest: str | None = None,
    allow_unlisted: bool = False,
    workers: int | None = None,
) -> VerifyResult:
    """Hold every file under ``root`` against the manifest. Changes nothing.

    :param manifest: its path, taken from ``root`` when relative; found there when None.
    :param allow_unlisted: whether files may be there that no line names.
    :param workers: threads; by default as many as there are processors.
    :raises TrainError: when root or manifest can't be read. What is wrong with the files or the
        manifest's lines is in the result.
    """
    began = time.monotonic()
    if not os.path.isdir(root):
        raise TrainError(f"There is no folder {root} to verify.", "", "integrity")
    path = os.path.join(root, manifest) if manifest else find_manifest(root)
    listed = read_manifest(path)
    result = VerifyResult(listed.algorithm, listed.legacy, path, warnings=listed.warnings)
    if listed.legacy:
        result.warnings.append(
            f"{listed.label} holds SHA-1 digests, which are legacy: make a {MODERN}."
        )
    raw_root = os.fsencode(root)
    if listed.complete and listed.lines:
        for finding in tree.examine(
            raw_root, listed.lines, listed.digest_of, listed.algorithm, workers
        ):
            if finding.kind == "same":
                result.verified += 1
                result.bytes += finding.size
            else:
                problem, message = tree.obstacle(finding)
                listed.problems.add(problem, message, listed.lines[finding.name], finding.name)
    if listed.complete and (listed.lines or listed.mentioned) and not allow_unlisted:
        _find_unlisted(listed, raw_root, path, result.warnings)
    problems = listed.problems
    problems.items.sort(key=lambda problem: (problem.line is None, problem.line or 0, problem.path))
    result.problems, result.problem_count = problems.items, problems.count
    result.summary = problems.summary(path) if problems else ""
    result.seconds = time.monotonic() - began
    return result


def is_manifest_name(name: str, *own: str) -> bool:
    """Whether a file at the top of a tree is a manifest or the signature of one."""
    name = name[: -len(".sig")] if name.endswith(".sig") else name
    return name in {MODERN, LEGACY, *own} or (name.endswith("." + MODERN) and "/" not in name)


def _find_unlisted(listed: Manifest, root: bytes, path: str, warnings: list[str]) -> None:
    # The manifest itself, when it lies under root by another name than the usual ones.
    own = to_name(os.path.relpath(os.path.realpath(os.fsencode(path)), os.path.realpath(root)))
    apple = 0
    for finding in tree.walk(root):
        name = finding.name
        if name in listed.lines or name in listed.mentioned:
            continue
        if is_apple_double(name):
            apple += 1
        elif finding.kind == "symlink":
            listed.problems.add("symlink", f"{shown(name)} is a symlink, and not listed", name=name)
        elif finding.kind == "special":
            message = f"{shown(name)} is not a regular file, and not listed"
            listed.problems.add("not-a-regular-file", message, name=name)
        elif finding.kind == "unreadable":
            message = f"the folder {shown(name)} can't be read: {finding.detail}"
            listed.problems.add("unreadable", message, name=name)
        elif not is_manifest_name(name, own):
            listed.problems.add("unlisted", f"{shown(name)} is there and not listed", name=name)
    if apple:
        warnings.append(f"{apple} AppleDouble files (._*) are there; they are left out.")
