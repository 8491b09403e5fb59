"""Figures of screenings, ladders, single changes and adaptive seeds hold their numbers and stay legible."""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from ablations.engine.analysis.designs.half_normal import half_normal_quantiles, pseudo_standard_error
from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.report.figures import all_figures, caption
from ablations.engine.report.figures.designs import design_figures
from ablations.engine.report.figures.designs.changes import effects_figure, ladder_figure
from ablations.engine.report.figures.designs.rows import row_positions
from ablations.engine.report.figures.designs.screening import MAX_LABELS, effect_sizes_figure, half_normal_figure, spread
from ablations.engine.report.figures.designs.seed_path import seed_path_figure
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.figures.styles import INK, PAPER
from tests.helpers.other_metrics import ACCURACY
from tests.helpers.synthetic_designs import LONG, TRICKS, adaptive, ladder, one_at_a_time, screening, without_estimates
from tests.helpers.synthetic_figures import found
from tests.helpers.synthetic_study import evidence
from tests.report.test_figures import inside, visible_texts

LONG_NAMES = (LONG, *TRICKS[1:6], "optim.schedule.warmup_fraction_of_the_first_epoch", *TRICKS[7:])
STUDIES: dict[str, Callable[[], tuple[Evidence, Findings]]] = {
    "3 factors": lambda: screening(3, 3),
    "8 factors": screening,
    "15 factors": lambda: screening(15),
    "15 factors, one seed": lambda: screening(15, 3, seeds=1),
    "long factors": lambda: screening(8, names=LONG_NAMES),
    "ladder": ladder,
    "ladder with long factors": lambda: ladder(names=LONG_NAMES),
    "one of 8": one_at_a_time,
    "one of 15 with long factors": lambda: one_at_a_time(15, names=LONG_NAMES),
    "adaptive": adaptive,
    "adaptive, finished": lambda: adaptive(8, finished=True),
}
MADE = {name: make() for name, make in STUDIES.items()}


def drawn(figure: Figure | None) -> Axes:
    assert figure
    return figure.axes[0]


def rows(panel: Axes) -> list[str]:
    return [label.get_text().replace("\n", " ") for label in panel.get_yticklabels()]


def marks(panel: Axes, *shapes: str) -> list[Line2D]:
    return [line for line in panel.lines if line.get_marker() in shapes]


def bars(panel: Axes) -> list[Rectangle]:
    """Return the outlines of bars, without their pale fillings."""
    return [patch for patch in panel.patches if isinstance(patch, Rectangle) and patch.get_linewidth() > 0]


def place(line: Line2D) -> tuple[float, float]:
    return float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0])


def test_contrasts_are_bars_sorted_by_size_with_intervals_on_the_side_to_which_they_point() -> None:
    given, findings = MADE["8 factors"]
    panel = drawn(effect_sizes_figure(given.design, findings))
    assert findings.screening
    by_size = sorted(findings.screening.contrasts, key=lambda each: -abs(each.difference.mean or 0))
    assert [bar.get_width() for bar in bars(panel)] == [abs(each.difference.mean or 0) for each in by_size]
    assert rows(panel)[:2] == ["norm=on", "lr=on"]
    assert "norm × lr + 3 more" in rows(panel)
    first, second = by_size[:2]
    ends = [tuple(np.asarray(line.get_xdata()).tolist()) for line in panel.lines]
    assert (first.difference.mean or 0) < 0 < (second.difference.mean or 0)
    assert (-(first.difference.high or 0), -(first.difference.low or 0)) in ends
    assert (second.difference.low, second.difference.high) in ends
    filled = [mark.get_markerfacecolor() != PAPER for mark in marks(panel, "o", "D")]
    assert filled == [each.difference.significant for each in by_size]


def test_main_effects_and_interactions_differ_in_the_shape_of_their_marks() -> None:
    given, findings = MADE["8 factors"]
    for draw in (effect_sizes_figure, half_normal_figure):
        panel = drawn(draw(given.design, findings))
        assert (len(marks(panel, "o")), len(marks(panel, "D"))) == (8, 7)


