"""What the page says, section by section: plain data for the template, every word chosen."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from . import choice, plots
from .choice import SCORES, Benchmark, Candidate, Value, score_of, values_of
from .facts import Facts
from .figures import day_and_time, duration, fine, grouped, rate, seconds_between, signed
from .read import Run, Stage
from .words import Words

WORST = 3
"""Answers of each adapter that are shown."""

LONGEST = 1500
"""Characters of a text that are shown."""

Section = dict[str, Any]


def all_of(run: Run, words: Words) -> Section:
    """Everything that the template needs."""
    ranked = choice.benchmarks(run.stages)
    chosen = adapters(ranked, run, words)
    return {
        "run": run.name,
        "verdict": run.facts.text("verdict"),
        "started": day_and_time(run.facts.text("started")),
        "took": _took(run),
        "host": run.facts.text("host"),
        "short": in_short(run, ranked, chosen, words),
        "use": chosen,
        "scores": scores(run, words),
        "gate": run.facts.text("acceptance_gate"),
        "answers": answers(run, words),
        "timeline": plots.timeline(run, words),
        "stages": course(run, words),
        "losses": plots.losses(run, words),
        "speed": plots.speed(run, words),
        "memory": plots.memory(run, words),
        "issues": [issue(one) for one in _gravest_first(run.issues)],
        "precheck": precheck(run),
        "made": made(run, words),
        "next": next_steps(run, ranked, words),
        "load": _to_load(run, ranked),
        "evidence": evidence(run, words),
    }


def _took(run: Run) -> str:
    return duration(seconds_between(run.facts.text("started"), run.facts.text("ended")))


def adapter_name(stage: Stage) -> str:
    """What an adapter is called: its folder."""
    return os.path.basename(stage.adapter) or stage.name


def _short_name(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


# The answers at the top


def in_short(run: Run, ranked: list[Benchmark], chosen: Section, words: Words) -> list[Section]:
    """The six questions that a stranger has, each with its answers."""
    questions = {
        "short_use": chosen["lines"],
        "short_trained": _what(run, words),
        "short_data": _on_what(run, words),
        "short_well": _how_well(ranked, words),
        "short_sure": _how_sure(ranked, words),
        "short_wrong": _what_went_wrong(run, words),
    }
    return [{"question": words(key), "lines": lines} for key, lines in questions.items()]


def _what(run: Run, words: Words) -> list[str]:
    left = ("left out", "not reached")
    there = [s for s in run.stages if s.adapter and s.row.text("state") not in left]
    if not there:
        return [words("trained_none")]
    key = "trained_one" if len(there) == 1 else "trained_adapters"
    first = words(key, count=len(there), base=", ".join(_bases(there)) or "?")
    trials = [stage for stage in there if stage.is_trial]
    return [
        f"{first}{words('colon')}{', '.join(adapter_name(stage) for stage in there)}",
        *(words("trained_trial", adapter=adapter_name(stage)) for stage in trials),
    ]


def _bases(stages: Iterable[Stage]) -> list[str]:
    """The names of the base models, each once."""
    found = [
        s.evaluation.text("base_model") or s.marker.text("inputs", "base_model") for s in stages
    ]
    names = [os.path.basename(name.rstrip("/")) if name.startswith("/") else name for name in found]
    return list(dict.fromkeys(name for name in names if name))


def _on_what(run: Run, words: Words) -> list[str]:
    lines = [
        words(
            "data_line",
            stage=stage.name,
            samples=grouped(stage.row.number("metrics", "samples")),
            files=" + ".join(os.path.basename(name) for name in stage.trained_on),
        )
        for stage in run.stages
        if stage.trained_on
    ]
    return lines or [words("data_unknown")]


def _how_well(ranked: list[Benchmark], words: Words) -> list[Any]:
    lines = [
        {
            "text": words(
                "well_line", adapter=adapter_name(b.best.stage), benchmark=_short_name(b.name)
            ),
            "values": _beside_base(b, words),
        }
        for b in ranked
    ]
    return lines or [words("well_none")]


def _beside_base(benchmark: Benchmark, words: Words) -> list[tuple[str, str]]:
    """The scores of the best adapter, each with the base model's where that is known."""
    base = values_of(_base_on(benchmark.best.stage, benchmark.name))
    found = []
    for name, value in benchmark.best.scores.items():
        text = words.score(name)
        if name in base:
            text = words("beside_base", score=text, base=rate(base[name].value))
        found.append((text, rate(value.value)))
    return found


