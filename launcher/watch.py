"""What the events of a playbook say about how it went, as an exit status."""

from __future__ import annotations

from typing import Any

DONE, FAILED, WRONG, UNREACHABLE, INTERRUPTED = range(5)
"""The exit statuses (design brief, section 9)."""

REQUEST_ACTIONS = (
    "settings",
    "ansible.builtin.validate_argument_spec",
    "ansible.builtin.assert",
)
"""A failure of one of these means that the request was wrong."""

REQUEST_CATEGORIES = ("data", "ops")
"""A failed plan of one of these found the project's files wrong; of another one, the host."""

ANSIBLE_REFUSED = (4, 5)
"""What ansible-playbook exits with when it can't read its input (4, without a host that is
unreachable) or its options (5)."""

FOLLOWING = ("stage", "logs")
"""The actions that look on while a training runs."""

ENDS = ("runner_on_ok", "runner_on_failed", "runner_on_skipped", "runner_on_unreachable")
"""The events that end a task on a host."""


class Watch:
    """Remembers of the events what the exit status depends on."""

    def __init__(self) -> None:
        self.pid: int | None = None
        """The playbook's process, once it has said anything."""
        self._following: set[str] = set()
        self._changed = False
        self._request_was_wrong = False
        self._unreachable = False

    def __call__(self, event: dict[str, Any]) -> bool:
        """Look at one event; False keeps ansible-runner from writing it to a file."""
        self.pid = event.get("pid") or self.pid
        data = event.get("event_data") or {}
        name, action = event.get("event"), data.get("task_action")
        if name == "runner_on_start" and action in FOLLOWING:
            self._following.add(str(data.get("host")))
        elif name in ENDS:
            self._following.discard(str(data.get("host")))
            self._result(str(name), str(action), data)
        return False

    def _result(self, name: str, action: str, data: dict[str, Any]) -> None:
        """Look at how a task ended."""
        result = data.get("res") or {}
        if name == "runner_on_unreachable" or result.get("unreachable_host"):
            self._unreachable = True
        elif name == "runner_on_failed" and not data.get("ignore_errors"):
            self._request_was_wrong |= self._is_about_the_request(action, result)
        self._changed |= bool(result.get("changed"))

    def _is_about_the_request(self, action: str, result: dict[str, Any]) -> bool:
        """Whether a failure says that the request was wrong."""
        if action in REQUEST_ACTIONS:
            return True
        wrong_files = action == "plan" and result.get("category") in REQUEST_CATEGORIES
        return wrong_files and not self._changed

    @property
    def in_stage(self) -> bool:
        """Whether a stage is being started or followed on some host."""
        return bool(self._following)

    def status(self, return_code: int, interrupted: bool = False) -> int:
        """The exit status of the whole command.

        :param return_code: ansible-playbook's own.
        :param interrupted: whether the person stopped it before its end.
        """
        if return_code == 0:
            return DONE
        if interrupted:
            return INTERRUPTED if self.in_stage else FAILED
        if self._unreachable:
            return UNREACHABLE
        wrong = self._request_was_wrong or return_code in ANSIBLE_REFUSED
        return WRONG if wrong else FAILED
