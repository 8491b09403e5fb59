"""A plan's own client of MLflow answers like MLflow's, and stands aside where it cannot."""

import io
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from ablations.engine.cli import options
from ablations.engine.environment import paths
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan
from ablations.engine.submission.planning import plan_json, preview
from ablations.engine.submission.planning.quick_client import NotQuick, QuickClient
from ablations.engine.tracking import looks, run_queries
from ablations.engine.tracking.connection import connect
from tests.helpers.own_networks import Tiny
from tests.helpers.project import PROJECT
from tests.helpers.stored_study import RUNS, STUDY, plans

HEAVY = ("torch", "ray", "mlflow", "pandas", "pyarrow", "scipy", "matplotlib", "statsmodels", "sklearn", "optuna", "sqlalchemy")
"""Packages whose imports take from 0.2 to 3 s."""
WITH_RESULTS = ("torch", "ray", "mlflow", "pandas", "pyarrow", "scipy.stats", "matplotlib", "statsmodels", "sklearn", "optuna")
"""Those that a plan does not need if some runs have finished. Its detectable difference takes SciPy's special functions."""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (found,) = plans(STUDY, tmp_path / "cache")
    return found


def answers(client: Any, plan: Plan) -> list[Any]:
    found = run_queries.find_plan_runs(client, plan)
    kept = {name: asdict(record) for name, record in found.items()}
    return [kept, list(run_queries.completed_runs(client, plan)), client.get_experiment_by_name(STUDY.name).lifecycle_stage]


def test_it_reads_from_a_database_what_mlflow_reads(stored_uri: str, plan: Plan) -> None:
    slow, quick = answers(MlflowClient(stored_uri), plan), answers(QuickClient(stored_uri), plan)
    assert len(slow[0]) == len(slow[1]) == RUNS
    assert quick == slow
    assert QuickClient(stored_uri).get_experiment_by_name("no such study") is None


def test_pages_follow_one_another(stored_uri: str, plan: Plan) -> None:
    client = QuickClient(stored_uri)
    runs = list(run_queries.search_runs(client, f"tags.data_version = '{plan.dataset.version}'", page=5))
    assert len({run.info.run_id for run in runs}) == len(runs) == RUNS


def test_a_network_of_ones_own_takes_no_times_of_another_network(stored_uri: str, plan: Plan, tmp_path: Path) -> None:
    own = Study(name="own", question="?", model=Tiny, factors={"width": (8, 16)}, baseline={}, preset="smoke")
    (other,) = plans(own, tmp_path / "cache")
    assert other.dataset.version == plan.dataset.version
    client = QuickClient(stored_uri)
    assert len(list(run_queries.completed_runs(client, plan))) == RUNS
    assert not list(run_queries.completed_runs(client, other))


@pytest.mark.slow
def test_it_reads_from_a_server_what_mlflow_reads(server: int, plan: Plan) -> None:
    uri = f"http://127.0.0.1:{server}"
    slow, quick = MlflowClient(uri), QuickClient(uri)
    experiment = slow.create_experiment(f"{STUDY.name} {os.getpid()}")
    for number, run in enumerate(plan.runs[:3]):
        tags = {"fingerprint": run.fingerprint, "data_version": plan.dataset.version, "outcome": "completed", "device": "ä 'b'"}
        run_id = slow.create_run(experiment, tags=tags).info.run_id
        for name, value in {"train_seconds": 1.5 + number, "test/error": math.nan if number else 10.0}.items():
            slow.log_metric(run_id, name, value)
        slow.log_param(run_id, "model.depth", "8")
        slow.set_terminated(run_id)
    records = [run_queries.find_plan_runs(client, plan) for client in (slow, quick)]
    assert {run.fingerprint for run in plan.runs[:3]} <= set(records[0]), "other tests may have stored more runs of this plan"
    assert repr(records[1]) == repr(records[0]), "by their text, since NaN differs from itself"
    assert list(run_queries.completed_runs(quick, plan)) == list(run_queries.completed_runs(slow, plan))
    assert quick.get_experiment_by_name(f"{STUDY.name} {os.getpid()}").experiment_id == experiment
    assert quick.get_experiment_by_name("no such study") is None


@pytest.mark.parametrize(
    "uri", ["https://host", "postgresql:///runs", "sqlite:///:memory:", "mysql://host/runs", "databricks"], ids=lambda uri: uri[:6]
)
def test_other_addresses_are_left_to_mlflow(uri: str) -> None:
    with pytest.raises(NotQuick):
        QuickClient(uri)


