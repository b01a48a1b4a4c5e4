"""Apply a bundle: everything verified first, then all changed files renamed into place.

The order: the archive's digest, the manifest and who signed it, what is on the target now, every
byte of the archive (staged while it is hashed), and only then the target, all of it or nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from . import (
    apply_lock,
    bundle_archive,
    commit,
    offer,
    recovery,
    signature,
    target_change,
    transaction,
    versions,
)
from .digest_cache import DigestCache
from .file_names import parents, shown, to_bytes
from .manifest import Manifest, write_manifest
from .problems import RefusedError, refused
from .staging import Staged, Unpacker
from .tree_result import TreeResult, line

RESERVE = 256 * 1024 * 1024  # bytes of the disk that unpacking leaves free


@dataclass
class AppliedResult(TreeResult):
    """What applying changed, or would change.

    :param algorithm: of the manifest's digests, ``sha256`` or ``sha1``, which is ``legacy``.
    :param sha256: of the archive.
    :param signer: who has signed the manifest; empty where nobody had to.
    """

    algorithm: str = ""
    legacy: bool = False
    sha256: str = ""
    signer: str = ""


class Delivery(NamedTuple):
    """How a bundle came, where it is not a file that holds all of a project.

    :param content: the archive's bytes, where they came without a file.
    :param offer: what was offered before; the archive holds only what the target lacks of it.
    :param cache: whether a file may be known by its inode, size and times.
    :param label: what it is called, where that isn't its file's name.
    :param wait: seconds for which another apply is waited for.
    """

    content: bytes | None = None
    offer: offer.Offer | None = None
    cache: bool = False
    label: str = ""
    wait: float = 0.0


WHOLE = Delivery()
"""A file that holds all of a project."""


def apply(
    bundle_path: str,
    root: str,
    state_dir: str,
    expected_sha256: str | None = None,
    check: bool = False,
    keep: int = versions.KEEP,
    trust: signature.Trust | None = None,
    delivery: Delivery = WHOLE,
) -> AppliedResult:
    """Bring ``root`` to what the bundle holds; touches nothing when anything is wrong.

    Killed at any instant, the next apply finishes or undoes it (:mod:`recovery`).

    :param state_dir: a folder on the same file system, for staging folder, journal and versions.
    :param expected_sha256: of the archive; by default the digest in ``<bundle_path>.sha256``.
    :param check: say what would change, and write nothing at all.
    :param keep: how many versions are kept beside the new one, to go back to.
    :param trust: whose signature of the manifest counts; None where none is asked for.
    :raises RefusedError: with every reason, when bundle or target are not as they should be.
    :raises TrainError: when a file can't be read, there is no room, or another apply is at work.
    """
    began = time.monotonic()
    content = delivery.content
    with (
        bundle_archive.open_archive(bundle_path) if content is None else io.BytesIO(content)
    ) as archive:
        job = _Job(archive, bundle_path, root, state_dir, trust, delivery)
        if check:
            result = job.look(expected_sha256)
            if recovery.pending(state_dir):
                result.warnings.append(
                    f"A sync of {root} was interrupted; the next one finishes or undoes it first."
                )
        else:
            with apply_lock.held(state_dir, delivery.wait):
                recovered = recovery.recover_locked(root, state_dir)
                transaction.clear(state_dir)
                result = job.apply(expected_sha256, keep)
            if recovered:
                result.warnings.insert(0, recovered.sentence)
    result.seconds = time.monotonic() - began
    return result


class _Job:
    """One bundle and one target. :raises TrainError: wherever something is not as it should be."""

    def __init__(
        self,
        archive: BinaryIO,
        bundle_path: str,
        root: str,
        state_dir: str,
        trust: signature.Trust | None,
        delivery: Delivery,
    ) -> None:
        self._archive = archive
        self._bundle_path = bundle_path
        self._label = delivery.label or os.path.basename(bundle_path)
        self._root = root
        self._state_dir = state_dir
        self._trust = trust
        self._offer = delivery.offer
        cache = target_change.cache_path(state_dir)
        self._cache = DigestCache(cache, root) if delivery.cache else None
        self._signer = ""
        self._warnings: list[str] = []

    def look(self, expected: str | None) -> AppliedResult:
        """Check everything, and say what would change."""
        self._decide(expected)
        staged = self._unpack(None)
        return self._result(staged, self._modes(staged))

    def apply(self, expected: str | None, keep: int) -> AppliedResult:
        """Check everything, and change the target."""
        self._decide(expected)
        with commit.staging_folder(self._state_dir) as staging:
            self._same_file_system(staging)
            staged = self._unpack(os.path.join(staging, "new"))
            modes = self._modes(staged)
            result = self._result(staged, modes)
            present = versions.current(self._state_dir)
            put = present.put.items() if present else ()
            version = versions.Version(
                0,
                by="apply",
                of=shown(self._label),
                sha256=self._sha256,
                put={name: digest for name, digest in put if name not in self._manifest.lines},
            )
            new = commit.New(
                staged={name: staged[name].path for name in self._change.write},
                modes=modes,
                names=self._manifest.lines.keys(),
                manifest=self._as_it_will_be(staged),
                version=version,
            )
            result.version = commit.commit(
                self._root, self._state_dir, staging, self._change, new, keep
            )
            return result

    def _decide(self, expected: str | None) -> None:
        """Vouch for the archive as a whole, and hold its manifest against the target."""
        self._sha256 = _digest(self._archive)
        self._warnings += bundle_archive.vouch(self._bundle_path, self._sha256, expected)
        self._limit = _room(self._state_dir)
        self._manifest = self._listed()
        self._warnings += self._manifest.warnings
        previous = target_change.applied_before(self._state_dir, self._warnings)
        self._change = target_change.to_manifest(
            self._root, self._state_dir, self._manifest, previous, self._cache
        )
        if self._change.problems:
            hint = "Nothing was applied; clear these away first."
            raise RefusedError(self._root, self._change.problems, hint)
        self._warnings += self._change.warnings("the project")

    def _listed(self) -> Manifest:
        """The manifest, signed by somebody who counts where that is asked for."""
        trust = self._trust
        given = trust.signature if trust else None
        if self._offer is not None:
            manifest, raw = self._offer.manifest, self._offer.raw if trust else b""
            if not manifest.lines:  # as of a manifest: else all that was applied before would go
                raise refused("The offer", "empty-offer", "no file was offered")
        else:
            self._archive.seek(0)
            manifest, raw, carried = bundle_archive.manifest_of(
                self._archive, self._bundle_path, self._limit, trust is not None and given is None
            )
            given = carried if given is None else given
        if trust:
            self._signer = signature.check(raw, given, trust.allowed, self._label)
        return manifest

    def _unpack(self, folder: str | None) -> dict[str, Staged]:
        """Every file of the archive, verified; those that differ are in ``folder`` then."""
        wanted = self._change.write.keys()
        partial = self._offer is not None
        unpacker = Unpacker(self._label, self._manifest, folder, wanted, self._limit, partial)
        self._archive.seek(0)
        staged, read = unpacker.unpack(self._archive)
        if read != self._sha256:  # these very bytes are what was vouched for
            raise refused(f"The bundle {self._label}", "changed", "it changed while it was read")
        self._warnings += unpacker.warnings
        for name, file in staged.items():
            if file.executable != self._runs(name, staged):
                raise refused(
                    f"The bundle {self._label}",
                    "mode-differs",
                    f"{shown(name)} is not executable in it as it was offered",
                    name=name,
                )
        return staged

    def _runs(self, name: str, staged: dict[str, Staged]) -> bool:
        """Whether a file is to be executable."""
        if self._offer is None:
            return staged[name].executable
        return name in self._offer.executable

    def _as_it_will_be(self, staged: dict[str, Staged]) -> bytes:
        """The manifest of what is on the target then, always in SHA-256."""
        if self._offer is not None:
            return self._offer.raw
        return write_manifest((name, file.sha256) for name, file in staged.items())

    def _modes(self, staged: dict[str, Staged]) -> dict[str, int]:
        """The files whose executable bit alone changes, each with its new mode."""
        modes = {}
        for name, found in self._change.same.items():
            runs = self._runs(name, staged)
            if found.executable != runs:
                mode = found.mode & ~0o111
                # Whoever may read it may run it, as umask had it when the file was made.
                modes[name] = mode | (mode & 0o444) >> 2 if runs else mode
        return modes

    def _result(self, staged: dict[str, Staged], modes: dict[str, int]) -> AppliedResult:
        manifest = self._manifest
        result = AppliedResult(
            algorithm=manifest.algorithm,
            legacy=manifest.legacy,
            sha256=self._sha256,
            signer=self._signer,
        )
        result.fill(self._change, {name: file.size for name, file in staged.items()}, modes)
        for name in result.written:
            result.after.append(line(manifest.digest_of(name), self._runs(name, staged), name))
        result.warnings = self._warnings
        return result

    def _same_file_system(self, staging: str) -> None:
        """A rename works within one file system; better to say so before the first."""
        device = os.stat(staging).st_dev
        root = os.fsencode(self._root)
        folders = {folder for name in self._change.write for folder in parents(name)}
        for folder in ["", *sorted(folders)]:
            with contextlib.suppress(OSError):
                if os.stat(os.path.join(root, to_bytes(folder))).st_dev != device:
                    raise refused(
                        self._root,
                        "other-file-system",
                        f"{shown(folder) or self._root} is on another file system than {staging}",
                        "Let the whole project lie on one file system.",
                    )


def _digest(archive: BinaryIO) -> str:
    state = hashlib.sha256()
    while block := archive.read(1024 * 1024):
        state.update(block)
    return state.hexdigest()


def _room(state_dir: str) -> int:
    """The bytes that may be unpacked: what is free where they go, less a reserve."""
    path = os.path.abspath(state_dir)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    free = os.statvfs(path)
    return max(free.f_bavail * free.f_frsize - RESERVE, 0)
