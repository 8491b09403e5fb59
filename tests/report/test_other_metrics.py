"""Reports of studies whose metric is not an error in percent: headings, units, directions; nothing about what is not reported."""

import io

import numpy as np
import pytest
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report import mlflow_page, paper_comparison, tables, terminal
from ablations.engine.report.figures import all_figures, caption
from ablations.engine.report.figures.pareto import multiply_add_points, pareto_points
from ablations.engine.report.figures.search_history import history_figure
from ablations.engine.report.figures.styles import distinguished_cells
from ablations.engine.task.metric import Metric
from tests.helpers.other_metrics import ACCURACY, LOSS, SCORE, in_metric
from tests.helpers.synthetic_findings import page
from tests.helpers.synthetic_search import search_evidence
from tests.helpers.synthetic_study import design, evidence
from tests.report.test_wording import PageText

METRICS = pytest.mark.parametrize("metric", [LOSS, ACCURACY, SCORE], ids=lambda metric: metric.key)
COST_WORDS = ("parameters", "multiply-adds", "images/s", "memory", "GPU-hours", "s / run")


def printed(given: Evidence) -> str:
    text = io.StringIO()
    terminal.show_results(Console(file=text, width=200), given, analyze_study(given), "python chars.py")
    return text.getvalue()


@pytest.mark.slow
@METRICS
def test_tables_are_headed_by_metric_and_unit(metric: Metric) -> None:
    given = in_metric(evidence(), metric)
    found = analyze_study(given)
    assert f"  {metric.heading}  " in printed(given)
    assert f" {metric.training.heading} " in printed(given)
    (row, *_), (cell, *_) = tables.rows(found), found.cells
    assert row[f"{metric.key}_mean"] == cell.value.mean
    assert row[f"{metric.training.key}_mean"] == cell.train_value.mean
    assert tables.escape_markdown(metric.heading) in tables.markdown(found)
    assert mlflow_page.cells.cells_figure(given, found).axes[0].get_xlabel().startswith(metric.label)
    for text in (printed(given), tables.markdown(found), tables.latex(found), tables.csv(found), PageText(page(given, found)).text):
        assert "error" not in text


@pytest.mark.slow
@METRICS
def test_what_runs_do_not_report_has_no_column_and_no_figure(metric: Metric) -> None:
    given = in_metric(evidence(), metric, bare=True)
    found = analyze_study(given)
    assert set(all_figures(given, found)) == {"curves", "depth", "differences", "interaction"}
    shown = PageText(page(given, found)).text
    for text in (printed(given), tables.markdown(found), tables.latex(found), tables.csv(found), shown):
        assert not [word for word in COST_WORDS if word in text]
        assert metric.training.label not in text
        assert "0 training" not in text


@pytest.mark.slow
@METRICS
def test_figures_have_axes_and_captions_of_the_metric(metric: Metric) -> None:
    given = in_metric(evidence(), metric)
    found = analyze_study(given)
    for name, figure in all_figures(given, found).items():
        words = [axes.get_ylabel() + axes.get_xlabel() for axes in figure.axes] + list(caption(name, given, found))
        assert any(metric.quantity in text.lower() for text in words), name
        assert not any("error" in text for text in words), name
        assert metric.unit == "%" or not any("points" in text for text in words if name != "curves"), name
    forest = caption("differences", given, found).text
    assert ("Positive differences, on the right, are better" in forest) == (metric.better == "higher")
    cells = {point.cell for point in pareto_points(multiply_add_points(found), metric)}
    assert cells == {cell.label for cell in found.cells if cell.on_pareto_front}


@METRICS
def test_the_best_so_far_of_a_search_is_that_of_the_metric(metric: Metric) -> None:
    given = in_metric(search_evidence({}, trials=12), metric)
    figure = history_figure(given)
    assert figure is not None
    assert given.trials is not None
    assert figure.axes[0].get_ylabel() == f"{metric.heading} (not a result)"
    values = given.trials[given.trials["outcome"] == "completed"]["value"]
    (steps,) = [line for line in figure.axes[0].get_lines() if line.get_drawstyle() == "steps-post"]
    assert np.asarray(steps.get_ydata())[-1] == (values.max() if metric.better == "higher" else values.min())
    assert f"{metric.best} {metric.quantity}" in caption("search-history", given, analyze_study(given)).text


def test_of_many_cells_those_with_the_best_values_have_their_own_styles() -> None:
    widths = {"width": tuple(map(str, range(1, 31)))}
    given = evidence(design(widths, {}, seeds=1), truth=lambda levels, _: float(levels["width"]), epochs=1)
    assert set(distinguished_cells(in_metric(given, ACCURACY))) == set(distinguished_cells(given))


def test_results_of_a_task_are_not_compared_with_published_errors() -> None:
    given = in_metric(evidence(), ACCURACY)
    assert paper_comparison.compare_with_published(given, analyze_study(given)) == ()
