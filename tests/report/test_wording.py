"""The wording of everything that a reader of a study sees, compared with one golden file.

Other tests check verdicts, counts and numbers, and leave the sentences to this file. After an intended change of wording, write the
file again with `python -m tests.report.test_wording` in the root of the repository, and read its diff.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report import html, mlflow_page, tables, terminal
from ablations.engine.report.figures import all_figures, caption
from ablations.engine.report.page.figures import ReportFigure
from tests.helpers.synthetic_figures import probed
from tests.helpers.synthetic_search import search_evidence
from tests.helpers.synthetic_study import evidence, without

GOLDEN = Path(__file__).with_name("wording.txt")
REGENERATE = "wording changed; if intended, run `python -m tests.report.test_wording` and read the diff of wording.txt"
SVG = '<svg viewBox="0 0 10 10" xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>'


class PageText(HTMLParser):
    """The visible text of a page, one line per block of text; without the bodies of tables and the settings of runs."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: list[str] = [""]
        self._hidden: list[str] = []
        self.feed(re.sub(r'<div class="settings">.*?</details>', "</details>", page, flags=re.DOTALL))  # fields and their values

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("style", "script", "tbody", "head", "textarea"):
            self._hidden.append(tag)
        if tag in ("p", "li", "h1", "h2", "h3", "dt", "dd", "caption", "tr", "summary", "section", "figure", "th"):
            self.lines.append("")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden and self._hidden[-1] == tag:
            self._hidden.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.lines[-1] += data

    @property
    def text(self) -> str:
        return "\n".join(line for line in (" ".join(line.split()) for line in self.lines) if line)


def study() -> Evidence:
    """Return a study with a diverged run and a run without a result."""
    given = without(evidence(), "shortcut=B depth=56/1", "diverged", "loss is not finite in epoch 3")
    return replace(probed(without(given, "shortcut=none depth=20/2")), trials=None)


def search() -> Evidence:
    """Return a search that has chosen."""
    return search_evidence(trials=12, seeds=3)


def wording(name: str, given: Evidence) -> Iterator[str]:
    """Yield each kind of text about a study, under a heading."""
    findings = analyze_study(given)
    captions = {figure: caption(figure, given, findings) for figure in all_figures(given, findings)}
    figures = [ReportFigure(figure, each.title, each.text, each.alt, SVG) for figure, each in captions.items()]
    page = html.render(given, findings, figures, published=(), written_at="2026-01-02 03:04 UTC", progress="12 of 18 runs")
    printed = io.StringIO()
    terminal.show_results(Console(file=printed, width=160), given, findings, "python ablations/shortcuts.py")
    texts = {
        "answers": "\n".join(f"{answer.verdict}: {answer.text}" for answer in findings.answers),
        "terminal": "\n".join(line.rstrip() for line in printed.getvalue().splitlines()),
        "page": PageText(page).text,
        "alternative texts of figures": "\n".join(each.alt for each in captions.values()),
        "MLflow description": mlflow_page.description(given.design, findings, "1", "study-run", charted=2),
        "Markdown table": tables.markdown(findings),
    }
    for kind, text in texts.items():
        yield f"=== {name}: {kind} ===\n\n{text.strip()}\n"


def everything() -> str:
    text = "\n".join([*wording("study", study()), *wording("search", search())])
    # Bootstrap intervals and PED-ANOVA differ in their last digits between platforms.
    return re.sub(r"\d+ % \[\d+, \d+\]", "N % [N, N]", text)


def test_the_wording_is_that_of_the_golden_file() -> None:
    assert everything() == GOLDEN.read_text(encoding="utf-8"), REGENERATE


if __name__ == "__main__":
    GOLDEN.write_text(everything(), encoding="utf-8")
