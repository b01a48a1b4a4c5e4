"""Chats for tests, in short."""

from __future__ import annotations

from typing import Any

from training.chats import Chat


def chat_of(*turns: tuple[Any, ...]) -> Chat:
    """A chat of (role, content) or (role, content, tool calls)."""
    messages = []
    for role, content, *calls in turns:
        message = {"role": role, "content": content or ""}
        if calls:
            message["tool_calls"] = calls[0]
        messages.append(message)
    return Chat("t.jsonl", 1, messages, {"messages": messages})
