"""What a person sees of a run: a line a step, one sentence for a failure, the recap."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / d) for d in ("plugin_utils", "module_utils")]

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

from controller.argument_words import argument_error
from controller.ssh_words import fingerprints, unreachable
from controller.text import printable

DOCUMENTATION = """
name: remote_train
type: stdout
short_description: A line a step, and one sentence and one hint for a failure
description:
  - Without C(-v), steps that changed nothing and said nothing are not shown, and a failure is
    one sentence and one hint. The recap is Ansible's own.
  - With C(-v), everything is as in the callback C(default).
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - set as stdout in configuration
"""

_LIVE_ACTIONS = (
    "plan",
    "gpu_probe",
    "active_gate",
    "code_sync",
    "provision",
    "stage",
    "collect",
    "bundle",
    "restore",
    "report",
    "stop",
    "logs",
)
"""The steps that show lines while they run: their titles come first."""

_REPORTING = ("collect", "report")
"""The steps that say where a report is, which stands in the last line of all."""

_SHOWN_ACTIONS = (
    *_LIVE_ACTIONS,
    "verify_manifest",
    "apply_bundle",
    "rollback",
    "status",
)
"""The steps that have titles; the others are housekeeping."""


INTERRUPTED = (
    "Interrupted. The training goes on there: give the same command again, and it follows it and "
    "brings the results home."
)
"""What a person has to know who ends the playbook while a stage is followed.

The launcher says the same, and tells this by :data:`LAUNCHED` that it does.
"""

LAUNCHED = "REMOTE_TRAIN_LAUNCHED"
"""The environment's variable that says that the launcher has started the playbook."""

WRITTEN_WITHIN = 1.0
"""Seconds in which a worker has written a line, or has died of a signal."""


