"""End the stage that runs in a project, and nothing else.

The supervisor does it: it gets TERM, passes it on to the training, kills the training after the
grace time, and leaves the record as for any other end. So a connection that breaks in between
changes nothing. Where the supervisor is dead and its training lives, all that is done from here.

A process is known by number, start time and boot (``live.identity``): one that isn't the one on
record is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import handover, live, stage_record, stop_request
from .errors import TrainError
from .processes import is_process, send, send_group, wait

CHILD_WITHIN = 5.0
"""Seconds in which a stage that has just begun says which process trains."""

KILLED_WITHIN = 5.0
"""Seconds beyond the grace time that a supervisor has for killing by itself."""

SAID_WITHIN = 60.0
"""Seconds from the training's end in which its supervisor must have said how it ended."""

START_WITHIN = 900.0
"""Seconds that a start which is under way is waited for: a base model may be hashed in it."""

LOOK_AGAIN = 0.2
"""Seconds between two looks whether it has ended."""


def stop(root: str, by: str, call: str, grace: float, check: bool = False) -> dict[str, Any]:
    """End the stage that runs in ``root``, and wait until it has ended.

    :param by: who asks for it, for the record.
    :param call: what names this call: made again after its answer was lost, it finds its end.
    :param grace: seconds that the training has to end by itself; then it is killed.
    :param check: only say what would be ended.
    :returns: ``state`` (``nothing`` where nothing runs; with ``check`` ``running``, or
        ``starting`` where a start is under way, which is waited for without it; else
        ``stopped``, or ``done`` or ``failed`` where the stage ended by itself meanwhile),
        ``stage``, ``run``, ``pid`` (of the supervisor), ``log``, ``killed``, ``seconds`` and
        ``left``, the processes that the stage has left behind; and ``waited``, the process number
        of a supervisor that waited for the next stage and was ended, or None.
    :raises TrainError: where the process on record isn't there, may not be signalled, or doesn't
        end. Nothing else is hit.
    """
    began = time.monotonic()
    status = live.running(root)
    if status is None:
        status, answer = _after_a_start(root, call, check)
        if status is None:
            return answer
    if status.get("state") != "running":
        return {**_answer("nothing", {}), "left": list(status.get("left") or [])}
    if check:
        return _answer("running", status)
    status = _with_child(root, status)
    child = status.get("child") or {}
    if not (is_process(status) or is_process(child)):
        raise _foreign(root, status)
    stop_request.leave(root, status["token"], by, call, grace)
    try:
        _end(root, status, child, grace)
    except PermissionError as error:
        raise TrainError(
            f"The stage {status.get('stage')} is another user's on the host: process "
            f"{status.get('pid')} can't be stopped.",
            "Log in as the user that has started it.",
        ) from error
    ended_as = live.read_json(live.path(root, "status.json"))
    left = (
        [] if wait(lambda: not live.is_held(root), live.SETTLED_WITHIN) else live.lock_holders(root)
    )
    # A supervisor that has stopped its stage ends, and with it a worker that would wait.
    wait(lambda: handover.waiting(root) is None, SAID_WITHIN)
    seconds = round(time.monotonic() - began, 1)
    return {**_answer(_state(ended_as), ended_as), "left": left, "seconds": seconds}


def _end(root: str, status: dict[str, Any], child: Mapping[str, Any], grace: float) -> None:
    """Ask the stage to end, kill its training where it doesn't, and see to its record."""
    over: Callable[[], bool]
    if is_process(status):

        def over() -> bool:
            gone = not is_process(status)  # looked at first: its last word comes before its end
            return _has_ended(root, status) or gone

        send(status, signal.SIGTERM)
        ended = wait(over, grace + KILLED_WITHIN)
    else:

        def over() -> bool:
            return not is_process(child)

        send_group(child, signal.SIGTERM)
        ended = wait(over, grace)
    killed = not ended and send_group(child, signal.SIGKILL)
    if not wait(over, SAID_WITHIN):
        raise TrainError(
            f"The stage {status.get('stage')} was asked to end, and process {status.get('pid')} "
            f"hasn't said in {SAID_WITHIN:.0f} s that it has.",
            f"Look into {live.path(root, 'supervisor.log')} on the host: its disk may be full.",
            "infra",
        )
    if not _has_ended(root, status):
        # Its supervisor is dead: whatever it has left of the training ends now.
        send_group(child, signal.SIGTERM)
        if not wait(lambda: not is_process(child), grace):
            killed = send_group(child, signal.SIGKILL)
            wait(lambda: not is_process(child), KILLED_WITHIN)
        _settle(root, status, killed)


