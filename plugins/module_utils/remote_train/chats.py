"""Check files of chats before a GPU is paid for: the same rules on the controller and the host.

A chat is one JSON line with ``id`` and ``messages``. What passes here is what the training reads
without complaint; blank lines and a byte-order mark are passed over, as there.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

#: What a file is for: ``train`` needs an assistant's turn to learn from, ``evaluate`` a user's
#: turn to answer.
PURPOSES = ("train", "evaluate")

#: What is said of a file without a chat: of no byte, and of blank lines.
EMPTY = ("it is empty", "it holds nothing but blank lines")

#: How many problems of a file are told one by one; all are counted.
MOST_PROBLEMS = 20

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Problem:
    """What is wrong, where; ``line`` counts from 1 and is None for the file as a whole."""

    file: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        """The sentence a person reads, such as ``data/x.jsonl, line 7: it has no id.``."""
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.reason}."

    def as_dict(self) -> dict[str, Any]:
        """For a module's result."""
        return {"file": self.file, "line": self.line, "reason": self.reason}


@dataclass
class FileReport:
    """What a check of one file found.

    ``problems`` holds the first :data:`MOST_PROBLEMS`, ``problem_count`` counts all.
    ``chats`` counts the chats that are sound, ``lines`` all lines that aren't blank; ``digest``
    is ``sha256:...`` of the file's bytes, empty where it couldn't be read.
    ``questions`` holds each sound chat's line and its user turns, folded (see :func:`fold`).
    ``longest`` is the size of the longest sound chat in bytes of text (see :func:`text_size`),
    ``longest_line`` its line; both 0 where there is none.
    """

    file: str
    problems: list[Problem] = field(default_factory=list)
    problem_count: int = 0
    lines: int = 0
    chats: int = 0
    digest: str = ""
    ids: dict[str, int] = field(default_factory=dict)
    questions: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    longest: int = 0
    longest_line: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is nothing to complain of."""
        return self.problem_count == 0

    def add(self, line: int | None, reason: str) -> None:
        """Count a problem, and keep it while it is among the first."""
        self.problem_count += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(self.file, line, reason))

    def facts(self) -> dict[str, Any]:
        """For a module's result: everything but the chats' text."""
        return {
            "file": self.file,
            "lines": self.lines,
            "chats": self.chats,
            "digest": self.digest,
            "longest": self.longest,
            "longest_line": self.longest_line,
            "problem_count": self.problem_count,
            "problems": [problem.as_dict() for problem in self.problems],
        }


def check_file(path: str, shown_name: str, *purposes: str) -> FileReport:
    """Check one file of chats, reading it once.

    :param path: where it lies.
    :param shown_name: what messages call it: its path in the training project.
    :param purposes: what the file is for, of :data:`PURPOSES`; ``train`` when none is given.
    :returns: a report; this function raises nothing for what the file is or holds.
    """
    report = FileReport(shown_name)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            report.add(None, "it is not a regular file")
            return report
        with open(path, "rb") as stream:
            data = stream.read()
    except FileNotFoundError:
        report.add(None, "there is no such file")
        return report
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        report.add(None, f"it can't be read ({getattr(error, 'strerror', None) or error})")
        return report
    report.digest = "sha256:" + hashlib.sha256(data).hexdigest()
    offset = len(_BOM) if data.startswith(_BOM) else 0
    # Only \n ends a line, as for the training: splitlines() would also cut at a lone \r, which
    # is a blank in JSON.
    for number, line in enumerate(data[offset:].split(b"\n"), start=1):
        if line.strip():
            report.lines += 1
            _check_line(report, number, line, offset, purposes or ("train",))
        offset += len(line) + 1
    if report.lines == 0:
        report.add(None, EMPTY[1] if data else EMPTY[0])
    return report


def _check_line(
    report: FileReport, number: int, line: bytes, offset: int, purposes: tuple[str, ...]
) -> None:
    """Check one line; ``offset`` is that of its first byte in the file."""
    try:
        chat = _parse(line, offset)
        questions = _check_chat(chat, purposes)
    except _UnsoundError as problem:
        report.add(number, str(problem))
        return
    first = report.ids.setdefault(chat["id"], number)
    if first != number:
        report.add(number, f"the id {_shown(chat['id'])} is already that of line {first}")
        return
    report.chats += 1
    report.questions.append((number, questions))
    size = text_size(chat)
    if size > report.longest:
        report.longest, report.longest_line = size, number


def text_size(chat: dict[str, Any]) -> int:
    """The bytes of a chat's text in UTF-8, its tool calls as JSON: what a tokenizer gets to see.

    No tokenizer makes more tokens of a text than it has bytes; the chat template adds some.
    """
    size = 0
    for message in chat["messages"]:
        size += len((message.get("content") or "").encode())
        if message.get("tool_calls"):
            size += len(json.dumps(message["tool_calls"], ensure_ascii=False).encode())
    return size


class _UnsoundError(Exception):
    """Why a line is no chat."""


def _parse(line: bytes, offset: int) -> Any:
    """The JSON value of a line, as text without half characters."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise _UnsoundError(
            f"not UTF-8 (byte 0x{line[error.start]:02x} at offset {at} of the file)"
        ) from None
    try:
        chat = json.loads(text)
        json.dumps(chat, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise _UnsoundError(f"not JSON ({error.msg} at column {error.colno})") from None
    except UnicodeEncodeError:
        raise _UnsoundError("a \\u escape is half of a character (a lone surrogate)") from None
    except RecursionError:
        raise _UnsoundError("not JSON that can be read (nested too deeply)") from None
    except ValueError as error:  # a number with more digits than Python converts
        raise _UnsoundError(f"not JSON that can be read ({error})") from None
    return chat


def _check_chat(chat: Any, purposes: tuple[str, ...]) -> tuple[str, ...]:
    """Check a chat's form; returns its user turns, folded."""
    if not isinstance(chat, dict):
        raise _UnsoundError(f"not a JSON object but {_kind(chat)}")
    identity = chat.get("id")
    if "id" not in chat:
        raise _UnsoundError("it has no id")
    if not isinstance(identity, str) or not identity.strip():
        raise _UnsoundError(f"its id is {_shown(identity)}, not a text")
    messages = chat.get("messages")
    if "messages" not in chat:
        raise _UnsoundError("it has no messages")
    if not isinstance(messages, list) or not messages:
        raise _UnsoundError("its messages are not a list with something in it")
    for position, message in enumerate(messages, start=1):
        _check_message(message, f"message {position}")
    if "evaluate" in purposes and not isinstance(chat.get("expected", {}), (dict, type(None))):
        raise _UnsoundError(f"its expected is not an object but {_kind(chat['expected'])}")
    roles = {message["role"] for message in messages if _says_something(message)}
    if "train" in purposes and "assistant" not in roles:
        raise _UnsoundError("it has no assistant's turn to learn from")
    if "evaluate" in purposes and "user" not in roles:
        raise _UnsoundError("it has no user's turn to answer")
    return tuple(fold(message["content"]) for message in messages if message["role"] == "user")


def _check_message(message: Any, name: str) -> None:
    """Check one message's form."""
    if not isinstance(message, dict):
        raise _UnsoundError(f"{name} is not an object but {_kind(message)}")
    role = message.get("role")
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise _UnsoundError(f"the role of {name} is {_shown(role)}, none of {known}")
    content, calls = message.get("content"), message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, name)
    if content is None:
        if role != "assistant" or not calls:
            raise _UnsoundError(
                f"{name} has no content (only an assistant's tool_calls replace it)"
            )
    elif not isinstance(content, str):
        raise _UnsoundError(f"the content of {name} is not a text but {_kind(content)}")


