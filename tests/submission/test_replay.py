"""A replay trains a finished run again from its record and compares the two bit by bit."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from rich.console import Console

from ablations.engine.analysis.reproducibility import Training, compare_trainings, environment_changes, seed_noise
from ablations.engine.cli import options
from ablations.engine.environment import paths
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_plan
from ablations.engine.submission.replay import (
    RecordedRun,
    ReplayRequest,
    _Listener,
    compared_metrics,
    find_run,
    read_spec,
    replay,
    replicate_values,
    requested_gpus,
)
from ablations.engine.task.metric import error_metric
from ablations.engine.tracking import run_queries
from ablations.engine.tracking.connection import connect
from resnet_core import PRESETS, ConfigError, RunSpec, fingerprint, override, preset
from resnet_core.data.datasets import load_dataset, resolve
from resnet_core.identity import TRAINING_VERSION, code_version

SEEDS = (3.0, 3.4, 3.8)
DATA = "d" * 20


def training(*errors: float, outcome: str = "completed") -> Training:
    """Return a training with these test errors."""
    epochs = {}
    for epoch, error in enumerate(errors, 1):
        epochs[epoch] = {"train/loss": error / 7, "train/error": error / 3, "test/loss": error / 5, "test/error": error}
    return Training(outcome, epochs)


def verdict(recorded: Training, replayed: Training, seeds: tuple[float, ...] = SEEDS) -> tuple[bool, str]:
    same, lines = compare_trainings(recorded, replayed, seeds, error_metric("test"))
    return same, "\n".join(lines)


def with_value(given: Training, epoch: int, name: str, value: float) -> Training:
    return replace(given, epochs={**given.epochs, epoch: {**given.epochs[epoch], name: value}})


def test_equal_to_the_last_bit_is_said_of_all_epochs() -> None:
    assert verdict(training(9, 3.4), training(9, 3.4)) == (
        True,
        "exactly equal: 2 epochs, every metric to the last bit",
    )


@pytest.mark.parametrize("name", ["train/loss", "train/error", "test/loss", "test/error"])
def test_one_bit_in_one_epoch_is_a_difference_that_is_named(name: str) -> None:
    recorded = training(9, 5, 3.4)
    value = recorded.epochs[2][name]
    same, text = verdict(recorded, with_value(recorded, 2, name, value * (1 + 2**-52)))
    assert same
    assert text.startswith("within seed noise: test/error 3.40 %, recorded 3.40 %, difference 0.00 points")
    assert f"first difference: epoch 2, {name} {value * (1 + 2**-52)!r}, recorded {value!r}, difference +" in text


def test_an_epoch_that_only_one_of_them_has_is_a_difference() -> None:
    assert "epoch 3, train/loss is replayed only" in verdict(training(9, 5), training(9, 5, 3.4))[1]
    assert "epoch 3, train/loss is recorded only" in verdict(training(9, 5, 3.4), training(9, 5))[1]


def test_seed_noise_is_the_prediction_interval_of_one_more_seed() -> None:
    # t of 97.5 % with 2 degrees of freedom, from a printed table: 4.303.
    mean, std, half = seed_noise(SEEDS)
    assert (mean, std, half) == pytest.approx((3.4, 0.4, 4.303 * 0.4 * (4 / 3) ** 0.5), abs=1e-3)
    inside, outside = verdict(training(3.0), training(3.4 + half - 0.01)), verdict(training(3.0), training(3.4 + half + 0.01))
    assert inside[0]
    assert inside[1].startswith("within seed noise: test/error 5.38 %, recorded 3.00 %, difference +2.38 points")
    assert "3 recorded seeds: 3.40 ± 0.40 %; 95 % of further seeds are expected within 1.99 points of the mean" in inside[1]
    assert not outside[0]
    assert outside[1].startswith("differs: test/error 5.40 %, recorded 3.00 %, difference +2.40 points")


def test_seeds_that_all_agree_leave_no_noise() -> None:
    recorded = training(9, 1.1)
    assert verdict(recorded, with_value(recorded, 1, "train/loss", 1.0), (1.1,) * 3)[0]
    assert not verdict(recorded, training(9, 1.1 + 1e-9), (1.1,) * 3)[0]


def test_two_seeds_are_too_few_to_know_the_noise() -> None:
    same, text = verdict(training(3.0), training(3.1), SEEDS[:2])
    assert not same
    assert text.startswith("not equal: test/error 3.10 %, recorded 3.00 %, difference +0.10 points")
    assert "needs 3 seeds, and the store has 2" in text


def test_a_diverged_run_is_to_diverge_again() -> None:
    diverged = training(9, 12, outcome="diverged")
    assert verdict(diverged, diverged) == (
        True,
        "exactly equal: 2 epochs, every metric to the last bit, then diverged",
    )
    later = verdict(diverged, training(9, 12, 40, outcome="diverged"))
    assert later[0]
    assert later[1].startswith("diverged as recorded: the replay in epoch 4, the recorded run in epoch 3")
    at_once = training(outcome="diverged")
    assert verdict(at_once, at_once) == (True, "diverged as recorded: the replay in epoch 1, the recorded run in epoch 1")
    assert verdict(diverged, training(9, 12)) == (False, "differs: the recorded run diverged, the replay completed")
    assert verdict(training(9, 12), diverged) == (False, "differs: the recorded run completed, the replay diverged")


def test_a_replay_without_a_result_has_no_verdict() -> None:
    failed = Training("oom", training(9).epochs, "a batch of 64 images")
    assert verdict(training(9, 3.4), failed) == (False, "no verdict: the outcome of the replay is oom (a batch of 64 images)")


def test_the_environment_is_told_by_what_changed_and_what_is_not_known() -> None:
    recorded = {"torch": "2.13.0", "device": "AMD EPYC", "seed": "0"}
    assert environment_changes(recorded, {"torch": "2.14.1", "device": "AMD EPYC"}) == "environment: torch 2.13.0 → 2.14.1"
    assert environment_changes(recorded, {"torch": "2.13.0", "device": "AMD EPYC"}) == "environment: the same torch, device"
    assert (
        environment_changes(recorded, {"torch": "2.13.0", "python": "3.11.7"})
        == "environment: the same torch (not recorded: python)"
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return connect(f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")


def record(
    client: MlflowClient, spec: RunSpec, status: str = "FINISHED", data: str = DATA, error: float = 10.0, **tags: str
) -> str:
    """Log a run as a study does; return its ID."""
    identity = {"fingerprint": fingerprint(spec, data_version=data), "data_version": data, "code_version": code_version()}
    identity |= {"training_version": str(TRAINING_VERSION)}
    run_id = str(client.create_run("0").info.run_id)
    named = {**identity, "outcome": "completed", "mlflow.runName": "made up", **tags}
    params = [Param(name, str(value)) for name, value in spec.flat().items()]
    metrics = [Metric(name, error, 0, 1) for name in compared_metrics(spec)]
    client.log_batch(run_id, metrics, params, [RunTag(name, value) for name, value in named.items()])
    client.set_terminated(run_id, status)
    return run_id


SPECS = {
    **{name: {"preset": name} for name in PRESETS},
    "tuples": {"preset": "digits", "probes": ("responses", "gradients"), "probe_epochs": (1, 3), "milestones": (0.1, 1 / 3)},
    "texts": {"preset": "imagenet", "extra_tests": ("ten_crop",), "data.root": "/data/it's (here)", "scale": (256, 480)},
}


@pytest.mark.slow
@pytest.mark.parametrize("values", SPECS.values(), ids=SPECS)
def test_a_specification_comes_back_from_mlflow_as_it_was(client: MlflowClient, values: Mapping[str, Any]) -> None:
    spec = override(preset(values["preset"]), {name: value for name, value in values.items() if name != "preset"})
    assert read_spec(client.get_run(record(client, spec))) == spec


def test_a_specification_under_former_names_of_fields_is_read(client: MlflowClient) -> None:
    """MLflow parameters of runs from before fields were renamed, whose fingerprints still hold."""
    spec = override(preset("digits"), {"momentum_form": "caffe", "bn_recalibration": True, "normalize": "pixel"})
    old = client.get_run(record(client, spec))
    params = old.data.params
    for former, current, value in (
        ("optim.velocity", "optim.momentum_form", "updates"),
        ("optim.bn_statistics", "optim.bn_recalibration", "averaged"),
        ("data.normalise", "data.normalize", "pixel"),
        ("data.colour", "data.color_augmentation", "False"),
    ):
        del params[current]
        params[former] = value
    assert read_spec(old) == spec
    assert run_queries.current_params(old) == {name: str(value) for name, value in spec.flat().items()}


def test_parameters_that_are_not_those_of_the_fingerprint_are_refused(client: MlflowClient) -> None:
    spec = override(preset("smoke"), {"lr": 0.07})
    altered = client.get_run(record(client, spec, fingerprint="0" * 20))
    with pytest.raises(ConfigError, match="do not match its fingerprint"):
        read_spec(altered)
    # Of another version, the fingerprint cannot be checked: what it was told to train can be trained all the same.
    assert read_spec(client.get_run(record(client, spec, fingerprint="0" * 20, training_version="0"))) == spec
    # A run of before there were versions, and before some fields.
    old = client.get_run(record(client, spec, fingerprint="0" * 20))
    del old.data.tags["training_version"]
    del old.data.params["deterministic"]
    assert read_spec(old) == spec


def test_a_specification_that_this_code_does_not_know_is_refused_in_one_line(client: MlflowClient) -> None:
    run_id = record(client, preset("smoke"), training_version="0")
    client.log_param(run_id, "optim.forgotten", "1")
    with pytest.raises(ConfigError, match=r"cannot read its specification \(optim.forgotten: no such field"):
        read_spec(client.get_run(run_id))


def test_a_run_is_found_by_its_id_its_fingerprint_or_the_beginning_of_either(client: MlflowClient) -> None:
    run_id = record(client, preset("smoke"), fingerprint="abcdef0123456789abcd")
    for named in (run_id, run_id[:8], "abcdef0123456789abcd", "abcdef"):
        assert find_run(client, named).info.run_id == run_id
    newer = record(client, preset("smoke"), fingerprint="abcdef0123456789abcd", generation="2")
    assert find_run(client, "abcdef").info.run_id == newer
    assert find_run(client, run_id).info.run_id == run_id


@pytest.mark.slow
def test_seed_noise_is_that_of_completed_runs_which_differ_in_the_seed_only(client: MlflowClient) -> None:
    spec = override(preset("smoke"), {"lr": 0.03, "data.root": "here"})
    first = client.get_run(record(client, spec, error=1))
    record(client, override(spec, {"seed": 1, "data.root": "there", "decode_workers": 3}), error=2)
    record(client, override(spec, {"seed": 2}), error=90)
    record(client, override(spec, {"seed": 2}), error=3, generation="2")
    record(client, override(spec, {"seed": 3}), error=91, outcome="diverged")
    record(client, override(spec, {"seed": 4}), error=92, status="KILLED")
    record(client, override(spec, {"seed": 5}), error=93, training_version="0")
    record(client, override(spec, {"seed": 6}), error=94, data="f" * 20)
    record(client, override(spec, {"seed": 7, "depth": 14}), error=95)
    assert sorted(replicate_values(client, first, "test/error")) == [1, 2, 3]
    # An earlier attempt, chosen by its id, counts in place of the newest.
    again = record(client, spec, error=4, generation="2")
    assert sorted(replicate_values(client, first, "test/error")) == [1, 2, 3]
    assert sorted(replicate_values(client, client.get_run(again), "test/error")) == [2, 3, 4]


def test_what_is_no_finished_run_is_refused(client: MlflowClient) -> None:
    record(client, preset("smoke"), fingerprint="aaaaaa1" + "0" * 13)
    record(client, preset("smoke"), fingerprint="aaaaaa2" + "0" * 13)
    stopped = record(client, preset("smoke"), status="KILLED", fingerprint="bbbbbb" + "0" * 14)
    study = str(client.create_run("0").info.run_id)
    refused = {
        "aaaaaa": "ambiguous; accepted: aaaaaa10000000000000, aaaaaa20000000000000",
        "bbbbbb": "has no result to compare with, it is killed",
        stopped: "has no result to compare with, it is killed",
        study: "is a study; accepted: one of its runs",
        "c" * 20: "MLflow has no such run",
        "c" * 32: "MLflow has no such run",
        "aaaaa": "accepted: a run ID or a fingerprint",
        "%' or true": "accepted: a run ID or a fingerprint",
        "": "accepted: a run ID or a fingerprint",
    }
    for named, accepted in refused.items():
        with pytest.raises(ConfigError) as error:
            find_run(client, named)
        assert str(error.value).startswith(f"run={named}: {accepted}")


def test_runs_of_code_that_a_replay_does_not_have_are_refused(client: MlflowClient) -> None:
    network = record(client, preset("smoke"), training_version=f"{TRAINING_VERSION}-abc")
    images = record(client, override(preset("smoke"), {"data.name": "own", "data.image_size": None}))
    for run_id, owner in ((network, "by a network or task"), (images, "on images of a reader")):
        with pytest.raises(ConfigError, match=f"^run={run_id}: was trained {owner} of one's own; accepted: --rerun on its study"):
            replay(ReplayRequest(run=run_id, tracking_uri=client.tracking_uri))


def test_a_database_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the database does not exist"):
        replay(ReplayRequest(run="abcdef", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("root", "named"), [(None, "synthetic"), ("elsewhere", "elsewhere")])
def test_other_data_than_the_recorded_are_refused(client: MlflowClient, root: str | None, named: str) -> None:
    run_id = record(client, preset("smoke"), data="e" * 20)
    with pytest.raises(ConfigError, match=f"data.root={named}: accepted: data of the recorded version eeee"):
        replay(ReplayRequest(run=run_id, tracking_uri=client.tracking_uri, data_root=root))


def test_what_a_trial_has_to_note_is_said_and_its_epoch_counts() -> None:
    spec = preset("smoke")
    dataset = load_dataset(spec.data)
    console = Console(file=io.StringIO(), width=200)
    recorded = RecordedRun(
        run_id="0", tags={}, spec=resolve(spec, dataset), training=training(9), on_gpu=False, replicate_values=SEEDS
    )
    listener = _Listener(console, recorded, dataset)
    metrics = dict.fromkeys(listener.names, 1.0)
    listener.reported("run", {"epoch": 1, "metrics": metrics, "conditions": {}, "note": "a file is damaged"})
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().startswith("a file is damaged\n")
    assert listener.epochs == {1: metrics}


@pytest.mark.parametrize(("on_gpu", "requested", "gpus"), [(False, None, 0), (True, None, None), (True, 0.0, 0), (False, 1.0, 1)])
def test_a_replay_uses_the_kind_of_device_of_the_run_unless_told_otherwise(
    on_gpu: bool, requested: float | None, gpus: float | None
) -> None:
    recorded = RecordedRun(run_id="0", tags={}, spec=preset("smoke"), training=training(9), on_gpu=on_gpu, replicate_values=SEEDS)
    asked = ReplayRequest(run="0", tracking_uri="", gpus_per_worker=requested)
    assert requested_gpus(recorded, asked) == gpus


class Finished:
    """A small finished study with the files of its runs."""

    def __init__(self, home: Path, *arguments: str) -> None:
        from ablations.engine.submission.study_submission import run_study

        uri, self.storage = f"sqlite:///{home}/mlflow.db", home / "checkpoints"
        study = Study(name="small", question="Again?", factors={"shortcut": ("A",)}, baseline={}, preset="smoke")
        chosen = options.parse_options(study, ["--tracking-uri", uri, "--storage", str(self.storage), *arguments])
        self.plan = make_plan(study, chosen.request, cache=paths.data_cache())
        assert run_study(self.plan, chosen) == 0
        self.client = connect(uri)
        self.request = ReplayRequest(run=self.plan.runs[-1].fingerprint, tracking_uri=uri, storage=str(self.storage))

    def left_behind(self) -> list[Any]:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        runs = [run.to_dictionary() for run in self.client.search_runs(experiments)]
        return [*runs, *sorted(path.name for path in self.storage.iterdir())]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_replay_is_equal_to_the_bit_and_leaves_nothing_and_another_record_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Finished(tmp_path, "--seeds", "3")
    before = study.left_behind()
    capsys.readouterr()
    assert replay(study.request) == 0
    text = capsys.readouterr().out
    assert f"replay of shortcut=A seed=2, fingerprint {study.plan.runs[2].fingerprint}" in text
    assert "exactly equal: 2 epochs, every metric to the last bit\n" in text
    assert "environment: the same training_version, code_version, device" in text
    assert study.left_behind() == before

    for run in study.plan.runs:
        study.client.log_metric(find_run(study.client, run.fingerprint).info.run_id, "test/error", 1.0, step=2)
    assert replay(study.request) == 1
    text = capsys.readouterr().out
    assert "differs: test/error" in text
    assert "3 recorded seeds: 1.00 ± 0.00 %" in text
    assert "first difference: epoch 2, test/error" in text


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.nightly
def test_an_interrupted_replay_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    spec = override(preset("smoke"), {"epochs": 10_000})
    spec = resolve(spec, load_dataset(spec.data))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = record(connect(uri), spec, data=load_dataset(spec.data).version, training_version="0")
    command = "import sys; from ablations.engine.submission.replay import *; "
    command += f"sys.exit(replay(ReplayRequest(run={run_id!r}, tracking_uri={uri!r})))"
    home = {"RESNET_ABLATIONS_HOME": str(tmp_path), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(
        [sys.executable, "-c", command], env={**os.environ, **home}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("checkpoints/replay-*/epoch-*.pt")):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(sent)
        text, _ = process.communicate(timeout=180)
    assert process.returncode == 1, text
    assert "trained by version 0 of the training code, not 1" in text
    assert "interrupted" in text
    assert "Traceback" not in text
    time.sleep(1)  # a process of Ray's may live a moment longer
    assert not list(tmp_path.glob("checkpoints/*"))
    assert not list(tmp_path.glob("tune/*"))
