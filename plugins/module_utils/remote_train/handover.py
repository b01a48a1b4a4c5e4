"""The supervisor between two stages, as others see it: how to reach it, and how to end it.

It holds ``live/worker.lock`` for its whole life, and says in ``worker.json`` who it is. The next
start gives it the stage over the FIFO ``live/orders``, because the training's environment may hold
secrets, which are written into no file. Everybody else who wants it to end sends TERM.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import stat
from collections.abc import Mapping
from typing import Any

from . import live, processes
from .atomic import write_json

LOCK, FACTS, ORDERS = "worker.lock", "worker.json", "orders"
"""Names in the live folder."""

ENDED_WITHIN = 30.0
"""Seconds in which a supervisor that waits must have ended, with its worker."""


def engine_digest(engine: str) -> str:
    """What tells one engine from another: a supervisor serves the one that it comes from."""
    digest = hashlib.sha256()
    for package in ("remote_train", "training"):
        for where, folders, files in os.walk(os.path.join(engine, package)):
            folders.sort()
            for name in sorted(file for file in files if file.endswith(".py")):
                path = os.path.join(where, name)
                with open(path, "rb") as stream:
                    content = hashlib.sha256(stream.read()).hexdigest()
                digest.update(
                    f"{os.path.relpath(path, engine)}\0{content}\n".encode("utf-8", "replace")
                )
    return f"sha256:{digest.hexdigest()}"


def hold(root: str) -> int | None:
    """Become the supervisor of ``root``: the lock's descriptor, or None where there is one."""
    os.makedirs(os.path.join(root, live.FOLDER), exist_ok=True)
    return live.lock_file(live.path(root, LOCK))


def say(root: str, facts: Mapping[str, Any]) -> None:
    """Say who the supervisor is and what it does; a full disk ends nothing."""
    with contextlib.suppress(OSError):
        write_json(live.path(root, FACTS), dict(facts))


def open_orders(root: str) -> int | None:
    """Make the FIFO anew and open it to read; None where the file system knows none."""
    file = live.path(root, ORDERS)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
        os.mkfifo(file, 0o600)
        # To write as well: or each order would be followed by an end of file without end.
        return os.open(file, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def close_orders(root: str) -> None:
    """Take the FIFO away, while the lock is still held."""
    with contextlib.suppress(OSError):
        os.unlink(live.path(root, ORDERS))


def as_line(order: Mapping[str, Any]) -> bytes:
    """An order as it is sent; what a sender that died has left before it is another line."""
    return b"\n" + json.dumps(dict(order)).encode() + b"\n"


def read_line(line: bytes) -> dict[str, Any] | None:
    """The order in a line; None where it is none."""
    try:
        order = json.loads(line)
    except ValueError:
        return None
    return order if isinstance(order, dict) else None


def give(root: str, order: Mapping[str, Any]) -> bool:
    """Give an order to the supervisor that waits; whether all of it could be given.

    Only to a FIFO that is this user's own, so that no other one gets to read a secret.
    """
    try:
        descriptor = os.open(
            live.path(root, ORDERS), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
        )
    except OSError:
        return False
    try:
        facts = os.fstat(descriptor)
        if not (stat.S_ISFIFO(facts.st_mode) and facts.st_uid == os.geteuid()):
            return False
        if stat.S_IMODE(facts.st_mode) & 0o077:
            return False
        line = as_line(order)
        return os.write(descriptor, line) == len(line)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def waiting(root: str) -> dict[str, Any] | None:
    """What the supervisor of ``root`` says of itself; None where none lives."""
    if not live.is_locked(live.path(root, LOCK)):
        return None
    return live.read_json(live.path(root, FACTS))


def settle(root: str) -> None:
    """Wait for a supervisor that is between two things: it says so itself, and soon."""

    def settled() -> bool:
        if live.is_held(root):
            return True
        facts = waiting(root)
        return facts is None or facts.get("state") == "waiting"

    processes.wait(settled, live.SETTLED_WITHIN)


def own_processes(root: str) -> set[int]:
    """The numbers of the living supervisor and its worker."""
    facts = waiting(root) or {}
    found = [facts, facts.get("worker") or {}]
    return {int(who["pid"]) for who in found if processes.is_process(who)}


def ask_to_end(root: str) -> None:
    """Ask the supervisor that waits to end, and with it its worker.

    The caller has looked that no stage runs, and holds back every start (``live.starting``).
    """
    with contextlib.suppress(PermissionError):
        processes.send(waiting(root) or {}, signal.SIGTERM)


def end(root: str) -> bool:
    """The same, and wait for it; whether none is left."""
    ask_to_end(root)
    return processes.wait(lambda: waiting(root) is None, ENDED_WITHIN)
