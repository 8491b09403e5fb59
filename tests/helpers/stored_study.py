"""A finished study in an MLflow database, without a training: its numbers are random."""

from pathlib import Path

from ablations.engine.study.dataset_studies import split_by_dataset
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import StudyRequest
from ablations.engine.tracking.connection import connect
from benchmarks.report import database

EPOCHS = 4
STUDY = Study(
    name="stored",
    question="Which shortcut helps?",
    factors={"shortcut": ("none", "A"), "depth": (8, 14)},
    baseline={"shortcut": "A"},
    preset="smoke",
)
RUNS = 12


def stored_study(folder: Path, study: Study = STUDY) -> str:
    """Store the study in a new database in `folder`; return its tracking URI."""
    uri = f"sqlite:///{folder}/mlflow.db"
    for plan in plans(study, folder / "cache"):
        design = Design.from_plan(plan, {"command": "python stored.py", "git.diff": "+secret"})
        database.fill(connect(uri), design, plan.shared_fields(), EPOCHS, artifacts=folder / "artifacts")
    return uri


def plans(study: Study, cache: Path) -> list[Plan]:
    """Return the plan of a study, or that on each of its data sets."""
    parts = split_by_dataset(study, StudyRequest())
    pairs = [(each.study, each.request) for each in parts] or [(study, StudyRequest())]
    return [make_plan(*pair, cache=cache) for pair in pairs]
