"""Looks at a study, recorded in a real MLflow database with the study's own run."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from sqlalchemy.pool import Pool

from ablations import Result, load
from ablations.engine.cli import dispatch, options
from ablations.engine.report import bundle, updates
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.submission import reporting
from ablations.engine.submission.study_submission import StudySubmission
from ablations.engine.tracking import looks
from ablations.engine.tracking.connection import connect
from tests.helpers.stored_study import STUDY, stored_study
from tests.helpers.submission import Submitted

ONE_SEED = replace(STUDY, seeds=1)
"""The study with fewer planned seeds than any submission has."""


@pytest.fixture
def stored(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a database with all runs of three seeds of the study. Submissions need no Ray and draw no figures."""
    stored_study(home)
    monkeypatch.setattr(reporting, "publish", lambda *_, **__: None)
    return home


def loaded(home: Path, **keywords: Any) -> Result:
    return load(STUDY, tracking_uri=f"sqlite:///{home}/mlflow.db", **keywords)


def report(home: Path, *arguments: str) -> int:
    """Rebuild the report as `--report` does; return the exit code."""
    chosen = options.parse_options(STUDY, ["--report", "--tracking-uri", f"sqlite:///{home}/mlflow.db", *arguments])
    return dispatch.carry_out(STUDY, chosen, print)


def run_of_study(home: Path) -> tuple[MlflowClient, str]:
    """Return the client and the ID of the study's own run that was started last."""
    client = connect(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name(STUDY.name).experiment_id
    (run, *_) = client.search_runs([experiment], f"tags.study = '{STUDY.name}' and tags.preset = 'smoke'")
    return client, run.info.run_id


def recorded(home: Path) -> tuple[int | None, tuple[int, ...]]:
    """Return the planned seeds and the looks that MLflow has."""
    client, run_id = run_of_study(home)
    tags = client.get_run(run_id).data.tags
    return (int(tags[looks.PLANNED_SEEDS_TAG]) if looks.PLANNED_SEEDS_TAG in tags else None), looks.recorded_looks(tags)


def crash(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, study: Study = STUDY) -> None:
    """Submit the study in a program that crashes before it shows the answer."""

    def fail(*_: object, **__: object) -> int:
        raise RuntimeError("crashed")

    with monkeypatch.context() as crashing:
        crashing.setattr(StudySubmission, "conclude", fail)
        with pytest.raises(RuntimeError, match="crashed"):
            Submitted(home, *arguments, study=study)


@pytest.mark.slow
def test_each_number_of_seeds_at_which_a_study_was_read_is_one_look(stored: Path) -> None:
    Submitted(stored, "--seeds", "2", study=STUDY)
    assert recorded(stored) == (3, (2,))
    assert loaded(stored).findings["looks"] == [2]
    Submitted(stored, "--seeds", "3", study=STUDY)
    Submitted(stored, "--seeds", "3", study=STUDY)
    assert report(stored) == 0
    found = loaded(stored)
    assert recorded(stored) == (3, (2, 3))
    assert (found.findings["looks"], found.findings["planned_seeds"]) == ([2, 3], 3)
    assert found._stored.evidence.looks == (2,), "the present look is none of the earlier ones"
    assert found._stored.evidence.design.planned_seeds == 3


@pytest.mark.slow
@pytest.mark.parametrize("read", ["load", "report"])
def test_reading_a_stored_study_is_a_look_and_a_part_of_it_is_none(stored: Path, read: str) -> None:
    for part in ({"seeds": 2}, {"levels": {"depth": (8,)}}):
        if read == "load":
            assert loaded(stored, **part).complete
        else:
            report(stored, *(("--seeds", "2") if "seeds" in part else ("--levels", "depth=8")))
        assert recorded(stored) == (None, ())
    assert loaded(stored).complete if read == "load" else report(stored) == 0
    assert recorded(stored)[1] == (3,)


@pytest.mark.slow
def test_an_incomplete_answer_is_no_look(stored: Path) -> None:
    client, run_id = run_of_study(stored)
    experiment = client.get_run(run_id).info.experiment_id
    (run, *_) = client.search_runs([experiment], "tags.seed = '2'")
    client.set_terminated(run.info.run_id, "FAILED")
    assert not loaded(stored).complete
    assert report(stored) == 1
    assert recorded(stored)[1] == ()


@pytest.mark.slow
def test_a_page_that_is_updated_while_a_study_runs_is_no_look(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, run_id = run_of_study(stored)
    pages: list[str] = []
    monkeypatch.setattr(updates, "UPDATE_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(bundle, "publish", lambda *_, progress, **__: pages.append(progress))
    design = loaded(stored, levels={"depth": (8,)})._stored.evidence.design
    with updates.ReportUpdater(client, run_id, design, lambda: (5, "5 of 12 runs")):
        deadline = time.monotonic() + 60
        while not pages and time.monotonic() < deadline:
            time.sleep(0.05)
    assert pages == ["5 of 12 runs"]
    assert recorded(stored)[1] == ()


@pytest.mark.slow
def test_a_resubmission_after_a_crash_keeps_the_looks(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Submitted(stored, "--seeds", "2", study=STUDY)
    crash(stored, monkeypatch, "--seeds", "3")
    assert recorded(stored) == (3, (2,)), "the answer with three seeds was not shown"
    Submitted(stored, "--seeds", "3", study=STUDY)
    assert recorded(stored) == (3, (2, 3))


@pytest.mark.slow
def test_the_planned_seeds_grow_until_the_first_look_and_not_after(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(stored, monkeypatch, "--seeds", "1", study=ONE_SEED)
    assert recorded(stored) == (1, ())
    Submitted(stored, "--seeds", "2", study=ONE_SEED)
    assert recorded(stored) == (2, (2,))
    Submitted(stored, "--seeds", "3", study=STUDY)
    assert recorded(stored) == (2, (2, 3))
    client, run_id = run_of_study(stored)
    text = Path(client.download_artifacts(run_id, "design.json", str(stored))).read_text(encoding="utf-8")
    assert Design.from_json(text).planned_seeds == 2, "the stored design has the recorded number"


@pytest.mark.slow
def test_an_answer_is_shown_even_where_the_look_cannot_be_recorded(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def forbid_writing(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    sqlalchemy.event.listen(Pool, "checkout", forbid_writing)
    try:
        assert loaded(stored).complete
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("This look at the study cannot be recorded in MLflow:")
        assert report(stored) == 0
        assert capsys.readouterr().out.count("cannot be recorded") == 1
    finally:
        sqlalchemy.event.remove(Pool, "checkout", forbid_writing)
    assert recorded(stored)[1] == ()


@pytest.mark.slow
def test_processes_that_record_looks_at_the_same_time_lose_none(stored: Path) -> None:
    client, run_id = run_of_study(stored)
    evidence = loaded(stored, levels={"depth": (8,)})._stored.evidence
    parts = [replace(evidence, design=evidence.design.restricted_to({}, seeds)) for seeds in (1, 2, 3) * 2]
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: looks.record_look(client, run_id, part), parts))
    assert recorded(stored)[1] == (1, 2, 3)


@pytest.mark.slow
def test_a_margin_of_the_command_line_replaces_that_of_a_stored_study(stored: Path) -> None:
    assert loaded(stored)._stored.evidence.design.margin is None
    Submitted(stored, "--margin", "0.5", study=STUDY)
    found = loaded(stored)._stored
    assert (found.evidence.design.margin, found.part) == (0.5, "")
    assert loaded(stored, margin=0.25)._stored.evidence.design.margin == 0.25
    assert loaded(stored, margin=0.25, seeds=2)._stored.part == "seeds=2"
