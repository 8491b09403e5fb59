"""A study really runs: Ray, MLflow and a database, on the smallest networks."""

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from mlflow import MlflowClient
from PIL import Image

from ablations.engine import execution, ledger, options, paths, scheduler
from ablations.engine.checkpoints import CheckpointFolder
from ablations.engine.study import Plan, Study, make_plan
from ablations.engine.tracking import connect
from resnet_core import ConfigError

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
STUDY = Study(
    name="small",
    question="Does it run?",
    factors={"shortcut": ("none", "A")},
    baseline={"shortcut": "A"},
    seeds=1,
    preset="smoke",
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Submitted:
    """A study submitted with some options, as the command line does, and what it left behind."""

    def __init__(self, home: Path, *arguments: str, study: Study = STUDY) -> None:
        uri = f"sqlite:///{home}/mlflow.db"
        chosen = options.parse(study, ["--tracking-uri", uri, "--storage", f"{home}/checkpoints", *arguments])
        self.plan: Plan = make_plan(study, chosen.request, cache=paths.data_cache())
        self.client: MlflowClient = connect(uri)
        self.storage = chosen.storage
        self.code = execution.execute(self.plan, chosen)
        self.entries = ledger.find(self.client, self.plan)

    def weights(self, index: int = 0) -> dict[str, torch.Tensor]:
        saved = CheckpointFolder(self.storage, self.plan.runs[index].fingerprint).latest()
        assert saved is not None
        model: dict[str, torch.Tensor] = saved["model"]
        return model

    def count_mlflow_runs(self) -> int:
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        return len(self.client.search_runs(experiments))

    def steps(self, index: int = 0) -> list[int]:
        entry = self.entries[self.plan.runs[index].fingerprint]
        return [m.step for m in self.client.get_metric_history(entry.run_id, "test/error")]


def table(text: str) -> str:
    return text[text.index("small on synthetic: Does it run?") :]


def test_submitting_again_trains_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Submitted(tmp_path)
    first_text = capsys.readouterr().out
    assert first.code == 0
    assert {entry.outcome for entry in first.entries.values()} == {"completed"}
    assert first.count_mlflow_runs() == 3  # two runs under one parent
    assert first.steps() == [1, 2]

    again = Submitted(tmp_path)
    again_text = capsys.readouterr().out
    assert again.code == 0
    assert again.count_mlflow_runs() == 3
    assert table(again_text) == table(first_text)
    assert {f: e.run_id for f, e in again.entries.items()} == {f: e.run_id for f, e in first.entries.items()}

    more = Submitted(tmp_path, "--seeds", "2", "--levels", "shortcut=none,A,B")
    assert more.count_mlflow_runs() == 3 + 4
    assert {f: more.entries[f].run_id for f in first.entries} == {f: e.run_id for f, e in first.entries.items()}

    other = Submitted(tmp_path, study=Study(**{**vars(STUDY), "name": "other", "factors": {"shortcut": ("A", "B")}}))
    assert other.count_mlflow_runs() == 3 + 4 + 1  # both runs are known from the study before; it has a page of its own
    (parent,) = other.client.search_runs([other.client.get_experiment_by_name("other").experiment_id])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["test_error_n/shortcut B"] == 1
    assert other.client.list_artifacts(parent.info.run_id, "figures")


def test_a_run_gives_the_same_weights_here_as_in_a_trial(tmp_path: Path) -> None:
    from resnet_core import fit

    submitted = Submitted(tmp_path, "--levels", "shortcut=A", "--set", "optim.lr=0.03")
    torch.set_num_threads(1)
    *_, last = fit(submitted.plan.runs[0].spec)
    for name, value in last.checkpoint()["model"].items():
        assert torch.equal(value, submitted.weights()[name]), name


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_probes_saw_is_an_artifact_of_each_run_and_drawn_for_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    seen = Submitted(tmp_path, "--probe", "responses", "gradients", "--set", "probe_epochs=2", "--workers", workers)
    assert "Figures: artifacts of its run “small · smoke”" in capsys.readouterr().out
    rows = ledger.probes(seen.client, seen.plan, seen.entries)
    assert set(rows["probe"]) == {"responses", "gradients"}
    assert set(rows["epoch"]) == {2}
    assert set(rows["cell"]) == {"shortcut=none", "shortcut=A"}
    assert rows[rows["quantity"] == "std"].groupby("cell").size().tolist() == [7, 7]  # ResNet-8: stem and six more
    assert (rows["value"] > 0).all()

    (parent,) = seen.client.search_runs([next(iter(seen.entries.values())).experiment_id], "tags.base LIKE '%'")
    figures = {file.path for file in seen.client.list_artifacts(parent.info.run_id, "figures")}
    assert figures == {f"figures/{probe}.{suffix}" for probe in ("curves", "responses", "gradients") for suffix in ("png", "svg")}
    # Another request, other runs: those without probes have not looked.
    assert not {run.fingerprint for run in seen.plan.runs} & {run.fingerprint for run in Submitted(tmp_path).plan.runs}


def test_streamed_images_are_trained_on_and_their_wait_is_a_metric(tmp_path: Path) -> None:
    for i, (split, label) in enumerate(itertools.product(("train", "val"), ("cat", "dog"))):
        (tmp_path / split / label).mkdir(parents=True)
        for j in range(8):
            Image.new("RGB", (50, 40), (20 * j, 60 * i, 9)).save(tmp_path / split / label / f"{j}.jpg")
    data = ["data.name=imagefolder", f"data.root={tmp_path}", "data.stream=true", "data.image_size=16", "data.scale=18,24"]
    streamed = Submitted(
        tmp_path,
        "--levels",
        "shortcut=A",
        "--set",
        *data,
        "data.colour=true",
        "global_batch_size=8",
        "data.extra_tests=multi_scale",
    )
    (entry,) = streamed.entries.values()
    assert entry.outcome == "completed", entry.tags.get("message")
    assert {"data_wait_seconds", "test/multi_scale_error"} <= entry.metrics.keys()


def test_a_search_of_the_validation_split_leaves_the_test_set_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = Submitted(tmp_path, "--set", "data.validation=0.25")
    assert "validation error %" in capsys.readouterr().out
    for entry in held_out.entries.values():
        assert "validation/error" in entry.metrics
        assert not any(name.startswith("test/") for name in entry.metrics)


def test_a_run_that_diverges_or_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = Submitted(tmp_path, "--levels", "shortcut=A", "optim.lr=0.1,1e30")
    outcomes = [diverged.entries[run.fingerprint].outcome for run in diverged.plan.runs]
    assert sorted(outcomes) == ["completed", "diverged"]
    assert diverged.code == 0  # that it diverges is a result
    assert "1 diverged" in capsys.readouterr().out

    arguments = ("--levels", "shortcut=A,B", "--set", "optim.lr=0.02")
    chosen = options.parse(STUDY, arguments)
    blocked = make_plan(STUDY, chosen.request, cache=paths.data_cache()).runs[0]
    (tmp_path / "checkpoints" / blocked.fingerprint).write_text("a file where a folder should be")
    failed = Submitted(tmp_path, *arguments)
    assert failed.code == 1
    assert [failed.entries[run.fingerprint].outcome for run in failed.plan.runs] == ["failed", "completed"]
    text = capsys.readouterr().out
    assert f"{blocked}: failed, OSError: checkpoints in {tmp_path}/checkpoints/{blocked.fingerprint} cannot be read: " in text
    assert "1 of 2 runs have no result. To train just those: python " in text
    (tmp_path / "checkpoints" / blocked.fingerprint).unlink()
    mended = Submitted(tmp_path, *arguments)
    assert mended.code == 0
    assert {f: e.run_id for f, e in mended.entries.items()} == {f: e.run_id for f, e in failed.entries.items()}


def test_a_killed_trial_goes_on_from_its_checkpoint_in_the_same_run(tmp_path: Path) -> None:
    arguments = ["--levels", "shortcut=A", "--set", "optim.epochs=40", "optim.lr=0.01"]
    undisturbed = Submitted(tmp_path / "undisturbed", *arguments)
    killer = Killer(tmp_path / "killed" / "checkpoints", "ray::ImplicitFunc")
    killed = Submitted(tmp_path / "killed", *arguments)
    assert killer.result() == "killed"
    (entry,) = killed.entries.values()
    assert (killed.code, entry.outcome, entry.tags["attempts"]) == (0, "completed", "2")
    assert killed.steps() == list(range(1, 41))
    assert all(torch.equal(value, killed.weights()[name]) for name, value in undisturbed.weights().items())


class Killer:
    """Ends a process of the study, once its run has a checkpoint of epoch 3 or later."""

    def __init__(self, storage: Path, name: str) -> None:
        code = f"""
import pathlib, time, psutil

def title(process):
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.Error:  # gone, or a zombie
        return ""

deadline = time.monotonic() + 200
while time.monotonic() < deadline:
    if any(int(p.name[6:12]) >= 3 for p in pathlib.Path({str(storage)!r}).glob("*/epoch-*.pt")):
        found = [p for p in psutil.Process({os.getpid()}).children(recursive=True) if title(p).startswith({name!r})]
        if found:
            found[0].kill()
            print("killed")
            break
    time.sleep(0.01)
"""
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    def result(self) -> str:
        out, _ = self.process.communicate(timeout=10)
        return out.strip()


def test_two_workers_train_as_one_group_and_agree(tmp_path: Path) -> None:
    group = Submitted(tmp_path, "--workers", "2", "--levels", "shortcut=A")
    (entry,) = group.entries.values()
    assert (group.code, entry.outcome, entry.tags["world_size"]) == (0, "completed", "2")
    assert group.steps() == [1, 2]
    # Statistics of half batches differ a little from those of whole ones; the loss they reach does not differ much.
    single = Submitted(tmp_path, "--levels", "shortcut=A")
    (other,) = single.entries.values()
    assert other.run_id != entry.run_id
    assert math.isclose(entry.metrics["train/loss"], other.metrics["train/loss"], rel_tol=0.2)
    deadline = time.monotonic() + 30  # processes end a moment after their study
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2  # the group gave everything back


def test_a_group_goes_on_from_its_checkpoint_when_one_worker_is_killed(tmp_path: Path) -> None:
    killer = Killer(tmp_path / "checkpoints", "ray::RayTrainWorker")
    group = Submitted(tmp_path, "--workers", "2", "--levels", "shortcut=A", "--set", "optim.epochs=60")
    assert killer.result() == "killed"
    (entry,) = group.entries.values()
    assert (group.code, entry.outcome, entry.tags["attempts"]) == (0, "completed", "2")
    assert group.steps() == list(range(1, 61))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workers", "4"], "--workers=4: needs 1 CPUs for each worker; the cluster has 2 CPUs"),
        (["--cpus-per-worker", "3"], "--workers=1: needs 3 CPUs"),
        (["--gpus-per-worker", "1"], "and 1 GPUs for each worker; the cluster has 2 CPUs and 0 GPUs"),
    ],
)
def test_more_than_the_cluster_can_ever_give_is_refused(tmp_path: Path, arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        Submitted(tmp_path, *arguments)
    assert named in str(error.value)
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert not client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_capacity_counts_whole_workers_on_each_node() -> None:
    assert scheduler.Needs(workers=2).capacity() == 1
    assert scheduler.Needs(cpus_per_worker=0.5).capacity() == 4
    assert scheduler.Needs(cpus_per_worker=1.5).capacity() == 1
    assert scheduler.Needs(gpus_per_worker=0.5).capacity() == 0
    assert not scheduler.autoscales()


def test_an_interrupted_study_says_so_and_goes_on_when_submitted_again(tmp_path: Path) -> None:
    command: list[str] = [sys.executable, "ablations/shortcuts.py", "--preset", "smoke", "--levels", "shortcut=A", "depth=8"]
    command += ["--seeds", "1", "--set", "optim.epochs=400"]
    environment: dict[str, Any] = {
        **os.environ,
        "RESNET_ABLATIONS_HOME": str(tmp_path),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
    }
    with subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as study:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("checkpoints/*/epoch-*.pt")):
            assert time.monotonic() < deadline
            assert study.poll() is None
            time.sleep(0.1)
        study.send_signal(signal.SIGINT)
        text, _ = study.communicate(timeout=60)
    assert study.returncode == 1
    assert "stopped, the study was interrupted" in text
    assert "Traceback" not in text
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [e.experiment_id for e in client.search_experiments()]
    assert sorted(run.info.status for run in client.search_runs(experiments)) == ["FAILED", "KILLED"]  # the parent, and the run

    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = client.search_runs(experiments, "tags.fingerprint != ''")
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "test/error")]
    assert steps == list(range(1, 401))
    assert run.data.tags["attempts"] == "2"
    assert not [p for p in psutil.Process().children(recursive=True) if "shortcuts.py" in " ".join(p.cmdline())]