def _how_sure(ranked: list[Benchmark], words: Words) -> list[str]:
    lines, known = [], False
    for benchmark in ranked:
        if not benchmark.best.scores:
            continue
        n = grouped(max(value.n for value in benchmark.best.scores.values()))
        names = {"benchmark": _short_name(benchmark.name), "n": n}
        widest = _widest(benchmark.best)
        if not widest:
            lines.append(words("sure_n", **names))
            continue
        name, value = widest
        known = True
        low, high = rate(value.low), rate(value.high)
        lines.append(words("sure_line", low=low, high=high, score=words.score(name), **names))
    if known:
        lines.append(words("sure_text"))
    return lines or [words("sure_none")]


def _widest(candidate: Candidate) -> tuple[str, Value] | None:
    """The score that is least sure."""
    known = [
        (v.high - v.low, name, v)
        for name, v in candidate.scores.items()
        if v.low is not None and v.high is not None
    ]
    return max(known)[1:] if known else None


def _what_went_wrong(run: Run, words: Words) -> list[str]:
    failed = [stage.name for stage in run.stages if stage.row.text("state") == "failed"]
    refused = [stage.name for stage in run.stages if stage.row.text("acceptance") == "failed"]
    errors = sum(one.text("severity") == "error" for one in run.issues)
    lines = [words("wrong_stages", stages=", ".join(failed))] if failed else []
    lines += [words("wrong_gate", stages=", ".join(refused))] if refused else []
    if run.issues:
        lines.append(words("wrong_count", errors=errors, warnings=len(run.issues) - errors))
        lines.append(_gravest_first(run.issues)[0].text("symptom"))
    return lines or [words("wrong_none")]


# Which adapter to use


def adapters(ranked: list[Benchmark], run: Run, words: Words) -> Section:
    """The choice on each benchmark, with the numbers that it rests on."""
    lines = [_choice(benchmark, words) for benchmark in ranked]
    both = _one_for_all(ranked)
    if both:
        lines.append(words("use_both", adapter=adapter_name(both), count=len(ranked)))
    cautions = [line for benchmark in ranked for line in _cautions(benchmark, words)]
    lines += dict.fromkeys(cautions)
    if not lines:
        trained = any(stage.adapter for stage in run.stages if stage.is_trial)
        lines = [words("use_trial" if trained else "use_none")]
    return {"lines": lines, "tables": [_choice_table(one, words) for one in ranked]}


def _choice(benchmark: Benchmark, words: Words) -> str:
    best, others = benchmark.best, benchmark.candidates[1:]
    names = {
        "benchmark": _short_name(benchmark.name),
        "adapter": adapter_name(best.stage),
        "mean": rate(best.mean),
    }
    if not others:
        return words("use_one", **names)
    other = others[0]
    key = "use_apart" if other.is_apart else "use_alike"
    if other.fails and not best.fails:
        key = "use_gate"
    return words(key, other=adapter_name(other.stage), other_mean=rate(other.mean), **names)


def _cautions(benchmark: Benchmark, words: Words) -> list[str]:
    """What speaks against the best adapter."""
    best, name = benchmark.best, adapter_name(benchmark.best.stage)
    lines = []
    if best.empty:
        lines.append(words("use_empty", adapter=name, count=best.empty))
    elif best.fails:
        lines.append(words("use_fails", adapter=name))
    base = values_of(_base_on(best.stage, benchmark.name))
    shared = [score for score in best.scores if score in base]
    if shared and _mean(base, shared) > _mean(best.scores, shared):
        lines.append(words("use_base_better", adapter=name, benchmark=_short_name(benchmark.name)))
    return lines


def _mean(values: dict[str, Value], names: list[str]) -> float:
    return sum(values[name].value for name in names) / len(names)


