"""``report.html`` in a real browser: nothing is loaded or run, and everything can be read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.report import page
from tests.unit.report_home import ADAPTERS, HOSTILE, RUN, Home, full_of, with_base

pytestmark = pytest.mark.page

WIDTHS = {"small phone": 320, "phone": 375, "tablet": 768, "desktop": 1280}
LONG = "outputs/" + "a_very_long_name_without_any_place_to_break_" * 6


@dataclasses.dataclass
class Opened:
    """A page in the browser, and all that it did by itself."""

    tab: Any
    messages: list[str]
    requests: list[str]
    dialogs: list[str]
    refused: list[tuple[str, str]]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Home]:
    """Runs of several kinds, written."""
    found = {
        "full": Home(tmp_path_factory.mktemp("full")),
        "bare": Home(tmp_path_factory.mktemp("bare"), questions=2, steps=1, gpu=False),
        "long": full_of(Home(tmp_path_factory.mktemp("long")), LONG),
        "hostile": Home(tmp_path_factory.mktemp("hostile")),
    }
    for stage in ("style", "writing"):
        with_base(found["full"], stage)
    full_of(found["hostile"], "".join(HOSTILE[:6]))
    for home in found.values():
        home.write()
    return found


@contextlib.contextmanager
def opened(
    browser: Any, home: Home, language: str = "en", scheme: str = "light", width: int = 1280
) -> Iterator[Opened]:
    """A page that is open, with every part of it unfolded."""
    path = page.write_page(str(home.path), RUN, language)
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        device_scale_factor=2 if width < 500 else 1,
    )
    found = Opened(context.new_page(), [], [], [], [])
    found.tab.on("console", lambda one: found.messages.append(f"{one.type}: {one.text}"))
    found.tab.on("pageerror", lambda one: found.messages.append(str(one)))
    found.tab.on("request", lambda one: found.requests.append(one.url))
    found.tab.on("requestfailed", lambda one: found.refused.append((one.url, one.failure)))
    found.tab.on("dialog", lambda one: (found.dialogs.append(one.message), one.dismiss()))
    found.tab.goto(Path(path).as_uri())
    found.tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    try:
        yield found
    finally:
        context.close()


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", ["full", "bare", "long", "hostile"])
def test_no_error_and_no_request_leaves_the_file(
    browser: Any, homes: dict[str, Home], kind: str, language: str
) -> None:
    with opened(browser, homes[kind], language) as found:
        found.tab.wait_for_timeout(200)
        assert found.messages == []
        assert found.dialogs == []
        assert found.requests == [homes[kind].page.as_uri()]
        assert found.tab.evaluate("document.scripts.length") == 0


def test_what_would_load_or_run_is_stopped_by_the_page_itself(
    browser: Any, homes: dict[str, Home]
) -> None:
    """Were anything let through by mistake, the policy in the page would still refuse it."""
    with opened(browser, homes["full"]) as found:
        found.tab.evaluate(
            """() => {
                const image = new Image(); image.src = 'https://example.com/x.png';
                document.body.append(image);
                const script = document.createElement('script');
                script.textContent = 'globalThis.hit = true'; document.body.append(script);
                const style = document.createElement('style');
                style.textContent = 'h1 { color: red }'; document.body.append(style);
            }"""
        )
        found.tab.wait_for_timeout(200)
        assert found.tab.evaluate("globalThis.hit") is None
        assert found.refused == [("https://example.com/x.png", "csp")]
        assert len([one for one in found.messages if "Content Security Policy" in one]) == 3


def test_every_plotted_value_in_the_open_page_is_the_files_own(
    browser: Any, homes: dict[str, Home]
) -> None:
    home = homes["full"]
    with opened(browser, home) as found:
        drawn = found.tab.evaluate(
            """() => Object.fromEntries([...document.querySelectorAll('[data-series]')].map(
                one => [one.closest('svg').dataset.chart + ' ' + one.dataset.series,
                        JSON.parse(one.dataset.points)]))"""
        )
    for stage in ADAPTERS:
        steps = home.steps(stage)
        assert drawn[f"loss:{stage} loss"] == [[s["step"], s["loss"]] for s in steps]
        assert [p[1] for p in drawn[f"memory {stage}"]] == [s["peak_memory_bytes"] for s in steps]
        scores = json.loads((home.folder / f"eval_report_{stage}.json").read_text())["scores"]
        values = {p[0] for p in drawn[f"scores:{stage} values"]}
        assert values == {one["value"] for one in scores.values() if "value" in one}


CONTRAST = """() => {
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const channel = c => (c /= 255, c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const ground = one => {
        for (; one; one = one.parentElement) {
            const found = numbers(getComputedStyle(one).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
        }
        return [255, 255, 255];
    };
    const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const one = walker.currentNode.parentElement;
        const text = walker.currentNode.textContent.trim();
        if (!text || one.tagName === 'title' || one.tagName === 'STYLE') continue;
        const style = getComputedStyle(one);
        const colour = one.closest('svg') ? style.fill : style.color;
        found.push([text.slice(0, 40), ratio(numbers(colour), ground(one)), 'text']);
    }
    for (const one of document.querySelectorAll(
        '.mean path, .phase path, .threshold path, .dot circle, .issue circle')) {
        const style = getComputedStyle(one);
        const colour = one.tagName === 'circle' ? style.fill : style.stroke;
        found.push([one.parentElement.getAttribute('class'),
                    ratio(numbers(colour), ground(one.closest('svg'))), 'mark']);
    }
    return found;
}"""
"""The contrast of every text and mark with what is behind it (WCAG 2.2, relative luminance)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_stand_out(browser: Any, homes: dict[str, Home], scheme: str) -> None:
    least = {"text": 4.5, "mark": 3.0}
    with opened(browser, homes["full"], scheme=scheme) as found:
        measured = found.tab.evaluate(CONTRAST)
    assert len(measured) > 300
    assert {kind for _, _, kind in measured} == set(least)
    faint = [(text, round(ratio, 2)) for text, ratio, kind in measured if ratio < least[kind]]
    assert faint == []


def test_dark_is_dark_and_light_is_light(browser: Any, homes: dict[str, Home]) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        with opened(browser, homes["full"], scheme=scheme) as found:
            colour = found.tab.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds[scheme] = sum(int(one) for one in colour[4:-1].split(","))
    assert grounds["light"] > 700
    assert grounds["dark"] < 100


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS.keys())
@pytest.mark.parametrize("kind", ["full", "long", "hostile", "bare"])
def test_nothing_sticks_out_to_the_side(
    browser: Any, homes: dict[str, Home], kind: str, width: int
) -> None:
    with opened(browser, homes[kind], width=width) as found:
        assert found.tab.evaluate("document.documentElement.scrollWidth") <= width
        wide = found.tab.evaluate(
            """() => [...document.querySelectorAll('body *')]
                .filter(one => !one.closest('.scroll') || one.matches('.scroll'))
                .filter(one => one.getBoundingClientRect().right > innerWidth + 0.5)
                .map(one => one.outerHTML.slice(0, 80))"""
        )
        assert wide == []


