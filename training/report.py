"""Writes what an evaluation found: for programs, for people, and the answers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training import reference
from training.evaluate import Evaluated, kind_of
from training.job import Job
from training.scores import Expected

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
        "by_file": {path: {"scores": scores} for path, scores in result.by_file.items()},
        **_base(result),
        "data": {file.path: file.digest for file in result.files},
        "evaluation": {
            "max_new_tokens": job.evaluation.max_new_tokens,
            "eval_batch_size": job.evaluation.eval_batch_size,
            "decoding": "greedy",
            "sacrebleu": reference.version(),
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


def _base(result: Evaluated) -> dict[str, Any]:
    """The base model's scores, and what the adapter gains on them."""
    if result.base is None:
        return {}
    by_file = {path: {"scores": scores} for path, scores in result.base.by_file.items()}
    return {
        "base": {
            "scores": result.base.scores,
            "by_type": result.base.by_type,
            "by_file": by_file,
        },
        "against_base": result.against_base(),
    }


def predictions(result: Evaluated) -> list[dict[str, Any]]:
    """One object per sample: what was asked and expected, the answers, and how they did."""
    base = result.base
    found = []
    for i, (chat, answer, verdict) in enumerate(
        zip(result.chats, result.answers, result.verdicts, strict=True)
    ):
        last = chat.messages[-1]["role"] == "assistant"
        prediction = {
            "id": chat.record.get("id"),
            "file": chat.file,
            "line": chat.line,
            "type": kind_of(chat),
            "prompt": chat.messages[:-1] if last else chat.messages,
            "expected": _expected(result.expected[i], chat.messages[-1] if last else None),
            "answer": answer.text,
            "answer_tokens": answer.tokens,
            "ended": answer.ended,
            "ended_by": "end token" if answer.ended else "max_new_tokens",
            "verdict": verdict.as_dict(),
        }
        if base:
            prediction["base"] = {
                "answer": base.answers[i].text,
                "answer_tokens": base.answers[i].tokens,
                "ended": base.answers[i].ended,
                "verdict": base.verdicts[i].as_dict(),
            }
        found.append(prediction)
    return found


def _expected(expected: Expected, last: dict[str, Any] | None) -> dict[str, Any]:
    """What is expected of an answer, with the reference even where it isn't scored on it."""
    points = [{"text": names[0], "aliases": names[1:]} for names in expected.key_points or []]
    calls = [{"name": name, "arguments": given} for name, given in expected.tool_calls or []]
    values = {
        "should_refuse": expected.should_refuse,
        "headings": expected.headings,
        "key_points": points or None,
        "citations": expected.citations,
        "tool_calls": calls or None,
        "reference": (last or {}).get("content") or None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _markdown(job: Job, result: Evaluated, warnings: list[dict[str, str]]) -> str:
    parts = [
        f"# Evaluation of stage {job.stage}\n",
        f"Base model {job.settings.model_name_or_path}, adapter {job.adapter_dir},"
        f" {len(result.chats)} samples from {', '.join(file.path for file in result.files)}."
        f" Greedy answers of at most {job.evaluation.max_new_tokens} tokens.\n",
        scores_table(
            result.scores,
            result.base.scores if result.base else None,
            result.against_base() if result.base else None,
        ),
    ]
    if result.base:
        parts.append(
            "p: the probability of a difference to the base model at least as large, if there were"
            " none (McNemar's exact test; for means, the paired permutation test).\n"
        )
    unscored = sum(expected.reference is not None for expected in result.expected)
    if unscored and "chrf" not in result.scores:
        parts.append(
            f"chrf is left out for {unscored} samples: the package sacrebleu isn't installed on"
            " the host.\n"
        )
    cut = sum(not answer.ended for answer in result.answers)
    if cut:
        parts.append(f"{cut} answers were cut by max_new_tokens.\n")
    if len(result.by_file) > 1:
        for path, scores in result.by_file.items():
            base = result.base.by_file[path] if result.base else None
            parts += [f"## {path}\n", scores_table(scores, base)]
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


def scores_table(
    scores: dict[str, dict[str, float]],
    base: dict[str, dict[str, float]] | None = None,
    against: dict[str, dict[str, Any]] | None = None,
) -> str:
    """The scores as a Markdown table.

    :param base: the base model's, for a column of their own.
    :param against: the paired tests against it, for two more.
    """
    header = ["score", "value", "95 % interval", "samples"]
    header += ["base model"] * (base is not None) + ["difference", "p"] * (against is not None)
    lines = [header, ["---"] * len(header)]
    for name, score in scores.items():
        line = [name, _value(score), "", str(score["n"])]
        if "count" not in score:
            line[2] = f"{score['low']:.2f} to {score['high']:.2f}"
        if base is not None:
            line.append(_value(base[name]) if name in base else "")
        if against is not None:
            test = against.get(name)
            line += [f"{test['difference']:+.2f}", f"{test['p']:.2g}"] if test else ["", ""]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _value(score: dict[str, float]) -> str:
    return f"{score['count']}" if "count" in score else f"{score['value']:.2f}"


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
