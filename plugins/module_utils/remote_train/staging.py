"""A bundle's files, unpacked beside their target and held against the manifest while written.

What is hashed are the very bytes that are written. A name from the archive never becomes a path:
staged files are numbered.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Collection
from typing import BinaryIO, NamedTuple

from .errors import TrainError
from .file_names import IllegalNameError, clean, is_apple_double, shown, to_name
from .hashing import new_hash
from .manifest import LEGACY, MODERN, Manifest, is_manifest_name, parse
from .problems import Problems, RefusedError
from .tar_reader import CorruptError, Member, NoRoomError, TarReader

MAX_MANIFEST = 256 * 1024 * 1024  # bytes; a million lines of 256 bytes
SPARE_MEMBERS = 10_000  # for folders that no listed file lies in
STAGED_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Staged(NamedTuple):
    """One file of a bundle that was as the manifest says.

    :param path: where it is staged; empty when only its bytes were checked.
    :param sha256: of its bytes in lower-case hex, also under a SHA-1 manifest.
    """

    path: str
    sha256: str
    size: int
    executable: bool


def folder_of_all(archive: BinaryIO, label: str, limit: int) -> str:
    """The folder in an archive that holds a manifest and all other files; empty where none does.

    ``tar -czf x.tar.gz folder`` makes such archives.

    :raises RefusedError: when the archive can't be read to its end.
    """
    folder, names = "", []
    reader = TarReader(archive, limit)
    try:
        for member in reader.members():
            name = _safe_name(member) if member.kind != "folder" else ""
            if name and not is_apple_double(name):
                names.append(name)
    except CorruptError as error:
        raise _broken(label, error, Problems()) from None
    for name in names:
        above, _, base = name.rpartition("/")
        if base in {MODERN, LEGACY} and (not folder or above.count("/") < folder.count("/")):
            folder = above
    return folder if all(name.startswith(folder + "/") for name in names) else ""


def read_inner(
    archive: BinaryIO, label: str, limit: int, signed: bool, top: str = ""
) -> dict[str, bytes]:
    """The manifests at the top of an archive, and their signatures, each by its name.

    Reads no further than to the SHA-256 manifest, which counts before the legacy one wherever they
    stand. Bundles made here have it first, so that this reads a few blocks only.

    :param signed: whether to read on to that one's signature, which may stand anywhere.
    :param top: the folder that counts as the archive's top.
    :return: manifests as a whole; of what is called as a signature, no more than its first MiB.
    :raises RefusedError: when the archive can't be read as far as that.
    """
    signatures = {MODERN + ".sig", LEGACY + ".sig"}
    enough = {MODERN, MODERN + ".sig"} if signed else {MODERN}
    found: dict[str, bytes] = {}
    reader = TarReader(archive, limit)
    try:
        for member in reader.members():
            name = below(top, _safe_name(member)) if member.kind == "file" else ""
            if name in signatures:
                found[name] = next(reader.body(), b"")
            elif name in {MODERN, LEGACY}:
                if member.size > MAX_MANIFEST:
                    raise CorruptError(
                        "too-large", f"its manifest is larger than {MAX_MANIFEST:,} bytes"
                    )
                body = io.BytesIO()  # joined without holding all of it twice
                for piece in reader.body():
                    body.write(piece)
                found[name] = body.getvalue()
            if enough <= found.keys():
                break
    except CorruptError as error:
        raise _broken(label, error, Problems()) from None
    return found


def below(top: str, name: str) -> str:
    """``name`` as it is called in the folder ``top``; empty where it isn't in it."""
    if not top:
        return name
    return name[len(top) + 1 :] if name.startswith(top + "/") else ""


def _safe_name(member: Member) -> str:
    try:
        return clean(member.name)
    except IllegalNameError:
        return ""  # refused when it is unpacked


def _broken(label: str, error: CorruptError, problems: Problems) -> RefusedError:
    problems.add(error.problem, error.message)
    if isinstance(error, NoRoomError):
        hint = "Make room on the disk that it is unpacked to, or fetch or build it again."
        return RefusedError(f"The bundle {label}", problems, hint, "infra")
    return RefusedError(f"The bundle {label}", problems, "Fetch or build it again.")


