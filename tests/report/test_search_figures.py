"""Figures of a search show its trials as they were, and stay legible whatever it searched."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.trial_table import search_design
from ablations.engine.report.figures import all_figures, caption, save
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.figures.search_fields import (
    group_medians,
    importances_figure,
    main_field,
    parallel_figure,
    sensitivity_figure,
    slices_figure,
)
from ablations.engine.report.figures.search_history import MIN_MARKS_TO_RASTERIZE, history_figure, search_pareto_figure
from ablations.engine.report.figures.styles import PAPER
from tests.helpers.synthetic_search import DIVERGES, FIELDS, search_evidence

LR = {"optim.lr": FIELDS["optim.lr"]}
MANY = {
    **FIELDS,
    "optim.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
    "optim.label_smoothing": {"low": 0.0, "high": 0.2, "log": False},
    "optim.milestones": {"choices": [[0.5, 0.75], [0.3, 0.6, 0.8]]},
    "data.flip": {"choices": [True, False]},
}


def marks(panel: Axes, filling: str) -> set[tuple[float, float]]:
    """Places of the marks that are `full`, `hollow`, or `x`."""
    found: set[tuple[float, float]] = set()
    for line in panel.lines:
        kind = "x" if line.get_marker() == "x" else "hollow" if line.get_markerfacecolor() == PAPER else "full"
        if line.get_linestyle() == "None" and line.get_marker() in ("o", "s", "^", "x") and kind == filling:
            found |= set(
                zip(np.asarray(line.get_xdata(), float).tolist(), np.asarray(line.get_ydata(), float).tolist(), strict=True)
            )
    return found


def stars(panel: Axes) -> set[tuple[float, float]]:
    found = [line for line in panel.lines if line.get_marker() == "*"]
    return {(float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])) for line in found}


def rows(given: Evidence, outcome: str, field: str = "number") -> set[tuple[float, float]]:
    assert given.trials is not None
    some = given.trials[given.trials["outcome"] == outcome].dropna(subset=field)
    return set(zip(some[field].astype(float), some["value"], strict=True))


def names(figure: Figure) -> list[str]:
    return [text.get_text() for made in figure.legends for text in made.get_texts()]


def drawn(figure: Figure | None) -> Figure:
    assert figure
    return figure


def with_outcome(given: Evidence, outcome: str) -> Evidence:
    assert given.trials is not None
    return replace(given, trials=given.trials.assign(outcome=outcome))


def test_history_has_every_trial_and_the_best_that_completed_so_far() -> None:
    given = search_evidence()
    assert given.trials is not None
    figure = drawn(history_figure(given))
    (panel,) = figure.axes
    assert marks(panel, "full") == rows(given, "completed")
    assert marks(panel, "hollow") == rows(given, "pruned")
    diverged = given.trials[given.trials["outcome"] == "diverged"]
    assert marks(panel, "x") == {(number, 1.0) for number in diverged["number"]}
    steps = [line for line in panel.lines if line.get_drawstyle() == "steps-post"]
    for cell, line in zip(search_design(given).cells, steps, strict=True):
        completed = given.trials[(given.trials["cell"] == cell.label) & (given.trials["outcome"] == "completed")]
        best = completed.sort_values("number")["value"].cummin().tolist()
        assert np.asarray(line.get_ydata()).tolist() == [*best, best[-1]]
    assert names(figure) == ["shortcut=none", "shortcut=A", "shortcut=B", "completed", "stopped early", "diverged"]
    assert "not a result" in panel.get_ylabel()


@pytest.mark.parametrize(("lowest", "scale"), [(3.0, "linear"), (0.7, "log"), (0.0, "symlog")])
def test_errors_are_on_a_scale_on_which_they_can_be_told_apart(lowest: float, scale: str) -> None:
    given = search_evidence({}, LR, prunes=False)
    assert given.trials is not None
    errors = given.trials["value"].rank() / len(given.trials) * 17 + 3
    given = replace(given, trials=given.trials.assign(value=errors.where(errors > errors.min(), lowest)))
    (panel,) = drawn(history_figure(given)).axes
    assert panel.get_yscale() == scale
    assert not 0 < lowest < panel.get_ylim()[0]


@pytest.mark.slow
def test_sensitivity_is_to_the_learning_rate_with_the_default_and_what_was_chosen() -> None:
    given = search_evidence()
    findings = analyze_study(given)
    figure = drawn(sensitivity_figure(given, findings))
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_xscale()) == ("optim.lr", "log")
    assert marks(panel, "full") == rows(given, "completed", "optim.lr")
    assert min(x for x, _ in marks(panel, "x")) > DIVERGES
    assert findings.search
    assert stars(panel) == {(each.values["optim.lr"], each.score) for cell in findings.search.cells for each in cell.chosen}
    default = given.design.cells[0].spec["optim.lr"]
    assert [default, default] in [list(line.get_xdata()) for line in panel.lines]  # type: ignore[arg-type]
    low, high = panel.get_xlim()
    assert low < FIELDS["optim.lr"]["low"] < FIELDS["optim.lr"]["high"] < high
    assert {"chosen", "default"} < set(names(figure))


def test_the_line_joins_medians_of_neighbours_and_is_not_drawn_through_few() -> None:
    given = search_evidence({}, LR, trials=40, prunes=False)
    assert given.trials is not None
    trials = given.trials.sort_values("optim.lr")
    completed = trials[trials["outcome"] == "completed"]
    x, y = group_medians(given.trials["optim.lr"], given.trials)
    assert len(x) == int(len(completed) ** 0.5)
    first = completed.iloc[: -(-len(completed) // len(x))]
    assert (x[0], y[0]) == (first["optim.lr"].median(), first["value"].median())
    assert x == sorted(x)
    few = completed.iloc[:8]
    assert group_medians(few["optim.lr"], few) == ([], [])


@pytest.mark.slow
def test_sensitivity_is_shown_of_the_learning_rate_or_else_of_the_field_that_moved_the_error_most() -> None:
    given = search_evidence({}, FIELDS, prunes=False, trials=12)
    findings = analyze_study(given)
    search = search_design(given)
    assert findings.search
    unshared = replace(findings.search, cells=tuple(replace(cell, importances=()) for cell in findings.search.cells))
    reordered = replace(search, fields=dict(reversed(list(FIELDS.items()))))
    assert main_field(reordered, replace(findings, search=unshared)) == "optim.lr"
    without = replace(search, fields={name: each for name, each in FIELDS.items() if name != "optim.lr"})
    shares = {each.field: each.share for each in findings.search.cells[0].importances}
    assert main_field(without, findings) == max(("optim.momentum", "model.width"), key=shares.__getitem__)
    assert main_field(replace(search, fields={"optim.schedule": FIELDS["optim.schedule"]}), findings) is None


def test_slices_show_a_trial_in_the_panels_whose_fields_it_has() -> None:
    given = search_evidence({})
    assert given.trials is not None
    panels = {panel.get_xlabel(): panel for panel in drawn(slices_figure(given)).axes}
    assert list(panels) == list(FIELDS)
    assert marks(panels["optim.momentum"], "full") == rows(given, "completed", "optim.momentum")
    assert marks(panels["model.width"], "hollow") == rows(given, "pruned", "model.width")
    strips = panels["optim.schedule"]
    assert [label.get_text() for label in strips.get_xticklabels()] == ["step", "cosine"]
    by_error = {error: x for x, error in marks(strips, "full") | marks(strips, "hollow")}
    assert len(by_error) > 20
    choices = dict(zip(given.trials["value"], given.trials["optim.schedule"], strict=True))
    assert all(round(x) == ["step", "cosine"].index(choices[error]) for error, x in by_error.items())


def test_cells_stand_beside_each_other_in_a_strip() -> None:
    given = search_evidence()
    assert given.trials is not None
    strips = next(panel for panel in drawn(slices_figure(given)).axes if panel.get_xlabel() == "optim.schedule")
    cells = dict(zip(given.trials["value"], given.trials["cell"], strict=True))
    offsets = {cell: [x - round(x) for x, error in marks(strips, "hollow") if cells[error] == cell] for cell in cells.values()}
    none, a, b = (offsets[f"shortcut={level}"] for level in ("none", "A", "B"))
    assert max(none) < min(a) < max(a) < min(b)


@pytest.mark.slow
def test_importances_are_bars_with_their_ranges_and_pale_if_chance_may_give_them() -> None:
    given = search_evidence({}, prunes=False)
    findings = analyze_study(given)
    (panel,) = drawn(importances_figure(given, findings)).axes
    assert findings.search
    shares = findings.search.cells[0].importances
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([100 * each.share for each in shares])  # type: ignore[attr-defined]
    spans = [list(line.get_xdata()) for line in panel.lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert spans == [pytest.approx([100 * each.low, 100 * each.high]) for each in shares]
    assert [label.get_text() for label in panel.get_yticklabels()] == [each.field for each in shares]
    assert {each.above_chance for each in shares} == {True, False}
    assert [(bar.get_alpha() or 1) > 0.3 for bar in panel.patches] == [each.above_chance for each in shares]
    ticks = [float(each.get_segments()[0][0][0]) for each in panel.collections if isinstance(each, LineCollection)]
    assert ticks == pytest.approx([100 * each.floor for each in shares])


def test_parallel_lines_are_completed_trials_the_best_of_each_cell_on_top() -> None:
    given = search_evidence(prunes=False)
    assert given.trials is not None
    (panel,) = drawn(parallel_figure(given)).axes
    (lines,) = (each for each in panel.collections if isinstance(each, LineCollection))
    segments = [np.asarray(segment) for segment in lines.get_segments()]
    completed = given.trials[given.trials["outcome"] == "completed"]
    assert len(segments) == len(completed)
    titles = [label.get_text() for label in panel.get_xticklabels()]
    assert titles == ["shortcut", "lr", "schedule", "momentum", "width", "validation error %"]
    errors = completed["value"]
    heights = sorted(segment[-1, 1] for segment in segments)
    assert heights == pytest.approx(sorted((errors - errors.min()) / (errors.max() - errors.min())))
    last = {round(2 * segment[0, 1]): segment[-1, 1] for segment in segments}
    best = completed.groupby("cell")["value"].min()
    place = {0: "shortcut=none", 1: "shortcut=A", 2: "shortcut=B"}
    assert {place[i]: height * (errors.max() - errors.min()) + errors.min() for i, height in last.items()} == pytest.approx(
        dict(best)
    )
    below = [segment for segment in segments if segment[3, 1] < 0]
    assert len(below) == completed["optim.momentum"].isna().sum()


def test_a_front_is_what_no_trial_of_the_cell_beats_in_both() -> None:
    given = search_evidence({}, objective="flops", prunes=False)
    assert given.trials is not None
    (panel,) = drawn(search_pareto_figure(given)).axes
    completed = given.trials[given.trials["outcome"] == "completed"]
    points = list(zip(completed["flops"], completed["value"], strict=True))
    best = [p for p in points if not any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)]
    (line,) = (line for line in panel.lines if line.get_drawstyle() == "steps-post")
    scale = max(x for x, _ in points) / max(x for x, _ in marks(panel, "full"))
    assert np.column_stack([np.asarray(line.get_xdata()) * scale, line.get_ydata()]) == pytest.approx(np.array(sorted(best)))
    assert {text.get_text() for text in panel.texts} == {"1", "2"}
    assert {y for _, y in stars(panel)} <= {error for _, error in points}
    assert search_pareto_figure(search_evidence({}, trials=5)) is None


@pytest.mark.slow
def test_one_field_is_shown_once_and_nothing_is_drawn_of_nothing() -> None:
    one = search_evidence({}, LR, trials=5)
    findings = analyze_study(one)
    assert [name for name in all_figures(one, findings) if name.startswith("search")] == ["search-history", "search-sensitivity"]
    begun = search_evidence({}, trials=5, over=False)
    nothing = with_outcome(begun, "failed")
    assert not [name for name in all_figures(nothing, analyze_study(nothing)) if name.startswith("search")]
    assert begun.trials is not None
    empty = replace(begun, trials=begun.trials.iloc[:0])
    assert not [name for name in all_figures(empty, analyze_study(empty)) if name.startswith("search")]
    choice = {"optim.schedule": {"choices": ["step", "cosine"]}}
    assert slices_figure(search_evidence({}, {**LR, **choice}, trials=5))


@pytest.mark.slow
def test_figures_of_a_search_follow_the_studys_own_and_each_has_its_words() -> None:
    given = search_evidence(trials=12, prunes=False, seeds=3)
    findings = analyze_study(given)
    figures = all_figures(given, findings)
    searched = ["search-history", "search-sensitivity", "search-slices", "search-importances", "search-parallel"]
    assert list(figures)[-5:] == searched
    for name in searched:
        words = caption(name, given, findings)
        assert words.text.endswith(".")
        assert any(said in words.text for said in ("no results", "this search only"))
        assert any(character.isdigit() for character in words.alt)


CASES: dict[str, Any] = {
    "six cells": {"factors": {"variant": tuple("ABCDEF")}, "truth": lambda levels, seed: 8 + seed + ord(levels["variant"]) % 3},
    "eight fields": {"factors": {}, "fields": MANY, "prunes": False},
    "a front": {"objective": "seconds"},
    "long names": {
        "factors": {"a" * 40: ("<script>$\\frac", "x" * 60)},
        "truth": lambda levels, seed: 8 + seed,
        "fields": {**LR, "optim.schedule": {"choices": ["w" * 50, "$x$", "<b>"]}},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["six cells", "long names", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("eight fields", "a front"))]
)
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
def test_whatever_was_searched_fits_and_warns_of_nothing(name: str, tmp_path: Path, *, narrow: bool) -> None:
    given = search_evidence(**CASES[name], trials=12, seeds=1)
    findings = analyze_study(given)
    with narrow_figures() if narrow else nullcontext():
        of_fields = (sensitivity_figure(given, findings), slices_figure(given), importances_figure(given, findings))
        figures = (history_figure(given), search_pareto_figure(given), *of_fields, parallel_figure(given))
    for figure in figures:
        if figure:
            save(figure, tmp_path / "figure.svg")
            boxes = [panel.get_window_extent() for panel in figure.axes]
            assert min(min(box.width, box.height) for box in boxes) > 60
            assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_thousands_of_trials_are_a_picture_within_the_figure(tmp_path: Path) -> None:
    given = search_evidence({}, LR, trials=MIN_MARKS_TO_RASTERIZE + 100)
    save(drawn(history_figure(given)), tmp_path / "history.svg")
    svg = (tmp_path / "history.svg").read_text()
    assert svg.count("<image") == 1
    assert len(svg) < 500_000
    assert svg.count("<text") + svg.count('id="text_') > 5, "numbers stay text"
