"""Work on the GPU host that outlives the connection: a forked process and its status file.

A module starts it and returns; the controller polls the status as it polls a stage's. The work
needs no file of ours on the host: everything it calls has been imported before the fork, since
what a module was sent in is removed when the module ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import live
from .atomic import write_bytes, write_json
from .disk_errors import cannot
from .errors import TrainError
from .live import ENDED, SETTLED_WITHIN, TAKEN_WITHIN

FOLDER = "outputs/training_sync/provision"
"""Where lock, status and log of the work lie, under the project root."""

HEARTBEAT = 2.0
"""Seconds between two writes of the status, when there is no news."""

RESERVE = 16 * 1024
"""Bytes that are kept back on the disk, so that a full one can still take the last status."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PASSWORD = re.compile(r"//[^/\s]+@")


def path(root: str, name: str) -> str:
    """One of the folder's files: ``lock``, ``status.json``, ``work.log``, ``reserve``."""
    return os.path.join(root, FOLDER, name)


def scrubbed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """``text`` without the passwords in addresses, and without ``secrets``."""
    text = _PASSWORD.sub("//", text)
    for secret in secrets:
        if secret:
            text = text.replace(secret, "...")
    return text


def _scrub(value: Any, secrets: tuple[str, ...]) -> Any:
    """The same for all texts in a value of JSON."""
    if isinstance(value, str):
        return scrubbed(value, secrets)
    if isinstance(value, Mapping):
        return {key: _scrub(inner, secrets) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrub(inner, secrets) for inner in value]
    return value


class Reporter:
    """What the work says of itself while it runs: log lines, and its progress in the status.

    :param secrets: texts that stand in no log and no status, such as a token.
    """

    def __init__(self, root: str, token: str, secrets: tuple[str, ...] = ()) -> None:
        self._root = root
        self._secrets = secrets
        self._written = 0.0
        self._mutex = threading.Lock()
        self.log_name = f"{FOLDER}/work.log"
        self.status: dict[str, Any] = {
            "schema": 1,
            "token": token,
            "state": "running",
            "started_at": time.time(),
            "log": self.log_name,
            "progress": {},
        }

    def say(self, text: str) -> None:
        """Add a line to the log; a full disk ends nothing here."""
        line = scrubbed(text, self._secrets) + "\n"
        with contextlib.suppress(OSError), open(path(self._root, "work.log"), "ab") as stream:
            stream.write(line.encode("utf-8", "backslashreplace"))

    def show(self, text: str, **facts: Any) -> None:
        """What is done right now, for the person who follows: ``text`` with its numbers."""
        self.status["progress"] = _scrub({"text": text, **facts}, self._secrets)
        if time.time() - self._written > 0.2:
            self.beat()

    def beat(self, **news: Any) -> None:
        """Publish the status, with the time as its heartbeat; a full disk ends nothing here."""
        with contextlib.suppress(OSError):
            self._publish(news)

    def begin(self) -> None:
        """Publish the first status, and keep room back for the last one.

        :raises OSError: where the disk takes no more.
        """
        # Not zeros, of which some file systems keep none.
        write_bytes(path(self._root, "reserve"), os.urandom(RESERVE))
        self._publish({})

    def end(self, **news: Any) -> None:
        """Publish the last status, on a full disk in the room that was kept back for it."""
        try:
            self._publish(news)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(path(self._root, "reserve"))
                self._publish(news)

    def _publish(self, news: Mapping[str, Any]) -> None:
        with self._mutex:
            self.status.update(_scrub(news, self._secrets), heartbeat=time.time())
            self._written = time.time()
            write_json(path(self._root, "status.json"), self.status)

    def error(self, found: TrainError) -> dict[str, str]:
        """An error's fields, without secrets."""
        return {
            "msg": scrubbed(found.message, self._secrets),
            "hint": scrubbed(found.hint, self._secrets),
            "category": found.category,
        }


Work = Callable[[Reporter], Mapping[str, Any]]


def running(root: str) -> dict[str, Any] | None:
    """The status of the work that runs in ``root`` now, or None; nothing is created to find out.

    The lock is taken before the first status, and let go of after the last one: in between is
    waited for. What stands in the lock's file is the token of whoever holds it.

    :raises TrainError: where the lock stays held and nobody works under it.
    """
    deadline = time.monotonic() + SETTLED_WITHIN
    while live.is_locked(path(root, "lock")):
        status = live.read_json(path(root, "status.json"))
        ours = status.get("token") == _holder(root)
        if ours and status.get("state") == "running" and _works(status):
            return status
        if time.monotonic() > deadline:
            raise _left_over(root)
        time.sleep(0.02)
    return None


def ended(root: str, token: str) -> dict[str, Any] | None:
    """The status of the work that was started with ``token`` and has ended, or None."""
    status = live.read_json(path(root, "status.json"))
    over = token and status.get("token") == token and status.get("state") in ENDED
    return status if over else None


