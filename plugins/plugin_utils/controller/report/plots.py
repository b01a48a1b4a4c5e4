"""The charts of a run: which values, over which axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from markupsafe import Markup

from .charts import Axis, Point, Series, draw, smoothed, thinned, ticks
from .choice import SCORES, values_of
from .figures import fine, gibibytes, grouped, rate, seconds_between, unit_for
from .read import Run, Stage
from .words import Words

PHASES = ("load", "train", "evaluate", "save")
"""The parts of a stage, in their order; what is left of its time was its start."""

_ROW = 28
"""Units of height that a row of a chart with named rows takes."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """A chart with what stands beside it."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """Classes with what they stand for."""
    note: str = ""


def colour(at: int) -> str:
    """The class of a stage's colour, by its place."""
    return f"s{at % 8}"


# What happened when


def timeline(run: Run, words: Words) -> Plot | None:
    """Each stage in its parts, over the time since the run's start; issues as dots."""
    start = run.facts.text("started")
    total = seconds_between(start, run.facts.text("ended"))
    if total is None:
        return None
    parts: dict[str, list[Point | None]] = {}
    names: list[str] = []
    for stage in run.stages:
        begun = seconds_between(start, stage.record.text("started"))
        taken = stage.record.number("seconds")
        if begun is None or taken is None:
            continue
        names.append(stage.name)
        at = max(0.0, begun)
        for phase, seconds in _phases(stage, taken):
            row = float(-len(names))
            parts.setdefault(phase, []).extend([(at, row), (at + seconds, row), None])
            at += seconds
    seen = [(seconds_between(start, one.text("time")), one.text("symptom")) for one in run.issues]
    inside = [(at, symptom) for at, symptom in seen if at is not None and 0 <= at <= total]
    dots = [(at, -float(len(names) + 1)) for at, _ in inside]
    rows = [words("run"), *names, *([words("issues_row")] if dots else [])]
    ends = [point[0] for points in parts.values() for point in points if point]
    unit, size = unit_for([total, *ends])
    axis = time_axis([total, *ends], size)
    series = [Series("run", "phase run", [(0.0, 0.0), (total, 0.0)])]
    series += [
        Series(phase, f"phase {phase}", parts[phase])
        for phase in ("start", *PHASES, "whole")
        if phase in parts
    ]
    if dots:
        labels = [symptom for _, symptom in inside]
        series.append(Series("issues", "issue", dots, dots=True, labels=labels))
    svg = draw("timeline", words("timeline"), series, axis, _rows(rows), _ROW * len(rows) + 40)
    legend = [
        (f"phase {one.name}", words(f"phase_{one.name}")) for one in series[1:] if not one.dots
    ]
    return Plot(words("timeline"), svg, legend, words("timeline_text", unit=words(f"unit_{unit}")))


def _phases(stage: Stage, taken: float) -> list[tuple[str, float]]:
    """The parts of a stage with their seconds."""
    found = [(name, stage.record.number("phases", name)) for name in PHASES]
    known = [(name, seconds) for name, seconds in found if seconds]
    if not known:
        return [("whole", taken)]
    rest = max(0.0, taken - sum(seconds for _, seconds in known))
    return [("start", rest), *known]


def _rows(names: Sequence[str]) -> Axis:
    """An axis with a name for each row, the first one on top."""
    marks = [(-float(at), name) for at, name in enumerate(names)]
    return Axis(0.5 - len(names), 0.5, marks)


def time_axis(seconds: Sequence[float], unit: float) -> Axis:
    """An axis in seconds with labels in a unit."""
    axis = ticks(0, (max(seconds) or 1.0) / unit, fine, tight=True)
    return Axis(0.0, axis.high * unit, [(value * unit, label) for value, label in axis.ticks])


# Loss, speed, memory


