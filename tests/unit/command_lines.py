"""The command lines of all processes, which all users of a machine can read."""

from __future__ import annotations

import contextlib
import glob
from pathlib import Path


def command_lines() -> bytes:
    """Those of all processes that run now."""
    found = b""
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += Path(path).read_bytes()
    return found