def _answer(state: str, status: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "state": state,
        "stage": str(status.get("stage") or ""),
        "run": str(status.get("run") or ""),
        "pid": status.get("pid"),
        "log": str(status.get("log") or ""),
        "killed": bool((status.get("stopped") or {}).get("killed")),
        "seconds": 0.0,
        "left": [],
        "waited": None,
    }


def _after_a_start(
    root: str, call: str, check: bool
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Nothing runs as yet: what a start that is under way has started, else None and the answer.

    A start may take minutes before its stage runs, so that nothing runs is known only while
    every start is held back. Nothing is made where nothing was ever started.
    """
    deadline = time.monotonic() + START_WITHIN
    while os.path.exists(live.path(root, "start.lock")):
        with _no_start(root) as free:
            if free:
                status = live.running(root)
                waited = None if check or status is not None else _end_waiting(root)
                return status, {**_ended_before(root, call), "waited": waited}
        if check:
            return None, _answer("starting", {})
        if time.monotonic() > deadline:
            raise TrainError(
                f"A start is under way in {root} for over {START_WITHIN:.0f} s, and no stage "
                "runs yet: nothing was stopped.",
                f"Give the same command again; see what holds {live.path(root, 'start.lock')}.",
                "infra",
            )
        time.sleep(LOOK_AGAIN)
    return None, _ended_before(root, call)


@contextlib.contextmanager
def _no_start(root: str) -> Iterator[bool]:
    """Hold back every start, if none is under way; whether that is so."""
    with contextlib.ExitStack() as stack:
        try:
            free = stack.enter_context(live.starting(root, wait=False))
        except PermissionError as error:
            raise TrainError(
                f"{live.path(root, 'start.lock')} is another user's: whether a start is under way "
                "can't be seen, and nothing was stopped.",
                "Log in as the user that has started it.",
            ) from error
        yield free


def _end_waiting(root: str) -> int | None:
    """End a supervisor that waits for the next stage; its number, None where there is none.

    The caller holds back every start.

    :raises TrainError: where it doesn't end: then its worker still has the GPU.
    """
    facts = handover.waiting(root)
    if facts is None:
        return None
    if not handover.end(root):
        raise TrainError(
            f"No stage runs in {root}, and the supervisor that waits there for the next one "
            f"(process {facts.get('pid')}) was asked to end and doesn't: its worker holds the GPU.",
            f"End it on the host: it holds {live.path(root, handover.LOCK)}.",
            "infra",
        )
    pid = facts.get("pid")
    return pid if isinstance(pid, int) else None


def _state(status: Mapping[str, Any]) -> str:
    return "stopped" if status.get("stopped") else str(status.get("state"))


def _ended_before(root: str, call: str) -> dict[str, Any]:
    """Nothing runs: because of this very call, whose answer was lost, or because nothing did."""
    status = live.read_json(live.path(root, "status.json"))
    note = stop_request.read(root, str(status.get("token")))
    if note.get("call") == call and status.get("state") in live.ENDED:
        return _answer(_state(status), status)
    return _answer("nothing", {})


def _with_child(root: str, status: dict[str, Any]) -> dict[str, Any]:
    """The status with the process that trains, which the supervisor starts at once.

    Before that, TERM would end the supervisor itself, and nobody would write down what happened.
    """
    token = status.get("token")

    def says() -> bool:
        news = live.read_json(live.path(root, "status.json"))
        if news.get("token") == token:
            status.update(news)
        return bool(status.get("child")) or status.get("state") != "running"

    wait(says, CHILD_WITHIN)
    return status


def _has_ended(root: str, status: Mapping[str, Any]) -> bool:
    news = live.read_json(live.path(root, "status.json"))
    return news.get("token") != status.get("token") or news.get("state") in live.ENDED


def _settle(root: str, status: Mapping[str, Any], killed: bool) -> None:
    """Leave the record that a dead supervisor can't leave; no lock, no record."""
    token = str(status.get("token"))
    note = stop_request.read(root, token)
    if not wait(lambda: stage_record.close(root, token, note, killed), live.SETTLED_WITHIN):
        raise TrainError(
            f"The training of {status.get('stage')} was ended, and something that it started is "
            f"still running on the host: {', '.join(live.lock_holders(root))}.",
            f"End it there: it holds {live.path(root, 'lock')}.",
        )


def _foreign(root: str, status: Mapping[str, Any]) -> TrainError:
    """The lock is held, and by none of the processes that the stage has had."""
    holders = ", ".join(live.lock_holders(root)) or "a process of another user or machine"
    return TrainError(
        f"The process {status.get('pid')} that is on record for {status.get('stage')} isn't there "
        f"any more, and {live.path(root, 'lock')} is held on the host by {holders}. Nothing was "
        "stopped.",
        "End what holds the lock there, if it is yours.",
    )
