"""A finished study in an MLflow database, without a training: its numbers are random."""

from pathlib import Path

from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.expansion import make_plan
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
    plan = make_plan(study, StudyRequest(), cache=folder / "cache")
    design = Design.from_plan(plan, {"command": "python stored.py", "git.diff": "+secret"})
    database.fill(connect(uri), design, plan.shared_fields(), EPOCHS, artifacts=folder / "artifacts")
    return uri
