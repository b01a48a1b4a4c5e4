"""The base of this project's action plugins."""

from __future__ import annotations

import os
import secrets
import shlex
import time
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from remote_train.errors import TrainError
from remote_train.problems import RefusedError

from .progress import PLAIN_EVERY, Line
from .text import fitting, printable

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
"""This project's own folder: the checkout, or wherever it is installed."""

Result = dict[str, Any]


class GaveUpError(TrainError):
    """The host could not be reached, or not again."""


class HostRefusedError(TrainError):
    """The host refused something for more than one reason.

    :param problems: the reasons, as the module gives them; the first one is in the message.
    :param count: of all reasons.
    """

    def __init__(self, error: TrainError, problems: list[Result], count: int) -> None:
        super().__init__(error.message, error.hint, error.category)
        self.problems = problems
        self.count = count


OTHERS = 9
"""How many reasons are shown beside the first one."""


def others_of(error: TrainError) -> list[str]:
    """The reasons for a refusal that its message doesn't hold, a line each."""
    if isinstance(error, HostRefusedError):
        problems, count = [str(one.get("message")) for one in error.problems], error.count
    elif isinstance(error, RefusedError):
        problems, count = [one.message for one in error.problems.items], error.problems.count
    else:
        return []
    shown = problems[1 : 1 + OTHERS]
    rest = count - 1 - len(shown)
    return shown + ([f"and {rest:,} more"] if rest > 0 else [])


def failed(error: TrainError) -> Result:
    """The result that an error ends in; it says so where the host is not to be reached."""
    result: Result = {
        "failed": True,
        "msg": error.message,
        "hint": error.hint,
        "category": error.category,
    }
    if isinstance(error, GaveUpError):
        result["unreachable_host"] = True
    return result


class TrainAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """An action that ends in one sentence and a hint when the user can do something about it."""

    _supports_check_mode = True
    _supports_async = False
    _supports_diff = True
    _columns = 0

    def act(self, task_vars: Result) -> Result:
        """What the action does; its result."""
        raise NotImplementedError

    def run(self, tmp: Any = None, task_vars: Result | None = None) -> Result:
        """Run :meth:`act`, and turn its one kind of error into a failed result."""
        result: Result = super().run(tmp, task_vars)
        try:
            result.update(self.act(task_vars or {}))
        except TrainError as error:
            result.update(failed(error))
            for text in others_of(error):
                self.say(f"  also: {text}")
        return result

    @property
    def check(self) -> bool:
        """Whether nothing may be changed."""
        return bool(self._task.check_mode)

    @property
    def verbose(self) -> bool:
        """Whether the person asked for more with ``-v``."""
        return bool(Display().verbosity)

    def argument(self, name: str, default: Any = None) -> Any:
        """One of the task's arguments."""
        return self._task.args.get(name, default)

    def setting(self, name: str, task_vars: Result) -> str:
        """A setting that the request doesn't hold: what is secret is in no result."""
        return str(self._templar.template(task_vars.get(name) or ""))

    def call(self, module: str, arguments: Mapping[str, Any], task_vars: Result) -> Result:
        """Run a module on the host: one round trip.

        :raises TrainError: when it failed, with its own sentence.
        :raises AnsibleConnectionFailure: when the host can't be reached.
        """
        result: Result = self._execute_module(
            module_name=module, module_args=dict(arguments), task_vars=task_vars
        )
        if result.get("unreachable"):
            raise AnsibleConnectionFailure(str(result.get("msg", "the host is unreachable")))
        if result.get("failed"):
            if "deserialization failed" in str(result.get("msg")):
                python = task_vars.get("ansible_python_interpreter", "the one that was found")
                raise TrainError(
                    f"The Python that Ansible uses on the host ({python}) doesn't work.",
                    "Name one that does, 3.9 or newer, with ansible_python_interpreter.",
                    "infra",
                )
            error = TrainError(
                str(result.get("msg") or f"The module {module} failed on the host."),
                str(result["hint"] if "hint" in result else _words(result)),
                str(result.get("category") or "infra"),
            )
            problems = result.get("problems") or []
            raise (
                HostRefusedError(error, problems, int(result["problem_count"]))
                if problems
                else error
            )
        return result

    def shell(self, words: list[str], stdin: bytes = b"", writes: str = "") -> str:
        """Run one program on the host; what it printed.

        ssh takes nothing but a shell's line: all words are quoted.

        :param stdin: what it reads.
        :param writes: the place that it writes to; the last word by default.
        :raises TrainError: when it fails.
        """
        answer: Result = self._low_level_execute_command(
            shlex.join(words), sudoable=False, in_data=stdin or None
        )
        if answer["rc"] != 0:
            said = str(answer["stderr"]).strip().splitlines()[-1:] or ["no word"]
            raise TrainError(
                f"{words[0]} failed on the host: {said[0]}",
                f"Check that {writes or words[-1]} can be written by this user and has room.",
                "infra",
            )
        return str(answer["stdout"])

    def read(self, line: str, what: str, hint: str) -> str:
        """What a shell command prints that reads something on the host.

        :param what: the beginning of the sentence, when that fails.
        :raises TrainError: when it fails.
        """
        answer: Result = self._low_level_execute_command(
            line, sudoable=False, encoding_errors="surrogateescape"
        )
        if answer["rc"] != 0:
            words = str(answer["stderr"]).strip().splitlines()[-1:] or ["no word"]
            raise TrainError(f"{what} can't be read on the host: {words[0]}", hint, "infra")
        return str(answer["stdout"])

    def line_for(self, task_vars: Result, first_after: float = PLAIN_EVERY) -> Line:
        """Where progress is shown; lines begin with the host's name where several hosts write.

        :param first_after: seconds before the first plain line.
        """
        several = len(task_vars.get("ansible_play_hosts") or []) > 1
        host = str(task_vars.get("inventory_hostname")) if several else ""
        rewrite = self.rewrite if can_rewrite(task_vars) else None
        self._columns = int(task_vars.get("controller_columns") or 0)
        return Line(self.say, rewrite, host, first_after)

    def say(self, text: str, **options: Any) -> None:
        """Show lines to the person."""
        Display().display(printable(text), **options)

    def rewrite(self, text: str) -> None:
        """Show a line in place of the one before it; on a real terminal only.

        What is wider than the terminal is cut: a line that wraps can't be taken back.
        """
        shown = fitting(printable(text), self._columns - 1) if self._columns else printable(text)
        Display().display(f"\r{shown}\x1b[K", newline=False, screen_only=True)

    def draw_page(self, home: str, run: str, language: str) -> str:
        """Draw the page of a run at home; its path.

        A page that can't be drawn is no reason for a run to fail: it is a warning, and the path
        is empty. It can be drawn again from the same files at any time.
        """
        try:
            # Its libraries take a moment to load, which every other step can do without.
            from .report.page import write_page  # noqa: PLC0415

            return write_page(home, run, language)
        except Exception as error:
            self.warn(
                f"The page of {run} was not drawn: {error}. Its files are in "
                f"{os.path.join(home, 'training_sync', run)}; `remote-train report` tries again."
            )
            return ""

    def warn(self, text: str) -> None:
        """Show a warning to the person."""
        Display().warning(printable(text))


def _words(result: Result) -> str:
    """What a module that broke printed, shortened to its last line."""
    # Ansible makes an object of a module's exception, which holds its words.
    event = getattr(result.get("exception"), "event", None)
    if event is not None:
        return str(event.msg)
    for key in ("exception", "module_stderr", "module_stdout"):
        lines = str(result.get(key) or "").strip().splitlines()
        if lines:
            return lines[-1]
    return ""


def warnings_of(result: Result) -> list[str]:
    """What a module warned of, which Ansible shows by itself for a task of its own only."""
    # Ansible makes an object of each warning, as of an exception.
    found = result.get("warnings") or []
    return [str(getattr(getattr(one, "event", None), "msg", one)) for one in found]


def can_rewrite(task_vars: Mapping[str, Any]) -> bool:
    """Whether a line can be rewritten in place: a person's terminal, and nobody asked for plain.

    The terminal is known from a variable (plugins/vars/environment.py), since an action runs in
    a worker process that has none.
    """
    return bool(task_vars.get("controller_terminal")) and not os.environ.get("NO_COLOR")


def new_token() -> str:
    """A token that names one start of a stage."""
    return f"{int(time.time())}-{secrets.token_hex(8)}"