def _holder(root: str) -> str:
    try:
        with open(path(root, "lock"), encoding="utf-8", errors="replace") as stream:
            return stream.read(256)
    except OSError:
        return ""


def _works(status: Mapping[str, Any]) -> bool:
    """Whether the process that works lives; its first status is written before there is one."""
    if "pid" not in status:
        return True
    try:
        with open(f"/proc/{status['pid']}/stat", "rb") as stream:
            fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return False
    # One that was killed may stay as a zombie for ever, where nobody waits for it.
    return fields[0] not in (b"Z", b"X") and int(fields[19]) == status.get("start_time")


def _left_over(root: str) -> TrainError:
    left = ", ".join(live.holders(path(root, "lock"))) or "a process of another user"
    return TrainError(
        f"Provisioning was ended, and something that it started is still running: {left}.",
        "Give the same command again when that has ended, or end it on the host: it holds "
        f"{path(root, 'lock')}.",
        "infra",
    )


def start(root: str, token: str, work: Work, secrets: tuple[str, ...] = ()) -> dict[str, Any]:
    """Start ``work`` in a process of its own, or find one that runs already; the status.

    Idempotent by ``token``, since ssh may send a command twice: work with this token that has
    ended is not done again.

    :raises TrainError: where the disk takes nothing, or the lock is held by what works no more.
    """
    try:
        os.makedirs(os.path.join(root, FOLDER), exist_ok=True)
        lock = os.open(path(root, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot(f"{os.path.join(root, FOLDER)} can't be written", error) from error
    try:
        deadline = time.monotonic() + SETTLED_WITHIN
        while not _take(lock):
            if found := running(root):
                return found
            if time.monotonic() > deadline:
                raise _left_over(root)
        if before := ended(root, token):
            return before
        reporter = Reporter(root, token, secrets)
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, token.encode(), 0)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path(root, "work.log"))
            reporter.begin()
        except OSError as error:
            raise cannot(f"{os.path.join(root, FOLDER)} can't be written", error) from error
        begun = dict(reporter.status)
        child = os.fork()
        if child == 0:  # pragma: no cover - it ends in os._exit, which no tracer survives
            _leave(lock)
            reporter.beat(pid=os.getpid(), start_time=live.start_time(os.getpid()))
            os._exit(carry_out(reporter, work))
        return begun
    finally:
        # The child's copy of the descriptor holds the lock for as long as the child lives.
        os.close(lock)


def _take(lock: int) -> bool:
    """Take the lock; who looks whether it is held has it for an instant, so that it is tried."""
    patience = time.monotonic() + TAKEN_WITHIN
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience:
                return False
            time.sleep(0.01)
        else:
            return True


def _leave(lock: int) -> None:  # pragma: no cover - in the child alone
    """Leave the connection's session, and let go of all that belongs to it."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    # ssh waits until nobody holds the pipes that it gave us, whatever their numbers are.
    limit = 4096
    os.closerange(3, lock)
    os.closerange(lock + 1, limit)
    # What is run (programs.run) has it as well: one that outlives us still works in this place.
    os.set_inheritable(lock, True)
    os.chdir("/")
    signal.signal(signal.SIGTERM, _ended_by_hand)


def _ended_by_hand(number: int, _frame: object) -> None:  # pragma: no cover - in the child alone
    """End the work, and with it what it runs, as an error of its own would."""
    signal.signal(number, signal.SIG_IGN)
    for pid in _children():
        for kill in (os.killpg, os.kill):  # it leads a group, or is about to
            with contextlib.suppress(OSError):
                kill(pid, signal.SIGKILL)
    raise TrainError(
        "Provisioning was ended on the host.", "The same command goes on with it.", "ops"
    )


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        return int(stream.read().rpartition(b")")[2].split()[1])


def _children() -> list[int]:
    """The processes that this one has started and that live."""
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            if _parent(int(name)) == os.getpid():
                found.append(int(name))
    return found


def carry_out(reporter: Reporter, work: Work) -> int:
    """Do the work under a heartbeat, and leave how it ended; the exit status."""
    with _beating(reporter):
        try:
            ending: dict[str, Any] = {"state": "done", "result": dict(work(reporter))}
        except TrainError as error:
            ending = {"state": "failed", "error": reporter.error(error)}
        except Exception as error:  # a defect of ours, too, must reach the person
            reporter.say(traceback.format_exc())
            known = TrainError(
                f"Provisioning ended with {type(error).__name__}: {error}",
                f"The traceback is in {reporter.log_name} on the host.",
                "infra",
            )
            if isinstance(error, OSError) and error.errno in _DISK:
                name = error.filename2 or error.filename
                known = cannot(f"{name} can't be written" if name else "Provisioning ended", error)
            ending = {"state": "failed", "error": reporter.error(known)}
    reporter.end(**ending)
    return 0 if ending["state"] == "done" else 1


@contextlib.contextmanager
def _beating(reporter: Reporter) -> Iterator[None]:
    """Write the status again and again while the body runs, whatever that waits for."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT):
            reporter.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
