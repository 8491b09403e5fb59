"""The command line says what is wrong in one line, before anything starts, and helps in words."""

import importlib
import itertools
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch
from PIL import Image

from ablations.engine.cli import dispatch
from ablations.engine.cli.study import INTERRUPTED_MESSAGE, main
from ablations.engine.environment import storage
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.request import StudyRequest
from resnet_core import PRESETS, ConfigError
from tests.helpers.project import PROJECT, SHIPPED_STUDIES

STUDIES = sorted(p.stem for p in (PROJECT / "ablations").glob("*.py") if p.stem != "__init__")
"""Those that people have added, too."""

GPUS = torch.cuda.device_count()
NO_STORE = "?scheme=http&endpoint_override=127.0.0.1:9"


def study_of(name: str) -> Study:
    study = importlib.import_module(f"ablations.{name}").STUDY
    assert isinstance(study, Study)
    return study


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["shortcuts.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main(study_of("shortcuts"))
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--colour", "red"], "--colour"),
        (["--pres", "smoke"], "--pres"),  # no guessing: an abbreviation may mean something else tomorrow
        (["--sedes", "5"], "--sedes: no such option; did you mean --seeds?"),
        (["--tracking-url=x"], "--tracking-url: no such option; did you mean --tracking-uri?"),
        (["--trials", "9"], "--trials: shortcuts searches nothing; accepted by a study with space=…, such as ablations/hyperp"),
        (["--search", "lr"], "--search: shortcuts searches nothing; accepted by a study with space=…, such as ablations/hyperp"),
        (["--set", "optim.learning_rate=0.1"], "optim.learning_rate: no such field; did you mean optim.lr?"),
        (["--set", "data.name=imagefolder"], "data.root=None: imagefolder needs a folder: --set data.root=FOLDER"),
        (["--price", "-1"], "--price=-1.0: accepted: a finite number, at least 0"),
        (["--co2-per-kwh", "nan"], "--co2-per-kwh=NaN: accepted: a finite number, at least 0"),
        (["--seeds", "three"], "three"),
        (["--report", "--plan"], "--report, --plan: accepted: one of them"),
        (["--report", "--rerun"], "--report, --rerun: accepted: one of them"),
        (["--calibrate"], "--calibrate: accepted with --plan only"),
        (["--seeds", "0"], "--seeds=0"),
        (["--workers", "0"], "--workers=0"),
        (["--margin", "0"], "--margin=0.0: accepted: a number above 0, in the unit of differences"),
        (["--margin", "-0.5"], "--margin=-0.5: accepted: a number above 0"),
        (["--margin", "nan"], "--margin=NaN: accepted: a number above 0"),
        (["--margin", "half"], "half"),
        (["--max-concurrent", "-1"], "--max-concurrent=-1"),
        (["--cpus-per-worker", "nan"], "--cpus-per-worker=NaN"),
        (["--cpus-per-worker", "1e-300"], "accepted: 0.001 or more"),
        (["--storage", ""], "--storage=: accepted: a folder"),
        (["--storage", "~no-such-user/x"], "--storage=~no-such-user/x: accepted: an absolute path, or ~ of a user"),
        (["--storage", "s3://"], "--storage=s3://: names no bucket; accepted: a folder, file:///FOLDER, s3://BUCKET/FOLDER"),
        (["--storage", "gs:///x"], "--storage=gs:///x: names no bucket"),
        (["--storage", "nosuch://x"], "--storage=nosuch://x: nosuch:// is not supported; accepted: a folder"),
        (["--storage", "file://x"], "--storage=file://x: its path is not absolute"),
        (["--storage=--"], "--storage=--: accepted: a value"),
        (["--tracking-uri", "sqlite:///a\nb"], "--tracking-uri="),
        (["--seeds", "10001"], "accepted: at most 10,000 runs"),
        (["--set", "epochs=2", "iterations=9"], "optim.iterations=9: conflicts with optim.epochs"),
        (["--gpus-per-worker", "1.5"], "--gpus-per-worker=1.5"),
        (["--gpus-per-worker", "many"], "--gpus-per-worker=many: accepted: auto, 0, or 0.001 to 1"),
        (["--gpus-per-worker", "2"], "--gpus-per-worker=2.0: accepted: auto, 0, or 0.001 to 1, since a worker uses one GPU"),
        (["--gpus-per-worker", "2", "--workers", "2"], "--gpus-per-worker=2.0: accepted: auto, 0, or 0.001 to 1"),
        (["--levels", "milestones=0.5,0.75"], "--levels=milestones=0.5,0.75: each level is a list; accepted: lists in brackets"),
        (["--levels", "seed=0,1"], "--levels seed=0,1: cannot be a factor"),
        (["--levels", "depth"], "--levels=depth"),
        (["--levels", "depth=20", "depth=56"], "named twice"),
        (["--levels", "depth=20", "model.depth=56"], "named twice"),
        (["--set", "lr=0.1", "optim.lr=0.2"], "named twice"),
        (["--set", "seed=3"], "--seeds N"),
        (["--probe", "responses", "--set", "probes=gradients"], "--probe"),
        (["--probe", "moods"], "probes=moods"),
        (["--data-download"], "digits"),
        (["--levels", "shortcut=A,D"], "model.shortcut=D"),
        (["--design", "random"], "--design=random: accepted: factorial, one-at-a-time, ladder, screening, screening-iii"),
        (["--design", "all"], "--design=all: accepted: factorial"),  # only with --plan
        (["--design", "screening"], "design=screening: shortcut has 4 levels (none, A, B, C); accepted: two of each factor"),
        (["--design", "ladder", "--levels", "depth=20", "shortcut=A,B"], "the study has 1 factor with several levels"),
        (["--set", "optim.lr"], "--set=optim.lr"),
        (["--set", "optim.lr=quick"], "optim.lr=quick"),
        (["--set", "optim.rate=1"], "optim.rate"),
        (["--preset", "mnist"], "--preset=mnist"),
        (["--workers", "3"], "global_batch_size=64"),
        (["--set", "data.name=cifar10", "data.root=/nowhere"], "data.root=/nowhere"),
        (["--preset", "smoke", "--tracking-uri", "http://127.0.0.1:9"], "--tracking-uri=http://127.0.0.1:9"),
        (["--preset", "smoke", "--tracking-uri", f"sqlite:////{'x' * 300}"], "File name too long"),
        (["--preset", "smoke", "--tracking-uri", "sqlite:////proc/no/mlflow.db"], "No such file or directory: '/proc/no'"),
        (["--preset", "smoke", "--tracking-uri", "mysql://nowhere/x"], "mysql://nowhere/x: MLflow does not answer (No module"),
        (["--preset", "smoke", "--tracking-uri", "postgresql://127.0.0.1:9/x"], "Connection refused); accepted: "),
    ],
)
def test_a_wrong_request_exits_2_with_one_line_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    began = time.monotonic()
    assert run_main(monkeypatch, *arguments) == 2
    assert time.monotonic() - began < 20
    assert_one_line(capsys, named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpus-per-worker", str(GPUS + 1)], f"--gpus-per-worker={GPUS + 1}: this machine has "),
        (["--cpus-per-worker", "1000000"], "--cpus-per-worker=1e+06: this machine has "),
        (["--workers", "32", "--cpus-per-worker", f"{os.cpu_count()}"], "--workers=32: each needs "),
        (["--storage", "/dev/null/x"], "--storage=/dev/null/x: cannot be used (/dev/null is not a folder)"),
        (
            ["--storage", f"gs://anonymous@bucket/x{NO_STORE}"],
            # Google's client gives up after 10 s. On a busy machine, the limit of 12 s is reached first.
            "--storage=gs://bucket/x: cannot be used (",
        ),
    ],
)
def test_what_this_machine_or_its_storage_cannot_do_is_said_before_a_file_is_made_or_ray_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], named: str
) -> None:
    def started(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("ray.init", started)
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert run_main(monkeypatch, "--preset", "smoke", *arguments) == 2
    assert_one_line(capsys, named)
    assert {path.name for path in tmp_path.glob("home/*")} <= {"data"}  # which --plan decodes too


@pytest.mark.nightly
@pytest.mark.slow
def test_who_waits_for_a_store_that_does_not_answer_can_end_the_study(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        store = f"gs://anonymous@bucket/x?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "ablations/shortcuts.py", "--preset", "smoke", "--storage", store]
        environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": "local", "MLFLOW_TRACKING_URI": ""}
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=PROJECT) as study:
            assert study.stderr
            try:
                with silent.accept()[0]:  # it is asked
                    began = time.monotonic()
                    study.terminate()
                    assert study.stderr.readline() == f"{INTERRUPTED_MESSAGE}\n"
                    assert time.monotonic() - began < 20
                    assert study.wait(60) == 1
            finally:
                study.kill()


def test_a_store_that_does_not_answer_is_one_line_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "CHECK_TIMEOUT_SECONDS", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"^--storage=s3://bucket/x: cannot be used \(no answer within 4 s\)$"):
            storage.check_storage(address)


