"""Follow a running stage over a connection that may break.

One command stays on the host and prints the status and the log's new bytes again and again, or,
where the connection can't be read from meanwhile, a short command does so once: a module call
would cost the host ten times as much. Success is what the status says, never how a command ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from remote_train import live
from remote_train.errors import TrainError

if TYPE_CHECKING:
    from .watch import Watch

POLL_SECONDS = (0.3, 3.0)
"""The time from one poll to the next: the first one, and the longest that it grows to."""

LOG_CHUNK = 256 * 1024
"""The most new bytes of the log that one poll brings."""

NEWEST = 8 * 1024
"""The most of them where nobody reads the log as it comes, and its last lines are enough."""

MISSED_BYTES = 64 * 1024
"""The most that is brought of what came to the log while nobody followed it."""

MISSED_LINES = 100
"""The most lines that are shown of that."""

MARK = "\x1d"
"""What stands before the status: a host's login files may print a banner in front of it."""

SEPARATOR = "\x1e"
"""What stands between the status and the log: a control character that JSON escapes."""

SILENT_AFTER = 60.0
"""Seconds without a heartbeat, or without an answer that can be read, before one gives up."""


class Poll(NamedTuple):
    """What one poll has brought."""

    status: dict[str, Any]
    fresh: bytes
    """New bytes of the log."""
    start: int
    """Where in the log they begin."""

    @property
    def end(self) -> int:
        """Up to where the log is known."""
        return self.start + len(self.fresh)


def poll_command(
    status: str, log: str, offset: int, newest: bool = False, wait: tuple[str, float] = ("", 0)
) -> str:
    """The shell command that prints status and new log bytes, once.

    All paths come from the request and are quoted; ssh takes nothing but a shell's line.

    :param newest: leave out all but the last of the new bytes, in place of all but the first.
    :param wait: a lock's file and seconds: first wait for whoever holds it to let go of it, for
        that long at the most. It is what the end of a stage is seen by at once. Where there is no
        flock(1), there is no wait.
    """
    lock, seconds = shlex.quote(wait[0]), wait[1]
    waits = f"[ ! -f {lock} ] || flock -s -w {seconds:.1f} {lock} true 2>/dev/null; "
    return f"{waits if seconds else ''}o={offset}; {_answer(status, log, newest)}"


def watch_command(
    status: str, log: str, offset: int, newest: bool, lock: str, waits: Sequence[float]
) -> str:
    """The shell command that goes on printing what polls would bring, until ``lock`` is free.

    A session of its own for each poll costs the host a login shell each time, and that reads
    whatever its user has put into its start files; a round in here costs four small programs.

    It is one program after the other: ``r`` is a round, ``e`` says that the lock was free and so
    this round is the last, ``m`` that there is more of the log, ``f`` that flock(1) can wait.

    :param waits: seconds that the first rounds wait for the lock; the last is every later one's.
    """
    held, looked = shlex.quote(lock), shlex.quote(status)
    more = "" if newest else f"m=; [ $((s-o)) -lt {LOG_CHUNK} ] || m=1; "
    first = " ".join(f"{seconds:.1f}" for seconds in waits)
    return (
        # Some have a flock(1) that can't wait for a time: a status isn't locked by anybody.
        f"f=; [ -f {looked} ] && flock -s -w 1 {looked} true 2>/dev/null && f=1; "
        f"o={offset}; m=; "
        "r() { e=; "
        "if [ $1 = 0.0 ] || [ $m ]; then :; "
        f"elif [ $f ] && [ -f {held} ]; then "
        f"flock -s -w $1 {held} true 2>/dev/null; case $? in 0) e=1;; 1) ;; *) f=;; esac; "
        "else sleep $1 2>/dev/null || sleep 1 || exit 1; fi; "
        f"{{ {_answer(status, log, newest)}; }} || exit 1; "
        f"{more}o=$s; [ ! $e ] || exit 0; }}; "
        f"for w in {first}; do r $w; done; while :; do r $w; done"
    )


