"""A folder that never answers, as one on a dead mount does."""

from __future__ import annotations

import contextlib
import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def hanging_below(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every look at ``folder`` hang, for this process and the children it forks."""

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **options: Any) -> Any:
            if isinstance(path, str | Path) and f"{path}/".startswith(f"{folder}/"):
                time.sleep(30)  # longer than any test waits, and no test hangs for ever
            return real(path, *more, **options)

        return call

    for name in ("stat", "lstat", "access", "statvfs"):
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    # A module imports it by another name than the tests do.
    for package in ("remote_train", "ansible.module_utils.remote_train"):
        with contextlib.suppress(ImportError):
            limited = importlib.import_module(f"{package}.limited")
            monkeypatch.setattr(limited, "LOOK_SECONDS", 1.0)
            monkeypatch.setattr(limited, "NAMING_SECONDS", 2.0)
