"""An apply from its journal to its end: finished, or undone where it can't be finished."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import NamedTuple

from . import durable, journal, versions
from .disk_errors import cannot
from .errors import TrainError
from .file_names import shown
from .journal import Journal
from .manifest import MODERN
from .problems import refused
from .swap import ChangedError, StepError, Swap


class Outcome(NamedTuple):
    """How it ended.

    :param reason: why it was undone; None when it was finished.
    :param left: names of files that somebody changed while it was undone, and that are as they
        left them.
    """

    reason: TrainError | None
    left: list[str]


def run(root: str, state_dir: str, doing: Journal) -> Outcome:
    """Bring the target to the journal's end. Whoever calls holds the lock.

    Killed at any instant, the same call with the same journal does the rest.

    :raises TrainError: when the disk doesn't even let it be undone; the journal stays then.
    """
    staging = os.path.join(state_dir, doing.staging)
    _check_staging(state_dir, staging, doing)
    reason = None
    try:
        swap = Swap(os.fsencode(root), staging, doing)
        if doing.direction == journal.FORWARD:
            reason = _forward(root, swap)
            if reason is None:
                _publish(state_dir, staging, doing)
                return Outcome(None, [])
            journal.write(state_dir, doing.turned())
        left = swap.back()
        swap.settle()
        _end(state_dir, staging)
    except StepError as error:
        raise _stuck(error.name, error.error) from error
    except OSError as error:
        raise _stuck(state_dir, error) from error
    return Outcome(reason or TrainError("It could not be finished."), left)


def clear(state_dir: str) -> None:
    """Remove what a killed apply left that never came to its journal. Needs the lock."""
    for left in os.listdir(state_dir):
        if left.startswith(journal.STAGING):
            shutil.rmtree(os.path.join(state_dir, left))


def _forward(root: str, swap: Swap) -> TrainError | None:
    """Make the target new; the reason where that isn't possible."""
    try:
        swap.forward()
        swap.settle()
    except ChangedError as error:
        hint = "Nothing was changed. Run it again."
        return refused(root, "changed-on-target", str(error), hint, error.name)
    except StepError as error:
        found = cannot(f"{shown(error.name)} can't be changed in {root}", error.error)
        return TrainError(found.message, f"Nothing was changed. {found.hint}", found.category)
    return None


def _publish(state_dir: str, staging: str, doing: Journal) -> None:
    """Make the new version the present one, and the one before a kept one."""
    old, new = (versions.folder_of(state_dir, n) for n in (doing.before, doing.version))
    for source, target in (
        (os.path.join(staging, "prior"), old),
        (os.path.join(staging, versions.KEPT), os.path.join(old, versions.KEPT)),
        (os.path.join(staging, "next"), new),
    ):
        if os.path.isdir(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(source, target)
    _set_manifest(state_dir, staging, versions.manifest_of(state_dir, doing.version))
    durable.bring([old, new, os.path.dirname(new), state_dir], state_dir)
    _end(state_dir, staging)
    with contextlib.suppress(OSError):  # it is done; what is too many goes with the next one
        versions.prune(state_dir, doing.keep)


def _set_manifest(state_dir: str, staging: str, source: str) -> None:
    """Make a version's manifest the one that was applied last."""
    target = os.path.join(state_dir, MODERN)
    if not os.path.isfile(source):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        return
    # No link: whoever writes to this one by hand doesn't write to the version's.
    copy = os.path.join(staging, MODERN)
    with open(source, "rb") as old, open(copy, "wb") as new:
        shutil.copyfileobj(old, new)
        new.flush()
        os.fsync(new.fileno())
    os.replace(copy, target)


def _end(state_dir: str, staging: str) -> None:
    journal.remove(state_dir)
    shutil.rmtree(staging, ignore_errors=True)  # what is left of it goes with the next one


def _check_staging(state_dir: str, staging: str, doing: Journal) -> None:
    published = os.path.isdir(versions.folder_of(state_dir, doing.version))
    if not os.path.isdir(staging) and not published:
        raise TrainError(
            f"The folder {staging} of a sync that was interrupted is gone.",
            f"Remove {journal.path_of(state_dir)} and sync again.",
            "integrity",
        )


def _stuck(name: str, error: OSError) -> TrainError:
    found = cannot(f"A sync can be neither finished nor undone: {shown(name)}", error)
    hint = "The next sync goes on with it."
    return TrainError(found.message, f"{found.hint} {hint}".strip(), found.category)