def test_sizes_lie_at_half_normal_quantiles_and_lenths_line_has_the_slope_of_its_standard_error() -> None:
    given, findings = MADE["15 factors"]
    figure = half_normal_figure(given.design, findings)
    panel = drawn(figure)
    assert findings.screening
    sizes = sorted(abs(each.difference.mean or 0) for each in findings.screening.contrasts)
    assert [place(mark) for mark in marks(panel, "o", "D")] == list(zip(half_normal_quantiles(31), sizes, strict=True))
    (line,) = (each for each in panel.lines if each.get_marker() == "None")
    assert line.get_slope() == pytest.approx(pseudo_standard_error(sizes))  # type: ignore[attr-defined]
    assert [text.get_text() for text in panel.texts][-1] == "norm=on"
    by_size = sorted(findings.screening.contrasts, key=lambda each: abs(each.difference.mean or 0))
    filled = [mark.get_markerfacecolor() != PAPER for mark in marks(panel, "o", "D")]
    assert filled == [each.difference.significant for each in by_size]


def test_of_many_contrasts_that_stand_out_the_largest_have_names() -> None:
    given, findings = MADE["15 factors"]
    assert findings.screening
    contrasts = tuple(replace(each, difference=replace(each.difference, p_adjusted=0.01)) for each in findings.screening.contrasts)
    panel = drawn(half_normal_figure(given.design, replace(findings, screening=replace(findings.screening, contrasts=contrasts))))
    assert len(panel.texts) == MAX_LABELS
    assert panel.texts[-1].get_text() == "norm=on"


def test_large_contrasts_have_names_without_a_test_of_seeds() -> None:
    given, findings = MADE["15 factors, one seed"]
    assert [text.get_text() for text in drawn(half_normal_figure(given.design, findings)).texts] == [
        "lr=on",
        "zero_init=on",
        "norm=on",
    ]


def test_a_half_normal_plot_needs_seven_contrasts() -> None:
    given, findings = MADE["3 factors"]
    assert half_normal_figure(given.design, findings) is None
    assert effect_sizes_figure(given.design, findings)


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.5], [0.1, 0.5]),
        ([0.5, 0.52], [0.5, 0.6]),
        ([0.98, 1.0], [0.9, 1.0]),
        ([0.0, 0.95, 0.97, 1.0], [0.0, 0.8, 0.9, 1.0]),
    ],
)
def test_names_that_would_touch_are_moved_apart(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, 0.1) == pytest.approx(expected)


def test_a_ladder_goes_from_value_to_value_and_ends_in_the_total() -> None:
    _, findings = MADE["ladder"]
    panel = drawn(ladder_figure(findings))
    assert findings.ladder
    assert rows(panel) == ["baseline", "+ norm=on", "+ squeeze=on", "+ stem=on", "+ decay=on", "+ lr=on", "all changes"]
    values = [rung.value.mean or 0 for rung in findings.ladder.rungs]
    spans = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars(panel)]
    expected = [*itertools.pairwise(values), (values[0], values[-1])]
    assert spans == [pytest.approx((min(pair), max(pair))) for pair in expected]
    colors = [bar.get_edgecolor() for bar in bars(panel)]
    assert len(set(colors)) == 2
    assert colors[0] == colors[1] == colors[3] == colors[5] != colors[2] == colors[4]
    assert panel.get_xlabel() == "test error % (← better)"
    assert panel.texts[-1].get_text().startswith(f"{findings.ladder.total.mean:+.2f} [".replace("-", "−"))


def test_a_ladder_over_decades_has_a_logarithmic_axis_and_better_is_where_the_metric_says() -> None:
    _, findings = ladder()
    assert findings.ladder
    rungs = findings.ladder.rungs
    far = replace(rungs[0], value=Estimate(n=3, mean=95.0, low=90.0, high=100.0))
    panel = drawn(ladder_figure(replace(findings, metric=ACCURACY, ladder=replace(findings.ladder, rungs=(far, *rungs[1:])))))
    assert panel.get_xscale() == "log"
    assert panel.get_xlabel() == "valid accuracy %, logarithmic (better →)"
    colors = [bar.get_edgecolor() for bar in bars(panel)]
    assert colors[0] == colors[1] == colors[3] != colors[2] == colors[4]


def test_a_rung_without_a_value_has_no_bar_to_it_or_from_it() -> None:
    _, findings = ladder()
    panel = drawn(ladder_figure(without_estimates(findings, 2)))
    assert len(bars(panel)) == 6 - 2
    assert [text.get_text() for text in panel.texts].count("no estimate") == 2


