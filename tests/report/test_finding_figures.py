"""Charts of findings hold their numbers, name what they show, and stay legible whatever a study is."""

import itertools
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Interaction
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report.figures.captions import caption
from ablations.engine.report.figures.forest import MAX_ROWS, forest_figure
from ablations.engine.report.figures.layout import narrow_figures
from ablations.engine.report.figures.levels import MAX_STYLED_LINES, depth_figure, interaction_figure
from ablations.engine.report.figures.pareto import pareto_figure
from ablations.engine.report.figures.styles import INK, PAPER
from tests.helpers.synthetic_figures import estimate, found
from tests.helpers.synthetic_study import design, evidence, without

THREE = {"shortcut": ("none", "A"), "depth": ("20", "56"), "model.width": ("16", "32", "64")}


def line(panel: Axes, name: str, dash: str = "-") -> Line2D:
    """Return the line that is drawn under a name."""
    return container(panel, name, dash).lines[0]


def points(drawn: Line2D) -> Any:
    return list(zip(np.asarray(drawn.get_xdata()).tolist(), np.asarray(drawn.get_ydata()).tolist(), strict=True))


def names(figure: Figure) -> list[str]:
    """In a figure's legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def bars(panel: Axes, name: str) -> Any:
    """The ends of the bars of a line."""
    segments = [np.asarray(segment) for drawn in container(panel, name).lines[2] for segment in drawn.get_segments()]
    return [(float(low), float(high)) for low, high in (segment[:, 1] for segment in segments)]


def container(panel: Axes, name: str, dash: str = "-") -> ErrorbarContainer:
    made = [each for each in panel.containers if isinstance(each, ErrorbarContainer) and each.get_label() == name]
    (found,) = (each for each in made if each.lines[0].get_linestyle() == dash)
    return found


def axes(panel: Axes) -> tuple[str, str]:
    """The factor along the axis, and that of the lines."""
    legend = panel.get_legend()
    assert legend
    return panel.get_xlabel(), legend.get_title().get_text()


def texts(panel: Axes) -> list[str]:
    return [text.get_text() for text in panel.texts]


def test_error_by_depth_is_a_line_for_each_other_combination_solid_and_dashed_in_training() -> None:
    given = evidence()
    findings = found(given)
    figure = depth_figure(given, findings)
    assert figure
    (panel,) = figure.axes
    for shortcut in ("none", "A", "B"):
        cells = [cell for cell in findings.cells if cell.levels["shortcut"] == shortcut]
        assert points(line(panel, f"shortcut={shortcut}")) == [(float(c.levels["depth"]), c.value.mean) for c in cells]
        assert points(line(panel, f"shortcut={shortcut}", "--")) == [(float(c.levels["depth"]), c.train_value.mean) for c in cells]
        ends = [(pytest.approx(c.value.low), pytest.approx(c.value.high)) for c in cells]
        assert bars(panel, f"shortcut={shortcut}") == ends
    assert names(figure) == ["shortcut=none", "shortcut=A", "shortcut=B"]
    assert panel.get_xlabel() == "depth"
    assert list(panel.get_xticks()) == [20, 56]
    assert panel.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("factors", "axis", "scale"),
    [
        ({"optim.lr": ("0.1", "0.01", "0.001"), "shortcut": ("A", "B")}, "optim.lr", "log"),
        ({"model.width": ("16", "32"), "depth": ("20", "56")}, "depth", "linear"),
        ({"shortcut": ("A", "B"), "depth": ("20",)}, None, ""),
        ({"shortcut": ("A", "B")}, None, ""),
    ],
)
def test_the_axis_is_depth_or_else_the_first_factor_of_numbers(
    factors: dict[str, tuple[str, ...]], axis: str | None, scale: str
) -> None:
    given = evidence(design(factors))
    figure = depth_figure(given, found(given))
    assert (figure.axes[0].get_xlabel() if figure else None) == axis
    assert not figure or figure.axes[0].get_xscale() == scale


def test_levels_too_close_for_their_names_have_ticks_left_out() -> None:
    given = evidence(design({"optim.epochs": ("10", "11", "50", "90")}))
    figure = depth_figure(given, found(given))
    assert figure
    assert list(figure.axes[0].get_xticks()) == [10, 50, 90]


def test_differences_are_marks_with_intervals_and_numbers_filled_where_certain() -> None:
    findings = found(evidence())
    figure = forest_figure(findings)
    assert figure
    (panel,) = figure.axes
    rows = [label.get_text() for label in panel.get_yticklabels()]
    assert rows == ["shortcut=none depth=20", "shortcut=B depth=20", "shortcut=none depth=56", "shortcut=B depth=56"]
    by_cell = {each.cell: each.difference for each in findings.comparisons}
    marks = [each for each in panel.lines if each.get_marker() == "o"]
    for row, place, mark, text in zip(rows, panel.get_yticks(), marks, texts(panel), strict=True):
        difference = by_cell[row]
        assert points(mark) == [(difference.mean, place)]
        assert mark.get_markerfacecolor() == (INK if difference.significant else PAPER)
        assert [(difference.low, place), (difference.high, place)] in [points(each) for each in panel.lines]
        assert text == f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]".replace("-", "−")
    assert {mark.get_markerfacecolor() for mark in marks} == {INK, PAPER}
    assert panel.get_xlabel().startswith("test error: difference to shortcut=A, points")


def test_a_comparison_without_a_pair_of_runs_is_named_and_has_no_mark() -> None:
    given = evidence()
    for seed in range(3):
        given = without(given, f"shortcut=B depth=56/{seed}")
    figure = forest_figure(found(given))
    assert figure
    (panel,) = figure.axes
    assert panel.get_yticklabels()[3].get_text() == "shortcut=B depth=56"
    assert texts(panel)[3] == "no pair of runs"
    assert sum(each.get_marker() == "o" for each in panel.lines) == 3


def test_a_difference_that_would_hide_the_others_makes_the_axis_logarithmic_away_from_zero() -> None:
    findings = found(evidence())
    assert forest_figure(findings).axes[0].get_xscale() == "linear"  # type: ignore[union-attr]
    far = replace(findings.comparisons[0], difference=estimate([46.0, 48.0]))
    figure = forest_figure(replace(findings, comparisons=(far, *findings.comparisons[1:])))
    assert figure
    (panel,) = figure.axes
    assert panel.get_xscale() == "symlog"
    assert "logarithmic beyond" in panel.get_xlabel()
    left, right = panel.get_xlim()
    assert all(left < x < right for mark in panel.lines if mark.get_marker() == "o" for x, _ in points(mark))


@pytest.mark.parametrize("narrow", [False, True])
def test_numbers_of_a_logarithmic_axis_do_not_touch(*, narrow: bool) -> None:
    findings = found(evidence())
    pairs = ([46.0, 48.0], [0.5, 0.7], [-0.6, -0.4], [-30.0, -28.0])
    rows = [replace(each, difference=estimate(pair)) for each, pair in zip(findings.comparisons, pairs, strict=True)]
    with narrow_figures() if narrow else nullcontext():
        figure = forest_figure(replace(findings, comparisons=tuple(rows)))
    assert figure
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert panel.get_xscale() == "symlog"
    ticks = [label for label in panel.get_xticklabels() if label.get_text()]
    assert {"0", "+10", "−10"} <= {label.get_text() for label in ticks}
    boxes = [label.get_window_extent() for label in ticks]
    gap = 0.03 * figure.dpi
    assert all(one.x1 + gap < other.x0 for one, other in itertools.pairwise(boxes))


def test_of_many_differences_the_largest_are_shown() -> None:
    levels = tuple(f"{i}" for i in range(1, 62))
    given = evidence(design({"model.width": levels}, {"model.width": "1"}), lambda cell, seed: 0.1 * int(cell["model.width"]))
    figure = forest_figure(found(given))
    assert figure
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [f"model.width={level}" for level in levels[-MAX_ROWS:]]


def test_nothing_to_compare_is_no_forest() -> None:
    assert forest_figure(found(evidence(design({"depth": ("20", "56")})))) is None


def test_an_interaction_is_a_line_for_each_level_of_the_other_factor() -> None:
    given = evidence()
    findings = found(given)
    figure = interaction_figure(given, findings)
    assert figure
    (panel,) = figure.axes
    assert [text.get_text() for text in panel.get_xticklabels()] == ["none", "A", "B"]
    for depth in ("20", "56"):
        means = [cell.value.mean for cell in findings.cells if cell.levels["depth"] == depth]
        assert points(line(panel, depth)) == [(float(i), pytest.approx(mean)) for i, mean in enumerate(means)]
        assert len(bars(panel, depth)) == 3
    legend = panel.get_legend()
    assert legend
    assert legend.get_title().get_text() == "depth"
    assert [text.get_text() for text in legend.get_texts()] == ["20", "56"]


def test_other_factors_are_averaged_over_within_each_seed() -> None:
    given = evidence(design(THREE), lambda cell, seed: int(cell["model.width"]) + 10 * (cell["shortcut"] == "none") + seed)
    figure = interaction_figure(without(given, "shortcut=none depth=20 model.width=16/2"), found(given))
    assert figure
    panel = next(each for each in figure.axes if axes(each) == ("shortcut", "depth"))
    mean = (16 + 32 + 64) / 3
    assert points(line(panel, "56")) == [(0.0, pytest.approx(mean + 10 + 1)), (1.0, pytest.approx(mean + 1))]
    # Seed 2 has not every combination there, so that it does not count.
    assert points(line(panel, "20")) == [(0.0, pytest.approx(mean + 10 + 0.5)), (1.0, pytest.approx(mean + 1))]


def test_only_combinations_with_every_level_of_both_factors_are_averaged_over() -> None:
    made = design(THREE)
    cells = tuple(cell for cell in made.cells if cell.label != "shortcut=none depth=20 model.width=16")
    given = evidence(replace(made, cells=cells), lambda cell, seed: int(cell["model.width"]) + seed)
    figure = interaction_figure(given, found(given))
    assert figure
    panel = next(each for each in figure.axes if axes(each) == ("shortcut", "depth"))
    assert [y for _, y in points(line(panel, "56"))] == pytest.approx([(32 + 64) / 2 + 1] * 2)


@pytest.mark.parametrize(("levels", "aslant"), [(("none", "A", "B"), False), (tuple(f"a longer name {i}" for i in range(9)), True)])
def test_names_of_levels_that_would_touch_are_aslant(levels: tuple[str, ...], aslant: bool) -> None:
    given = evidence(design({"shortcut": levels, "depth": ("20", "56")}, {}))
    figure = interaction_figure(given, found(given))
    assert figure
    assert {text.get_rotation() > 0 for text in figure.axes[0].get_xticklabels()} == {aslant}


def test_the_three_largest_interactions_are_drawn_largest_first() -> None:
    given = evidence(design({**THREE, "block": ("basic", "bottleneck")}))
    sizes = {("block", "model.width"): 9.0, ("shortcut", "block"): -7.0, ("depth", "block"): 5.0, ("shortcut", "depth"): 1.0}
    found_there = tuple(
        Interaction(factors=pair, levels=("", ""), references=("", ""), difference=Estimate(n=3, mean=size))
        for pair, size in sizes.items()
    )
    figure = interaction_figure(given, replace(found(given), interactions=found_there))
    assert figure
    drawn = [set(axes(panel)) for panel in figure.axes]
    assert drawn == [set(pair) for pair in list(sizes)[:3]]


def test_one_factor_has_no_interaction() -> None:
    given = evidence(design({"shortcut": ("A", "B"), "depth": ("20",)}))
    assert interaction_figure(given, found(given)) is None


def test_of_many_lines_those_with_the_lowest_errors_are_told_apart() -> None:
    levels = tuple(f"{i}" for i in range(1, 21))
    given = evidence(design({"depth": ("20", "56"), "model.width": levels}), lambda cell, seed: 50 - float(cell["model.width"]))
    figure = depth_figure(given, found(given))
    assert figure
    assert names(figure) == [f"model.width={level}" for level in levels[-MAX_STYLED_LINES:]]
    assert len([each for each in figure.axes[0].lines if each.get_color() == "#57606a"]) == 2 * (20 - MAX_STYLED_LINES)


def spread_out() -> Evidence:
    """Deeper is better in small steps, plain networks are never on the front."""
    made = design({"shortcut": ("none", "A"), "depth": tuple(str(depth) for depth in range(20, 60, 6))})
    return evidence(made, lambda cell, seed: (20 if cell["shortcut"] == "none" else 12) - int(cell["depth"]) / 10 + 0.1 * seed)


def test_the_cost_of_each_cell_is_a_mark_and_the_front_a_line() -> None:
    given = spread_out()
    findings = found(given)
    figure = pareto_figure(given, findings)
    assert figure
    by_flops, by_seconds = figure.axes
    assert "(×10⁶)" in by_flops.get_xlabel()
    flops = {cell.label: cell.flops / 1e6 for cell in findings.cells if cell.flops}
    seconds = {cell.label: cell.seconds for cell in findings.cells}
    for panel, costs in ((by_flops, flops), (by_seconds, seconds)):
        marks = {points(each)[0] for each in panel.lines if each.get_marker() not in ("None", ".")}
        assert marks == {(costs[cell.label], cell.value.mean) for cell in findings.cells}
        (edge,) = (each for each in panel.lines if each.get_drawstyle() == "steps-post")
        best = [cell for cell in findings.cells if cell.levels["shortcut"] == "A"]
        assert points(edge) == [(costs[cell.label], cell.value.mean) for cell in best]
    assert len(names(figure)) == len(findings.cells)


@pytest.mark.slow
def test_names_on_the_front_touch_neither_each_other_nor_marks_and_are_whole() -> None:
    given = spread_out()
    figure = pareto_figure(given, found(given))
    assert figure
    figure.draw_without_rendering()
    for panel in figure.axes:
        shown = [text for text in panel.texts if text.get_text()]
        assert len(shown) >= 4
        boxes = [text.get_window_extent() for text in shown]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        places = [panel.transData.transform(points(each)[0]) for each in panel.lines if each.get_marker() not in ("None", ".")]
        assert not any(box.contains(*place) for box in boxes for place in places)
        assert all(panel.bbox.contains(*corner) for box in boxes for corner in box.corners())


@pytest.mark.slow
def test_errors_that_span_decades_get_a_logarithmic_axis_with_plain_numbers() -> None:
    given = evidence(truth=lambda cell, seed: 48.0 if cell == {"shortcut": "none", "depth": "56"} else 2 + 0.1 * seed)
    figure = pareto_figure(given, found(given))
    assert figure
    figure.draw_without_rendering()
    assert figure.axes[0].get_yscale() == "log"
    assert {"2", "5", "10", "20"} <= {label.get_text() for label in figure.axes[0].get_yticklabels()}


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
def test_names_on_the_front_lie_over_no_mark_and_no_bar(*, narrow: bool) -> None:
    levels = {"shortcut": ("none", "A", "B"), "depth": tuple(str(depth) for depth in range(20, 60, 6))}
    given = evidence(design(levels), lambda cell, seed: 9 - int(cell["depth"]) / 40 + len(cell["shortcut"]) / 9 + seed)
    with narrow_figures() if narrow else nullcontext():
        figure = pareto_figure(given, found(given))
    assert figure
    figure.draw_without_rendering()
    for panel in figure.axes:
        boxes = [Text.get_window_extent(text) for text in panel.texts if text.get_text()]
        assert boxes
        for drawn in panel.lines:
            if drawn.get_drawstyle() == "steps-post" or not len(points(drawn)):
                continue
            path = panel.transData.transform(np.column_stack([drawn.get_xdata(), drawn.get_ydata()]).astype(float))
            within = np.linspace(path[0], path[-1], 200)
            assert not any(box.contains(*place) for box in boxes for place in within)


def test_the_caption_speaks_of_a_front_line_only_if_one_is_drawn() -> None:
    def text_of(truth: Callable[[Mapping[str, str], int], float], **changes: Any) -> str:
        given = evidence(design({"depth": ("20", "56")}, {"depth": "20"}), truth)
        given = replace(given, runs=given.runs.assign(**changes))
        return caption("cost", given, analyze_study(given)).text

    def deeper_is_better(levels: Mapping[str, str], seed: int) -> float:
        return 9 - int(levels["depth"]) / 10 + seed / 10

    def deeper_is_worse(levels: Mapping[str, str], seed: int) -> float:
        return int(levels["depth"]) / 10 + seed / 10

    assert "The step line is the Pareto front" in (both := text_of(deeper_is_better))
    assert "one cell" not in both
    assert "no line for the Pareto front, because one cell is best in both" in (neither := text_of(deeper_is_worse))
    assert "step line" not in neither
    faster = evidence(design({"depth": ("20", "56")}, {"depth": "20"})).runs["seconds"][::-1].to_numpy()
    mixed = text_of(deeper_is_better, seconds=faster)
    assert "The step line is" in mixed
    assert "Without a line, one cell is best in both" in mixed


def test_a_cost_in_which_cells_do_not_differ_is_not_drawn() -> None:
    given = evidence(design({"shortcut": ("none", "A")}))
    assert pareto_figure(given, found(given)) is None
    by_time = replace(given, runs=given.runs.assign(seconds=[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]))
    figure = pareto_figure(by_time, found(by_time))
    assert figure
    assert [panel.get_xlabel() for panel in figure.axes] == ["training time of a run, seconds"]


def test_bars_end_where_the_metric_does() -> None:
    given = evidence(truth=lambda cell, seed: 0.2 + 2.0 * (seed == 2))
    figure = interaction_figure(given, found(given))
    assert figure
    ends = [end for level in ("20", "56") for end in bars(figure.axes[0], level)]
    assert {low for low, _ in ends} == {0.0}


def test_a_third_factor_has_a_panel_for_each_level() -> None:
    given = evidence(design(THREE))
    figure = depth_figure(given, found(given))
    assert figure
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["shortcut=none", "shortcut=A"]
    assert names(figure) == ["model.width=16", "model.width=32", "model.width=64"]
    for panel in figure.axes:
        assert len([each for each in panel.containers if isinstance(each, ErrorbarContainer)]) == 6


def test_one_cell_has_no_front() -> None:
    given = evidence(design({"depth": ("20",)}))
    assert pareto_figure(given, found(given)) is None
