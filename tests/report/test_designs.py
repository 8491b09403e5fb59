"""Page, terminal and `findings.json` of designs other than factorial and of adaptive seeds."""

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import AliasedEffect, Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report import terminal
from ablations.engine.report.designs import alias_sentence, cell_name, contrast_name, path_sentence
from ablations.engine.report.findings_json import findings_document, to_json
from ablations.engine.report.page.figures import ReportFigure
from tests.helpers.json_schemas import problems
from tests.helpers.synthetic_designs import adaptive, ladder, one_at_a_time, screening, without_estimates
from tests.helpers.synthetic_findings import HOSTILE, PRINTED, SVG
from tests.helpers.synthetic_findings import page as made
from tests.helpers.synthetic_study import FORMATS
from tests.report.test_html import Page

SECTIONS = {"screening", "ladder", "effects", "path"}


def page(study: tuple[Evidence, Findings], *figures: str) -> Page:
    pictures = [ReportFigure(name, f"The {name}", "How to read it.", f"alt of {name}", SVG) for name in (*figures, "curves")]
    return Page(made(*study, figures=pictures))


def ids(shown: Page) -> set[str]:
    return {attributes["id"] for _, attributes, _ in shown.all("h2")}


def printed(study: tuple[Evidence, Findings], width: int = 100) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(terminal.result_view(study[0].design, study[1]))
    return text.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "section", "figures"),
    [
        (screening, "screening", ["effect-sizes", "half-normal"]),
        (ladder, "ladder", ["ladder"]),
        (one_at_a_time, "effects", ["effects"]),
        (adaptive, "path", ["seed-path"]),
    ],
)
def test_the_section_of_a_design_follows_the_answers_and_has_its_figures(
    make: Callable[[], tuple[Evidence, Findings]], section: str, figures: list[str]
) -> None:
    shown = page(make(), *figures)
    assert ids(shown) & SECTIONS == {section}
    order = [attributes["id"] for _, attributes, _ in shown.all("h2")]
    assert order.index("answer") < order.index(section) < order.index("results") < order.index("figures")
    assert f"#{section}" in {attributes["href"] for _, attributes, _ in shown.all("a")}
    of_section = [attributes["id"] for _, attributes, _ in shown.all("svg")]
    assert of_section == [f"figure-{name}" for name in (*figures, "curves")]
    assert page(make()).all("svg")[0][1]["id"] == "figure-curves"  # a figure that was not drawn is not missed


def test_a_factorial_study_with_fixed_seeds_has_no_such_section() -> None:
    assert not ids(Page(made())) & SECTIONS


def test_the_table_of_contrasts_lists_every_sum_whole() -> None:
    given, findings = screening()
    shown = page((given, findings))
    head, *lines = shown.tables["table-aliases"]
    assert [name for name, _ in head][-1] == "is the sum of"
    assert findings.screening
    for line, contrast in zip(lines, findings.screening.contrasts, strict=True):
        assert line[0][0] == contrast_name(given.design, contrast)
        assert line[1] == (
            ("● significant: " if contrast.difference.significant else "") + FORMATS.signed(contrast.difference.mean),
            repr(contrast.difference.mean),
        )
        assert line[-1][0] == " + ".join(contrast.terms)
    assert "16 of 256 combinations, a fraction of resolution IV" in shown.text
    assert "Main effects are estimated clear of two-way interactions." in shown.text


@pytest.mark.parametrize(
    ("resolution", "said"), [(3, "sum of it and the interactions"), (4, "does not say which"), (5, "clear of each other")]
)
def test_the_resolution_says_what_cannot_be_told_apart(resolution: int, said: str) -> None:
    found = screening()[1].screening
    assert found
    assert said in alias_sentence(replace(found, resolution=resolution))


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        (("norm",), "norm=on"),
        (("norm", "squeeze × stem"), "norm=on"),
        (("squeeze × stem",), "squeeze × stem"),
        (("squeeze × stem", "norm × lr", "decay × ema"), "squeeze × stem + 2 more"),
        ((), "interactions of three or more"),
    ],
)
def test_a_contrast_is_named_by_the_level_of_its_factor_or_by_its_first_interaction(terms: tuple[str, ...], name: str) -> None:
    assert contrast_name(screening()[0].design, AliasedEffect(terms=terms, difference=Estimate(n=0))) == name


