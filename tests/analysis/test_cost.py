"""The cost of a study: sums over its runs, and rates."""

from dataclasses import replace

import pytest

from ablations.engine.analysis.cost import ENERGY_COLUMN, cost_sentence, study_cost
from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.report.findings_json import findings_document
from ablations.engine.study.design import Design
from ablations.engine.study.request import Rates
from ablations.engine.trial.system_metrics import GPU_ENERGY_KWH
from tests.helpers.synthetic_findings import page
from tests.helpers.synthetic_study import design, evidence, without
from tests.report.test_wording import PageText


def on_gpus(rates: Rates, energy: float | None = 0.05) -> Evidence:
    """Return a study of 18 runs of half a GPU-hour each."""
    given = evidence(replace(design(), rates=rates))
    given.runs["gpu_hours"], given.runs["seconds"] = 0.5, 1800.0
    if energy is not None:
        given.runs[ENERGY_COLUMN] = energy
    return given


def test_the_column_of_the_energy_is_the_metric_of_a_run() -> None:
    assert ENERGY_COLUMN == GPU_ENERGY_KWH


def test_money_and_emissions_are_those_of_the_rates() -> None:
    found = study_cost(on_gpus(Rates(usd_per_gpu_hour=3.0, co2_grams_per_kwh=400.0)))
    assert found is not None
    assert (found.runs, found.seconds, found.gpu_hours) == (18, 18 * 1800, 9.0)
    assert found.usd == 27.0
    assert (found.energy_kwh, found.co2_grams) == pytest.approx((0.9, 360.0))
    said = cost_sentence(found)
    assert (
        said == "Cost: 18 runs, 9 h 0 min of training, 9 GPU-hours, 0.9 kWh (GPUs only), 360 g CO₂ at 400 g/kWh, $27.00 at $3 per "
        "GPU-hour."
    )


def test_what_was_not_measured_is_not_made_up() -> None:
    said = cost_sentence(study_cost(on_gpus(Rates(co2_grams_per_kwh=400.0), energy=None)))
    assert "kWh (" not in said
    assert "CO₂ not known, since no GPU's energy was measured" in said
    some = on_gpus(Rates())
    some.runs.loc[:8, ENERGY_COLUMN] = float("nan")
    assert "0.45 kWh (GPUs only of 9 of 18 runs)" in cost_sentence(study_cost(some))


def test_runs_without_a_result_cost_nothing_that_is_known() -> None:
    found = study_cost(without(on_gpus(Rates()), "shortcut=A depth=20/1"))
    assert found is not None
    assert (found.runs, found.gpu_hours) == (17, 8.5)


def test_a_study_on_cpus_without_rates_says_nothing_about_cost() -> None:
    assert analyze_study(evidence()).cost == ""
    assert cost_sentence(study_cost(evidence(replace(design(), rates=Rates(usd_per_gpu_hour=2.0))))).endswith(
        "no GPU, $0.00 at $2 per GPU-hour."
    )


def test_the_page_and_the_document_say_what_the_study_cost() -> None:
    given = on_gpus(Rates(usd_per_gpu_hour=3.0))
    found = analyze_study(given)
    assert found.cost in PageText(page(given, found)).text
    cost = findings_document(given, found)["cost"]
    assert (cost["runs"], cost["gpu_hours"], cost["usd"], cost["co2_grams"]) == (18, 9.0, 27.0, None)


def test_rates_come_back_with_the_design() -> None:
    made = replace(design(), rates=Rates(usd_per_gpu_hour=3.0))
    assert Design.from_json(made.to_json()) == made