def test_changes_by_themselves_are_sorted_by_size_and_marked_by_their_verdict() -> None:
    given, findings = MADE["one of 8"]
    effects = tuple(
        replace(each, p_within_margin=0.01)
        if each.factor == "ema"
        else replace(each, difference=Estimate(n=1, mean=0.01))
        if each.factor == "decay"
        else each
        for each in findings.effects
    )
    panel = drawn(effects_figure(given.design, replace(findings, effects=effects)))
    assert rows(panel)[0] == "norm: on instead of off"
    by_row: dict[str, list[Any]] = {row.split(":")[0]: [] for row in rows(panel)}
    for mark in marks(panel, "o", "x"):
        position = place(mark)[1]
        row = rows(panel)[int(np.argmin(np.abs(np.asarray(panel.get_yticks()) - position)))]
        by_row[row.split(":")[0]].append((mark.get_marker(), mark.get_fillstyle(), mark.get_markerfacecolor()))
    assert by_row["norm"] == [("o", "full", INK)]
    assert by_row["lr"] == [("o", "left", INK)]
    assert by_row["stem"] == [("o", "full", PAPER)]
    assert [mark[2] for mark in by_row["ema"]] == [PAPER, INK]
    assert [mark[0] for mark in by_row["decay"]] == ["x"]


def test_the_path_has_a_row_per_comparison_to_the_look_that_decided_it() -> None:
    given, findings = MADE["adaptive"]
    figure = seed_path_figure(given.design, findings)
    assert figure
    panel, below = figure.axes
    assert findings.path
    assert list(panel.get_xticks()) == [3, 5, 8, 12]
    assert [place(mark)[0] for mark in marks(panel, "o", "s", "X", ">")] == [3, 5, 8, 12]
    assert [mark.get_marker() for mark in marks(panel, "o", "s", "X", ">")] == ["o", "s", "X", ">"]
    ticks = [np.asarray(line.get_xdata()).tolist() for line in marks(panel, "|")]
    assert ticks == [[3], [3, 5], [3, 5, 8], [3, 5, 8, 12]]
    assert [text.get_text() for text in panel.texts] == ["effect", "within margin", "hopeless", "open"]
    assert [bar.get_width() for bar in bars(below)] == [findings.path.runs, findings.path.fixed_runs]


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", STUDIES)
def test_no_text_overlaps_another_or_leaves_the_figure_and_each_has_its_words(name: str, *, narrow: bool) -> None:
    given, findings = MADE[name]
    for missing in ((), (1, 3, 9)):
        shown = without_estimates(findings, *missing)
        with narrow_figures() if narrow else nullcontext():
            drawn_figures = design_figures(given, shown)
        for of_design, figure in drawn_figures.items():
            if figure is None:
                continue
            texts = visible_texts(figure)
            boxes = [(text.get_text(), Text.get_window_extent(text).padded(-1)) for text in texts]  # without leader lines
            assert not [(one, other) for (one, a), (other, b) in itertools.combinations(boxes, 2) if a.overlaps(b)]
            assert not [text.get_text() for text in texts if not inside(figure, text)]
            words = caption(of_design, given, shown)
            assert words.text.endswith(".")
            assert words.alt.endswith(".")


@pytest.mark.slow
def test_a_study_shows_the_figures_of_its_design_in_place_of_those_of_combinations() -> None:
    expected = {
        "8 factors": ["effect-sizes", "half-normal"],
        "ladder": ["ladder"],
        "one of 8": ["effects"],
        "adaptive": ["seed-path"],
    }
    combinations = {"depth", "differences", "interaction"}
    for name, of_design in expected.items():
        names = list(all_figures(*MADE[name]))
        assert names[: len(of_design)] == of_design
        assert bool(combinations & set(names)) == (name == "adaptive")
    plain = evidence()
    assert not [figure for figure in design_figures(plain, found(plain)).values() if figure]


def test_a_row_is_as_high_as_its_name() -> None:
    names, positions, height = row_positions(["a " * 100, "b " * 100, "c"])
    lines = [name.count("\n") + 1 for name in names]
    assert lines[0] == lines[1] > lines[2] == 1
    assert positions[1] - positions[0] > lines[0]
    assert height - positions[2] > 0.5


def test_nothing_known_draws_nothing() -> None:
    for name in ("8 factors", "ladder", "one of 8"):
        given, findings = MADE[name]
        assert not any(design_figures(given, without_estimates(findings, *range(15))).values())


def test_words_hold_the_sums_that_a_significant_contrast_may_be() -> None:
    alt = caption("effect-sizes", *MADE["8 factors"]).alt
    assert "norm × lr + squeeze × stem + decay × mixup + ema × smoothing" in alt
    assert "of 15 contrasts are significant" in alt
