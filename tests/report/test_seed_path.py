"""The path of an adaptive study in its evidence, in `findings.json`, on the page, in the terminal, and read back from MLflow."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.examples import analyze_examples
from ablations.engine.analysis.findings import SeedPath
from ablations.engine.analysis.seed_path import path_sentences, with_path
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.api.calls import load
from ablations.engine.report import terminal
from ablations.engine.report.data_frames import cell_frame
from ablations.engine.report.findings_json import findings_document
from ablations.engine.report.html import render
from ablations.engine.study.definition import Study
from ablations.engine.tracking import looks
from ablations.engine.tracking.connection import connect
from resnet_core import ConfigError
from tests.helpers import stored_study, synthetic_predictions
from tests.helpers.json_schemas import problems
from tests.helpers.synthetic_study import design, evidence, rising, without

FULL = replace(design(seeds=8), seed_looks=(3, 5, 8), planned_seeds=8)


def full_evidence() -> Evidence:
    """Return evidence with all seeds: `none` is clearly worse on average, and `B` is like `A`."""
    return evidence(FULL, lambda levels, seed: rising(levels, seed) + 40 * (levels["shortcut"] == "none"))


@pytest.fixture(scope="module")
def followed() -> Evidence:
    return with_path(full_evidence())


def path_of(given: Evidence) -> SeedPath:
    assert given.path
    return given.path


def test_evidence_is_cut_to_the_path(followed: Evidence) -> None:
    path, seeds = path_of(followed), {cell.label: len(cell.fingerprints) for cell in followed.design.cells}
    assert path.finished
    assert path.runs == sum(seeds.values()) == len(followed.runs) < path.fixed_runs == 6 * 8
    assert followed.runs.groupby("cell").size().to_dict() == seeds
    assert followed.curves.groupby("cell")["seed"].nunique().to_dict() == seeds
    again = path_of(with_path(replace(followed, path=None)))
    assert (again.looks, again.runs, again.finished) == (path.looks, path.runs, True), "no more runs are needed"


def test_findings_count_the_seeds_of_each_cell(followed: Evidence) -> None:
    found = analyze_study(followed)
    seeds = {cell.label: len(cell.fingerprints) for cell in followed.design.cells}
    assert {cell.label: (cell.planned, cell.value.n) for cell in found.cells} == {name: (n, n) for name, n in seeds.items()}
    assert found.complete
    assert found.flags == (), "declared looks are no caveat"
    assert not [each.note for each in found.comparisons if each.note]
    assert all(each.planned == each.difference.n for each in found.comparisons)
    if len(set(seeds.values())) > 1:
        assert found.anova
        assert f"cells have {min(seeds.values())} to {max(seeds.values())} seeds" in found.anova.note
    assert cell_frame(followed, found)["planned"].tolist() == [*seeds.values()]


def test_a_missing_run_leaves_the_path_open_and_the_study_incomplete() -> None:
    found = with_path(without(full_evidence(), "shortcut=A depth=20/2"))
    findings = analyze_study(found)
    assert path_of(found).looks == ()
    assert not findings.complete
    assert "incomplete" in findings.flags[0]
    assert "up to the next look, " in path_sentences(path_of(found))[-1]


@pytest.mark.slow
def test_the_path_is_in_the_document_on_the_page_and_in_the_terminal(followed: Evidence) -> None:
    findings = analyze_study(followed)
    document = findings_document(followed, findings)
    assert problems("findings", document) == []
    assert document["path"]["runs"] == path_of(followed).runs
    assert document["path"]["looks"][0]["seeds"] == 3
    assert document["looks"] == [n for n in FULL.seed_looks if n <= followed.design.seeds]
    assert document["planned_seeds"] == 8
    page = render(followed, findings, [], published=[], written_at="now")
    text = io.StringIO()
    Console(file=text, width=1000).print(terminal.result_view(followed.design, findings))
    for sentence in path_sentences(path_of(followed)):
        assert sentence in text.getvalue()
    assert '<h2 id="path">Adaptive seeds</h2>' in page
    assert "with the first of the same seeds" in page
    assert findings_document(evidence(), analyze_study(evidence()))["path"] is None


def test_sentences_name_what_each_look_decided(followed: Evidence) -> None:
    *looks, total = path_sentences(path_of(followed))
    assert looks[0].startswith("At 3 seeds (6 cells): ")
    assert any("shortcut=none instead of A: an effect" in each for each in looks)
    runs = path_of(followed).runs
    assert f"{runs} of the 48 runs with all seeds in all cells ({100 * runs / 48:.0f} %) were needed" in total


def test_results_per_image_are_those_of_the_seeds_shown(followed: Evidence) -> None:
    given = synthetic_predictions.with_predictions(followed)
    found = analyze_examples(given, analyze_study(given))
    assert found
    shown = {each.cell: each.difference.n for each in analyze_study(given).comparisons}
    assert {each.cell: each.difference.seeds for each in found.comparisons} == shown
    findings = analyze_study(given)
    at_three = replace(findings, comparisons=tuple(replace(each, planned=3) for each in findings.comparisons))
    found = analyze_examples(given, at_three)
    assert found
    assert {each.difference.seeds for each in found.comparisons} == {3}


@pytest.mark.slow
def test_a_stored_adaptive_study_is_read_back_on_its_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(**{**vars(stored_study.STUDY), "seeds": (3, 8)})
    uri = stored_study.stored_study(home, study)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    whole = load(study)
    path = whole.findings["path"]
    assert whole.complete
    assert path["finished"]
    assert len(whole.runs) == path["runs"] <= path["fixed_runs"] == 4 * 8
    tags = connect(uri).get_run(whole._stored.run_id).data.tags
    assert looks.recorded_looks(tags) == (whole._stored.evidence.design.seeds,), "the last look; the declared ones are known"
    assert tags[looks.PLANNED_SEEDS_TAG] == "8"
    assert load(study, seeds=(3, 8)).findings["path"] == path
    assert load(study, seeds="3,5,8").findings["path"] == path

    margin = load(study, margin=50.0)
    assert margin.findings["path"] == path, "the path is that of the study as submitted"

    part = load(study, levels={"depth": (8,)})
    assert part.findings["path"] is None
    assert part.complete, "a part of a study follows no path of its own"
    with pytest.raises(ConfigError, match="--seeds=3,12: MLflow has looks at 3, 5, 8; accepted: these, or one number"):
        load(study, seeds="3,12")


def test_declared_looks_replace_a_plan_that_nobody_has_looked_at() -> None:
    assert looks.planned_seeds({"planned_seeds": "20"}, 12, declared=True) == 12
    assert looks.planned_seeds({"planned_seeds": "20"}, 12) == 20
    assert looks.planned_seeds({"planned_seeds": "3", "look.3": "now"}, 12, declared=True) == 3, "seen, so it is spent"
