"""Scores an adapter: asks it each sample's question, and judges the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.chats import Chat, ChatFile, read_chats
from training.errors import JobError
from training.generate import Answer, generate
from training.job import Evaluation
from training.scores import Expected, Verdict, judge, read_expected, summarize
from training.template import ChatTemplate


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """All that came of an evaluation."""

    files: list[ChatFile]
    chats: list[Chat]
    answers: list[Answer]
    verdicts: list[Verdict]
    scores: dict[str, dict[str, float]]
    by_type: dict[str, dict[str, dict[str, float]]]
    """The scores of each kind of sample (its ``type``, else its ``mode``), where there are two."""
    notes: list[dict[str, str]]
    """What was done about memory that ran out, as warnings."""


def read_benchmarks(root: Path, paths: list[str]) -> tuple[list[ChatFile], list[Expected]]:
    """The files of samples, and what each of their samples expects, in order.

    It is done before anything is trained, so that a mistake in a benchmark costs seconds.

    :raises JobError: category ``data``; names file and line.
    """
    files = [read_chats(root, path) for path in paths]
    expected = []
    for chat in (chat for file in files for chat in file.chats):
        try:
            expected.append(read_expected(chat.record))
        except ValueError as error:
            raise JobError("data", f"{chat.where}: {error}.", "Correct that line.") from None
    return files, expected


def evaluate(
    model: Any,
    tokenizer: Any,
    benchmarks: tuple[list[ChatFile], list[Expected]],
    settings: Evaluation,
    on_answers: Callable[[int, int], None],
) -> Evaluated:
    """Ask the model each sample and judge what it answers.

    :param on_answers: called with the number of answers that are there, and of all.
    """
    files, expected = benchmarks
    chats = [chat for file in files for chat in file.chats]
    template = ChatTemplate(tokenizer)
    notes: list[dict[str, str]] = []
    answers = generate(
        model,
        tokenizer,
        [template.prompt(chat) for chat in chats],
        settings.max_new_tokens,
        settings.eval_batch_size,
        lambda done: on_answers(done, len(chats)),
        notes,
    )
    verdicts = [judge(e, a.text) for e, a in zip(expected, answers, strict=True)]
    kinds: dict[str, list[Verdict]] = {}
    for chat, verdict in zip(chats, verdicts, strict=True):
        kinds.setdefault(kind_of(chat), []).append(verdict)
    by_type = {kind: summarize(some) for kind, some in sorted(kinds.items())}
    if len(by_type) == 1:
        by_type = {}
    return Evaluated(files, chats, answers, verdicts, summarize(verdicts), by_type, notes)


def kind_of(chat: Chat) -> str:
    """What kind of sample it is: its ``type``, else its ``mode``, else ``-``."""
    return str(chat.record.get("type") or chat.record.get("mode") or "-")
