"""Models and caches on a data disk, and ``models`` in the project as a link there."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import time
from collections.abc import Iterable

from . import disk_errors
from .errors import TrainError

FOLDERS = ("models", "huggingface", "modelscope", "cache")
"""What is made in ``runtime_base``."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def pending(root: str, runtime_base: str, models: Iterable[str] = ()) -> list[str]:
    """What :func:`make` would do, a phrase each; empty where all is as it should be.

    :param models: the base models as the settings name them.
    :raises TrainError: where the change would take away a base model that is in use.
    """
    if not runtime_base:
        return []
    missing = [n for n in FOLDERS if not os.path.isdir(os.path.join(runtime_base, n))]
    todo = [f"makes {', '.join(missing)} in {runtime_base}"] if missing else []
    link, target = os.path.join(root, "models"), os.path.join(runtime_base, "models")
    if os.path.realpath(link) == os.path.realpath(target):
        return todo
    if os.path.lexists(link):
        _keep_models(root, target, models)
        todo.append(f"keeps {link} as {os.path.basename(link)}.backup-*")
    return [*todo, f"links {link} to {target}"]


def _keep_models(root: str, target: str, models: Iterable[str]) -> None:
    link = os.path.join(os.path.realpath(root), "models")
    for name in models:
        folder = os.path.normpath(os.path.join(root, os.path.expanduser(name)))
        # Only what leads to the project is followed: ``models`` may be a link itself.
        inside = os.path.relpath(_below(folder, root), link)
        if inside.startswith(".."):
            continue
        place = os.path.join(target, inside)
        if os.path.isdir(place):
            continue
        if not os.path.isdir(folder):
            raise TrainError(
                f"The base model {name} is neither in {link} nor in {target}, which {link} is to "
                "become a link to.",
                f"Move it to {place}, or name another folder.",
                "ops",
            )
        move = f"mkdir -p {shlex.quote(os.path.dirname(place))} && "
        move += f"mv {shlex.quote(folder)} {shlex.quote(place)}"
        raise TrainError(
            f"The base model {name} lies in {link}, which is to become a link to {target}, "
            "where it isn't.",
            f"Name another folder, or move it there yourself: {move}",
            "ops",
        )


def _below(folder: str, root: str) -> str:
    """``folder`` with the way to the project resolved, whichever of its names it begins with."""
    before, real = folder, os.path.realpath(root)
    while before != os.path.dirname(before):
        if os.path.realpath(before) == real:
            return os.path.join(real, os.path.relpath(folder, before))
        before = os.path.dirname(before)
    return folder


def make(root: str, runtime_base: str, models: Iterable[str] = ()) -> list[str]:
    """Make the folders and the link; what was done, a phrase each.

    An existing ``models`` is renamed, never deleted. Whoever is cut off between the two renames
    finds no ``models``, and makes the link the next time.

    :raises TrainError: category ``infra``, where the system refuses it.
    """
    if not pending(root, runtime_base, models):
        return []
    done = []
    try:
        missing = [n for n in FOLDERS if not os.path.isdir(os.path.join(runtime_base, n))]
        for name in missing:
            os.makedirs(os.path.join(runtime_base, name))
        if missing:
            done.append(f"made {', '.join(missing)} in {runtime_base}")
        link, target = os.path.join(root, "models"), os.path.join(runtime_base, "models")
        if os.path.realpath(link) != os.path.realpath(target):
            done += _link(root, link, target)
    except OSError as error:
        raise _refused(error, runtime_base) from error
    return done


def _refused(error: OSError, runtime_base: str) -> TrainError:
    """Why a folder or the link can't be made, with what is to be changed for that."""
    path = str(error.filename2 or error.filename)
    found = disk_errors.cannot(f"{path} can't be made", error)
    if path.startswith(os.path.join(runtime_base, "")) or runtime_base.startswith(path):
        found.hint = "Set runtime_base to a folder on a disk that this user can write to"
        found.hint += ", or free some space there." if error.errno in _FULL else "."
    return found


def _link(root: str, link: str, target: str) -> list[str]:
    done = []
    os.makedirs(root, exist_ok=True)
    new = os.path.join(root, f".models.{os.getpid()}.new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    os.symlink(target, new)
    if os.path.lexists(link):
        backup = _free(f"{link}.backup-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        os.rename(link, backup)
        done.append(f"kept {link} as {os.path.basename(backup)}")
    os.rename(new, link)
    return [*done, f"linked {link} to {target}"]


def _free(path: str) -> str:
    """``path``, or with a number after it where that is taken."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = f"{path}-{number}"
    return free
