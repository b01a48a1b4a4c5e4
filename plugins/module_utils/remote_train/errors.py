"""The one exception that a user sees as a sentence and a hint."""

from __future__ import annotations


class TrainError(Exception):
    """Something the user can act on: one sentence that names the thing, one hint that helps.

    Modules and action plugins turn it into a failed result; nothing else is caught there, so
    that a defect of ours keeps its traceback.

    :param message: one sentence that names what is wrong.
    :param hint: what to do about it; empty when the sentence says it all.
    :param category: one of the categories of ``issues.jsonl`` (see :mod:`issues`).
    """

    def __init__(self, message: str, hint: str = "", category: str = "ops") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.category = category

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()