def _base_on(stage: Stage, benchmark: str) -> Facts:
    """The base model's scores on a benchmark, as the evaluation of an adapter has them."""
    if len(stage.benchmarks) == 1:
        return stage.evaluation.at("base", "scores")
    return stage.evaluation.at("base", "by_file", benchmark, "scores")


def _one_for_all(ranked: list[Benchmark]) -> Stage | None:
    """The adapter that every benchmark has, and that nothing is better than by more than chance."""
    if len(ranked) < 2:
        return None
    for candidate in ranked[0].candidates:
        name = candidate.stage.name
        places = [next((c for c in b.candidates if c.stage.name == name), None) for b in ranked]
        if all(place and not place.fails and not place.is_apart for place in places):
            return candidate.stage
    return None


def _choice_table(benchmark: Benchmark, words: Words) -> Section:
    names = [n for n in SCORES if any(n in one.scores for one in benchmark.candidates)]
    base = values_of(_base_on(benchmark.best.stage, benchmark.name))
    rows = [
        {
            "name": adapter_name(one.stage),
            "best": one is benchmark.best,
            "fails": one.fails,
            "cells": [_cell(one.scores.get(name)) for name in names],
            "mean": rate(one.mean),
        }
        for one in benchmark.candidates
    ]
    if base:
        cells = [_cell(base.get(name)) for name in names]
        name = words("base_model")
        rows.append({"name": name, "best": False, "fails": False, "cells": cells, "mean": ""})
    leads = [
        {
            "title": words(
                "lead",
                adapter=adapter_name(benchmark.best.stage),
                other=adapter_name(one.stage),
            ),
            "lines": [(words.score(d.score), _lead(d, words)) for d in one.differences],
        }
        for one in benchmark.candidates[1:]
        if one.differences
    ]
    header = [words.score(name) for name in names]
    return {"name": _short_name(benchmark.name), "header": header, "rows": rows, "leads": leads}


def _lead(one: choice.Difference, words: Words) -> str:
    return words(
        "lead_text",
        difference=signed(one.value),
        n=one.n,
        better=one.better,
        worse=one.worse,
        p=fine(one.p),
    )


def _cell(value: Value | None) -> Section:
    if value is None:
        return {"value": rate(None), "interval": "", "n": ""}
    known = value.low is not None and value.high is not None
    interval = f"{rate(value.low)}–{rate(value.high)}" if known else ""
    return {"value": rate(value.value), "interval": interval, "n": grouped(value.n)}


# Scores and the acceptance gate


def scores(run: Run, words: Words) -> list[Section]:
    """Each stage that was scored."""
    found = []
    for at, stage in enumerate(run.stages):
        plot = plots.scores(stage, at, words)
        if not plot and not stage.thresholds:
            continue
        empty = stage.scores.at("empty_responses")
        found.append(
            {
                "stage": stage.name,
                "plot": plot,
                "about": " · ".join(
                    [adapter_name(stage), *(_short_name(name) for name in stage.benchmarks)]
                ),
                "asks": bool(stage.thresholds),
                "acceptance": stage.row.text("acceptance"),
                "trial": stage.is_trial,
                "rows": _score_rows(stage, words),
                "empty": words(
                    "of", count=grouped(empty.number("count")), n=grouped(empty.number("n"))
                )
                if empty
                else "",
                "has_empty": bool(empty.number("count")),
                "cut": grouped(stage.evaluation.number("answers_cut_by_limit") or 0),
                "refusals": _refusals(stage, words),
                "by_type": _by_type(stage, words),
            }
        )
    return found


def _refusals(stage: Stage, words: Words) -> list[tuple[str, str]]:
    """How often it was wrong to answer, and how often to refuse."""
    found = []
    for name in ("missed_refusals", "false_refusals"):
        count, n = stage.scores.number(name, "count"), stage.scores.number(name, "n")
        if count is not None and n:
            found.append((words(name), words("of", count=grouped(count), n=grouped(n))))
    return found