def _answer(status: str, log: str, newest: bool) -> str:
    """The part of a command that prints status and log bytes from ``$o`` on; sets ``s``."""
    shown, read = shlex.quote(status), shlex.quote(log)
    # What has come in its place, its supervisor replaces; no folder, no supervisor.
    folder = shlex.quote(os.path.dirname(status))
    said = f"cat {shown} || {{ [ -d {folder} ] && printf 'no status'; }}"
    # Bytes from o up to s.
    cut = (
        f"[ $((s-o)) -le {NEWEST} ] || o=$((s-{NEWEST}))"
        if newest
        else f"[ $((s-o)) -le {LOG_CHUNK} ] || s=$((o+{LOG_CHUNK}))"
    )
    return (
        f"printf '\\035' && {{ {said}; }} && s=$o && "
        f"if [ -f {read} ]; then s=$(wc -c < {read}) && {{ [ $s -ge $o ] || s=$o; }} && "
        f"{{ {cut}; }}; fi && printf '\\036%d\\036%d\\036' $o $((s-o)) && "
        f"{{ [ $s -eq $o ] || tail -c +$((o+1)) {read} | head -c $((s-o)); }}"
    )


_NUMBER = "[0-9]{1,18}"
_HEAD = re.compile(rb"\x1d[^\x1d\x1e]*\x1e([0-9]{1,18})\x1e([0-9]{1,18})\x1e")


def first_answer(printed: bytes) -> tuple[bytes, bytes] | None:
    """The first whole answer in what has been printed so far, and what comes after it."""
    head = _HEAD.search(printed)
    if head is None:
        return None
    end = head.end() + int(head[2])
    return (printed[head.start() : end], printed[end:]) if len(printed) >= end else None


def parse_answer(text: str) -> Poll:
    """What the command printed.

    :raises ValueError: where it isn't what the command prints, or not all of it.
    """
    _banner, mark, printed = text.partition(MARK)
    head, separator, rest = printed.partition(SEPARATOR)
    start, second, rest = rest.partition(SEPARATOR)
    count, third, tail = rest.partition(SEPARATOR)
    fresh = tail.encode("utf-8", "surrogateescape")
    numbers = all(re.fullmatch(_NUMBER, number) for number in (start, count))
    if not (mark and separator and second and third and numbers and len(fresh) == int(count)):
        raise ValueError("no status and no log")
    status = json.loads(head)
    if not isinstance(status, dict):
        raise ValueError("no status")
    return Poll(status, fresh, int(start))


def polls(
    run: Callable[[str], str],
    root: str,
    status: Mapping[str, Any],
    offset: int = 0,
    newest: bool = False,
    watch: Watch | None = None,
) -> Iterator[Poll]:
    """Ask again and again, until the stage has ended and all of its log is here.

    The last poll holds the end, or the status of another start: then that one has ended, and
    something else has been started since. The log is still that of the stage that was followed.

    :param run: runs a shell command on the host; it sees to cuts by itself.
    :param status: what is known of the stage: ``token``, ``stage``, ``log``.
    :param offset: from where on the log is wanted.
    :param newest: whether the log's last lines are enough.
    :param watch: has one command answer again and again, where the connection lets it.
    :raises TrainError: where the host says nothing new, or nothing that can be read, for long.
    """
    token, stage = status.get("token"), str(status.get("stage"))
    more = False
    beat, seen = status.get("heartbeat"), time.monotonic()
    unreadable_since: float | None = None
    questions = _Questions(run, root, status, newest, watch)
    with watch or contextlib.nullcontext():
        while True:
            text = questions.ask(offset, more)
            try:
                poll = parse_answer(text)
            except ValueError:
                unreadable_since = unreadable_since or time.monotonic()
                if time.monotonic() - unreadable_since > SILENT_AFTER:
                    raise _unreadable(stage, text) from None
                more = False
            else:
                unreadable_since = None
                offset = poll.end
                more = not newest and len(poll.fresh) >= LOG_CHUNK
                yield poll
                over = poll.status.get("token") != token or poll.status.get("state") != "running"
                if over and not more:
                    return
                if poll.status.get("heartbeat") != beat:
                    beat, seen = poll.status.get("heartbeat"), time.monotonic()
                elif time.monotonic() - seen > SILENT_AFTER:
                    raise _silent(stage)
            if not more:
                questions.pause()