def assert_one_line(capsys: pytest.CaptureFixture[str], *named: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(name in err for name in named), err


@pytest.mark.parametrize("name", ["RESNET_ABLATIONS_HOME", "RESNET_ABLATIONS_STORAGE"])
def test_a_wrong_folder_in_the_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "~no-such-user/x")
    assert run_main(monkeypatch) == 2
    assert_one_line(capsys, f"{name}=~no-such-user/x: accepted: an absolute path")


@pytest.mark.slow
@pytest.mark.parametrize(("made", "named"), [("locked", "database is locked"), ("text", "file is not a database")])
def test_a_database_that_cannot_be_used_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path, made: str, named: str
) -> None:
    path = home / "mlflow.db"
    with ExitStack() as stack:
        if made == "locked":
            connection = stack.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
            connection.execute("BEGIN EXCLUSIVE")
        else:
            path.write_text("dear diary, " * 1000)
        assert run_main(monkeypatch, "--preset", "smoke", "--tracking-uri", f"sqlite:///{path}") == 2
    assert_one_line(capsys, f"--tracking-uri=sqlite:///{path}: MLflow does not answer (", named)


def fail(*_: object, **__: object) -> None:
    raise OSError("nobody thought of this\nnor of http://user:hunter2@tracking, password=hunter2")


