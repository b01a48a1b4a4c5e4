"""Writes what an evaluation found: for programs, for people, and the answers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.evaluate import Evaluated, kind_of
from training.job import Job

_WORST = 20
"""Answers with something wrong that the report for people shows."""


def write_reports(
    folder: Path, job: Job, result: Evaluated, facts: dict[str, Any], warnings: list[dict[str, str]]
) -> None:
    """Write ``eval_report_<stage>.json``, ``.md`` and ``predictions_<stage>.jsonl``.

    :param facts: what was in force and what was trained on, for the JSON report.
    """
    report = {
        "schema": 1,
        "stage": job.stage,
        "run": job.run,
        "base_model": job.settings.model_name_or_path,
        "adapter": job.adapter_dir,
        "samples": len(result.chats),
        "scores": result.scores,
        "by_type": result.by_type,
        "data": {file.path: file.digest for file in result.files},
        "evaluation": {
            "max_new_tokens": job.evaluation.max_new_tokens,
            "eval_batch_size": job.evaluation.eval_batch_size,
            "decoding": "greedy",
        },
        "answers_cut_by_limit": sum(not answer.ended for answer in result.answers),
        "warnings": warnings,
        **facts,
    }
    text = json.dumps(report, ensure_ascii=False, indent=2)
    (folder / f"eval_report_{job.stage}.json").write_text(text + "\n", encoding="utf-8")
    (folder / f"eval_report_{job.stage}.md").write_text(
        _markdown(job, result, warnings), encoding="utf-8"
    )
    lines = [
        json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions(result)
    ]
    (folder / f"predictions_{job.stage}.jsonl").write_text("".join(lines), encoding="utf-8")


def predictions(result: Evaluated) -> list[dict[str, Any]]:
    """One object per sample: where it stands, the answer, and how it did."""
    return [
        {
            "id": chat.record.get("id"),
            "file": chat.file,
            "line": chat.line,
            "type": kind_of(chat),
            "answer": answer.text,
            "answer_tokens": answer.tokens,
            "ended": answer.ended,
            "verdict": verdict.as_dict(),
        }
        for chat, answer, verdict in zip(result.chats, result.answers, result.verdicts, strict=True)
    ]


def _markdown(job: Job, result: Evaluated, warnings: list[dict[str, str]]) -> str:
    parts = [
        f"# Evaluation of stage {job.stage}\n",
        f"Base model {job.settings.model_name_or_path}, adapter {job.adapter_dir},"
        f" {len(result.chats)} samples from {', '.join(file.path for file in result.files)}."
        f" Greedy answers of at most {job.evaluation.max_new_tokens} tokens.\n",
        scores_table(result.scores),
    ]
    cut = sum(not answer.ended for answer in result.answers)
    if cut:
        parts.append(f"{cut} answers were cut by max_new_tokens.\n")
    for kind, scores in result.by_type.items():
        parts += [f"## {kind}\n", scores_table(scores)]
    if warnings:
        parts.append("## Warnings\n")
        parts += [f"- {w['symptom']} {w['action']}" for w in warnings]
        parts.append("")
    wrong = [p for p in predictions(result) if _is_wrong(p["verdict"])]
    if wrong:
        parts.append(f"## Answers with something wrong: {len(wrong)}\n")
        parts += [_shown(p) for p in wrong[:_WORST]]
    if len(wrong) > _WORST:
        parts.append(f"The other {len(wrong) - _WORST} are in predictions_{job.stage}.jsonl.\n")
    return "\n".join(parts)


def scores_table(scores: dict[str, dict[str, float]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| score | value | 95 % interval | samples |", "| --- | --- | --- | --- |"]
    for name, score in scores.items():
        if "count" in score:
            lines.append(f"| {name} | {score['count']} | | {score['n']} |")
        else:
            interval = f"{score['low']:.2f} to {score['high']:.2f}"
            lines.append(f"| {name} | {score['value']:.2f} | {interval} | {score['n']} |")
    return "\n".join(lines) + "\n"


def _is_wrong(verdict: dict[str, Any]) -> bool:
    return bool(_complaints(verdict))


def _complaints(verdict: dict[str, Any]) -> list[str]:
    """What is wrong with an answer, a phrase each; ``empty`` is the one that is false when well."""
    wrong = [name for name, value in verdict.items() if value is False and name != "empty"]
    if verdict["empty"]:
        wrong.append("empty answer")
    if verdict["missed"]:
        wrong.append("missed: " + "; ".join(verdict["missed"]))
    return wrong


def _shown(prediction: dict[str, Any]) -> str:
    wrong = _complaints(prediction["verdict"])
    name = prediction["id"] or f"{prediction['file']} line {prediction['line']}"
    quoted = "\n".join("> " + line for line in prediction["answer"][:300].splitlines())
    return f"### {name}\n\n{', '.join(wrong)}\n\n{quoted}\n"
