"""The log of a stage: which file it is, and its last lines, without reading all of it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from . import live

BLOCK = 64 * 1024
"""Bytes that are read at once, from the end."""

MOST_BYTES = 4 * 1024 * 1024
"""The most that is read for any number of lines: a log may be one endless line."""

_NAME = re.compile(r"train_(?P<stage>.+)_(?P<stamp>\d{8}T\d{6}Z)\.log")


def find(root: str, log_dir: str, stage: str, status: Mapping[str, Any]) -> dict[str, str] | None:
    """The log of ``stage``, or of the stage that runs or ran last; None where there is none.

    :param log_dir: the folder of the logs, under ``root``.
    :param stage: a stage's name, or nothing.
    :param status: what the last stage that ran says of itself; it may be empty.
    :returns: ``path`` under ``root`` and ``stage``.
    """
    named = {"path": str(status.get("log") or ""), "stage": str(status.get("stage") or "")}
    if named["path"] and stage in ("", named["stage"]) and is_file(root, named["path"]):
        return named
    found = []
    try:
        names = os.listdir(os.path.join(root, log_dir))
    except OSError:
        names = []
    for name in names:
        match = _NAME.fullmatch(name)
        path = f"{log_dir}/{name}"
        if match and stage in ("", match["stage"]) and is_file(root, path):
            # Short stages may begin in the same second.
            written = os.stat(os.path.join(root, path)).st_mtime_ns
            found.append((match["stamp"], written, path, match["stage"]))
    if not found:
        return None
    *_, path, stage = max(found)
    return {"path": path, "stage": stage}


def is_file(root: str, path: str) -> bool:
    """Whether a log is a file: a pipe would be waited for without end."""
    try:
        return stat.S_ISREG(os.stat(os.path.join(root, path)).st_mode)
    except (OSError, ValueError):
        return False


def last_lines(path: str, count: int, most: int = MOST_BYTES) -> dict[str, Any]:
    """The last lines of a file, read from its end.

    :param count: how many lines; the last one may not have ended yet.
    :param most: bytes that are read at the most.
    :returns: ``text``; ``end``, the place in bytes up to which it goes; ``cut``, whether ``most``
        was reached before the first of the lines.
    """
    with open(path, "rb") as stream:
        end = start = stream.seek(0, os.SEEK_END)
        blocks: list[bytes] = []
        # One more line end than lines, and one for the end of the last line.
        ends = 0
        while start > 0 and end - start < most and ends <= count:
            size = min(BLOCK, start, most - (end - start))
            start -= size
            stream.seek(start)
            block = stream.read(size)
            ends += block.count(b"\n")
            blocks.append(block)
    found = b"".join(reversed(blocks))
    lines = found.split(b"\n")
    ended = lines[-1] == b""
    kept = lines[-(count + ended) :]
    return {
        "text": b"\n".join(kept).decode("utf-8", "replace"),
        "end": end,
        "cut": start > 0 and len(kept) == len(lines),
    }


def look(
    root: str, log_dir: str, stage: str, count: int, running: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The log that is asked for, its last lines, and whether its stage runs now.

    :param running: what ``live.running`` found.
    :returns: ``log`` (under ``root``, empty where there is none), ``stage``, ``live`` (the status,
        or None where that stage doesn't run), ``text``, ``end``, ``cut`` and ``size``, bytes.
    """
    runs_now = running is not None and running.get("state") == "running"
    status: Mapping[str, Any] = live.read_json(live.path(root, "status.json"))
    if running is not None and runs_now:
        status = running
    elif status.get("state") == "running":  # its supervisor was killed, or the host went down
        status = {**status, "state": "failed"}
    follows = runs_now and stage in ("", status.get("stage"))
    found = find(root, log_dir, stage, status)
    name = str(status.get("stage") or "") if follows else stage
    nothing = {"log": "", "stage": name, "text": "", "end": 0, "cut": False, "size": 0}
    answer = {**nothing, "live": dict(status) if follows else None}
    if found is None or (follows and found["path"] != status.get("log")):
        return answer
    path = os.path.join(root, found["path"])
    tail = last_lines(path, count)
    return {**answer, "log": found["path"], "stage": found["stage"], **tail, "size": tail["end"]}