def _check_calls(calls: Any, name: str) -> None:
    """Check a message's tool calls: a function's name, and arguments that are an object."""
    if not isinstance(calls, list):
        raise _UnsoundError(f"the tool_calls of {name} are not a list but {_kind(calls)}")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise _UnsoundError(f"a tool call of {name} names no function")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):  # as OpenAI's interface returns them
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                arguments = None
        if not isinstance(arguments, dict):
            raise _UnsoundError(f"the arguments of a tool call of {name} are not an object")


def _says_something(message: dict[str, Any]) -> bool:
    return bool((message.get("content") or "").strip() or message.get("tool_calls"))


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names: tuple[tuple[Any, str], ...] = (
        (str, "a text"),
        ((int, float), "a number"),
        (list, "a list"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "an object")


def _shown(value: Any) -> str:
    """A value as it stands in the file, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def fold(text: str) -> str:
    """A text without what doesn't make it another: Unicode form, width, case, blanks.

    All blanks go, not only doubled ones: in Chinese a blank between two words is a matter of
    taste.
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def check_leak(train: Iterable[FileReport], benchmarks: Iterable[FileReport]) -> list[Problem]:
    """Every item of a benchmark that the training data gives away.

    An item leaks when its user turns stand in a training chat, in order and one after the other,
    after folding (:func:`fold`).

    :param train: the checked files that a stage trains on.
    :param benchmarks: the checked files that it is scored on.
    :returns: all of them; each names the benchmark's line and the training chat's.
    """
    places: dict[str, list[tuple[FileReport, int, tuple[str, ...], int]]] = {}
    for report in train:
        for line, turns in report.questions:
            for at, turn in enumerate(turns):
                places.setdefault(turn, []).append((report, line, turns, at))
    problems = []
    for benchmark in benchmarks:
        for number, item in benchmark.questions:
            for report, line, turns, at in places.get(item[0], []) if item else []:
                if turns[at : at + len(item)] == item:
                    place = f"{report.file}, line {line}"
                    reason = f"the same question is in the training data ({place})"
                    problems.append(Problem(benchmark.file, number, reason))
                    break
    return problems


def trained_by(name: str, files: Iterable[Mapping[str, str]]) -> list[str]:
    """The stages that train on a file, among the files of all stages."""
    return [f.get("stage") or "" for f in files if f["name"] == name and f["role"] == "train"]


def check_files(
    root: str, files: Iterable[dict[str, Any]]
) -> tuple[list[FileReport], list[Problem]]:
    """Check the data files of some stages, each file once, and each stage for leaks.

    A stage that is scored on the very files that it trains on is exempt from the leak check: it
    shows that training works, and claims nothing else.

    :param root: the training project's folder.
    :param files: ``{"name": path under root, "role": "train" | "evaluate", "stage": name}``;
        files without ``stage`` count as one stage.
    :returns: a report for each file (in order; one that plays both parts is held to both), and
        the leaks.
    """
    roles: dict[str, dict[str, None]] = {}
    stages: dict[str, dict[str, list[str]]] = {}
    for item in files:
        name, role = item["name"], item["role"]
        roles.setdefault(name, {})[role] = None
        parts = stages.setdefault(item.get("stage") or "", {"train": [], "evaluate": []})
        parts[role].append(name)
    reports = {
        name: check_file(os.path.join(root, name), name, *purposes)
        for name, purposes in roles.items()
    }
    leaks: dict[Problem, None] = {}  # two stages may share a benchmark
    for parts in stages.values():
        if set(parts["train"]) != set(parts["evaluate"]):
            found = check_leak(
                [reports[name] for name in parts["train"]],
                [reports[name] for name in parts["evaluate"]],
            )
            leaks.update(dict.fromkeys(found))
    return list(reports.values()), list(leaks)
