"""Charts as inline SVG, drawn by pygal: lines and dots over two axes, with text as text.

What pygal puts in for pages of its own (script, style sheet, colours, tooltips) is taken out: the
colours are the page's, by class, so that they follow light and dark. Each series carries the
values that it was drawn from (``data-points``), so that a page can be held against its sources.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from xml.etree import ElementTree

import pygal
from markupsafe import Markup
from pygal.style import Style

from remote_train.text_table import width as columns

WIDTH = 380
"""Units of a chart's width: on a small phone, letters still have four fifths of their size."""

LABEL = 13
"""Units of a label's height."""

MOST_POINTS = 400
"""Points of one line that are drawn; of longer ones the lowest and highest of each part are."""

Point = tuple[float, float]

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_DROPPED = ("defs", "script", "style", "desc", "title")


@dataclasses.dataclass(frozen=True)
class Series:
    """Points that belong together.

    :param kind: the class that its colour and form come from.
    :param points: None where the line has a gap.
    :param labels: what each point is, for a reader who points at it; for dots only.
    """

    name: str
    kind: str
    points: Sequence[Point | None]
    dots: bool = False
    labels: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Axis:
    """From where to where an axis goes, and what stands at it."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


def ticks(
    low: float, high: float, form: Callable[[float], str], most: int = 5, tight: bool = False
) -> Axis:
    """An axis over a range, with at most ``most`` steps of 1, 2 or 5 times a power of ten.

    :param tight: end where the range ends, and not at the next mark.
    """
    # Marks need room between them, which equal or nearly equal ends don't have, nor have those
    # that are next to nothing: a float has no power of ten for them.
    span = high - low if high - low > 1e-9 * abs(low) else abs(high)
    span = span if span > sys.float_info.min * most * 10 else 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    values = [float(f"{i * step:.12g}") for i in range(first, last + 1)]
    if tight:
        values = [value for value in values if value <= low + span]
    marks = [(value, form(value)) for value in values]
    return Axis(values[0], low + span if tight else values[-1], marks)


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """The points to draw: of each part of a long line its lowest and highest one.

    Every point that is left is one of those given.
    """
    if len(points) <= most:
        return list(points)
    parts = most // 2
    found: list[Point] = []
    for at in range(parts):
        part = points[at * len(points) // parts : (at + 1) * len(points) // parts]
        pair = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        found += sorted(pair)
    return found


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """The mean of up to ``window`` points around each, fewer at both ends."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    half, found = window // 2, []
    for at, (x, _) in enumerate(points):
        first, end = max(0, at - half), min(len(points), at + half + 1)
        found.append((x, (sums[end] - sums[first]) / (end - first)))
    return found


def draw(
    name: str, title: str, series: Iterable[Series], x: Axis, y: Axis, height: int = 170
) -> Markup:
    """A chart as an ``<svg>`` element.

    :param name: what it shows, for whoever reads it by program (``data-chart``).
    :param title: the same for a reader who can't see it.
    """
    drawn = [one for one in series if any(point is not None for point in one.points)]
    widest = max((label for _, label in y.ticks), key=columns, default="")
    chart = pygal.XY(
        width=WIDTH,
        height=height,
        style=Style(label_font_size=LABEL, major_label_font_size=LABEL),
        css=(),
        js=(),
        margin=6,
        margin_right=16,
        # pygal takes all letters for equally wide; Chinese ones take two places.
        margin_left=round(6 + (columns(widest) - len(widest)) * LABEL * 0.5),
        show_legend=False,
        truncate_label=-1,
        allow_interruptions=True,
        xrange=(x.low, x.high),
        range=(y.low, y.high),
        x_labels=[{"value": value, "label": label} for value, label in x.ticks],
        y_labels=[{"value": value, "label": label} for value, label in y.ticks],
    )
    for one in drawn:
        chart.add(one.name, one.points, stroke=not one.dots, show_dots=one.dots, dots_size=4.5)
    root = ElementTree.fromstring(chart.render(is_unicode=True))  # noqa: S314 # pygal's own
    return _finished(root, name, title, drawn)


def _finished(root: ElementTree.Element, name: str, title: str, series: Sequence[Series]) -> Markup:
    """What pygal has drawn, with this page's classes and without what it adds for itself."""
    _strip(root)
    size = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {"viewBox": size, "class": "chart", "role": "img", "aria-label": title, "data-chart": name}
    )
    for group in root.iter(f"{_NAMESPACE}g"):
        match = re.fullmatch(r"series serie-(\d+) color-\d+", group.get("class", ""))
        if match:
            one = series[int(match.group(1))]
            group.set("class", f"series {one.kind}")
            if len(group):
                group.set("data-series", one.name)
                group.set("data-points", json.dumps(one.points))
                _name_dots(group, one.labels)
    _rename(root)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 # escaped by it


def _strip(element: ElementTree.Element) -> None:
    for child in list(element):
        tag = child.tag.removeprefix(_NAMESPACE) if isinstance(child.tag, str) else "script"
        kind = child.get("class", "")
        is_empty = tag == "g" and kind in ("titles", "plot text-overlay", "plot tooltip-overlay")
        if tag in _DROPPED or is_empty or kind == "background":
            element.remove(child)
        else:
            _strip(child)


def _name_dots(group: ElementTree.Element, labels: Sequence[str]) -> None:
    """What each dot is, for whoever points at it."""
    for circle, label in zip(group.iter(f"{_NAMESPACE}circle"), labels, strict=False):
        ElementTree.SubElement(circle, "title").text = label


def _rename(root: ElementTree.Element) -> None:
    """Plain names: inside HTML, an ``<svg>`` needs no namespace."""
    for element in root.iter():
        element.tag = element.tag.removeprefix(_NAMESPACE)
        element.attrib.pop("style", None)