class CallbackModule(Default):  # type: ignore[misc]  # ansible-core has no types
    """Ansible's default callback with less on the screen."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "remote_train"

    def __init__(self) -> None:
        super().__init__()
        self._title = ""
        self._interrupted = False
        self._following: set[str] = set()
        self._reports: list[str] = []
        # Into a pipe, lines would otherwise arrive when the task ends: a log of a CI job must
        # show them as they come.
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    @property
    def _plain(self) -> bool:
        """Whether everything is shown as Ansible shows it."""
        return bool(self._display.verbosity)

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Remember a Ctrl-C: Ansible's handler of it is in place by now."""
        super().v2_playbook_on_start(playbook)
        before = signal.getsignal(signal.SIGINT)

        def handle(number: int, frame: FrameType | None) -> None:
            first, self._interrupted = not self._interrupted, True
            if callable(before):
                try:
                    with _nobody_writes(getattr(before, "__self__", None)):
                        before(number, frame)
                finally:
                    if first:
                        self._say_interrupted()

        if callable(before):
            signal.signal(signal.SIGINT, handle)

    def _say_interrupted(self) -> None:
        """Take the live line away, and say what goes on; nobody writes any more.

        Not by Python's stream: a signal may have come while that was being written to.
        """
        text = ""
        if self._following and not os.environ.get(LAUNCHED):
            text = f"{INTERRUPTED}\n"
        with contextlib.suppress(OSError, ValueError):
            number = sys.stdout.fileno()
            if os.isatty(number):
                text = f"\r\x1b[K{text}"
            os.write(number, text.encode())

    def _heed_interrupt(self) -> None:
        """End a run whose Ctrl-C got lost, before its next step.

        It is an exception, and Python drops one that comes up in a finalizer or in a weak
        reference's callback: the run would go on, and begin to train.
        """
        if self._interrupted:
            raise KeyboardInterrupt

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Plays are shown by the names of their steps."""
        if self._plain:
            super().v2_playbook_on_play_start(play)
        else:
            self._play = play

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """The banner of a step, at once: its live lines come below it."""
        self._heed_interrupt()
        if self._plain:
            super().v2_playbook_on_task_start(task, is_conditional)

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Say which step runs, unless it is housekeeping."""
        if task.action == "stage" and not getattr(task, "check_mode", False):
            self._following.add(str(host))
        if self._plain:
            super().v2_runner_on_start(host, task)
            return
        if task.action in _LIVE_ACTIONS:
            self._show_title(task)

    def _show_title(self, task: Any) -> None:
        title = task.get_name().rpartition(" : ")[2].strip()
        if title != self._title and task.action in _SHOWN_ACTIONS:
            self._title = title
            self._display.display(f"- {title}", color=constants.COLOR_HIGHLIGHT)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Warnings, and the lines that a step wants shown."""
        self._following.discard(str(result.host))
        report = result.result.get("report")
        if result.task.action in _REPORTING and isinstance(report, str) and report:
            self._reports.append(report)
        if self._plain:
            super().v2_runner_on_ok(result)
            return
        # A step that was skipped is known as such only now.
        self._show_title(result.task)
        self._handle_warnings_and_exception(result)
        if result.task.action.rpartition(".")[2] == "debug":
            message = result.result.get("msg", "")
            for line in message if isinstance(message, list) else [message]:
                self._display.display(printable(str(line)))

    def v2_runner_on_skipped(self, result: Any) -> None:
        """A step that isn't needed is not shown."""
        self._following.discard(str(result.host))
        if self._plain:
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """Nor is one item of a loop."""
        if self._plain:
            super().v2_runner_item_on_skipped(result)

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Nor one that was included."""
        if self._plain:
            super().v2_runner_item_on_ok(result)

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Which file a step stands in is no news to its reader."""
        if self._plain:
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """One sentence that names the thing, one hint."""
        self._following.discard(str(result.host))
        if self._plain:
            super().v2_runner_on_failed(result, ignore_errors)
            return
        answer = dict(result.result)
        self._complain(result, _sentence(answer), str(answer.get("hint") or ""))
        if ignore_errors:
            self._display.display("  The run goes on (on_stage_failure is continue).")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """The same for a host that can't be reached."""
        self._following.discard(str(result.host))
        if self._plain or result.task.ignore_unreachable:
            super().v2_runner_on_unreachable(result)
            return
        message = str(result.result.get("msg", ""))
        sentence, hint = unreachable(message, result.host.get_name())
        shown = fingerprints(message)
        self._complain(result, sentence, f"It shows {shown}. {hint}" if shown else hint)

    def _complain(self, result: Any, sentence: str, hint: str) -> None:
        host = result.host.get_name()
        prefix = "" if host == "localhost" else f"[{host}] "
        lines = [f"\nFAILED: {prefix}{sentence}", *([f"  Hint: {hint}"] if hint else [])]
        for line in lines:
            self._display.display(printable(line), color=constants.COLOR_ERROR)

    def v2_on_file_diff(self, result: Any) -> None:
        """What would be sent, without a banner of Ansible's own."""
        self._last_task_banner = result.task._uuid
        super().v2_on_file_diff(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The recap, which Molecule's idempotence step and people read; then the report."""
        super().v2_playbook_on_stats(stats)
        for path in dict.fromkeys(self._reports):
            self._display.display(printable(f"Report: {path}"), color=constants.COLOR_HIGHLIGHT)


@contextlib.contextmanager
def _nobody_writes(manager: Any) -> Iterator[None]:
    """Keep Ansible's workers from being killed while they write to the queue that all share.

    What a worker shows goes through that queue. One that dies with the queue's lock, which is in
    just that moment in which a line appears, leaves it locked, and the playbook would wait for it
    for ever: Ctrl-C would hang.

    :param manager: Ansible's task queue manager; what it lacks here is done without.
    """
    lock = getattr(getattr(manager, "_final_q", None), "_wlock", None)
    locked = bool(lock and lock.acquire(timeout=WRITTEN_WITHIN))
    try:
        yield
    finally:
        until = time.monotonic() + WRITTEN_WITHIN
        for worker in getattr(manager, "_workers", None) or []:
            # Before they are gone, they could take the lock that is let go of here.
            if worker is not None:
                worker.join(max(0.0, until - time.monotonic()))
        if lock and locked:
            lock.release()


def _sentence(answer: dict[str, Any]) -> str:
    """What failed, in one line."""
    failed = [item for item in answer.get("results") or [] if item.get("failed")]
    if failed:
        return _sentence(failed[0])
    errors = answer.get("argument_errors")
    if errors:
        return argument_error([str(error) for error in errors])
    text = str(answer.get("msg") or "a step failed without a word; -v shows more").strip()
    return text.removeprefix("Task failed: ").removeprefix("Action failed: ")
