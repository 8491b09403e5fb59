"""Seeds and test examples on the page, in the terminal and in `findings.json`."""

import io

import pytest
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.examples import analyze_examples
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report import html, terminal
from ablations.engine.report.examples import MAX_LISTED, listed
from ablations.engine.report.findings_json import findings_document
from tests.helpers.json_schemas import problems
from tests.helpers.synthetic_predictions import with_predictions
from tests.helpers.synthetic_study import design, evidence, without
from tests.report.test_html import Page

SCOPE = "Intervals are over seeds, on these 360 test images, with this recipe and machine; 1 image = 0.28 points."


def page(given: Evidence) -> Page:
    return Page(html.render(given, analyze_study(given), (), published=(), written_at="2026-01-02 03:04 UTC"))


def test_the_page_has_both_intervals_of_each_cell_and_the_images_that_changed() -> None:
    given = with_predictions(without(evidence(), "shortcut=none depth=20/1"))
    findings, made = analyze_study(given), page(given)
    found = analyze_examples(given, findings)
    assert found is not None
    assert SCOPE in made.text
    _, *cells = made.tables["table-per-example"]
    assert [row[0][0] for row in cells] == [each.cell for each in found.cells]
    for row, each, cell in zip(cells, found.cells, findings.cells, strict=True):
        shown = [float(value or "nan") for _, value in row[1:]]
        assert shown == [each.value.mean, cell.value.low, each.value.low, each.value.seeds]
    _, *rows = made.tables["table-changed"]
    assert [row[-2][0] for row in rows] == [listed(each.changed.worse) for each in found.comparisons]
    assert any(row[-2][0] != "0" for row in rows)
    assert "McNemar" not in made.text


def test_one_seed_shows_mcnemars_test_and_no_predictions_show_nothing() -> None:
    given = with_predictions(evidence(design(seeds=1)))
    made = page(given)
    assert "McNemar's exact test compares the two networks" in made.text
    found = analyze_examples(given, analyze_study(given))
    assert found is not None
    for row, each in zip(made.tables["table-changed"][1:], found.comparisons, strict=True):
        assert each.mcnemar is not None
        expected = [each.mcnemar.worse, each.mcnemar.better, each.mcnemar.p, each.mcnemar.p_adjusted]
        assert [float(value or "nan") for _, value in row[6:10]] == expected
    plain = page(evidence())
    assert "table-per-example" not in plain.tables
    assert "Intervals are over seeds, with this recipe and machine." in plain.text


def test_the_terminal_says_what_intervals_are_about() -> None:
    given, printed = with_predictions(evidence()), io.StringIO()
    terminal.show_results(Console(file=printed, width=160), given, analyze_study(given), "python study.py")
    assert SCOPE in printed.getvalue().splitlines()


@pytest.mark.parametrize("seeds", [1, 3])
def test_findings_json_has_the_images_of_each_cell_and_comparison(seeds: int) -> None:
    given = with_predictions(evidence(design(seeds=seeds)))
    findings = analyze_study(given)
    found = analyze_examples(given, findings)
    assert found is not None
    document = findings_document(given, findings)
    assert problems("findings", document) == []
    for cell, each in zip(document["cells"], found.cells, strict=True):
        value = each.value
        assert cell["images"] == {"examples": 360, "n": seeds, "mean": value.mean, "low": value.low, "high": value.high}
    plain = next(cell for cell in document["cells"] if cell["cell"] == "shortcut=none depth=56")["comparison"]["images"]
    (compared,) = (each for each in found.comparisons if each.cell == "shortcut=none depth=56")
    assert (plain["difference"], plain["worse"]) == (compared.difference.mean, len(compared.changed.worse))
    assert plain["first_worse"] == list(compared.changed.worse[:MAX_LISTED])
    assert (plain["mcnemar"] is None) == (seeds > 1)
    assert [cell["images"] for cell in findings_document(evidence(), analyze_study(evidence()))["cells"]] == [None] * 6


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (2, "2: 0, 1"), (11, "11: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …")])
def test_a_list_of_examples_names_the_first_ones(count: int, text: str) -> None:
    assert listed(tuple(range(count))) == text
