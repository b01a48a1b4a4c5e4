"""What goes to the GPU host: the training project, and the engine that trains it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from remote_train import request
from remote_train.hashing import digest_files
from remote_train.project_files import ProjectFile, list_files

from .action import PROJECT

ENGINE_PARTS = {
    "training": os.path.join(PROJECT, "training"),
    "remote_train": os.path.join(PROJECT, "plugins", "module_utils", "remote_train"),
}
"""The packages of the engine folder, by their names there."""


def project_files(
    project_src: str, whitelist: str, exclude: str | Sequence[str]
) -> list[ProjectFile]:
    """The files that belong to the training project.

    :param exclude: patterns, or text with commas between them, as ``-e`` gives it.
    """
    patterns = request.typed("sync_exclude", exclude, "list")
    return list_files(project_src, whitelist or None, patterns)


def project_digests(
    project_src: str, whitelist: str, exclude: str | Sequence[str]
) -> dict[str, str]:
    """The SHA-256 of each of :func:`project_files`, by its name."""
    files = project_files(project_src, whitelist, exclude)
    return _digests({file.name: os.path.join(project_src, file.name) for file in files})


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
