"""Designs as JSON, of this version and of earlier ones."""

import json

import pytest

from ablations.engine.study.design import Design
from ablations.engine.task.metric import Metric
from tests.helpers.other_metrics import ACCURACY, LOSS, in_metric
from tests.helpers.synthetic_search import search_evidence
from tests.helpers.synthetic_study import design, evidence


@pytest.mark.parametrize("metric", [LOSS, ACCURACY])
def test_a_design_keeps_its_metric(metric: Metric) -> None:
    made = in_metric(evidence(design({"width": ("8", "16")})), metric).design
    assert Design.from_json(made.to_json()) == made


def test_earlier_designs_name_only_the_images_that_runs_are_scored_on() -> None:
    made = design()
    stored = json.loads(made.to_json())
    del stored["metric"]
    for split in ("test", "validation"):
        for name in ("evaluation_split", "scored_on"):
            assert Design.from_json(json.dumps(stored | {name: split})).metric == Metric(f"{split}/error", "%", "lower")


def test_trials_of_earlier_searches_are_scored_by_the_validation_error() -> None:
    made = search_evidence(trials=3).design
    stored = json.loads(made.to_json())
    del stored["search"]["metric"]
    for name in ("train", "validation"):
        stored["search"][f"{name}_images"] = stored["search"].pop(f"{name}_examples")
    read = Design.from_json(json.dumps(stored))
    assert read.search is not None
    assert read.search.metric == Metric("validation/error", "%", "lower")
    assert read == made
