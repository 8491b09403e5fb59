"""A search as Optuna's own studies: what is written is what Optuna reads."""

import time
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.report.optuna_journal import export
from tests.helpers.synthetic_search import FIELDS, search_evidence

STATES = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "diverged": TrialState.PRUNED, "failed": TrialState.FAIL}


def written(evidence: Evidence, folder: Path) -> dict[str, optuna.Study]:
    """The studies of the file, by name."""
    export(evidence, folder / "search.journal")
    storage = JournalStorage(JournalFileBackend(str(folder / "search.journal")))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def test_every_trial_that_ended_comes_back_as_it_was(tmp_path: Path) -> None:
    evidence = search_evidence(over=False)
    assert evidence.trials is not None
    assert evidence.trial_curves is not None
    studies = written(evidence, tmp_path)
    assert list(studies) == ["tuning shortcut=none", "tuning shortcut=A", "tuning shortcut=B"]
    assert [path.name for path in tmp_path.iterdir()] == ["search.journal"]
    for name, study in studies.items():
        label = name.partition(" ")[2]
        rows = evidence.trials[(evidence.trials["cell"] == label) & (evidence.trials["outcome"] != "running")]
        curves = evidence.trial_curves[evidence.trial_curves["cell"] == label]
        assert len(rows) == 29
        for row, trial in zip(rows.to_dict("records"), study.trials, strict=True):
            assert trial.user_attrs == {"number": row["number"], "run_id": row["run_id"], "outcome": row["outcome"]}
            assert trial.state == STATES[row["outcome"]]
            assert trial.values == ([row["value"]] if row["outcome"] == "completed" else None)
            assert trial.params == {field: row[field] for field in FIELDS if row[field] == row[field]}
            assert trial.distributions.keys() == trial.params.keys()
            curve = curves[curves["number"] == row["number"]]
            assert trial.intermediate_values == dict(zip(curve["epoch"], curve["value"], strict=True))


def test_what_was_searched_is_what_optuna_searches(tmp_path: Path) -> None:
    (study,) = written(search_evidence({}), tmp_path).values()
    assert study.study_name == "tuning"
    whole = next(trial for trial in study.trials if "optim.momentum" in trial.params)
    assert whole.distributions == {
        "optim.lr": optuna.distributions.FloatDistribution(0.001, 1.0, log=True),
        "optim.schedule": optuna.distributions.CategoricalDistribution(["step", "cosine"]),
        "optim.momentum": optuna.distributions.FloatDistribution(0.0, 0.98),
        "model.width": optuna.distributions.IntDistribution(8, 24),
    }
    assert not any("optim.momentum" in trial.params for trial in study.trials if trial.params["optim.schedule"] == "step")


def test_a_second_objective_is_a_second_value(tmp_path: Path) -> None:
    evidence = search_evidence({}, objective="flops")
    assert evidence.trials is not None
    (study,) = written(evidence, tmp_path).values()
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    first = next(trial for trial in study.trials if trial.state == TrialState.COMPLETE)
    row = evidence.trials.set_index("number").loc[first.user_attrs["number"]]
    assert first.values == [row["value"], row["flops"]]


def test_lists_are_text_and_ranges_hold_every_trial(tmp_path: Path) -> None:
    fields = {"optim.lr": FIELDS["optim.lr"], "optim.milestones": {"choices": [[0.5, 0.75], [0.8]]}}
    evidence = search_evidence({}, fields)
    assert evidence.trials is not None
    larger = evidence.trials["optim.lr"] * 2
    (study,) = written(replace(evidence, trials=evidence.trials.assign(**{"optim.lr": larger})), tmp_path).values()
    assert {trial.params["optim.milestones"] for trial in study.trials} == {"0.5,0.75", "0.8"}
    assert {trial.params["optim.lr"] for trial in study.trials} == set(larger)


def test_a_search_that_has_only_begun_is_a_study_without_trials(tmp_path: Path) -> None:
    evidence = search_evidence({})
    assert evidence.trials is not None
    assert evidence.trial_curves is not None
    empty = replace(evidence, trials=evidence.trials.iloc[:0], trial_curves=evidence.trial_curves.iloc[:0])
    (study,) = written(empty, tmp_path).values()
    assert study.trials == []


def test_a_thousand_trials_take_seconds(tmp_path: Path) -> None:
    evidence = search_evidence({}, trials=1000)
    began = time.process_time()
    export(evidence, tmp_path / "search.journal")
    assert time.process_time() - began < 10