class _Questions:
    """What is asked of the host, of the command that stays or by one of its own, and when."""

    def __init__(
        self,
        run: Callable[[str], str],
        root: str,
        status: Mapping[str, Any],
        newest: bool,
        watch: Watch | None,
    ) -> None:
        self._run = run
        self._path, self._lock = live.path(root, "status.json"), live.path(root, "lock")
        self._log = os.path.join(root, str(status.get("log", "")))
        self._newest = newest
        self._watch = watch
        self._wait = 0.0
        self._asked = 0.0

    def ask(self, offset: int, at_once: bool) -> str:
        """The next answer: after the wait that it is time for, unless there is more ``at_once``."""
        self._asked = time.monotonic()
        wait = 0 if at_once else self._wait
        if self._watch is not None:
            waits = [wait, *_growing(self._wait), POLL_SECONDS[1]]
            text = self._watch.answer(
                watch_command(self._path, self._log, offset, self._newest, self._lock, waits)
            )
            if text is not None:
                return text
        return self._run(
            poll_command(self._path, self._log, offset, self._newest, (self._lock, wait))
        )

    def pause(self) -> None:
        """Wait for what the host hasn't waited for by itself; the next wait is longer."""
        if self._watch is None or not self._watch.open:
            time.sleep(max(0.0, self._wait - (time.monotonic() - self._asked)))
        self._wait = _longer(self._wait)


def _longer(wait: float) -> float:
    return min(wait * 1.3, POLL_SECONDS[1]) if wait else POLL_SECONDS[0]


def _growing(wait: float) -> Iterator[float]:
    """What comes after ``wait``, before the longest."""
    while (wait := _longer(wait)) < POLL_SECONDS[1]:
        yield wait


def missed_command(log: str, offset: int) -> str:
    """The shell command that prints the end of what has come to a log since ``offset``."""
    read = shlex.quote(log)
    return (
        f"o={offset}; n=0; s=$(wc -c < {read}) && {{ [ $s -ge $o ] || o=0; }} && "
        f"if [ $((s-o)) -gt {MISSED_BYTES} ]; then "
        f"n=$(tail -c +$((o+1)) {read} | head -c $((s-o-{MISSED_BYTES})) | wc -l); "
        f"o=$((s-{MISSED_BYTES})); fi && "
        f"printf '\\035%d\\036%d\\036' $n $o && tail -c +$((o+1)) {read} | head -c $((s-o))"
    )


class Missed(NamedTuple):
    """What came to a log while nobody followed it."""

    left_out: int
    """Lines that came before."""
    text: bytes
    end: int
    """Up to where in the log it goes."""


def parse_missed(text: str, offset: int) -> Missed:
    """What :func:`missed_command` printed, cut to the lines that are shown.

    :raises ValueError: where it isn't what the command prints.
    """
    _banner, mark, printed = text.partition(MARK)
    count, first, rest = printed.partition(SEPARATOR)
    start, second, tail = rest.partition(SEPARATOR)
    if not (mark and first and second):
        raise ValueError("no end of a log")
    left_out, begins = int(count), int(start)
    content = tail.encode("utf-8", "surrogateescape")
    end = begins + len(content)
    if begins > offset:
        # It begins somewhere in a line.
        _, newline, content = content.partition(b"\n")
        left_out += len(newline)
    lines = content.split(b"\n")
    surplus = max(0, len(lines) - 1 - MISSED_LINES)
    return Missed(left_out + surplus, b"\n".join(lines[surplus:]), end)


def _silent(stage: str) -> TrainError:
    return TrainError(
        f"The supervisor of {stage} has given no sign of life for {SILENT_AFTER:.0f} s.",
        "It was killed, the disk is full, or the host hangs: playbooks/status.yml says more. Then "
        "give the same command again.",
        "infra",
    )


def _unreadable(stage: str, text: str) -> TrainError:
    first = text.strip().splitlines()[:1] or [""]
    return TrainError(
        f"What the host says of {stage} could not be read for {SILENT_AFTER:.0f} s; "
        f"it begins with {first[0][:60]!r}.",
        "See what the login shell prints there, and outputs/training_sync/live; then give "
        "the same command again.",
        "infra",
    )
