"""What goes to the GPU host: the training project, and the engine that trains it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from remote_train import model_cache, pythons, request, tree
from remote_train.digest_cache import DigestCache
from remote_train.errors import TrainError
from remote_train.hashing import digest_files
from remote_train.offer import Offer
from remote_train.project_files import ProjectFile, list_files
from remote_train.project_sources import examine

from .action import PROJECT
from .progress import Meter

ENGINE_PARTS = {
    "training": os.path.join(PROJECT, "training"),
    "remote_train": os.path.join(PROJECT, "plugins", "module_utils", "remote_train"),
}
"""The packages of the engine folder, by their names there."""


class Choice(NamedTuple):
    """Which files belong to the training project, as the settings say it.

    :param exclude: patterns, or text with commas between them, as ``-e`` gives it.
    :param cache: whether a file may be known by its inode, size and times.
    """

    whitelist: str = ""
    exclude: str | Sequence[str] = ()
    follow_links: bool | str = False
    cache: bool = False

    def files(self, project_src: str, tracked_apart: str | None = None) -> list[ProjectFile]:
        """The files of the project in this folder; the errors are those of ``list_files``."""
        patterns = request.typed("sync_exclude", self.exclude, "list")
        follow = request.boolean("sync_follow_links", self.follow_links)
        return list_files(project_src, self.whitelist or None, patterns, follow, tracked_apart)


def offer_of(
    project_src: str, files: Sequence[ProjectFile], cache: bool, meter: Meter | None = None
) -> Offer:
    """What the host is offered: the digest of each file, and which are executable.

    :param cache: whether a file may be known by its inode, size and times.
    :param meter: is told of the bytes of each file.
    :raises TrainError: for a file that can't be read, and for names that can't lie side by side.
    """
    known = _cache_of(project_src) if cache else None
    runs = {file.name: file.executable for file in files}
    found = []
    for finding in examine(project_src, files, known):
        if finding.kind != "different":
            raise TrainError(
                f"{tree.obstacle(finding)[1]} any more, in the training project.",
                "Run it again when nothing writes there.",
                "data",
            )
        found.append((finding.name, finding.digest, runs[finding.name]))
        if meter:
            meter.add(finding.size)
    if known:
        known.save()
    return Offer(found)


def _cache_of(project_src: str) -> DigestCache:
    """Where the digests of this project's files are remembered: in this user's own cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(base, "remote-train", "digests")
    with contextlib.suppress(OSError):  # without it, nothing is remembered
        os.makedirs(folder, 0o700, exist_ok=True)
    name = hashlib.sha256(os.fsencode(os.path.realpath(project_src))).hexdigest()[:32]
    return DigestCache(os.path.join(folder, name), project_src)


def engine_files() -> dict[str, str]:
    """The files of the engine folder: each one's path on this machine, by its path there."""
    found = {}
    for name, folder in ENGINE_PARTS.items():
        for where, folders, files in os.walk(folder):
            folders[:] = [f for f in folders if f != "__pycache__"]
            for file in files:
                if file.endswith((".py", ".txt")):
                    path = os.path.join(where, file)
                    found[os.path.join(name, os.path.relpath(path, folder))] = path
    return dict(sorted(found.items()))


def engine_digests() -> dict[str, str]:
    """The SHA-256 of each file of the engine folder, by its path there."""
    return _digests(engine_files())


def _digests(paths: dict[str, str]) -> dict[str, str]:
    """The SHA-256 of each file, by the name that goes with its path."""
    return dict(zip(paths, digest_files(paths.values()).values(), strict=True))


def lay_engine(folder: str) -> list[ProjectFile]:
    """Copy the engine into ``folder``, ready to be bundled."""
    laid = []
    for name, path in engine_files().items():
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copyfile(path, target)
        laid.append(ProjectFile(name, os.path.getsize(target), executable=False))
    return laid


def requirements_text() -> str:
    """What the training's Python must have, as pip reads it."""
    with open(os.path.join(PROJECT, "training", "requirements.txt"), encoding="utf-8") as stream:
        return stream.read()


def requirements_for(wanted: Mapping[str, Any]) -> dict[str, str]:
    """What the training's Python must have; nothing where only the user's commands run."""
    chosen = [stage for stage in wanted["stages"] if stage["name"] in wanted["selected"]]
    if chosen and all(stage["command"] for stage in chosen):
        return {}
    required = pythons.parse_requirements(requirements_text())
    ours = [stage for stage in chosen or wanted["stages"] if not stage["command"]]
    if model_cache.by_name([s for s in ours if s["model"]["use_modelscope"]], ""):
        required["modelscope"] = ""
    if any(stage["settings"]["use_qlora"] for stage in ours):
        required["bitsandbytes"] = ""
    return required