class Unpacker:
    """Takes the files out of one archive that its manifest lists, and refuses all else.

    :param wanted: names to write; the others are checked only.
    :param folder: the staging folder; None checks all and writes nothing.
    :param limit: bytes that the archive may unpack to.
    :param partial: whether it holds the wanted names alone, and need not hold others.
    """

    def __init__(
        self,
        label: str,
        manifest: Manifest,
        folder: str | None,
        wanted: Collection[str],
        limit: int,
        partial: bool = False,
    ) -> None:
        self._label = label
        self._manifest = manifest
        self._folder = folder
        self._wanted = wanted
        self._limit = limit
        self._partial = partial
        self._problems = Problems()
        self._seen: set[str] = set()
        self._staged: dict[str, Staged] = {}
        self._apple = 0
        self.warnings: list[str] = []

    def unpack(self, archive: BinaryIO) -> tuple[dict[str, Staged], str]:
        """Each listed file, and the SHA-256 of the compressed bytes that they came out of.

        :raises RefusedError: with every reason, when anything is not as the manifest says.
        :raises TrainError: when there is no room to write.
        """
        # Each file may have a folder and an AppleDouble of its own.
        most = 3 * len(self._manifest.lines) + SPARE_MEMBERS
        reader = TarReader(archive, self._limit, most)
        try:
            for member in reader.members():
                self._sort(reader, member)
            digest = reader.finish()
        except CorruptError as error:
            raise _broken(self._label, error, self._problems) from None
        for name, line in self._manifest.lines.items():
            if name not in self._seen and (name in self._wanted or not self._partial):
                self._problems.add("missing", f"{shown(name)} is not in it", line, name)
        if self._problems:
            raise RefusedError(f"The bundle {self._label}", self._problems, "Nothing was applied.")
        if self._apple:
            self.warnings.append(
                f"{self._apple} AppleDouble files (._*) in the bundle are left out."
            )
        return self._staged, digest

    def _sort(self, reader: TarReader, member: Member) -> None:
        name = self._admit(member)
        if name in self._manifest.lines:
            self._take(reader, member, name)
        elif name:
            self._leave(name)

    def _leave(self, name: str) -> None:
        """Leave out a regular file that the manifest doesn't list."""
        if is_apple_double(name):
            self._apple += 1
        elif not is_manifest_name(name):
            self._refuse("unlisted", f"{shown(name)} is in it and not listed", name)

    def _refuse(self, problem: str, message: str, name: str = "") -> None:
        self._problems.add(problem, message, self._manifest.lines.get(name), name)

    def _admit(self, member: Member) -> str:
        """The clean name of a regular file that may be taken; empty for anything else."""
        raw = member.name
        if member.kind == "folder":
            raw = raw.rstrip(b"/") or (b"/" if raw else b"")
            if raw in {b"", b"."}:
                return ""  # `tar -C folder .` begins with the folder itself
        try:
            name = clean(raw)
        except IllegalNameError as error:
            self._refuse(error.problem, f"the member {shown(raw)} {error.reason}", to_name(raw))
            return ""
        outside, name = name, below(self._manifest.top, name)
        if not name and member.kind != "folder":
            self._leave(outside)
        if not name or (member.kind == "folder" and name not in self._manifest.lines):
            return ""
        seen = name in self._seen
        self._seen.add(name)
        reason = _reason_against(member, seen)
        if reason:
            self._refuse(reason[0], f"{shown(name)} {reason[1]}", name)
            return ""
        return name

    def _take(self, reader: TarReader, member: Member, name: str) -> None:
        sha256 = new_hash("sha256")
        listed_by = sha256 if self._manifest.algorithm == "sha256" else new_hash("sha1")
        executable = bool(member.mode & stat.S_IXUSR)
        path, descriptor = "", -1
        if self._folder is not None and name in self._wanted:
            path = os.path.join(self._folder, str(len(self._staged)))
            descriptor = os.open(path, STAGED_FLAGS, 0o777 if executable else 0o666)
        try:
            for piece in reader.body():
                sha256.update(piece)
                if listed_by is not sha256:
                    listed_by.update(piece)
                if path:
                    _write(descriptor, piece)
        finally:
            if path:
                os.close(descriptor)
        if listed_by.hexdigest() != self._manifest.digest_of(name):
            self._refuse("digest-differs", f"{shown(name)} has another digest than listed", name)
        self._staged[name] = Staged(path, sha256.hexdigest(), member.size, executable)


def _reason_against(member: Member, seen: bool) -> tuple[str, str] | None:
    """The rule that a member breaks by what it is, and the end of the sentence on it."""
    if member.kind == "folder":
        return "not-a-regular-file", "is a folder, not a file"
    if member.kind == "unknown":
        return "unknown-member", "is of a kind that no tar format knows"
    if member.kind != "file":
        return f"{member.kind}-member", f"is a {member.kind}, not a regular file"
    if member.mode & (stat.S_ISUID | stat.S_ISGID):
        return "setuid", "would run with another user's rights (setuid or setgid)"
    if seen:
        return "duplicate-member", "is in it twice"
    return None


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise TrainError(
            "There is no room on the target's disk to unpack the bundle; nothing was applied.",
            "Free some space and run it again.",
            "infra",
        ) from error


def parse_inner(label: str, content: bytes) -> Manifest:
    """The parsed manifest of a bundle. :raises RefusedError: with all that is wrong with it."""
    manifest = parse(content, label)
    if manifest.problems:
        raise RefusedError(f"The bundle's {label}", manifest.problems, "Nothing was applied.")
    return manifest
