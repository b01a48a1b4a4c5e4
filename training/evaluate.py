"""Scores an adapter: asks it each sample's question, and judges the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.base_answers import BaseAnswers
from training.chats import Chat, ChatFile, read_chats
from training.errors import JobError
from training.generate import Answer, generate
from training.job import Evaluation
from training.paired import compare
from training.scores import MEANS, RATES, Expected, Verdict, judge, read_expected, summarize
from training.template import ChatTemplate

Scores = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Answers to all samples of an evaluation, and how they did."""

    answers: list[Answer]
    verdicts: list[Verdict]
    scores: Scores
    by_type: dict[str, Scores]
    """The scores of each kind of sample (its ``type``, else its ``mode``), where there are two."""
    by_file: dict[str, Scores]
    """The scores on each file of samples, by its path."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """All that came of an evaluation."""

    files: list[ChatFile]
    chats: list[Chat]
    expected: list[Expected]
    answers: list[Answer]
    verdicts: list[Verdict]
    scores: Scores
    by_type: dict[str, Scores]
    by_file: dict[str, Scores]
    notes: list[dict[str, str]]
    """What was done about memory that ran out, as warnings."""
    base: Judged | None = None
    """The same of the base model without the adapter."""

    def against_base(self) -> dict[str, dict[str, float | str]]:
        """For each score, how much better than the base model, and whether that is chance."""
        return compared(self.verdicts, self.base.verdicts) if self.base else {}


def compared(ours: list[Verdict], theirs: list[Verdict]) -> dict[str, dict[str, float | str]]:
    """The paired test of each score, of two lists of verdicts on the same samples."""
    found = {}
    for name in (*MEANS, *RATES):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(ours, theirs, strict=True)]
        both = [(one, other) for one, other in pairs if one is not None and other is not None]
        if both:
            found[name] = compare(both, name in RATES)
    return found


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
    kept: BaseAnswers | None = None,
) -> Evaluated:
    """Ask the model each sample and judge what it answers.

    :param on_answers: called with the number of answers that are there, and of all.
    :param kept: ask the base model as well, without the adapter that ``model`` then has; what is
        kept of its answers isn't asked again.
    """
    files, expected = benchmarks
    chats = [chat for file in files for chat in file.chats]
    template = ChatTemplate(tokenizer)
    notes: list[dict[str, str]] = []
    known = {file.path: kept.read(file, settings) for file in files} if kept else {}
    total = len(chats) + sum(len(f.chats) for f in files if kept and known[f.path] is None)
    done = 0

    def ask(some: list[Chat]) -> list[Answer]:
        nonlocal done
        before = done
        answers = generate(
            model,
            tokenizer,
            [template.prompt(chat) for chat in some],
            settings.max_new_tokens,
            settings.eval_batch_size,
            lambda count: on_answers(before + count, total),
            notes,
        )
        done += len(answers)
        return answers

    on_answers(0, total)
    adapter = _judged(files, chats, expected, ask(chats))
    base = None
    if kept:
        answers: list[Answer] = []
        for file in files:
            found = known[file.path]
            if found is None:
                with model.disable_adapter():
                    found = ask(file.chats)
                kept.write(file, settings, found)
            answers += found
        base = _judged(files, chats, expected, answers)
    return Evaluated(files, chats, expected, **vars(adapter), notes=notes, base=base)


def _judged(
    files: list[ChatFile], chats: list[Chat], expected: list[Expected], answers: list[Answer]
) -> Judged:
    verdicts = [judge(e, a.text, a.ended) for e, a in zip(expected, answers, strict=True)]
    kinds: dict[str, list[Verdict]] = {}
    places: dict[str, list[Verdict]] = {file.path: [] for file in files}
    for chat, verdict in zip(chats, verdicts, strict=True):
        kinds.setdefault(kind_of(chat), []).append(verdict)
        places[chat.file].append(verdict)
    by_type = {kind: summarize(some) for kind, some in sorted(kinds.items())}
    by_file = {place: summarize(some) for place, some in places.items()}
    return Judged(
        answers, verdicts, summarize(verdicts), by_type if len(by_type) > 1 else {}, by_file
    )


def kind_of(chat: Chat) -> str:
    """What kind of sample it is: its ``type``, else its ``mode``, else ``-``."""
    return str(chat.record.get("type") or chat.record.get("mode") or "-")
