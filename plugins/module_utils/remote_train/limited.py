"""Look at folders that may never answer: in a child, for a limited time, naming what hangs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from .errors import TrainError
from .killable import DONE, HANGS, Job, run

LOOK_SECONDS = 10.0
"""Seconds that a look gets."""

NAMING_SECONDS = 3.0
"""Seconds that each path gets to show that it isn't the one that hangs."""


def look(function: Callable[[], Any], paths: Iterable[str], seconds: float = 0) -> Any:
    """What ``function`` returns, which must be data; it runs in a child and changes nothing.

    :param paths: what it looks at, so that the one that hangs can be named.
    :param seconds: its limit; 0 is :data:`LOOK_SECONDS`.
    :raises TrainError: its own; category ``infra`` where it hasn't ended within ``seconds``.
    :raises RuntimeError: where it raised anything else, with its words.
    """
    seconds = seconds or LOOK_SECONDS
    ended = run({"look": Job(lambda: _told(function), seconds)})["look"]
    if ended.state == HANGS:
        raise _hanging(list(dict.fromkeys(paths)), seconds)
    if ended.state != DONE:
        raise RuntimeError(ended.reason)
    refused, value = ended.value
    if refused:
        raise TrainError(*refused)
    return value


def _told(function: Callable[[], Any]) -> tuple[tuple[str, ...], Any]:
    """What a function returns or refuses, as data: of an exception a child hands on its text."""
    try:
        return (), function()
    except TrainError as error:
        return (error.message, error.hint, error.category), None


def _hanging(paths: list[str], seconds: float) -> TrainError:
    ended = run({path: Job(_stat(path), NAMING_SECONDS) for path in paths})
    hanging = [path for path in paths if ended[path].state == HANGS]
    what = hanging[0] if hanging else " or ".join(paths[:2])
    return TrainError(
        f"{what} gives no answer in {seconds:g} s: a dead mount?",
        "Mount it anew, or name a folder on another disk.",
        "infra",
    )


def _stat(path: str) -> Callable[[], Any]:
    return lambda: tuple(os.stat(path))
