"""Reads files of chats, and knows the digest of the very bytes that it read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from training.errors import JobError

ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True)
class Chat:
    """One line of a file of chats."""

    file: str
    """The file's path, relative to the project's root."""
    line: int
    """The line's number, from 1."""
    messages: list[dict[str, Any]]
    """As the chat template gets them: ``content`` is text, ``arguments`` are objects."""
    record: dict[str, Any]
    """The whole line: ``id``, ``mode``, ``refusal_type``, ``expected`` and so on."""

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.file} line {self.line}"

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """The tools that the chat may call, in OpenAI's form, or None."""
        tools = self.record.get("tools")
        return tools if isinstance(tools, list) and tools else None


@dataclasses.dataclass(frozen=True)
class ChatFile:
    """A file of chats."""

    path: str
    digest: str
    """``sha256:…`` of the bytes that were parsed."""
    chats: list[Chat]


def read_chats(root: Path, path: str) -> ChatFile:
    """Read a file once, digest those bytes, and parse them.

    Blank lines and a byte-order mark are passed over.

    :param path: relative to ``root``.
    :raises JobError: category ``data``; names file, line and reason.
    """
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        raise JobError(
            "data", f"{path} can't be read: {error.strerror}.", f"Put it under {root}."
        ) from None
    chats = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            chats.append(_parse(path, number, line))
    if not chats:
        raise JobError("data", f"{path} holds no chat.", "Write one chat per line.")
    return ChatFile(path, "sha256:" + hashlib.sha256(data).hexdigest(), chats)


def _parse(path: str, number: int, line: bytes) -> Chat:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _bad(path, number, f"is not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise _bad(path, number, f"is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise _bad(path, number, "is not a JSON object")
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _bad(path, number, "has no messages")
    return Chat(path, number, [_message(path, number, m) for m in messages], record)


def _message(path: str, number: int, message: object) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _bad(path, number, f"has a message whose role is none of {', '.join(ROLES)}")
    content = message.get("content")
    calls = message.get("tool_calls")
    if content is None and not (message["role"] == "assistant" and calls):
        raise _bad(path, number, f"has a {message['role']} message without content")
    if content is not None and not isinstance(content, str):
        raise _bad(path, number, f"has a {message['role']} message whose content is not text")
    # Templates differ in what they do with null, but all print an empty text as nothing.
    result = {**message, "content": content or ""}
    result.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, list):
            raise _bad(path, number, "has tool_calls that are not a list")
        result["tool_calls"] = [_tool_call(path, number, call) for call in calls]
    return result


def _tool_call(path: str, number: int, call: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise _bad(path, number, "has a tool call without a function's name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # as OpenAI's interface returns them
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        raise _bad(path, number, "has a tool call whose arguments are not an object")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _bad(path: str, number: int, reason: str) -> JobError:
    return JobError("data", f"{path} line {number} {reason}.", "Correct that line.")
