"""Writes ``result.json``: what came of a job, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

RESERVE = 16 * 1024
"""Bytes that are kept back beside the result, so that a disk that is full by then takes it."""


def reserve(path: Path) -> None:
    """Keep room back for the result of a job that begins; on a full disk, there is none."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not zeros, of which some file systems keep none.
        _kept_back(path).write_bytes(os.urandom(RESERVE))


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the result beside its place, flush it to the disk, and move it there.

    :raises OSError: where the disk doesn't take it, not even in the room that was kept back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(path, result)
    except OSError:
        with contextlib.suppress(OSError):
            _kept_back(path).unlink()
        _write(path, result)
    with contextlib.suppress(OSError):
        _kept_back(path).unlink()


def _kept_back(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserve")


def _write(path: Path, result: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(result, file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
