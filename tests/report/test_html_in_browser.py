"""The report in a browser: what only one can tell. Skipped where there is no Chromium."""

import html
import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report import bundle
from tests.helpers import synthetic_study
from tests.helpers.browser import CHROMIUM, needs_chromium
from tests.helpers.one_figure import one_figure
from tests.helpers.synthetic_findings import cell, findings, many
from tests.helpers.synthetic_findings import page as made

pytestmark = needs_chromium


def in_browser(page: str, script: str, folder: Path, width: int = 1280) -> Any:
    """Return the value of an expression beside a frame of that width, whose document is `page`; no complaint is allowed."""
    outer = f"""<!DOCTYPE html><body>
<iframe style="width: {width}px; height: 800px; border: 0" srcdoc="{html.escape(page)}"></iframe>
<script>onload = () => {{ const page = document.querySelector("iframe").contentDocument, frame = page.defaultView;
document.body.dataset.found = JSON.stringify({script}); }}</script></body>"""
    (folder / "outer.html").write_text(outer, encoding="utf-8")
    quiet = ["background-networking", "component-update", "sync", "gpu", "quic"]
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            *(f"--disable-{name}" for name in quiet),
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            f"--window-size={width + 40},900",
            "--dump-dom",
            (folder / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stdout[-1000:]
    return json.loads(html.unescape(found[1]))


def sorted_by(name: str, clicks: int, table: str = "results") -> str:
    """Script: levels in the order in which the rows of a table are after pressing a column's head."""
    return f"""(() => {{
const table = page.querySelector("#table-{table}").parentElement;
const head = [...table.tHead.rows[0].cells].find((one) => one.textContent === "{name}");
for (let i = 0; i < {clicks}; i++) head.querySelector("button").click();
return [head.getAttribute("aria-sort"), [...table.tBodies[0].rows].map((row) => row.cells[0].textContent)];
}})()"""


def cells_of(values: Sequence[float | None]) -> tuple[Evidence, Findings]:
    """A study of one factor, whose errors are these; its multiply-adds are written 900 k, 3 M, 41 M and 2 G."""
    levels = ("9", "10", "0.5", "1e-3")
    evidence = synthetic_study.evidence(synthetic_study.design({"width": levels}, {}))
    flops = (3e6, 2e9, 9e5, 41e6)
    return evidence, findings(
        *(cell(f"width={level}", value, flops=cost) for level, value, cost in zip(levels, values, flops, strict=True))
    )


@pytest.mark.slow
def test_a_browser_sorts_by_value_with_gaps_last(tmp_path: Path) -> None:
    page = made(*cells_of((10.5, None, 9.0, 101.0)))
    scripts = [sorted_by("test error, %", 1), sorted_by("test error, %", 1), sorted_by("width", 1)]
    scripts.append(sorted_by("multiply-adds", 1, "costs"))
    assert in_browser(page, f"[{', '.join(scripts)}]", tmp_path) == [
        ["ascending", ["0.5", "9", "1e-3", "10"]],
        ["descending", ["1e-3", "9", "0.5", "10"]],
        ["ascending", ["1e-3", "0.5", "9", "10"]],
        ["ascending", ["0.5", "9", "1e-3"]],
    ]


@pytest.mark.slow
def test_a_phone_never_scrolls_sideways(tmp_path: Path) -> None:
    evidence, found = many()
    long = replace(evidence.design, question="x" * 200, origin={"command": "y" * 500})
    page = made(replace(evidence, design=long), replace(found, flags=("z" * 300,)))
    script = "[page.documentElement.scrollWidth, page.querySelector('.scroll').scrollWidth, page.querySelectorAll('svg').length]"
    width, table, figures = in_browser(page, script, tmp_path, width=360)
    assert width <= 360 < table
    assert figures == 2


@pytest.mark.slow
def test_paper_has_no_closed_details(tmp_path: Path) -> None:
    count = "page.querySelectorAll('details:not([open])').length"
    fire = "frame.dispatchEvent(new Event('{}'))"
    script = f"[{count}, {fire.format('beforeprint')}, {count}, {fire.format('afterprint')}, {count}]"
    before, _, during, _, after = in_browser(made(), script, tmp_path)
    assert before == after > 0 == during


@pytest.mark.slow
def test_a_wide_table_says_that_it_scrolls_and_a_narrow_one_does_not(tmp_path: Path) -> None:
    hints = "Object.fromEntries([...page.querySelectorAll('caption')].map((one) => [one.id, (() => {"
    hints += "const region = one.closest('.scroll'), shown = region.previousElementSibling;"
    hints += "return [shown.hidden, region.classList.contains('more'), region.scrollWidth > region.clientWidth + 1]; })()]))"
    for width in (390, 1280):
        found = in_browser(made(), hints, tmp_path, width=width)
        assert {name for name, (hidden, more, wide) in found.items() if not hidden == (not more) == (not wide)} == set()
        assert found["table-results"][0] == (width == 1280)


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_a_figure_fits_the_screen_and_its_text_is_not_smaller_than_nine_pixels(width: int, tmp_path: Path) -> None:
    given = synthetic_study.evidence(epochs=2)
    with one_figure():
        (tmp_path / "study").mkdir()
        bundle.write(given, analyze_study(given), tmp_path / "study")
    page = (tmp_path / "study/report/report.html").read_text(encoding="utf-8")
    shown = "[...page.querySelectorAll('svg')].filter((one) => one.getBoundingClientRect().width > 0)"
    sizes = f"{shown}.map((one) => [one.getBoundingClientRect().width, one.viewBox.baseVal.width])"
    ((wide, points),) = in_browser(page, sizes, tmp_path, width=width)
    assert wide <= width
    assert 8 * wide / points >= 9  # text of 8 points
