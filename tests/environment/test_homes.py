"""Home folders with unusual names, and home folders that were moved."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow import MlflowClient

from ablations.engine.environment import paths
from ablations.engine.submission.reporting import report_address
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect, is_new_database
from resnet_core import ConfigError
from tests.helpers.project import PROJECT

NAMES = ["plain", "sp ace/häus", "q?m", "%20", "a#b", "100%", "%3F"]
ODD = "sp ace/%20 q?m #ä"
"""All of what is special at once."""
STUDY = ["ablations/shortcuts.py", "--preset", "smoke", "--seeds", "1", "--levels", "shortcut=A", "depth=8"]


def make_home(folder: Path, monkeypatch: pytest.MonkeyPatch, empty: Path) -> str:
    """Make `folder` the home folder, with an empty database; returns its address."""
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder.mkdir(parents=True)
    shutil.copy(empty, folder / "mlflow.db")
    return paths.default_tracking_uri()


def log(client: MlflowClient) -> str:
    """Log a report of a study, as a local one does; returns its run."""
    found = client.get_experiment_by_name("study")
    experiment = (
        found.experiment_id if found else client.create_experiment("study", (paths.home() / "artifacts" / "study").as_uri())
    )
    run_id: str = client.create_run(experiment).info.run_id
    client.log_text(run_id, "a report", "report/report.html")
    return run_id


def opened(shown: str) -> Path:
    """Return the file that an address leads to, as a browser or a shell opens it."""
    return Path(unquote(shown.removeprefix("file://"))) if shown.startswith("file://") else Path(shown)


@pytest.mark.parametrize("name", NAMES)
def test_all_files_of_a_home_are_inside_it_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path, name: str
) -> None:
    uri = make_home(home := tmp_path / "of" / name, monkeypatch, empty)
    assert not is_new_database(uri)
    client = connect(uri)
    shown = report_address(client, log(client))
    assert opened(shown).read_text() == "a report"
    assert " " not in shown
    assert {path.name for path in home.iterdir()} == {"mlflow.db", "artifacts"}
    # MLflow makes the folder of an escaped address too, and leaves it empty.
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(home)] == []
    assert Path(paths.default_storage()) == home / "checkpoints"


@pytest.mark.parametrize("name", ["new", "sp ace/%20 q?m"])
def test_artifact_addresses_are_updated_after_a_home_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_id = log(connect(make_home(old := tmp_path / "o%ld", monkeypatch, empty)))
    (new := tmp_path / name).parent.mkdir(exist_ok=True)
    old.rename(new)
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(new))
    for _ in range(2):
        client = connect(paths.default_tracking_uri())
    assert capsys.readouterr().err == f"{old} is now {new}: artifact addresses in mlflow.db were updated.\n"
    assert opened(report_address(client, run_id)).is_relative_to(new)
    assert Path(client.download_artifacts(run_id, "report/report.html")).read_text() == "a report"
    assert opened(report_address(client, log(client))).is_relative_to(new)
    assert not old.exists()


def test_what_the_local_service_has_stored_is_read_and_extended_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    client = connect(make_home(home := tmp_path / "sp ace", monkeypatch, empty))
    experiment = client.create_experiment("served", "mlflow-artifacts:/7")  # as the server does
    run_id = client.create_run(experiment, tags={run_queries.REPORT_TAG: run_queries.WHOLE}).info.run_id
    client.log_text(run_id, "a report", "report/report.html")
    (file,) = home.glob("artifacts/7/*/artifacts/report/report.html")
    assert file.read_text() == "a report"
    assert Path(client.download_artifacts(run_id, "report/report.html")).read_text() == "a report"
    assert opened(report_address(client, run_id)) == file
    other = connect(f"sqlite:///{shutil.copy(home / 'mlflow.db', tmp_path / 'copy.db')}")
    assert opened(report_address(other, run_id)) == file, "the folder is that of the home"


def test_a_database_whose_home_is_gone_is_rejected_and_the_home_is_not_recreated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: Path
) -> None:
    run_id = log(connect(make_home(old := tmp_path / "old", monkeypatch, empty)))
    shutil.copy(old / "mlflow.db", tmp_path / "copy.db")
    old.rename(new := tmp_path / "new")
    with pytest.raises(
        ConfigError, match=rf"^RESNET_ABLATIONS_HOME={old}: artifacts of {tmp_path}/copy.db are in {old}, which is gone"
    ):
        connect(f"sqlite:///{tmp_path}/copy.db")
    assert not old.exists()
    old.symlink_to(new)  # one of the two remedies
    client = connect(f"sqlite:///{tmp_path}/copy.db")
    assert opened(report_address(client, run_id)).read_text() == "a report"


@pytest.mark.slow
def test_a_study_resumes_after_its_home_was_moved_whatever_its_name(cluster: str, tmp_path: Path) -> None:
    def run(home: Path, *more: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment |= {"RESNET_ABLATIONS_HOME": str(home), "RAY_ADDRESS": cluster, "RAY_AUTH_MODE": "token"}
        done = subprocess.run(
            [sys.executable, *STUDY, *more], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (shown,) = re.findall(r"^Report: (.*)$", done.stdout, re.MULTILINE)
        assert opened(shown).is_file()
        assert opened(shown).is_relative_to(home)
        return done.stdout

    old = tmp_path / ODD
    assert "1 run to train" in run(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o700
    assert {"checkpoints", "journals", "mlflow.db", "artifacts", "data"} <= {path.name for path in old.iterdir()}
    assert [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(old)] == []
    old.rename(new := tmp_path / "new")
    run(new, "--report")
    assert "its only run is in MLflow already" in run(new)
    assert not old.exists()
