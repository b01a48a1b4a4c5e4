"""Build a bundle of the training project on this machine: three files, and a signature of them."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from controller.action import Result, TrainAction
from controller.progress import SHOWN_AFTER, Meter
from controller.project import Choice
from remote_train import bundle, signature
from remote_train.atomic import write_bytes
from remote_train.errors import TrainError
from remote_train.file_names import first_of, shown
from remote_train.hashing import digest_of, file_digest
from remote_train.manifest import write_manifest
from remote_train.problems import RefusedError
from remote_train.project_files import ProjectFile

SUFFIX = ".tar.gz"


class ActionModule(TrainAction):
    """``bundle:`` with where the training project is, and where its bundle goes."""

    _requires_connection = False

    def act(self, task_vars: Result) -> Result:
        """Build it beside its place, and put there what differs from what is there."""
        source = self.argument("project_src", "")
        if not source:
            raise TrainError(
                "project_src is missing: the training project's folder on this machine.",
                "Give it with -e project_src=/home/me/tutor, or in the inventory.",
            )
        source = os.path.abspath(os.path.expanduser(source))
        dest = os.path.abspath(os.path.expanduser(self.argument("dest") or "."))
        name = (self.argument("name") or os.path.basename(source)).removesuffix(SUFFIX)
        # It runs once for all hosts, so no host's name stands in front of its lines.
        alone = {key: value for key, value in task_vars.items() if key.startswith("controller_")}
        self._line = self.line_for(alone, SHOWN_AFTER)
        try:
            return self._build(source, dest, name)
        except OSError as error:
            raise TrainError(
                f"The bundle can't be written into {shown(dest)}: {error.strerror or error}.",
                "Make room, or choose another folder with bundle_dest.",
                "ops",
            ) from error

    def _build(self, source: str, dest: str, name: str) -> Result:
        paths = bundle.paths_of(dest, name)
        signed = paths[2] + ".sig"
        files = self._files(source, {*paths, signed})
        meter = Meter(self._line, f"packing {name}:", sum(file.size for file in files))
        if self.check:
            built = bundle.look(source, files, dest, name, meter.add)
            return self._placed(built, paths, signed)
        os.makedirs(dest, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bundle-", dir=dest) as folder:
            built = bundle.build(source, files, folder, name, meter.add)
            return self._placed(built, paths, signed)

    def _files(self, source: str, own: set[str]) -> list[ProjectFile]:
        """The project's files, without a bundle of itself that lies in it."""
        choice = Choice(
            self.argument("whitelist", ""),
            self.argument("exclude", []),
            self.argument("follow_links", False),
        )
        bases = {os.path.basename(path) for path in own}
        own = {os.path.realpath(path) for path in own}
        files: list[ProjectFile] = []
        left: list[ProjectFile] = []
        for file in choice.files(source):
            path = file.path or os.path.join(source, file.name)
            mine = os.path.basename(path) in bases and os.path.realpath(path) in own
            (left if mine else files).append(file)
        if left:
            names = first_of([file.name for file in left])
            self.warn(f"{names} is this bundle itself, and is left out of it.")
        return files

    def _placed(self, built: bundle.Bundle, paths: tuple[str, str, str], signed: str) -> Result:
        """Put into place what differs, the signature as well; the result."""
        listing = write_manifest(built.digests)
        vouching = f"{built.sha256}  {os.path.basename(paths[0])}\n".encode()
        wanted = dict(
            zip(paths, (built.sha256, digest_of(vouching), digest_of(listing)), strict=True)
        )
        differ = [path for path, digest in wanted.items() if _digest_at(path) != digest]
        before = _text(paths[2])
        made = self._signature(listing, signed)
        stale = not made and paths[2] in differ and os.path.lexists(signed)
        if not self.check:
            for path in differ:
                os.replace(built.paths[paths.index(path)], path)
            if made:
                write_bytes(signed, made)
            if stale:
                os.unlink(signed)
        if stale:
            self.warn(f"{shown(signed)} was over another manifest, and is removed.")
        changed = bool(differ or made or stale)
        all_paths = [*paths, signed] if self.argument("signing_key") else [*paths]
        lines = list(self._lines(built, all_paths, changed))
        self._line.keep(lines[0])
        for line in lines[1:]:
            self.say(line)
        result: Result = {
            "changed": changed,
            "paths": all_paths,
            "files": len(built.digests),
            "bytes": built.bytes,
            "size": built.size,
            "sha256": built.sha256,
            "lines": lines,
        }
        if self._task.diff:
            after = listing.decode("utf-8", "backslashreplace")
            result["diff"] = [{"before": before, "after": after, "before_header": paths[2]}]
            result["diff"][0]["after_header"] = paths[2]
        return result

    def _signature(self, listing: bytes, path: str) -> bytes:
        """A new signature of the manifest; empty where none is wanted, or the one there counts."""
        key = self.argument("signing_key", "")
        if not key:
            return b""
        made = signature.sign(listing, key)
        try:
            with open(path, "rb") as stream:
                old = stream.read(signature.MAX_SIGNATURE + 1)
            own = signature.allowed_by(made, "bundle")
            signature.check(listing, old, own, os.path.basename(path))
        except (OSError, RefusedError):
            return made
        return b""  # some kinds of keys never sign twice alike

    def _lines(self, built: bundle.Bundle, paths: list[str], changed: bool) -> Iterator[str]:
        """What was built, for a person."""
        verb = "would be built" if self.check else "is built"
        yield (
            f"  the bundle {verb if changed else 'is there already'}: {len(built.digests):,} files,"
            f" {built.bytes:,} bytes, {built.size:,} packed"
        )
        for path in paths:
            yield f"  {shown(path)}"
        folder, base = (shlex.quote(shown(part)) for part in os.path.split(paths[1]))
        yield f"  the archive is checked by: cd {folder} && sha256sum -c {base}"
        manifest = shlex.quote(shown(paths[2]))
        yield f"  the files, where they lie or are unpacked, by: sha256sum -c {manifest}"


def _digest_at(path: str) -> str:
    """The digest of a regular file; empty where there is none."""
    return file_digest(path) if os.path.isfile(path) and not os.path.islink(path) else ""


def _text(path: str) -> str:
    """A manifest that is there, for a person."""
    try:
        with open(path, "rb") as stream:
            return stream.read().decode("utf-8", "backslashreplace")
    except OSError:
        return ""
