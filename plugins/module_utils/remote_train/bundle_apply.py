"""Apply a bundle: everything verified first, then each changed file renamed into place.

The order: the archive's digest, the manifest, what is on the target now, every byte of the
archive (staged while it is hashed), and only then the target. Removed is only what the manifest
applied before lists, this one doesn't, and nobody has changed since.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from . import tree
from .atomic import write_bytes
from .errors import TrainError
from .file_names import is_within, parents, shown, to_bytes, to_name
from .hashing import descriptor_digest
from .manifest import (
    MODERN,
    Manifest,
    read_manifest,
    write_manifest,
)
from .manifest_lines import split_line
from .problems import Problems, RefusedError
from .staging import Staged, Unpacker, parse_inner, read_inner_manifest

RESERVE = 256 * 1024 * 1024  # bytes of the disk that unpacking leaves free
STAGING = "staging-"


@dataclass
class AppliedResult:
    """What applying changed, or would change. Lists are sorted names.

    :param kept: listed before and not now, but changed on the target since, so left there.
    :param unchanged: number of files.
    :param bytes: of the files written.
    :param before: lines ``digest  name`` of the files replaced and removed, as they were.
    :param after: the same of the files added and replaced, as they are.
    """

    algorithm: str
    legacy: bool
    sha256: str
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    unchanged: int = 0
    bytes: int = 0
    seconds: float = 0.0
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def written(self) -> list[str]:
        """The files that are new or different."""
        return sorted(self.added + self.replaced, key=to_bytes)

    @property
    def changed(self) -> bool:
        """Whether the target is, or would be, another than before."""
        return bool(self.added or self.replaced or self.removed)


@dataclass
class _Change:
    """What has to be done to the target, and what stands against it."""

    write: dict[str, tree.Finding] = field(default_factory=dict)
    same: dict[str, tree.Finding] = field(default_factory=dict)
    remove: dict[str, tree.Finding] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def apply(
    bundle_path: str,
    root: str,
    state_dir: str,
    expected_sha256: str | None = None,
    check: bool = False,
    workers: int | None = None,
) -> AppliedResult:
    """Bring ``root`` to what the bundle holds; touches nothing when anything is wrong.

    :param state_dir: a folder on the same file system, for the staging folder and the manifest
        that was applied last.
    :param expected_sha256: of the archive; by default the digest in ``<bundle_path>.sha256``.
    :param check: say what would change, and write nothing at all.
    :raises RefusedError: with every reason, when bundle or target are not as they should be.
    :raises TrainError: when a file can't be read, there is no room, or another apply is at work.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        archive = stack.enter_context(_open_archive(bundle_path))
        if not check:
            stack.enter_context(_locked(state_dir))
        result = _apply(archive, bundle_path, root, state_dir, expected_sha256, check, workers)
    result.seconds = time.monotonic() - began
    return result


# -- before the target is touched --------------------------------------------------------------


def _open_archive(path: str) -> BinaryIO:
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


def _apply(
    archive: BinaryIO,
    bundle_path: str,
    root: str,
    state_dir: str,
    expected: str | None,
    check: bool,
    workers: int | None,
) -> AppliedResult:
    label = os.path.basename(bundle_path)
    sha256 = descriptor_digest(archive.fileno())[0]
    warnings = _vouch(bundle_path, sha256, expected)
    limit = _room(state_dir)
    archive.seek(0)
    manifest = _manifest_of(archive, bundle_path, limit)
    previous = _previous(state_dir, warnings)
    change = _plan(root, state_dir, manifest, previous, workers)
    if change.problems:
        raise RefusedError(root, change.problems, "Nothing was applied; clear these away first.")

    staging = None if check else tempfile.mkdtemp(prefix=STAGING, dir=state_dir)  # mode 0700
    try:
        if staging:
            _same_file_system(root, staging, change)
        unpacker = Unpacker(label, manifest, staging, change.write.keys(), limit)
        archive.seek(0)
        staged, read = unpacker.unpack(archive)
        if read != sha256:  # these very bytes are what was vouched for
            raise _refused(f"The bundle {label}", "changed", "it changed while it was read")
        result = _result(manifest, sha256, change, staged)
        result.warnings = [*warnings, *manifest.warnings, *unpacker.warnings]
        if change.kept:
            result.warnings.append(
                f"{len(change.kept)} files that the project no longer has were changed on the host"
                f" and are kept, {shown(change.kept[0])} among them."
            )
        if staging:
            _place(root, change, staged)
            _record(state_dir, staged)
        return result
    finally:
        if staging:
            shutil.rmtree(staging)