def test_a_table_that_has_changed_and_an_unknown_filter_are_left_to_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    connect(uri)
    for where in (
        "tags.`a.b` LIKE 'x%'",
        "attributes.start_time > 3",
        "metrics.loss = '1'",
        "tags.study = 'a' or tags.study = 'b'",
    ):
        with pytest.raises(NotQuick):
            QuickClient(uri).search_runs(["0"], where)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO not_a_number")
    with pytest.raises(NotQuick):
        QuickClient(uri)


def test_a_server_that_does_not_answer_is_left_to_mlflow() -> None:
    with pytest.raises(NotQuick):
        QuickClient("http://127.0.0.1:9").get_experiment_by_name("any")


def test_the_file_of_a_database_is_the_one_that_mlflow_opens() -> None:
    from sqlalchemy.engine import make_url

    for uri in ("sqlite:////tmp/a%25b%3Fc.db", "sqlite:////tmp/a.db?timeout=1", "sqlite:///relative.db", "sqlite:////tmp/ä b.db"):
        assert str(paths.sqlite_path(uri)) == make_url(uri).database
    assert paths.sqlite_path("sqlite://") is paths.sqlite_path("http://host") is None


def loaded(program: Path, home: Path, uri: str) -> tuple[set[str], str]:
    """Return the modules that a plan has loaded, and what it prints."""
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(program), "--plan", "--preset", "smoke", "--seeds", "4", "--tracking-uri", uri]
    environment = {**os.environ, "RAY_ADDRESS": "local", "RESNET_ABLATIONS_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stderr.split()), done.stdout


def test_a_plan_imports_no_heavy_package(tmp_path: Path) -> None:
    """On an eager import, move it into the function that needs it: a plan is shown within 3 s."""
    modules, text = loaded(PROJECT / "ablations" / "shortcuts.py", tmp_path, f"sqlite:///{tmp_path}/none.db")
    assert "32 runs, 32 to train, 0 done already" in text
    assert "--calibrate times a few steps" in text, "a plan trains nothing by itself"
    assert "ablations.engine.submission.planning.preview" in modules
    assert not modules & set(HEAVY)


def test_finished_runs_are_read_without_mlflow(stored_uri: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    fields = {name: getattr(STUDY, name) for name in ("name", "question", "factors", "baseline", "preset")}
    program.write_text(f"from ablations import Study, main\nmain(Study(**{fields!r}))\n")
    modules, text = loaded(program, tmp_path, stored_uri)
    assert f"16 runs, 4 to train, {RUNS} done already" in text
    assert "in 80 % of such studies (power)" in " ".join(text.split())
    assert not modules & set(WITH_RESULTS)


@pytest.mark.parametrize(("seeds", "taken"), [(3, ()), (12, (3,))])
def test_a_plan_allows_for_the_looks_that_were_taken(
    plan: Plan, stored_uri: str, tmp_path: Path, seeds: int, taken: tuple[int, ...]
) -> None:
    copy = shutil.copy(stored_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    client, uri = MlflowClient(f"sqlite:///{copy}"), f"sqlite:///{copy}"
    (study,) = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.preset LIKE '%'")
    client.set_tag(study.info.run_id, "base", plan.base_id)
    for name in study.data.tags:  # other tests look at the study
        if name.startswith(looks.LOOK_TAG_PREFIX):
            client.delete_tag(study.info.run_id, name)
    single = examined(uri, seeds)
    assert (single.looks, single.p_factor) == ((), 1)
    for look in taken:
        client.set_tag(study.info.run_id, f"{looks.LOOK_TAG_PREFIX}{look}", "now")
    client.set_tag(study.info.run_id, looks.PLANNED_SEEDS_TAG, "3")
    found = examined(uri, seeds)
    assert found.looks == taken
    sentence = "The answer has been read at 3 seeds: p-values at 12 seeds are multiplied by 16"
    assert (sentence in found.text) == bool(taken)
    assert (found.detectable > 1.2 * single.detectable) == bool(taken)
    assert (found.p_factor == pytest.approx(math.pi**2 / 6 * 10)) == bool(taken)


@dataclass
class Examined:
    """Parts of a plan."""

    looks: tuple[int, ...]
    p_factor: float
    detectable: float
    text: str


def examined(uri: str, seeds: int) -> Examined:
    """Return the plan of the stored study with a number of seeds."""
    chosen = options.parse_options(STUDY, ["--seeds", str(seeds), "--tracking-uri", uri])
    found = preview.examine(make_plan(STUDY, chosen.request, cache=paths.data_cache()), chosen)
    with redirect_stdout(io.StringIO()) as out:
        preview.show_preview(Console(file=out, width=1000), found)
    document = plan_json.plan_document(found)
    assert document["looks"]["taken"] == list(found.looks)
    return Examined(found.looks, document["looks"]["p_factor"], document["power"]["detectable_adjusted"], out.getvalue())
