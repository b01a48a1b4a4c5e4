"""What goes to the GPU host: the training project, and the engine that trains it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from remote_train import request
from remote_train.hashing import file_digest
from remote_train.project_files import ProjectFile, list_files

from .action import PROJECT

ENGINE_PARTS = {
    "training": os.path.join(PROJECT, "training"),
    "remote_train": os.path.join(PROJECT, "plugins", "module_utils", "remote_train"),
}
"""The packages of the engine folder, by their names there."""


def project_digests(
    project_src: str, whitelist: str, exclude: str | Sequence[str]
) -> tuple[list[ProjectFile], dict[str, str]]:
    """The files that belong to the training project, and the SHA-256 of each.

    :param exclude: patterns, or text with commas between them, as ``-e`` gives it.
    """
    patterns = request.typed("sync_exclude", exclude, "list")
    files = list_files(project_src, whitelist or None, patterns)
    return files, {f.name: file_digest(os.path.join(project_src, f.name), "sha256") for f in files}


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
    return {name: file_digest(path, "sha256") for name, path in engine_files().items()}


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
