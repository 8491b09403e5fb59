"""Commands that list, show and compare the studies of an MLflow read what is there, quickly, and name what they do not find."""

import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from ablations.engine.cli import commands
from ablations.engine.cli.studies import catalog, reader, run_rows, show_command
from ablations.engine.cli.studies.reader import Reader, read_duration
from ablations.engine.environment.console import LOG_WIDTH_CHARACTERS
from ablations.engine.environment.provenance import machine_id
from ablations.engine.report import findings_json
from ablations.engine.study.design import Design
from ablations.engine.submission.planning.quick_client import QuickClient
from ablations.engine.tracking import results, run_queries
from ablations.engine.tracking.holder import HOLDER_TAG
from resnet_core import ConfigError
from tests.helpers.stored_study import RUNS, STUDY, plans
from tests.submission.test_quick_client import WITH_RESULTS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], stored_uri: str) -> Run:
    """Return a function that runs a command on the stored study; it returns exit code, standard output and standard error."""

    def call(*words: str, uri: str = stored_uri) -> tuple[int, str, str]:
        code = commands.main([*words, "--tracking-uri", uri])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def own_uri(stored_uri: str, tmp_path: Path) -> str:
    """A copy of the database that a test may change."""
    shutil.copy(stored_uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def document(run: Run, *words: str, uri: str = "") -> dict[str, Any]:
    code, out, _ = run(*words, "--json", **({"uri": uri} if uri else {}))
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def parent(client: MlflowClient) -> Any:
    (experiment,) = [each for each in client.search_experiments() if each.name == STUDY.name]
    (found,) = client.search_runs([experiment.experiment_id], "tags.preset LIKE '%'")
    return found


def test_list_counts_the_runs_of_a_study_without_a_report(run: Run) -> None:
    (found,) = document(run, "list")["studies"]
    assert (found["name"], found["selector"], found["preset"], found["dataset"]) == ("stored", "stored", "smoke", "synthetic")
    assert (found["planned"], found["done"], found["diverged"], found["failed"]) == (RUNS, RUNS, None, 0)
    assert (found["state"], found["holder"], found["answers"]) == ("complete", None, [])
    code, out, _ = run("list")
    assert code == 0
    assert f"{RUNS} of {RUNS}" in out
    assert "1 study" in out
    assert document(run, "list", "--running")["studies"] == []


def test_list_counts_the_runs_of_a_study_that_is_not_complete(run: Run, own_uri: str) -> None:
    client = MlflowClient(own_uri)
    rows = document(run, "runs", "stored", uri=own_uri)["runs"]
    client.set_tag(rows[0]["run_id"], "outcome", "diverged")
    client.set_tag(rows[1]["run_id"], "outcome", "oom")
    client.update_run(rows[1]["run_id"], status="FAILED")
    client.delete_run(rows[2]["run_id"])
    client.update_run(parent(client).info.run_id, status="FAILED")
    (found,) = document(run, "list", uri=own_uri)["studies"]
    assert (found["state"], found["planned"], found["done"]) == ("incomplete", RUNS, RUNS - 2)
    assert (found["diverged"], found["failed"], found["running"]) == (1, 1, 0)
    assert f"{RUNS - 2} of {RUNS}, 1 diverged, 1 failed" in run("list", uri=own_uri)[1]


def test_an_adaptive_study_that_has_not_ended_counts_its_runs_so_far(
    run: Run, own_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(own_uri)
    study, design = run_queries.find_design(client, STUDY.name, "smoke", {})
    adaptive = dataclasses.replace(design, seed_looks=(1, design.seeds))
    monkeypatch.setattr(run_rows, "read_design", lambda *_: adaptive)
    client.delete_run(document(run, "runs", "stored", uri=own_uri)["runs"][0]["run_id"])
    client.update_run(study, status="KILLED")
    (found,) = document(run, "list", uri=own_uri)["studies"]
    assert (found["state"], found["planned"], found["done"]) == ("interrupted", None, RUNS - 1)
    assert f"{RUNS - 1} so far" in run("list", uri=own_uri)[1]
    shown = run("show", "stored", uri=own_uri)[1]
    assert f"Runs with a result: {RUNS - 1} so far\n" in shown
    assert " of 3" not in shown, "nor is it known how many runs a cell needs"
    assert {cell["planned"] for cell in document(run, "show", "stored", uri=own_uri)["cells"]} == {None}


def test_the_runs_of_a_killed_study_do_not_count_as_running(run: Run, own_uri: str) -> None:
    """A killed process, or one whose terminal was closed, leaves runs that MLflow calls running."""
    client = MlflowClient(own_uri)
    study, first = parent(client), document(run, "runs", "stored", uri=own_uri)["runs"][0]["run_id"]
    client.set_tag(first, run_queries.PARENT_TAG, study.info.run_id)
    for run_id in (study.info.run_id, first):
        client.update_run(run_id, status="RUNNING")

    design = run_queries.find_design(client, STUDY.name, "smoke", {})[1]

    def outcomes() -> set[str]:
        found = {each["outcome"] for each in document(run, "runs", "stored", uri=own_uri)["runs"]}
        assert set(results.gather(client, design, study.info.run_id, details=False).runs["outcome"]) == found
        assert document(run, "logs", first, uri=own_uri)["outcome"] in found - {"completed"}
        return found

    assert outcomes() == {"completed", "interrupted"}
    (row,) = [each for each in document(run, "runs", "stored", uri=own_uri)["runs"] if each["run_id"] == first]
    assert row["value"] is None, "that of an epoch before the last is no result"
    assert "\nContinue with: python stored.py" in run("show", "stored", uri=own_uri)[1]
    assert "\ninterrupted; started" in run("logs", first, uri=own_uri)[1]
    process = psutil.Process()
    holder = {"name": "process 1", "machine": machine_id(), "pid": process.pid, "born": process.create_time(), "token": "t"}
    client.set_tag(study.info.run_id, HOLDER_TAG, json.dumps(holder))
    assert outcomes() == {"completed", "running"}
    assert "\nCommand: python stored.py" in run("show", "stored", uri=own_uri)[1], "it would be refused"
    assert "\nrunning; started" in run("logs", first, uri=own_uri)[1]


def test_list_tells_the_answer_of_the_report_only_as_long_as_it_is_about_the_latest_submission(
    run: Run, own_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(own_uri)
    study = parent(client)
    (plan,) = plans(STUDY, Path(os.environ["RESNET_ABLATIONS_HOME"]))
    evidence = results.gather(client, Design.from_plan(plan, {}), details=False)
    from ablations.engine.analysis.study_analysis import analyze_study

    text = findings_json.summary(evidence, analyze_study(evidence), study.data.tags["design"])
    client.set_tag(study.info.run_id, run_queries.SUMMARY_TAG, text)
    (found,) = document(run, "list", uri=own_uri)["studies"]
    assert [each["factor"] for each in found["answers"]] == ["shortcut", "depth"]
    assert found["done"] == RUNS
    assert found["answers"][0]["verdict"] in run("list", uri=own_uri)[1].replace("\n", " ")
    reported = findings_json.findings_document(evidence, analyze_study(evidence))
    monkeypatch.setattr(show_command, "_current_findings", lambda *_: reported)
    shown = run("show", STUDY.name, uri=own_uri)[1].splitlines()
    assert max(map(len, shown)) <= LOG_WIDTH_CHARACTERS
    assert " ".join(shown).count(document(run, "show", STUDY.name, uri=own_uri)["answers"][0]["text"]) == 1
    client.set_tag(study.info.run_id, run_queries.REPORT_TAG, run_queries.WHOLE)
    assert "\nReport: " in run("show", STUDY.name, uri=own_uri)[1]
    client.set_tag(study.info.run_id, run_queries.REPORT_TAG, run_queries.EARLIER)
    assert "\nReport (of an earlier submission): " in run("show", STUDY.name, uri=own_uri)[1]
    client.set_tag(study.info.run_id, run_queries.DESIGN_TAG, "another")
    (found,) = document(run, "list", uri=own_uri)["studies"]
    assert (found["answers"], found["done"]) == ([], RUNS)


def test_show_has_the_mean_of_each_cell_as_the_analysis_has_it(run: Run, stored_uri: str) -> None:
    found = document(run, "show", "stored")
    (plan,) = plans(STUDY, Path(os.environ["RESNET_ABLATIONS_HOME"]))
    evidence = results.gather(MlflowClient(stored_uri), Design.from_plan(plan, {}), details=False)
    of_cell = evidence.runs.groupby("cell")["value"]
    for cell in found["cells"]:
        assert cell["n"] == cell["planned"] == 3
        assert cell["mean"] == pytest.approx(of_cell.mean()[cell["cell"]])
        assert cell["std"] == pytest.approx(of_cell.std()[cell["cell"]])
    assert (found["question"], found["command"]) == (STUDY.question, "python stored.py")
    text = run("show", "stored")[1]
    assert "stored on synthetic: Which shortcut helps?" in text
    assert "python stored.py" in text


def test_runs_are_one_row_each_with_their_factors(run: Run) -> None:
    code, out, _ = run("runs", "stored", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, RUNS)
    assert {(row["shortcut"], row["depth"], row["seed"]) for row in rows} == {
        (shortcut, depth, seed) for shortcut in ("none", "A") for depth in ("8", "14") for seed in ("0", "1", "2")
    }
    assert all(float(row["test/error"]) > 0 and float(row["train_seconds"]) > 0 and len(row["run_id"]) == 32 for row in rows)
    found = document(run, "runs", "stored")
    assert [each["run_id"] for each in found["runs"]] == [row["run_id"] for row in rows]
    assert rows[0]["run_id"][:8] in run("runs", "stored")[1]


def test_a_missing_run_has_a_row_and_counts_as_missing(run: Run, own_uri: str) -> None:
    client = MlflowClient(own_uri)
    gone = document(run, "runs", "stored", uri=own_uri)["runs"][0]
    client.delete_run(gone["run_id"])
    found = document(run, "runs", "stored", uri=own_uri)["runs"][0]
    assert (found["outcome"], found["run_id"], found["fingerprint"]) == ("missing", None, gone["fingerprint"])
    assert document(run, "show", "stored", uri=own_uri)["outcomes"] == {"missing": 1, "completed": RUNS - 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "stroed"], "NAME=stroed: MLflow has no such study; did you mean stored?"),
        (["runs", "store"], "did you mean stored?"),
        (["show", "zzz"], "accepted: stored"),
        (["show", "stored@cifar10"], "NAME=stored@cifar10: MLflow has no such study"),
        (["stop", "stored"], "NAME=stored: does not run; accepted: a running study, and none runs now"),
        (["clean", "stroed", "--dry-run"], "did you mean stored?"),
        (["compare", "stored", "stroed"], "did you mean stored?"),
        (["compare", "stored", "stored"], "are the same study"),
        (["compare", "stored", "stored", "--seeds", "5"], "--seeds: accepted with --study FILE, which trains"),
        (["logs", "xyz"], "RUN=xyz: accepted: 6 or more of the first characters"),
        (["logs", "000000000000"], "RUN=000000000000: accepted: a run that MLflow has"),
        (["runs", "stored", "--csv", "--json"], "--csv, --json: accepted: one of them"),
        (["clean", "--json"], "--json: accepted with --dry-run or --yes"),
        (["clean", "--older-than", "30"], "--older-than=30: accepted: a duration, such as 90s, 30m, 12h, 14d or 2w"),
        (["completion", "tcsh"], "completion=tcsh: accepted: bash, zsh, fish"),
    ],
)
def test_a_wrong_request_is_one_line_that_names_what_is_accepted(
    capsys: pytest.CaptureFixture[str], stored_uri: str, words: list[str], message: str
) -> None:
    more = [] if words[0] == "completion" else ["--tracking-uri", stored_uri]
    assert commands.main([*words, *more]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_database_that_does_not_exist_is_not_created(run: Run, tmp_path: Path) -> None:
    code, _, err = run("list", uri=f"sqlite:///{tmp_path}/none.db")
    assert code == 2
    assert "the database does not exist" in err
    assert not list(tmp_path.iterdir())


def test_a_database_without_tables_is_left_to_the_study_that_creates_them(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client would create them as well, and make the creation by the study fail."""
    monkeypatch.setattr(reader, "CREATION_TIMEOUT_SECONDS", 0.3)
    file = tmp_path / "mlflow.db"
    file.touch()
    code, _, err = run("list", uri=f"sqlite:///{file}")
    assert code == 2
    assert "the database has no tables yet" in err
    assert file.stat().st_size == 0


@pytest.mark.slow
def test_a_listing_waits_for_a_database_that_is_being_created_and_does_not_disturb_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.touch()
    code = f"from ablations.engine.tracking.connection import connect; connect('sqlite:///{file}')"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as creating:
        while creating.poll() is None:
            assert run("list", uri=f"sqlite:///{file}")[0] in (0, 2)
        assert creating.returncode == 0, creating.stderr and creating.stderr.read()
    assert run("list", uri=f"sqlite:///{file}")[:2] == (0, "MLflow has no study yet.\n")


def test_studies_of_one_name_are_told_apart_by_preset_and_settings(own_uri: str) -> None:
    client = MlflowClient(own_uri)
    experiment = parent(client).info.experiment_id
    made = {}
    for preset, lr in (("digits", "0.1"), ("digits", "0.2")):
        run_id = client.create_run(experiment, tags={"study": "stored", "preset": preset}).info.run_id
        client.log_param(run_id, "optim.lr", lr)
        client.log_param(run_id, "optim.epochs", "3")
        made[lr] = run_id
    entries = catalog.list_studies(Reader(own_uri, QuickClient(own_uri)))
    texts = catalog.selectors(entries)
    assert set(texts.values()) == {"stored@smoke", "stored@digits@lr=0.1", "stored@digits@lr=0.2"}
    for run_id, text in texts.items():
        assert catalog.find_exactly_one(entries, text).run_id == run_id
    for text in ("stored@lr=0.2", "stored@lr=2e-1", "stored@optim.lr=.20"):
        assert catalog.find_exactly_one(entries, text).run_id == made["0.2"]
    assert catalog.find_exactly_one(entries, made["0.1"][:8]).run_id == made["0.1"]
    latest, others = catalog.find_study(entries, "stored")
    assert latest.run_id == made["0.2"]
    assert len(others) == 2
    with pytest.raises(ConfigError, match=r"means 2 studies; accepted: stored@digits@lr=0\.2, stored@"):
        catalog.find_exactly_one(entries, "stored@digits")


@pytest.mark.parametrize(
    ("stored", "same", "others"),
    [
        ("1000000000000.0", ["1e12", "1000000000000", "1000000000000.0"], ["1e11", "x", ""]),
        ("0.1", ["0.1", ".1", "1e-1"], ["0.10001", "none"]),
        ("20", ["20"], ["20.5", "2"]),
        ("True", ["True", "true"], ["False", "false", "x"]),
        ("None", ["None", "none"], ["0", "False"]),
        ("(0.5, 0.75)", ["0.5,0.75", "[0.5,0.75]", "(.5, 0.75)"], ["0.5", "0.75,0.5", "x"]),
        ("()", ["()", "[]"], ["0"]),
        ("cosine", ["cosine"], ["Cosine", "cos"]),
    ],
)
def test_a_setting_is_found_by_every_notation_of_its_value(stored: str, same: list[str], others: list[str]) -> None:
    assert [text for text in same if not catalog.is_value(stored, text)] == []
    assert [text for text in others if catalog.is_value(stored, text)] == []


def test_a_message_that_names_some_of_the_studies_counts_the_others(own_uri: str) -> None:
    client = MlflowClient(own_uri)
    experiment = parent(client).info.experiment_id
    for number in range(6):
        client.create_run(experiment, tags={"study": f"study{number}", "preset": "digits"})
    entries = catalog.list_studies(Reader(own_uri, QuickClient(own_uri)))
    with pytest.raises(ConfigError, match=r"accepted: (\w+, ){4}\w+ and 2 more \(ablations list\)$"):
        catalog.find_studies(entries, "qqq")


def test_a_table_has_the_same_mark_for_every_missing_value(run: Run, own_uri: str) -> None:
    client = MlflowClient(own_uri)
    client.delete_run(document(run, "runs", "stored", uri=own_uri)["runs"][0]["run_id"])
    missing = next(line for line in run("runs", "stored", uri=own_uri)[1].splitlines() if " missing " in line)
    assert missing.split() == ["none", "8", "0", "missing", "–", "–", "–", "–"]  # metric, seconds, start and run
    assert run("list", uri=own_uri)[1].splitlines()[1].rstrip().endswith(" –")  # no answer


def test_the_quick_way_and_mlflows_own_client_list_the_same(own_uri: str) -> None:
    quick, slow = (catalog.list_studies(Reader(own_uri, client)) for client in (QuickClient(own_uri), MlflowClient(own_uri)))
    assert [(each.run_id, each.started, each.ended, each.tags, each.settings, each.state) for each in quick] == [
        (each.run_id, each.started, each.ended, each.tags, each.settings, each.state) for each in slow
    ]
    designs = [catalog.read_design(Reader(own_uri, client), quick[0]) for client in (QuickClient(own_uri), MlflowClient(own_uri))]
    assert designs[0] is not None
    assert designs[0] == designs[1]


@pytest.mark.slow
def test_a_server_is_read_like_a_database(run: Run, server: int) -> None:
    uri = f"http://127.0.0.1:{server}"
    client = MlflowClient(uri)
    experiment = client.create_experiment(f"served {os.getpid()}")
    # Other tests store the runs of the study as it is on the same server.
    (plan,) = plans(dataclasses.replace(STUDY, settings={"optim.lr": 0.123}), Path(os.environ["RESNET_ABLATIONS_HOME"]))
    tags = {"study": f"served {os.getpid()}", "preset": "smoke", run_queries.DESIGN_TAG: "1"}
    study = client.create_run(experiment, tags=tags).info.run_id
    client.log_text(study, Design.from_plan(plan, {"command": "python served.py"}).to_json(), run_queries.DESIGN_ARTIFACT)
    first = plan.runs[0]
    child = client.create_run(
        experiment, tags={"fingerprint": first.fingerprint, "data_version": plan.dataset.version, "outcome": "completed"}
    )
    client.log_metric(child.info.run_id, "test/error", 12.5)
    client.set_terminated(child.info.run_id)
    client.set_terminated(study, "KILLED")
    found = document(run, "show", f"served {os.getpid()}", uri=uri)
    assert (found["state"], found["command"], found["outcomes"]) == (
        "interrupted",
        "python served.py",
        {"completed": 1, "missing": 11},
    )
    assert QuickClient(uri).read_artifact(catalog.list_studies(Reader(uri, QuickClient(uri)))[0].run, "no/such.json") is None
    assert any(each["run_id"] == study for each in document(run, "list", uri=uri)["studies"])


@pytest.mark.parametrize(
    "words", [["list"], ["show", "stored"], ["runs", "stored", "--csv"], ["du"], ["clean", "--dry-run"]], ids=" ".join
)
def test_commands_import_no_heavy_package(words: list[str], stored_uri: str, tmp_path: Path) -> None:
    """On an eager import, move it into the function that needs it: a listing is there within a second."""
    run_and_list = "code = commands.main()\nprint(*sys.modules, file=sys.stderr)\nsys.exit(code)"
    code = f"import sys\nfrom ablations.engine.cli import commands\n{run_and_list}"
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code, *words, "--tracking-uri", stored_uri]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    heavy = set(WITH_RESULTS) - ({"pyarrow"} if words[0] in ("du", "clean") else set())
    assert not set(done.stderr.split()) & heavy


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43_200), ("1.5d", 129_600), ("2w", 1_209_600), ("0s", 0)]
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert read_duration("--older-than", text) == seconds