def _score_rows(stage: Stage, words: Words) -> list[Section]:
    values, base = values_of(stage.scores), values_of(stage.evaluation.at("base", "scores"))
    rows = []
    for name in SCORES:
        value, asked = values.get(name), stage.thresholds.get(name)
        if value is None and asked is None:
            continue
        verdict = ""
        if asked is not None:
            verdict = "absent" if value is None else "reached"
            if value is not None and value.value < asked:
                verdict = "missed"
        rows.append(
            {
                "name": words.score(name),
                **_cell(value),
                "asked": rate(asked),
                "base": rate(base[name].value) if name in base else "",
                "gain": _against_base(stage, name, value, base.get(name), words),
                "verdict": verdict,
            }
        )
    return rows


def _against_base(
    stage: Stage, name: str, value: Value | None, base: Value | None, words: Words
) -> str:
    """What an adapter gains on its base model."""
    facts = stage.evaluation.at("against_base", name)
    difference, p = facts.number("difference"), facts.number("p")
    if difference is None and value and base:
        difference = value.value - base.value
    if difference is None:
        return ""
    if p is None:
        return signed(difference)
    return words("difference_p", difference=signed(difference), p=fine(p))


def _by_type(stage: Stage, words: Words) -> Section:
    kinds = [(kind, values_of(facts)) for kind, facts in stage.evaluation.items("by_type")]
    names = [name for name in SCORES if any(name in values for _, values in kinds)]
    rows = [
        {"name": kind, "cells": [_cell(values.get(name)) for name in names]}
        for kind, values in kinds
        if values
    ]
    return {"header": [words.score(name) for name in names], "rows": rows}


# The answers


def answers(run: Run, words: Words) -> list[Section]:
    """Of each adapter the answers with the most wrong in them."""
    found = []
    ordered = sorted(run.stages, key=lambda stage: stage.is_trial)
    for stage in ordered:
        graded = [(badness(one), one) for one in stage.predictions]
        wrong = [(grade, one) for grade, one in graded if grade > 0]
        worst = sorted(wrong, key=lambda pair: -pair[0])[:WORST]
        if not graded:
            continue
        found.append(
            {
                "stage": stage.name,
                "adapter": adapter_name(stage),
                "text": words("answers_wrong", wrong=grouped(len(wrong)), n=grouped(len(graded))),
                "file": f"predictions_{stage.name}.jsonl",
                "worst": [answer(one, words) for _, one in worst],
            }
        )
    return found


def badness(prediction: Facts) -> float:
    """How wrong an answer is: what it lacks of each score; an empty one beats them all."""
    found = [score_of(prediction, score) for score in SCORES]
    lost = [1.0 - value for value in found if value is not None]
    empty = prediction.flag("verdict", "empty") is True
    return sum(lost) + (len(SCORES) if empty else 0)


def answer(prediction: Facts, words: Words) -> Section:
    """One answer beside what was expected."""
    expected = prediction.at("expected")
    lost = {
        score: value
        for score in SCORES
        for value in [score_of(prediction, score)]
        if value is not None
    }
    marks = [words(f"wrong_{score}") for score, value in lost.items() if value < 1.0]
    if prediction.flag("verdict", "empty"):
        marks.insert(0, words("wrong_empty"))
    tokens = grouped(prediction.number("answer_tokens"))
    return {
        "id": prediction.text("id"),
        "type": prediction.text("type"),
        "where": f"{prediction.text('file')}:{prediction.text('line')}",
        "marks": marks,
        "question": clipped(question(prediction), words),
        "expected": [
            {"title": title, "items": [clipped(item, words) for item in items], "list": as_list}
            for title, items, as_list in _expected(prediction, expected, words)
            if items
        ],
        "unknown": ""
        if expected
        else words("expects_unknown", file=prediction.text("file"), line=prediction.text("line")),
        "answer": clipped(prediction.text("answer"), words) or words("empty"),
        "cut": words("cut_tokens", tokens=tokens) if prediction.flag("ended") is False else "",
        "tokens": words("tokens", tokens=tokens),
    }


def question(prediction: Facts) -> str:
    """What the model was asked: the last message of the user's, where the file has it."""
    asked = [one.text("content") for one in prediction.each("prompt") if one.text("role") == "user"]
    return asked[-1] if asked else prediction.text("prompt")


