"""Studies whose metric is not an error in percent: other units, other scales, and metrics of which more is better."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ablations.engine.analysis.findings import Answer
from ablations.engine.analysis.number_format import ValueFormat, decimals_for, format_value
from ablations.engine.analysis.statistics.inference import paired_tests, zero_tolerance
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.task.metric import Metric
from tests.helpers.other_metrics import ACCURACY, LOSS, SCORE, in_metric
from tests.helpers.synthetic_search import search_evidence
from tests.helpers.synthetic_study import TEST_ERROR, evidence

METRICS = pytest.mark.parametrize("metric", [LOSS, ACCURACY, SCORE], ids=lambda metric: metric.key)


def answer(metric: Metric) -> Answer:
    found = analyze_study(in_metric(evidence(), metric) if metric != TEST_ERROR else evidence())
    return next(each for each in found.answers if each.factor == "shortcut")


@METRICS
def test_verdicts_tests_and_fronts_are_those_of_the_same_study_in_percent_of_errors(metric: Metric) -> None:
    found, expected = analyze_study(in_metric(evidence(), metric)), analyze_study(evidence())
    assert [each.verdict for each in found.answers] == [each.verdict for each in expected.answers]
    assert [cell.on_pareto_front for cell in found.cells] == [cell.on_pareto_front for cell in expected.cells]
    for one, other in zip(found.comparisons, expected.comparisons, strict=True):
        assert one.difference.p == pytest.approx(other.difference.p)
        assert metric.is_better(one.difference.mean or 0) == TEST_ERROR.is_better(other.difference.mean or 0)
    assert found.anova is not None
    assert expected.anova is not None
    assert [term.f for term in found.anova.terms] == pytest.approx([term.f for term in expected.anova.terms])


def test_sentences_name_metric_unit_and_direction() -> None:
    assert "none instead of A raises the test error by 4.80 points" in answer(TEST_ERROR).text
    assert "none instead of A raises the valid loss by 0.004803 nats" in answer(LOSS).text
    assert "none instead of A lowers the valid accuracy by 4.80 points" in answer(ACCURACY).text
    assert "none instead of A lowers the score by 96.1 (adjusted 95 % CI" in answer(SCORE).text
    for metric in (LOSS, ACCURACY, SCORE):
        assert "error" not in answer(metric).text


@METRICS
def test_a_search_finds_the_same_ranking_and_choices(metric: Metric) -> None:
    given = search_evidence(trials=12)  # too few for importances, which take long
    found, expected = analyze_study(in_metric(given, metric)).search, analyze_study(given).search
    assert found is not None
    assert expected is not None
    assert found.metric == metric
    assert found.ranking is not None
    assert expected.ranking is not None
    assert found.ranking.verdict == expected.ranking.verdict
    directions = [text.ranking.text.count(word) for text in (found, expected) for word in ("worse", "better") if text.ranking]
    assert directions[:2] == directions[2:] != [0, 0]
    assert [cell.chosen[0].number for cell in found.cells] == [cell.chosen[0].number for cell in expected.cells]
    assert not metric.unit or metric.difference_unit in found.ranking.text


def test_a_variant_with_a_higher_accuracy_is_called_better() -> None:
    found = analyze_study(in_metric(search_evidence(trials=12), ACCURACY)).search
    assert found is not None
    assert found.ranking is not None
    best = next(change for change in found.ranking.changes if change.cell == "shortcut=B")
    assert (best.before.mean or 0) > 0
    assert "shortcut=B is better than shortcut=A" in found.ranking.text


def test_importances_are_those_for_good_values_whatever_is_good() -> None:
    given = search_evidence({}, prunes=False)
    (cell,), (expected,) = (
        analyze_study(each).search.cells  # type: ignore[union-attr]
        for each in (in_metric(given, ACCURACY), given)
    )
    assert cell.importances
    assert [(each.field, each.share) for each in cell.importances] == [(each.field, each.share) for each in expected.importances]


@METRICS
def test_runs_that_report_only_the_metric_are_analyzed(metric: Metric) -> None:
    found, whole = analyze_study(in_metric(evidence(), metric, bare=True)), analyze_study(in_metric(evidence(), metric))
    assert [answer.text for answer in found.answers] == [answer.text for answer in whole.answers]
    assert all(cell.flops is None and cell.seconds is None and not cell.train_value.n for cell in found.cells)
    assert not any(cell.on_pareto_front for cell in found.cells)


def test_data_that_differ_between_cells_are_flagged_when_their_sizes_are_unknown() -> None:
    given = in_metric(evidence(), LOSS, bare=True)
    first = replace(given.design.cells[0], data_version="e" * 20)
    runs = given.runs.assign(data_version=np.where(given.runs["cell"] == first.label, "e" * 20, "d" * 20))
    found = analyze_study(replace(given, design=replace(given.design, cells=(first, *given.design.cells[1:])), runs=runs))
    assert any(flag.startswith("Runs differ in data version") and first.label in flag for flag in found.flags)


@pytest.mark.parametrize(
    ("metric", "values", "printed", "difference"),
    [
        (TEST_ERROR, [12.34], "12.34 %", "+0.50 points"),
        (LOSS, [0.01234, 0.0151], "0.01234 nats", "+0.50000 nats"),
        (LOSS, [1.3862], "1.386 nats", "+0.500 nats"),
        (SCORE, [15327.4], "15,327", "+0.5"),
        (Metric("valid/perplexity"), [0.0], "0.00", "+0.50"),
    ],
)
def test_decimals_suit_the_scale_of_the_values(metric: Metric, values: list[float], printed: str, difference: str) -> None:
    formats = ValueFormat(metric, decimals_for(metric, [*values, math.nan]))
    assert formats.with_unit(values[0]) == printed
    assert formats.in_points(formats.signed(0.5)) == difference
    assert format_value(metric, values[0]) == printed


def test_a_rounding_error_below_zero_has_no_minus_sign() -> None:
    assert [ValueFormat(TEST_ERROR).signed(value) for value in (-1e-15, -1e-3, -0.5)] == ["0.00", "−0.001", "−0.50"]


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_what_counts_as_rounding_grows_with_the_values(scale: float) -> None:
    values = scale * np.array([[0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3], [0.3 + 1e-6, 0.3, 0.3]])
    same, other = paired_tests([values[1] - values[0], values[2] - values[0]], zero_tolerance(values))
    assert (same.mean, same.std, same.low) == (0, 0, None)
    assert other.std is not None
    assert other.std > 0
