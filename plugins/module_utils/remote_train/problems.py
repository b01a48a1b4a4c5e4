"""Reasons to refuse something, collected: the first thousand kept, all counted."""

from __future__ import annotations

from typing import Any, NamedTuple

from .errors import TrainError
from .file_names import shown

MAX_REPORTED = 1_000


class Problem(NamedTuple):
    """One reason to refuse: the rule's stable identifier, and a sentence.

    :param line: of the manifest, from 1; None where no line is to blame.
    :param path: the file's name, made printable; empty where none is to blame.
    """

    line: int | None
    path: str
    problem: str
    message: str


class Problems:
    """The first 1,000 problems, and the count of all of them."""

    def __init__(self) -> None:
        self.items: list[Problem] = []
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self.count)

    def add(self, problem: str, message: str, line: int | None = None, name: str = "") -> None:
        """Count one more problem, and keep it while there is room."""
        self.count += 1
        if len(self.items) < MAX_REPORTED:
            at = f"line {line}: " if line else ""
            self.items.append(Problem(line, shown(name), problem, at + message))

    def summary(self, subject: str) -> str:
        """One sentence: how many problems ``subject`` has, and the first of them."""
        if self.count == 1:
            return f"{subject} has 1 problem: {self.items[0].message}"
        return f"{subject} has {self.count} problems; the first: {self.items[0].message}"


class RefusedError(TrainError):
    """Something was refused; :attr:`problems` holds every reason."""

    def __init__(
        self, subject: str, problems: Problems, hint: str = "", category: str = "integrity"
    ) -> None:
        super().__init__(problems.summary(subject), hint, category)
        self.problems = problems


def refused(
    subject: str, problem: str, message: str, hint: str = "Nothing was applied.", name: str = ""
) -> RefusedError:
    """The error for one reason to refuse ``subject``."""
    problems = Problems()
    problems.add(problem, message, name=name)
    return RefusedError(subject, problems, hint)


def failure(error: TrainError) -> dict[str, Any]:
    """What a module that ends in ``error`` returns; of a refusal, every reason that was kept."""
    result: dict[str, Any] = {
        "msg": error.message,
        "hint": error.hint,
        "category": error.category,
    }
    if isinstance(error, RefusedError):
        result["problems"] = [problem._asdict() for problem in error.problems.items]
        result["problem_count"] = error.problems.count
    return result