def window(count: int) -> int:
    """How many steps the strong line is a mean of: a twentieth of all, and an odd number."""
    return (count // 20) | 1


def losses(run: Run, words: Words) -> list[Plot]:
    """The loss of each stage over its steps, all on one scale."""
    found = {stage.name: _over_steps(stage, "loss") for stage in run.stages}
    highest = max((y for points in found.values() for _, y in points), default=0.0)
    lowest = min((y for points in found.values() for _, y in points), default=0.0)
    plots = []
    for at, stage in enumerate(run.stages):
        points = found[stage.name]
        if not points:
            continue
        wide = window(len(points))
        series = [Series("loss", f"raw {colour(at)}", thinned(points))]
        if wide > 1:
            mean = thinned(smoothed(points, wide))
            series.append(Series("loss_mean", f"mean {colour(at)}", mean))
        else:
            series = [Series("loss", f"mean {colour(at)}", points, dots=len(points) == 1)]
        title = words("loss_chart", stage=stage.name, steps=len(points))
        last = words("loss_last", first=fine(points[0][1]), last=fine(points[-1][1]))
        if stage.record.text("mode") == "evaluate":
            last += f" ({words('scored_again')})"
        svg = draw(
            f"loss:{stage.name}",
            title,
            series,
            ticks(0, points[-1][0], grouped, tight=True),
            ticks(min(0.0, lowest), highest, fine),
        )
        plots.append(Plot(stage.name, svg, note=last))
    return plots


def speed(run: Run, words: Words) -> Plot | None:
    """Tokens per second over the time of each stage's training."""
    return _over_time(
        run, words, "speed", "tokens_per_second", run.stages, grouped, lambda axis: axis
    )


def memory(run: Run, words: Words) -> Plot | None:
    """Peak memory of the GPU over the time of each stage's training; None without a GPU."""
    on_gpu = [stage for stage in run.stages if stage.on_gpu]
    return _over_time(run, words, "memory", "peak_memory_bytes", on_gpu, gibibytes, _in_gibibytes)


def _in_gibibytes(axis: Axis) -> Axis:
    marks = ticks(0, axis.high / 2**30, fine)
    return Axis(0.0, marks.high * 2**30, [(value * 2**30, label) for value, label in marks.ticks])


def _over_time(
    run: Run,
    words: Words,
    name: str,
    field: str,
    stages: Sequence[Stage],
    form: Callable[[float], str],
    scaled: Callable[[Axis], Axis],
) -> Plot | None:
    found = {stage.name: _over_seconds(stage, field) for stage in stages}
    lines = {stage: points for stage, points in found.items() if points}
    if not lines:
        return None
    places = {stage.name: at for at, stage in enumerate(run.stages)}
    times = [points[-1][0] for points in lines.values()]
    unit, size = unit_for(times)
    series = []
    for stage, points in lines.items():
        line = smoothed(points, window(len(points))) if name == "speed" else points
        kind = f"mean {colour(places[stage])}"
        series.append(Series(stage, kind, thinned(line), dots=len(line) == 1))
    # The axis belongs to what is drawn: one slow or fast step would flatten all the rest.
    highest = max(point[1] for one in series for point in one.points if point)
    axis = scaled(ticks(0, highest, form))
    title = words("speed_chart" if name == "speed" else "memory_chart")
    svg = draw(name, title, series, time_axis(times, size), axis)
    legend = [(one.kind, one.name) for one in series]
    text = "speed_text" if name == "speed" else "memory_text"
    note = words(text, unit=words(f"unit_low_{unit}"))
    return Plot(title, svg, legend, note)


def _over_steps(stage: Stage, field: str) -> list[Point]:
    pairs = [(step.number("step"), step.number(field)) for step in stage.steps]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _over_seconds(stage: Stage, field: str) -> list[Point]:
    found, at = [], 0.0
    for step in stage.steps:
        parts = [one.number() for _, one in step.items("seconds")]
        at += sum(part for part in parts if part)
        value = step.number(field)
        if value is not None:
            found.append((at, value))
    return found if at else []


# Scores


def scores(stage: Stage, at: int, words: Words) -> Plot | None:
    """A stage's scores with their intervals, against its thresholds and the base model's."""
    values, base = values_of(stage.scores), values_of(stage.evaluation.at("base", "scores"))
    asked = stage.thresholds
    names = [name for name in SCORES if name in values or name in asked]
    if not values:
        return None
    rows = {name: -float(place) for place, name in enumerate(names)}
    spans: list[Point | None] = []
    marks: list[Point | None] = []
    for name in names:
        one = values.get(name)
        if one and one.low is not None and one.high is not None:
            spans += [(one.low, rows[name]), (one.high, rows[name]), None]
        if name in asked:
            marks += [(asked[name], rows[name] - 0.36), (asked[name], rows[name] + 0.36), None]
    there = [name for name in names if name in values]
    in_base = [name for name in names if name in base]
    series = [
        Series("intervals", f"span {colour(at)}", spans),
        Series("thresholds", "threshold", marks),
        Series(
            "base",
            "basedot",
            [(base[name].value, rows[name]) for name in in_base],
            dots=True,
            labels=[f"{words('base_model')}: {rate(base[name].value)}" for name in in_base],
        ),
        Series(
            "values",
            f"dot {colour(at)}",
            [(values[name].value, rows[name]) for name in there],
            dots=True,
            labels=[f"{words.score(name)}: {rate(values[name].value)}" for name in there],
        ),
    ]
    legend = [
        (one.kind, words(key))
        for one, key in zip(series, ("interval", "threshold", "base_model", "value"), strict=True)
        if one.points
    ]
    axis = Axis(0.0, 1.0, [(value / 4, rate(value / 4)) for value in range(5)])
    svg = draw(
        f"scores:{stage.name}",
        f"{words('scores')}: {stage.name}",
        series,
        axis,
        _rows([words.score(name) for name in names]),
        _ROW * len(names) + 40,
    )
    return Plot(stage.name, svg, legend)