def test_an_error_that_nobody_thought_of_is_one_line_that_says_where_its_traceback_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", str(tmp_path))
    monkeypatch.setattr(dispatch, "make_plan", fail)
    assert run_main(monkeypatch) == 1
    (path,) = (tmp_path / "logs").iterdir()
    assert_one_line(capsys, f"OSError: nobody thought of this (unexpected error; traceback: {path})")
    kept = path.read_text()
    assert kept.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in kept
    assert "hunter2@" not in kept
    assert "password=hunter2" not in kept
    assert path.stat().st_mode & 0o077 == 0


def test_a_traceback_that_no_file_takes_is_not_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RESNET_ABLATIONS_HOME", "/proc/nowhere")
    monkeypatch.setattr(dispatch, "make_plan", fail)
    assert run_main(monkeypatch) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "error: OSError: nobody thought of this (unexpected error; its traceback could not be written to a file: "
    )
    assert "in fail\n" in err


@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_a_study_is_data_in_less_than_30_lines(name: str) -> None:
    assert study_of(name).name == name
    code = (PROJECT / "ablations" / f"{name}.py").read_text().split('"""')
    assert len(code[2].splitlines()) < 30


@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_a_study_opens_with_its_command_its_cost_and_what_to_expect(name: str) -> None:
    opening = importlib.import_module(f"ablations.{name}").__doc__ or ""
    assert f"ray job submit -- python ablations/{name}.py" in opening
    assert "Cost: " in opening
    assert "Expect: " in opening


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """For presets whose data must be had first: other data, everything else as it is."""
    root = tmp_path_factory.mktemp("images")
    for split, label in itertools.product(("train", "val"), ("cat", "dog")):
        (root / split / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (300, 280), (80 * i, 10, 200)).save(root / split / label / f"{i}.jpg")
    folder = {"data.name": "imagefolder", "data.stream": "true", "data.root": str(root), "global_batch_size": "2"}
    generated = {name: {"data.name": "synthetic"} for name in ("mnist5k", "fashion5k", "cifar10", "cifar100")}
    return {**generated, "imagenet": folder}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_a_study_can_be_planned_on_its_presets(
    name: str, preset: str, stand_ins: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    request = StudyRequest(preset=preset, overrides=stand_ins.get(preset, {}))
    study = study_of(name).for_preset(preset)
    if preset == "imagenet" and name not in ("shortcuts", "degradation", "depth", "blocks", "hyperparameters", "tricks"):
        with pytest.raises(ConfigError, match="imagenet"):
            make_plan(study, request, cache=tmp_path)
        return
    plan = make_plan(study, request, cache=tmp_path)
    assert len({run.fingerprint for run in plan.runs}) == len(plan.runs) >= 2 * 3
    for factor, level in study.baseline.items():
        assert any((factor, level) in cell.levels for cell in plan.cells), "there is something to compare with"


@pytest.mark.parametrize("name", STUDIES)
def test_no_study_takes_the_name_of_another_module(name: str) -> None:
    # Its folder comes first on sys.path when it runs.
    assert name not in sys.stdlib_module_names
    assert name not in {"optuna", "torch", "ray", "mlflow", "numpy", "pandas", "scipy"}


def test_help_names_factors_presets_and_every_option_without_importing_ray_or_torch() -> None:
    code = "import sys; sys.argv = ['x', '--help']\nfrom ablations.shortcuts import STUDY, main\ntry: main(STUDY)\nfinally: " \
        "print('heavy' if {'ray', 'torch', 'mlflow'} & set(sys.modules) else 'light')"  # fmt: skip
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT).stdout
    shown = " ".join(shown.split())
    options = "preset seeds levels set probe data-download workers cpus-per-worker gpus-per-worker max-concurrent storage"
    options += " tracking-uri plan calibrate report margin rerun log-models"
    assert all(f"--{option}" in shown for option in options.split())
    assert "shortcut: none, A, B, C" in shown
    assert "digits" in shown
    assert shown.endswith("light")


@pytest.mark.slow
def test_plan_shows_cells_and_cost_and_starts_nothing(tmp_path: Path) -> None:
    arguments = ["--preset", "smoke", "--plan", "--levels", "block=basic,bottleneck", "shortcut=A", "depth=8,20", "--seeds", "2"]
    environment = {**os.environ, "RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "ablations/shortcuts.py", *arguments],
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "6 runs, 6 to train" in done.stdout
    assert "19,218" in done.stdout  # parameters of the smallest cell
    assert not (tmp_path / "mlflow.db").exists()
    assert "skipped shortcut=A depth=8 block=bottleneck: model.depth=8: cifar with bottleneck blocks has depths 9n+2" in done.stdout
