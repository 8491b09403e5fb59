"""`findings.json`, `runs.csv` and `curves.csv` hold what the report says, in documented formats."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.verdicts.expectations import assess
from ablations.engine.report import bundle, data_frames, tables
from ablations.engine.report.findings_json import findings_document, to_json
from ablations.engine.study.expectations import parse_expectations
from tests.helpers.json_schemas import problems
from tests.helpers.synthetic_search import search_evidence
from tests.helpers.synthetic_study import design, evidence, without

FACTORS = {"shortcut": ("none", "A", "B"), "depth": (20, 56)}


def document(given: Evidence, *expected: str) -> dict[str, Any]:
    findings = analyze_study(given)
    found = findings_document(given, findings, assess(parse_expectations(expected, FACTORS), given, findings))
    read: dict[str, Any] = json.loads(to_json(found), parse_constant=pytest.fail)
    assert read == found
    return found


def failing(seeds: int = 3) -> Evidence:
    return without(evidence(design(seeds=seeds)), "shortcut=B depth=56/1", "diverged", "loss is not finite in epoch 3")


@pytest.mark.parametrize(
    "given",
    [
        evidence(),
        failing(),
        evidence(design(seeds=1)),
        evidence(design(seeds=2), truth=lambda levels, seed: 8.0),
        without(evidence(), "shortcut=A depth=20/0"),
        search_evidence(trials=12, seeds=3),
    ],
    ids=["complete", "diverged", "one seed", "equal runs", "missing", "search"],
)
def test_the_document_follows_its_published_schema(given: Evidence) -> None:
    assert problems("findings", document(given)) == []


def test_the_schema_rejects_other_verdicts_and_missing_keys() -> None:
    wrong = document(evidence())
    wrong["answers"][0]["verdict"] = "is great"
    del wrong["protocol"]["metric"]
    assert len(problems("findings", wrong)) == 2


def test_an_effect_has_the_numbers_of_the_findings_and_counts_failures_of_both_levels() -> None:
    given = failing(seeds=5)
    (effect,) = (each for each in analyze_study(given).effects if each.level == "B")
    (answer,) = (each for each in document(given)["answers"] if each["factor"] == "shortcut")
    (found,) = (each for each in answer["effects"] if each["level"] == "B")
    assert found == {
        "level": "B",
        "reference": "A",
        "difference": effect.difference.mean,
        "low": effect.difference.low,
        "high": effect.difference.high,
        "p": effect.difference.p,
        "p_adjusted": effect.difference.p_adjusted,
        "n": 4,
        "failures": 1,
        "reference_failures": 0,
        "failures_p": 1.0,
        "failures_p_adjusted": None,
        "p_within_margin": None,
    }


def test_a_number_that_does_not_exist_is_null() -> None:
    found = document(evidence(design(seeds=1)))
    assert found["looks"] == [1]
    assert found["answers"][0]["verdict"] == "cannot be said"
    assert found["answers"][0]["effects"][0]["p"] is None
    missing = document(without(evidence(), "shortcut=A depth=20/0"))
    assert not missing["complete"]
    assert missing["cells"][2]["runs"][0] == {
        "seed": 0,
        "outcome": "missing",
        "value": None,
        "fingerprint": "shortcut=A depth=20/0",
        "run_id": "run-shortcut=A depth=20/0",
    }


def test_levels_and_settings_have_the_types_of_their_fields() -> None:
    found = document(evidence())
    assert found["cells"][0]["levels"] == {"shortcut": "none", "depth": 20}
    assert found["protocol"]["settings"]["optim.global_batch_size"] == 64
    assert "model.depth" not in found["protocol"]["settings"]
    assert found["protocol"]["metric"] == {
        "name": "test/error",
        "unit": "%",
        "better": "lower",
        "label": "test error",
        "difference_unit": "points",
    }


def test_frames_have_a_row_per_run_epoch_and_cell() -> None:
    given = failing()
    runs, curves = data_frames.run_frame(given), data_frames.curve_frame(given)
    cells = data_frames.cell_frame(given, analyze_study(given))
    assert (len(runs), len(curves), len(cells)) == (18, 170, 6)
    assert runs["depth"].dtype == curves["depth"].dtype == cells["depth"].dtype == "int64"
    last = curves[curves["epoch"] == 10].set_index(["shortcut", "depth", "seed"])["test/error"]
    final = runs[runs["outcome"] == "completed"].set_index(["shortcut", "depth", "seed"])["test/error"]
    assert (last - final).abs().max() < 1e-9
    assert runs[runs["outcome"] == "diverged"]["test/error"].isna().all()


def test_a_factor_that_is_also_a_condition_has_one_column() -> None:
    made = design({"precision": ("fp32", "bf16")}, baseline={"precision": "fp32"})
    cells = [replace(cell, spec={**cell.spec, "precision": cell.levels["precision"]}) for cell in made.cells]
    runs = data_frames.run_frame(evidence(replace(made, cells=tuple(cells))))
    assert list(runs.columns).count("precision") == 1
    assert list(runs["precision"]) == ["fp32"] * 3 + ["bf16"] * 3


def test_a_factor_with_the_name_of_a_statistic_hides_no_column() -> None:
    factors = {"p": ("0.1", "0.5"), "seconds": ("1", "2"), "cell": ("a", "b"), "mean": ("x", "y")}
    given = evidence(design(factors, baseline={"p": "0.1"}))
    plain = evidence(design({"depth": ("20",)}, baseline={}))
    found = analyze_study(given)
    for make in (data_frames.run_frame, data_frames.curve_frame):
        assert {*make(plain).columns} - {"depth"} < {*make(given).columns}
    cells, rows = data_frames.cell_frame(given, found), tables.rows(found)
    assert list(cells["factor.p"]) == [each["factor.p"] for each in rows] == [cell.levels["p"] for cell in given.design.cells]
    assert list(cells["mean"]) == [each["test_error_mean"] for each in rows] == [cell.value.mean for cell in found.cells]
    assert [each["cell"] for each in rows] == [cell.label for cell in given.design.cells]
    runs = data_frames.run_frame(given)
    assert list(runs["seconds"]) == list(given.runs["seconds"])
    assert set(runs["factor.seconds"]) == {"1", "2"}
    assert set(runs["factor.cell"]) == {"a", "b"}


@pytest.mark.slow
def test_the_files_lie_beside_the_table(tmp_path: Path) -> None:
    given = without(evidence(), "shortcut=B depth=56/1", "failed", "=1+1")
    bundle.write(given, analyze_study(given), tmp_path)
    assert (tmp_path / "table.csv").exists()
    assert json.loads((tmp_path / "findings.json").read_text(encoding="utf-8")) == document(given)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text(encoding="utf-8"))))
    assert len(rows) == 18
    assert [row["message"] for row in rows if row["outcome"] == "failed"] == ["'=1+1"]
    assert len((tmp_path / "curves.csv").read_text(encoding="utf-8").splitlines()) == 1 + 170
