"""Texts about a search: the report's section, the terminal, MLflow's description."""

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.tuning.findings import SearchFindings
from ablations.engine.report.bundle import write
from ablations.engine.report.mlflow_page import description
from ablations.engine.report.tables import escape_markdown
from ablations.engine.report.terminal import show_results
from tests.helpers.synthetic_findings import HOSTILE, PRINTED, page
from tests.helpers.synthetic_search import FIELDS, search_evidence
from tests.helpers.synthetic_study import FORMATS

TWO = {name: FIELDS[name] for name in ("optim.lr", "model.width")}


class Page(HTMLParser):
    """A page's text by section, and its tables by the id of their captions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self._section = self._table = ""
        self._cell: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        if tag == "section":
            self._section = names["aria-labelledby"]
        if tag == "caption":
            self._table = names["id"]
            self.tables[self._table] = []
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in {"td", "th"}:
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"} and self._cell is not None:
            self.tables[self._table][-1].append(" ".join("".join(self._cell).split()))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.sections[self._section] = self.sections.get(self._section, "") + data
        if self._cell is not None:
            self._cell.append(data)


def made(given: Evidence) -> Page:
    return Page(page(given, analyze_study(given)))


@pytest.fixture(scope="module")
def searched() -> Evidence:
    return search_evidence(fields=TWO)


@pytest.fixture(scope="module")
def findings(searched: Evidence) -> Findings:
    return analyze_study(searched)


@pytest.fixture(scope="module")
def search(findings: Findings) -> SearchFindings:
    assert findings.search
    return findings.search


@pytest.fixture(scope="module")
def shown(searched: Evidence, findings: Findings) -> Page:
    return Page(page(searched, findings))


@pytest.mark.slow
def test_the_ranking_is_the_first_answer(search: SearchFindings, shown: Page) -> None:
    assert search.ranking
    answer = " ".join(shown.sections["answer"].split())
    assert answer.startswith(f"The answer ranking ● survives {search.ranking.text}")
    assert answer.index("shortcut matters") > answer.index(search.ranking.text)


def test_the_section_has_every_number_that_was_found(search: SearchFindings, shown: Page) -> None:
    assert shown.tables["table-searched"][1:] == [
        ["optim.lr", "0.001 to 1, logarithmic", "0.02"],
        ["model.width", "8 to 24", "none"],
    ]
    gains = shown.tables["table-gains"][1:]
    assert [line[:2] for line in gains] == [[gain.cell, gain.level] for gain in search.gains]
    assert [line[2].rpartition(" ")[2] for line in gains] == [FORMATS.signed(gain.difference.mean) for gain in search.gains]
    assert search.ranking
    for line, one in zip(shown.tables["table-ranking"][1:], search.ranking.changes, strict=True):
        assert line[:2] == [one.cell, one.other]
        means = [line[i].rpartition(" ")[2] for i in (2, 5, 8)]
        assert means == [FORMATS.signed(estimate.mean) for estimate in (one.before, one.after, one.change)]
    for line, cell in zip(shown.tables["table-searches"][1:], search.cells, strict=True):
        counts = [cell.trials, *(cell.outcomes.get(word, 0) for word in ("completed", "pruned", "diverged"))]
        assert line[1:5] == list(map(str, counts))
        assert line[5] == "1 failed"
        assert line[6] == str(cell.epochs)
        (chosen,) = cell.chosen
        assert (
            line[9]
            == f"trial {chosen.number}: optim.lr={chosen.values['optim.lr']:.3g}, model.width={chosen.values['model.width']}"
        )
        assert line[10] == f"{chosen.score:.2f}"
    shares = [(cell.label, each.field, f"{100 * each.share:.0f}") for cell in search.cells for each in cell.importances]
    assert [tuple(line[:3]) for line in shown.tables.get("table-importances", [[]])[1:]] == shares
    by_chance = [each for cell in search.cells for each in cell.importances if not each.above_chance]
    assert by_chance
    notes = [line[-1] for line in shown.tables["table-importances"][1:]]
    assert notes.count("not above chance") == len(by_chance)
    for note in search.notes:
        assert note in shown.sections["search"]


def test_a_score_stands_nowhere_but_where_it_is_said_to_be_no_result() -> None:
    given = search_evidence({}, TWO, trials=5)
    assert given.trials is not None
    page_ = made(replace(given, trials=given.trials.assign(value=77.77)))
    assert {name for name, text in page_.sections.items() if "77.77" in text} == {"search"}
    assert "no results" in page_.sections["search"]


def test_while_it_searches_nothing_is_chosen_or_final() -> None:
    page_ = made(search_evidence({}, TWO, trials=5, over=False))
    assert "has not ended" in page_.sections["search"]
    assert "nothing to compare" in page_.sections["answer"]
    assert page_.tables["table-searches"][1][-2:] == ["–", "–"]
    assert "table-gains" not in page_.tables
    assert "has not ended" not in made(search_evidence({}, TWO, trials=5)).sections["search"]


def test_a_study_without_a_search_has_no_such_section() -> None:
    assert "search" not in Page(page()).sections


@pytest.mark.slow
def test_whatever_was_searched_is_shown_as_text() -> None:
    factors = {"shortcut": ("none", "A"), HOSTILE: ("x", "y")}
    fields = {**TWO, HOSTILE: {"choices": [HOSTILE, "b"]}}
    given = search_evidence(factors, fields, trials=11, prunes=False, seeds=1)
    html = page(given, analyze_study(given))
    assert Page(html).sections["search"].count(PRINTED) > 10
    assert html.count("<script>") == 1
    assert not set(html) & {"\x00", "\u202e"}


def test_a_terminal_tells_what_was_chosen_and_whose_score_that_is(
    searched: Evidence, findings: Findings, search: SearchFindings
) -> None:
    written = io.StringIO()
    show_results(Console(file=written, width=500), searched, findings, "again")
    for cell in search.cells:
        (chosen,) = cell.chosen
        lr, width = chosen.values["optim.lr"], chosen.values["model.width"]
        line = f"{cell.label}: optim.lr={lr:.3g}, model.width={width} (trial {chosen.number} of 30; "
        assert re.search(f"{re.escape(line)}.*{chosen.score:.2f} %.*no result", written.getvalue())
    assert search.ranking
    assert f"\n{search.ranking.text}\n" in written.getvalue()


def test_a_policy_that_a_population_found_is_told_with_what_it_began_with() -> None:
    given = search_evidence({}, TWO, trials=5)
    assert given.trials is not None
    page_ = made(replace(given, trials=given.trials.assign(changes="4:lr=0.04")))
    assert page_.tables["table-searches"][1][-2].endswith("; then 4:lr=0.04")


def test_the_description_in_mlflow_has_the_ranking(searched: Evidence, findings: Findings, search: SearchFindings) -> None:
    assert search.ranking
    text = description(searched.design, findings, "1", "run", charted=1)
    assert f"- {escape_markdown(search.ranking.text)}\n" in text


@pytest.mark.slow
def test_a_copy_for_optuna_is_among_the_artifacts(tmp_path: Path) -> None:
    given = search_evidence({}, {"optim.lr": FIELDS["optim.lr"]}, trials=3, seeds=1)
    write(given, analyze_study(given), tmp_path)
    assert (tmp_path / "search" / "optuna.journal").read_text().count("\n") == 4, "a study and its trials"
    assert "<svg" in (tmp_path / "report" / "report.html").read_text()