def test_cells_are_named_by_what_they_change() -> None:
    single, steps = one_at_a_time(3)[0].design, ladder(4)[0].design
    assert [cell_name(single, cell.levels) for cell in single.cells] == ["baseline", "norm=on", "squeeze=on", "stem=on"]
    assert [cell_name(steps, cell.levels) for cell in steps.cells] == ["baseline", "+ norm=on", "+ squeeze=on", "+ stem=on"]
    crossed = screening(3, 3)[0].design
    assert [cell_name(crossed, cell.levels) for cell in crossed.cells][-1] == "norm=on squeeze=on stem=on"


def test_a_rung_is_a_row_with_its_value_and_its_step() -> None:
    study = ladder()
    found = study[1].ladder
    assert found
    _, *lines = page(study).tables["table-ladder"]
    assert [line[0][0] for line in lines] == ["baseline", *(f"+ {rung.change}" for rung in found.rungs[1:]), "all changes"]
    for line, rung in zip(lines, found.rungs, strict=False):
        assert line[1] == (FORMATS.mean_std(rung.value), repr(rung.value.mean))
        assert line[4][0].endswith(FORMATS.signed(rung.step.mean) if rung.step else "")
    assert lines[-1][4][1] == repr(found.total.mean)
    assert [line[0][0] for line in page(study).tables["table-results"][1:]][1] == "+ norm=on"


def test_a_look_is_a_row_with_what_it_decided_and_what_is_open() -> None:
    study = adaptive()
    shown = page(study)
    _, *lines = shown.tables["table-path"]
    assert [line[0][0] for line in lines] == ["3", "5", "8", "12"]
    assert lines[0][2][0] == "shortcut=none instead of A: effect"
    assert lines[-1][2:] == [("–", None), ("shortcut=D instead of A", None)]
    assert "needs 28 runs so far, 47 % of the 60 that the largest number of seeds in every cell would take." in shown.text


def test_a_finished_path_says_so() -> None:
    found = adaptive(finished=True)[1].path
    assert found
    assert path_sentence(found).startswith(f"The study needed {found.runs} runs, ")


def test_the_terminal_names_cells_by_their_changes_and_ends_with_the_design() -> None:
    text = " ".join(printed(ladder()).split())
    assert "+ norm=on 7.10 ± 0.10" in text
    assert "All changes together lower the test error." in text
    text = " ".join(printed(screening()).split())
    assert "The study trains 16 of 256 combinations, a fraction of resolution IV. Main effects are estimated clear of" in text
    assert max(map(len, printed(screening(15), 80).splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [screening, lambda: screening(5), lambda: screening(15, 3, seeds=1), ladder, one_at_a_time, adaptive]
)
def test_the_document_follows_its_schema_with_and_without_estimates(make: Callable[[], tuple[Evidence, Findings]]) -> None:
    given, findings = make()
    for shown in (findings, without_estimates(findings, 0, 2)):
        document = findings_document(given, shown)
        assert problems("findings", document) == []
        assert json.loads(to_json(document)) == document
        assert document["design"]["kind"] == given.design.kind


def test_the_document_has_the_numbers_of_the_design() -> None:
    given, findings = screening()
    document = findings_document(given, findings)
    assert findings.screening
    first = findings.screening.contrasts[0]
    assert (document["ladder"], document["path"]) == (None, None)
    assert document["screening"]["contrasts"][0] == {
        "terms": ["norm"],
        "difference": first.difference.mean,
        "low": first.difference.low,
        "high": first.difference.high,
        "p": first.difference.p,
        "p_adjusted": first.difference.p_adjusted,
        "n": 3,
    }
    rungs = findings_document(*ladder())["ladder"]["rungs"]
    assert [rung["change"] for rung in rungs][:2] == ["", "norm=on"]
    assert (rungs[0]["step"], rungs[1]["step"]["n"]) == (None, 3)
    path = findings_document(*adaptive())["path"]
    assert path["looks"][0]["decided"] == [{"comparison": "shortcut=none instead of A", "decision": "effect"}]
    assert (path["runs"], path["fixed_runs"], path["finished"]) == (28, 60, False)
    assert findings_document(*adaptive())["design"] == {"kind": "factorial", "seed_looks": [3, 5, 8, 12]}


def test_any_factor_is_shown_as_text() -> None:
    names = (HOSTILE, "squeeze", "stem", "decay", "lr")
    for study in (screening(5, names=names), ladder(4, names=names), one_at_a_time(4, names=names)):
        shown = page(study)
        assert not [text for _, _, text in shown.all("script") if "alert" in text]
        assert PRINTED in shown.text
