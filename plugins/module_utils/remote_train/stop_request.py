"""The note that says who wants a running stage to end, and how long it is waited for.

A signal carries no words. Whoever stops a stage leaves this note first, and the supervisor that
gets the signal reads it; without one, the signal's name is all that is known.
"""

from __future__ import annotations

from typing import Any

from . import issues, live
from .atomic import write_json

NAME = "stop.json"
"""The note's name in the live folder."""


def leave(root: str, token: str, by: str, call: str, grace: float) -> None:
    """Say who stops the start that ``token`` names.

    :param by: who it is, as a person reads it: ``user@machine``.
    :param call: what names this call, so that one that is made again finds its own note.
    :param grace: seconds after which the training is killed.
    """
    note = {"token": token, "by": by, "call": call, "grace": grace, "at": issues.now()}
    write_json(live.path(root, NAME), note)


def read(root: str, token: str) -> dict[str, Any]:
    """The note for the start that ``token`` names; empty where there is none."""
    note = live.read_json(live.path(root, NAME))
    return note if note.get("token") == token else {}


def grace_of(note: dict[str, Any]) -> float | None:
    """The seconds that a note gives, or None: then nothing is ever killed."""
    grace = note.get("grace")
    return float(grace) if isinstance(grace, (int, float)) else None
