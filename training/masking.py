"""Turns chats into tokens, and says which of them are learned: the assistant's turns alone."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from training.chats import Chat
from training.errors import JobError
from training.template import ChatTemplate, refused

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence of tokens for the model."""

    tokens: list[int]
    learned: list[bool]
    """For each token: whether the model is to learn to write it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is made of one chat.

    It is one row, but for templates that render a turn differently once another follows it (those
    that drop earlier reasoning): there each assistant turn is a row of its own, as it was when it
    was the last one.
    """

    chat: Chat
    rows: list[Row]
    cut: bool
    """Whether the chat was longer than the limit."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.tokens) for row in self.rows)

    @property
    def learned(self) -> int:
        """Tokens that are learned, of all rows; a first token has nothing to be learned from."""
        return sum(sum(row.learned[1:]) for row in self.rows)


class Masker:
    """Encodes chats with the tokenizer's own chat template."""

    def __init__(self, template: ChatTemplate, max_length: int) -> None:
        """:param max_length: tokens of a row; longer ones are cut."""
        self._template = template
        self._tokenizer = template.tokenizer
        self._max_length = max_length
        source = self._tokenizer.chat_template
        self._marked = isinstance(source, str) and bool(_MARKED.search(source))
        self._specials = set(self._tokenizer.all_special_ids)

    def encode(self, chat: Chat) -> Sample:
        """The chat as tokens. Its rows may be empty: nothing that is learned fits the limit.

        :raises JobError: category ``data``, for a chat that the template refuses, or that has no
            assistant turn.
        """
        messages = chat.messages
        last = _last_assistant(messages)
        if last is None:
            raise JobError(
                "data", f"{chat.where} has no assistant turn to learn.", "Add one or drop the line."
            )
        try:
            rows = self._rows(chat, messages[: last + 1])
            cut = any(len(row.tokens) > self._max_length for row in rows)
            while any(len(row.tokens) > self._max_length for row in rows):
                shorter = _last_assistant(messages[:last])
                if shorter is None:  # not even the first turn fits: cut within it
                    rows = [self._truncated(row) for row in rows]
                    break
                last = shorter
                rows = self._rows(chat, messages[: last + 1])
        except Exception as error:
            raise refused(chat, error) from None
        return Sample(chat, [row for row in rows if any(row.learned[1:])], cut)

    def _rows(self, chat: Chat, messages: list[dict[str, Any]]) -> list[Row]:
        if self._marked:
            return [self._marked_row(chat, messages)]
        spans, text = [], self._template.render(chat, messages)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._template.render(chat, messages[:index], generation=True)
                end = self._template.render(chat, messages[: index + 1])
                if not (text.startswith(end) and end.startswith(start)):
                    return self._row_per_turn(chat, messages)
                spans.append((len(start), len(end)))
        return [self._span_row(text, spans)]

    def _row_per_turn(self, chat: Chat, messages: list[dict[str, Any]]) -> list[Row]:
        rows = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._template.render(chat, messages[:index], generation=True)
                text = self._template.render(chat, messages[: index + 1])
                if not text.startswith(start):
                    raise ValueError("the prompt for a turn is not how the turn begins")
                rows.append(self._span_row(text, [(len(start), len(text))]))
        return rows

    def _span_row(self, text: str, spans: list[tuple[int, int]]) -> Row:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens = encoded["input_ids"]
        learned = [False] * len(tokens)
        for start, end in spans:
            inside = [
                i
                for i, (a, b) in enumerate(encoded["offset_mapping"])
                if start <= a < end and b > a
            ]
            # What a template writes after the end-of-turn token is no part of the answer.
            while (
                inside
                and tokens[inside[-1]] not in self._specials
                and any(tokens[i] in self._specials for i in inside)
            ):
                inside.pop()
            for i in inside:
                learned[i] = True
        return Row(tokens, learned)

    def _marked_row(self, chat: Chat, messages: list[dict[str, Any]]) -> Row:
        encoded = self._tokenizer.apply_chat_template(
            messages,
            tools=chat.tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        tokens, offsets = encoded["input_ids"], encoded["offset_mapping"]
        learned = [bool(m) for m in encoded["assistant_masks"]]
        for i in range(1, len(tokens)):
            if learned[i - 1] and not learned[i]:
                # The mask ends at the first token of the last character, which may have several;
                # and some templates close the block before the end-of-turn token.
                same = offsets[i] == offsets[i - 1]
                learned[i] = same or (
                    tokens[i] in self._specials and tokens[i - 1] not in self._specials
                )
        return Row(tokens, learned)

    def _truncated(self, row: Row) -> Row:
        return Row(row.tokens[: self._max_length], row.learned[: self._max_length])


def _last_assistant(messages: list[dict[str, Any]]) -> int | None:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] == "assistant":
            return index
    return None
