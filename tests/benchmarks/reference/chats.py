"""Chats as the plain scripts read them: tokens, and labels on the assistant's turns alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read(paths: list[str]) -> list[dict[str, Any]]:
    """The chats of some files, one JSON object a line."""
    lines = [line for path in paths for line in Path(path).read_text("utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def messages(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """A chat's messages; where only a tool is called, the content is an empty text."""
    return [{**message, "content": message.get("content") or ""} for message in chat["messages"]]


def encode(chat: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """``input_ids`` and ``labels`` (-100 where nothing is learned), by the template's own marks."""
    encoded = tokenizer.apply_chat_template(
        messages(chat),
        tools=chat.get("tools"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    labels = [token if learned else -100 for token, learned in pairs]
    return {"input_ids": encoded["input_ids"], "labels": labels}


def prompt(chat: dict[str, Any], tokenizer: Any) -> list[int]:
    """The tokens that the model is asked with: all but the reference answer."""
    asked = messages(chat)
    if asked[-1]["role"] == "assistant":
        asked = asked[:-1]
    encoded = tokenizer.apply_chat_template(
        asked, tools=chat.get("tools"), add_generation_prompt=True, return_dict=True
    )
    ids: list[int] = encoded["input_ids"]
    return ids
