"""An apply that was interrupted, by a kill or a power cut, brought to its end by the next run."""

from __future__ import annotations

from typing import NamedTuple

from . import apply_lock, journal, transaction
from .file_names import first_of


class Recovered(NamedTuple):
    """How an interrupted apply ended.

    :param finished: whether it was finished; else it was undone.
    :param version: the number of the version that is there now.
    :param sentence: for the user.
    """

    finished: bool
    version: int
    sentence: str


def pending(state_dir: str) -> bool:
    """Whether an apply was begun and not ended; one look, at one name."""
    return journal.pending(state_dir)


def recover(root: str, state_dir: str) -> Recovered | None:
    """Finish or undo an apply that was interrupted; None where none was.

    Where there is none, it costs one look at one name. Killed in the middle, the next call goes on.

    :raises TrainError: when an apply is at work right now, or the disk doesn't let it end.
    """
    if not pending(state_dir):
        return None
    with apply_lock.held(state_dir):
        return recover_locked(root, state_dir)


def recover_locked(root: str, state_dir: str) -> Recovered | None:
    """The same for whoever holds the lock."""
    if not pending(state_dir):
        return None
    begun = journal.read(state_dir)
    reason, left = transaction.run(root, state_dir, begun)
    if reason is None:
        sentence = f"A sync that was interrupted was finished: {root} is version {begun.version}."
        return Recovered(True, begun.version, sentence)
    sentence = f"A sync that was interrupted was undone: {root} is version {begun.before} again."
    if begun.direction == journal.FORWARD:
        sentence += f" The reason: {reason.message.rstrip('.')}."
    if left:
        sentence += f" Left as it is, since it was changed meanwhile: {first_of(left)}."
    return Recovered(False, begun.before, sentence)