LABELS = """() => [...document.querySelectorAll('svg.chart')].map(svg => {
    const own = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].map(one => {
        const box = one.getBoundingClientRect();
        const scale = own.width / svg.viewBox.baseVal.width;
        const size = parseFloat(getComputedStyle(one).fontSize) * scale;
        return {text: one.textContent, size, left: box.left - own.left, right: box.right - own.left,
                top: box.top, bottom: box.bottom, width: own.width};
    });
    return {chart: svg.dataset.chart, texts};
})"""


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [320, 375, 1280])
def test_labels_of_charts_can_be_read(
    browser: Any, homes: dict[str, Home], width: int, language: str
) -> None:
    """They are large enough, inside the chart, and none lies over another one."""
    with opened(browser, homes["full"], language, width=width) as found:
        charts = found.tab.evaluate(LABELS)
    assert len(charts) == 11
    for chart in charts:
        texts = chart["texts"]
        assert len(texts) > 5, chart
        for at, one in enumerate(texts):
            assert one["size"] >= 8.5, one
            assert one["left"] >= -0.5, one
            assert one["right"] <= one["width"] + 0.5, one
            for other in texts[at + 1 :]:
                apart = (
                    one["right"] <= other["left"]
                    or other["right"] <= one["left"]
                    or one["bottom"] <= other["top"] + 1
                    or other["bottom"] <= one["top"] + 1
                )
                assert apart, (chart["chart"], one, other)


def test_chinese_is_drawn_with_a_chinese_font(browser: Any, homes: dict[str, Home]) -> None:
    with opened(browser, homes["full"], "zh") as found:
        session = found.tab.context.new_cdp_session(found.tab)
        session.send("DOM.enable")
        session.send("CSS.enable")
        root = session.send("DOM.getDocument")["root"]["nodeId"]
        for place in ("h1", "#answers .answer li", "svg .axis.y text"):
            node = session.send("DOM.querySelector", {"nodeId": root, "selector": place})
            fonts = session.send("CSS.getPlatformFontsForNode", {"nodeId": node["nodeId"]})["fonts"]
            names = [font["familyName"] for font in fonts]
            signs = ("CJK", "WenQuanYi", "Hei", "PingFang", "Hiragino", "Song", "Ming")
            assert any(sign in name for name in names for sign in signs), (place, names)
            assert not any("Sans CJK JP" in name for name in names), (place, names)


@pytest.mark.parametrize(
    ("name", "language", "scheme", "width"),
    [
        ("light", "en", "light", 1280),
        ("dark", "en", "dark", 1280),
        ("phone", "en", "light", 375),
        ("chinese", "zh", "light", 1280),
        ("chinese-phone-dark", "zh", "dark", 375),
    ],
)
def test_pictures_to_look_at(
    browser: Any,
    homes: dict[str, Home],
    pictures: Path,
    name: str,
    language: str,
    scheme: str,
    width: int,
) -> None:
    with opened(browser, homes["full"], language, scheme, width) as found:
        found.tab.screenshot(path=pictures / f"{name}.png", full_page=True)
    assert (pictures / f"{name}.png").stat().st_size > 100_000
