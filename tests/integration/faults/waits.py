"""Waits of the suite: patient ones, since a busy machine is no fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration import sites

PATIENCE = 200.0
"""Seconds until something that has to come about is given up."""


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for something to hold, and return it.

    :raises AssertionError: when it doesn't come about in time.
    """
    return sites.until(condition, what, seconds)