def _refused(
    subject: str, problem: str, message: str, hint: str = "Nothing was applied."
) -> RefusedError:
    problems = Problems()
    problems.add(problem, message)
    return RefusedError(subject, problems, hint)


def _vouch(bundle_path: str, sha256: str, expected: str | None) -> list[str]:
    """Hold the archive's digest against what it should be; the warning where nothing says."""
    label = os.path.basename(bundle_path)
    if expected is None:
        expected = _digest_beside(bundle_path + ".sha256")
    if expected is None:
        return [f"Nothing vouches for {label} as a whole: there is no {label}.sha256 beside it."]
    if expected.lower() != sha256:
        raise _refused(
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


def _room(state_dir: str) -> int:
    """The bytes that may be unpacked: what is free where they go, less a reserve."""
    path = os.path.abspath(state_dir)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    free = os.statvfs(path)
    return max(free.f_bavail * free.f_frsize - RESERVE, 0)


def _manifest_of(archive: BinaryIO, bundle_path: str, limit: int) -> Manifest:
    """The bundle's manifest: the one in it, or else the one beside it."""
    label = os.path.basename(bundle_path)
    beside = re.sub(r"\.(tar\.gz|tgz)$", "", bundle_path) + "." + MODERN
    outer = None
    if os.path.isfile(beside):
        with open(beside, "rb") as stream:
            outer = stream.read()
    found = read_inner_manifest(archive, label, limit)
    if found is None:
        if outer is None:
            raise _refused(f"The bundle {label}", "no-manifest", "it holds no manifest")
        return parse_inner(MODERN, outer)
    name, inner = found
    if outer is not None and name == MODERN and outer != inner:
        raise _refused(
            f"The bundle {label}",
            "manifest-differs",
            f"{os.path.basename(beside)} beside it is another manifest than the one in it",
        )
    return parse_inner(name, inner)


def _previous(state_dir: str, warnings: list[str]) -> Manifest | None:
    path = os.path.join(state_dir, MODERN)
    if not os.path.lexists(path):
        return None
    manifest = read_manifest(path)
    if manifest.problems:
        warnings.append(
            f"{path} is damaged, so nothing is removed: {manifest.problems.items[0].message}."
        )
        return None
    return manifest


def _plan(
    root: str,
    state_dir: str,
    manifest: Manifest,
    previous: Manifest | None,
    workers: int | None,
) -> _Change:
    """What has to be done, and everything on the target that stands against it."""
    change = _Change()
    raw_root = os.fsencode(root)
    state = os.path.realpath(os.fsencode(state_dir))
    own = to_name(os.path.relpath(state, os.path.realpath(raw_root)))
    for name, line in manifest.lines.items():
        if is_within(name, own):
            message = f"{shown(name)} lies in {shown(own)}, which no bundle may change"
            change.problems.add("reserved-path", message, line, name)
    if not os.path.isdir(raw_root):
        if os.path.lexists(raw_root):
            change.problems.add("not-a-folder", f"{root} is not a folder")
        change.write = {name: tree.Finding(name, "missing") for name in manifest.lines}
        return change
    if previous:
        gone = previous.lines.keys() - manifest.lines.keys()
        for found in tree.examine(raw_root, gone, previous.digest_of, "sha256", workers):
            if found.kind == "same":
                change.remove[found.name] = found
            elif found.kind == "different":
                change.kept.append(found.name)
    _plan_writes(change, raw_root, manifest, workers)
    return change


def _plan_writes(change: _Change, root: bytes, manifest: Manifest, workers: int | None) -> None:
    for found in tree.examine(
        root, manifest.lines, manifest.digest_of, manifest.algorithm, workers
    ):
        if found.kind == "same":
            change.same[found.name] = found
        elif found.kind in {"different", "missing"} or _gives_way(root, found, change.remove):
            change.write[found.name] = found
        else:
            problem, message = tree.obstacle(found)
            change.problems.add(problem, message, manifest.lines[found.name], found.name)


def _gives_way(root: bytes, found: tree.Finding, remove: dict[str, tree.Finding]) -> bool:
    """Whether what stands in the way goes anyway: a file, or a folder of files, to be removed."""
    if found.kind == "blocked":
        return found.at in remove
    if found.kind == "folder":
        return all(inner.name in remove for inner in tree.walk(root, found.name))
    return False


def _same_file_system(root: str, staging: str, change: _Change) -> None:
    """A rename works within one file system; better to say so before the first."""
    device = os.stat(staging).st_dev
    raw_root = os.fsencode(root)
    folders = {folder for name in change.write for folder in parents(name)}
    for folder in ["", *sorted(folders)]:
        with contextlib.suppress(OSError):
            if os.stat(os.path.join(raw_root, to_bytes(folder))).st_dev != device:
                raise _refused(
                    root,
                    "other-file-system",
                    f"{shown(folder) or root} is on another file system than {staging}",
                    "Let the whole project lie on one file system.",
                )


def _result(
    manifest: Manifest, sha256: str, change: _Change, staged: dict[str, Staged]
) -> AppliedResult:
    result = AppliedResult(manifest.algorithm, manifest.legacy, sha256)
    for name, found in change.write.items():
        new = staged[name]
        # A folder that gives way, or nothing: only a file's own bytes are replaced.
        (result.replaced if found.kind == "different" else result.added).append(name)
        result.bytes += new.size
    for name, found in change.same.items():
        if found.executable != staged[name].executable:
            result.replaced.append(name)
        else:
            result.unchanged += 1
    for names in (result.added, result.replaced):
        names.sort(key=to_bytes)
    result.removed = sorted(change.remove, key=to_bytes)
    result.kept = sorted(change.kept, key=to_bytes)
    old = {**change.write, **change.same, **change.remove}
    for name in sorted(result.replaced + result.removed, key=to_bytes):
        result.before.append(_line(old[name].digest, old[name].executable, name))
    for name in result.written:
        result.after.append(_line(manifest.digest_of(name), staged[name].executable, name))
    return result


def _line(digest: str, executable: bool, name: str) -> str:
    return f"{digest} {'x' if executable else '-'} {shown(name)}"


# -- on the target -----------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(state_dir: str) -> Iterator[None]:
    """One apply at a time; whoever holds the lock may clear what a killed one left."""
    try:
        os.makedirs(state_dir, exist_ok=True)
    except OSError as error:
        raise TrainError(
            f"The folder {state_dir} can't be made: {error.strerror}.", "", "infra"
        ) from error
    descriptor = os.open(
        os.path.join(state_dir, "apply.lock"),
        os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o644,
    )
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(
                f"Another sync is at work on this host (it holds {state_dir}/apply.lock).",
                "Wait for it to end and run this again.",
                "ops",
            ) from None
        for left in os.listdir(state_dir):
            if left.startswith(STAGING):
                shutil.rmtree(os.path.join(state_dir, left))
        yield
    finally:
        os.close(descriptor)


def _base(name: str) -> bytes:
    return to_bytes(name.rpartition("/")[2])


def _place(root: str, change: _Change, staged: dict[str, Staged]) -> None:
    raw_root = os.fsencode(root)
    os.makedirs(raw_root, exist_ok=True)
    _remove(raw_root, change)
    path = tree.OpenPath(raw_root, create=True)
    for name in sorted(change.write):
        folder = path.folder_of(name)
        os.replace(os.fsencode(staged[name].path), _base(name), dst_dir_fd=folder.descriptor)
    for name, found in sorted(change.same.items()):
        if found.executable != staged[name].executable:
            descriptor = path.open_file(name)
            try:
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode) & ~0o111
                # Whoever may read it may run it, as umask had it when the file was made.
                os.fchmod(descriptor, mode | (mode & 0o444) >> 2 if not found.executable else mode)
            finally:
                os.close(descriptor)


def _remove(root: bytes, change: _Change) -> None:
    path = tree.OpenPath(root)
    folders: set[str] = set()
    for name in sorted(change.remove):
        os.unlink(_base(name), dir_fd=path.folder_of(name).descriptor)
        folders.update(parents(name))
    for name, found in change.write.items():
        if found.kind == "folder":  # what is left of it is empty folders, its own among them
            folders.update(_folders_in(os.path.join(root, to_bytes(name)), name))
    for folder in sorted(folders, reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(OSError, tree.UnusableError):  # not empty, or gone: it may stay
            os.rmdir(_base(folder), dir_fd=path.folder_of(folder).descriptor)


def _folders_in(path: bytes, name: str) -> Iterator[str]:
    for at, _folders, _files in os.walk(path):
        below = to_name(os.path.relpath(at, path))
        yield name if below == "." else f"{name}/{below}"


def _record(state_dir: str, staged: dict[str, Staged]) -> None:
    """Keep the manifest of what is on the target now, always in SHA-256."""
    listing = write_manifest((name, file.sha256) for name, file in staged.items())
    write_bytes(os.path.join(state_dir, MODERN), listing)