def _expected(
    prediction: Facts, expected: Facts, words: Words
) -> list[tuple[str, list[str], bool]]:
    refuse = expected.flag("should_refuse")
    missed = prediction.at("verdict").texts("missed")
    points = [_point(one) for one in expected.each("key_points")]
    calls = [f"{one.text('name')} {one.text('arguments')}" for one in expected.each("tool_calls")]
    sentence = {True: words("expects_refusal"), False: words("expects_answer")}.get(refuse is True)
    return [
        ("", [sentence] if sentence and refuse is not None else [], False),
        (words("expects_headings"), expected.texts("headings"), True),
        (words("expects_points"), [point for point in points if point not in missed], True),
        (words("expects_missed"), missed, True),
        (words("expects_citations"), expected.texts("citations"), True),
        (words("expects_calls"), calls, True),
        (
            words("expects_reference"),
            [expected.text("reference")] * bool(expected.text("reference")),
            False,
        ),
    ]


def _point(one: Facts) -> str:
    """A key point, in any of the forms that a benchmark may have."""
    named = (one.text(key) for key in ("point", "text", "name"))
    listed = one.texts()
    return one.text() or next((name for name in named if name), "") or (listed[0] if listed else "")


def clipped(text: str, words: Words) -> str:
    """As much of a text as is shown."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}{words('cut_here', count=grouped(len(text) - LONGEST))}"


# The course of the run


def course(run: Run, words: Words) -> list[Section]:
    """Each stage with its state, and why."""
    return [
        {
            "name": stage.name,
            "colour": plots.colour(at),
            "state": stage.row.text("state"),
            "acceptance": stage.row.text("acceptance"),
            "samples": grouped(stage.row.number("metrics", "samples")),
            "steps": grouped(stage.row.number("metrics", "steps")),
            "tokens": grouped(stage.row.number("metrics", "train_tokens")),
            "loss": fine(stage.row.number("metrics", "train_loss")),
            "time": duration(stage.row.number("seconds")),
            "reasons": stage.row.texts("reasons"),
            "error": stage.row.text("error", "symptom"),
            "again": words("scored_again") if stage.record.text("mode") == "evaluate" else "",
        }
        for at, stage in enumerate(run.stages)
    ]


def _gravest_first(issues: list[Facts]) -> list[Facts]:
    return sorted(issues, key=lambda one: (one.text("severity") != "error", one.text("time")))


def issue(one: Facts) -> Section:
    """One issue, field by field."""
    names = (
        "time",
        "phase",
        "stage",
        "category",
        "severity",
        "symptom",
        "cause",
        "action",
        "status",
    )
    return {name: one.text(name) for name in names}


def precheck(run: Run) -> Section:
    """What the GPU gate found: complaints by themselves, and how much was fine."""
    findings = run.precheck.each("findings")
    bad = [one for one in findings if one.text("result") in ("fail", "warn")]
    fine_ones = [one for one in findings if one.text("result") == "ok"]
    names = ("check", "result", "seen", "expected", "action")
    return {
        "bad": [{name: one.text(name) for name in names} for one in bad],
        "all": [{name: one.text(name) for name in names} for one in findings],
        "fine": len(fine_ones),
        "rest": len(findings) - len(bad) - len(fine_ones),
    }


# What it was made of, and what comes next


def made(run: Run, words: Words) -> Section:
    """Base model, data, settings, machine, by their digests."""
    used: dict[tuple[str, str], dict[str, list[str]]] = {}
    for stage in run.stages:
        for key, files in (("used_train", stage.trained_on), ("used_score", stage.benchmarks)):
            for name, digest in files.items():
                used.setdefault((name, digest), {}).setdefault(key, []).append(stage.name)
    settings = {s.name: dict(s.marker.items("inputs", "settings")) for s in run.stages}
    with_settings = {name: found for name, found in settings.items() if found}
    environment = [(name, one.text()) for name, one in run.facts.items("environment")]
    if not environment:
        packages = [dict(s.marker.items("inputs", "packages")) for s in run.stages]
        environment = [(n, one.text()) for found in packages[-1:] for n, one in found.items()]
    where = [s.record.text("accelerator") or s.marker.text("accelerator") for s in run.stages]
    return {
        "bases": list(
            dict.fromkeys(
                (s.evaluation.text("base_model"), s.marker.text("inputs", "base_model"))
                for s in run.stages
                if s.marker or s.evaluation
            )
        ),
        "data": [
            {
                "file": name,
                "digest": digest.removeprefix("sha256:"),
                "used": "; ".join(words(k, stages=", ".join(v)) for k, v in uses.items()),
            }
            for (name, digest), uses in used.items()
        ],
        "settings": _settings(with_settings),
        "stages": list(with_settings),
        "facts": [
            (words("host"), run.facts.text("host")),
            (words("project_root"), run.facts.text("project_root")),
            (words("started"), day_and_time(run.facts.text("started"))),
            (words("ended"), day_and_time(run.facts.text("ended"))),
            (words("accelerator"), ", ".join(dict.fromkeys(one for one in where if one))),
            *environment,
        ],
        "weights": [(s.adapter, s.weights) for s in run.stages if s.adapter and s.weights],
    }


def _settings(stages: dict[str, dict[str, Facts]]) -> list[Section]:
    """Each setting with its value, once where all stages have the same."""
    names = list(dict.fromkeys(name for found in stages.values() for name in found))
    rows = []
    for name in names:
        values = [_setting(found.get(name)) for found in stages.values()]
        same = len(set(values)) == 1
        rows.append({"name": name, "same": values[0] if same else "", "values": values})
    return sorted(rows, key=lambda row: bool(row["same"]))


def _setting(value: Facts | None) -> str:
    if value is None:
        return "–"
    flag = value.flag()
    if flag is not None:
        return str(flag).lower()
    return value.text() or ", ".join(value.texts()) or "–"


def next_steps(run: Run, ranked: list[Benchmark], words: Words) -> list[str]:
    """What to do, the most urgent first."""
    states = {stage.name: stage.row.text("state") for stage in run.stages}
    failed = [name for name, state in states.items() if state == "failed"]
    waiting = [name for name, state in states.items() if state in ("not reached", "stopped")]
    steps = [words("next_failed", stages=", ".join(failed))] if failed else []
    if waiting:
        steps.append(words("next_go_on", stages=", ".join(waiting)))
    for stage in run.stages:
        values = values_of(stage.scores)
        lacks = [name for name in stage.thresholds if values and name not in values]
        steps += [words("next_lacks", stage=stage.name, score=words.score(n)) for n in lacks]
        cut = stage.evaluation.number("answers_cut_by_limit")
        if cut:
            steps.append(words("next_cut", stage=stage.name, count=grouped(cut)))
    if any(stage.row.text("acceptance") == "failed" for stage in run.stages):
        steps.append(words("next_answers"))
    for benchmark in ranked:
        widest = _widest(benchmark.best)
        if widest and (widest[1].high or 0) - (widest[1].low or 0) > 0.2:
            n = max(value.n for value in benchmark.best.scores.values())
            steps.append(words("next_more", benchmark=_short_name(benchmark.name), n=grouped(n)))
    if run.facts.text("verdict") == "done" and not failed and not waiting:
        steps.append(words("next_done"))
    return steps


def _to_load(run: Run, ranked: list[Benchmark]) -> list[str]:
    """The folders of the adapters that the page advises to use."""
    both = _one_for_all(ranked)
    stages = [*([both] if both else []), *(one.best.stage for one in ranked if not one.best.empty)]
    found = list(dict.fromkeys(stage.adapter for stage in stages))
    return found or [stage.adapter for stage in run.stages if stage.adapter][:1]


def evidence(run: Run, words: Words) -> list[str]:
    """How far the page can be trusted."""
    lines = [words("evidence_sealed" if run.sealed else "evidence_open")]
    if run.left_out:
        lines.append(words("evidence_left_out", files=", ".join(run.left_out)))
    if run.broken_lines:
        lines.append(words("evidence_broken", count=run.broken_lines))
    return [*lines, words("evidence_page")]
