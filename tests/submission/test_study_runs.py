"""Studies run on real Ray, MLflow and a database, with the smallest networks."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from ablations.engine.scheduling import capacity, tune_runner
from ablations.engine.scheduling.capacity import has_autoscaler
from ablations.engine.study.definition import Study
from ablations.engine.tracking.connection import connect
from ablations.engine.trial import trainable
from ablations.engine.trial.job import Report
from resnet_core import ConfigError, fit, load_dataset
from resnet_core.model.network import ResNet
from tests.helpers.slow_epochs import slow_epochs
from tests.helpers.submission import STUDY, Killer, Submitted, planned
from tests.helpers.training_runs import weights_differ

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("cluster")]

DAMAGED = "epoch-000001-0123456789abcdef.pt"
PROBED = ("--probe", "responses", "gradients", "--set", "probe_epochs=2")


def table(text: str) -> str:
    """Return the output from the study's title to the address of its report."""
    return text[text.index("small on synthetic: Does it run?") : text.index("Report: ")]


@pytest.fixture(scope="module")
def first(cluster: str, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """A study with probes, submitted once."""
    home = tmp_path_factory.mktemp("first")
    shutil.copy(empty, home / "mlflow.db")
    return Submitted(home, *PROBED, all_figures=True)


def test_what_probes_saw_is_an_artifact_of_each_run_and_drawn_for_the_study(first: Submitted) -> None:
    rows = first.evidence().probes
    assert set(rows["probe"]) == {"responses", "gradients"}
    assert set(rows["epoch"]) == {2}
    assert set(rows["cell"]) == {"shortcut=none", "shortcut=A"}
    assert rows[rows["quantity"] == "std"].groupby("cell").size().tolist() == [7, 7]  # ResNet-8: stem and six more
    assert (rows["value"] > 0).all()

    figures = {file.path for file in first.client.list_artifacts(first.parent().info.run_id, "figures")}
    drawn = {f"figures/{probe}.{suffix}" for probe in ("curves", "responses", "gradients") for suffix in ("png", "svg")}
    assert drawn <= figures
    # Another request, other runs: those without probes have not looked.
    assert not first.entries.keys() & {run.fingerprint for run in planned().runs}


def test_submitting_again_trains_only_what_is_missing(first: Submitted, tmp_path: Path) -> None:
    home = tmp_path
    shutil.copy(first.home / "mlflow.db", home)  # its checkpoints are not asked for
    assert first.code == 0
    assert first.outcomes() == ["completed"] * 2
    assert first.count_mlflow_runs() == 3  # two runs under one parent
    assert first.steps() == [1, 2]
    assert first.text.startswith(f"Data: {planned().dataset.summary}\n")
    assert "\nEach run takes 1 CPU, no GPU: this machine has none.\n" in first.text

    again = Submitted(home, *PROBED)
    assert again.code == 0
    assert again.count_mlflow_runs() == 3
    assert table(again.text) == table(first.text)
    assert again.run_ids() == first.run_ids()

    for run_id in first.run_ids().values():
        connect(f"sqlite:///{home}/mlflow.db").log_metric(run_id, "gpu_hours", 0.1, step=99)
    more = Submitted(home, *PROBED, "--seeds", "2", "--levels", "shortcut=none,A,B")
    assert "2 of 2 runs done trained on GPUs, and the others will train on CPUs" in " ".join(more.text.split())
    assert more.count_mlflow_runs() == 3 + 4
    assert more.run_ids().items() >= first.run_ids().items()

    other = Submitted(home, *PROBED, study=Study(**{**vars(STUDY), "name": "other", "factors": {"shortcut": ("A", "B")}}))
    assert other.count_mlflow_runs() == 3 + 4 + 1  # both runs are known from the study before; it has a page of its own
    assert other.parent().info.status == "FINISHED"
    assert other.parent().data.metrics["completed_runs"] == 2
    assert other.client.list_artifacts(other.parent().info.run_id, "figures")

    # A refactoring: other sources, the same training.
    assert "other sources" not in again.text + more.text
    for run_id in first.run_ids().values():
        connect(f"sqlite:///{home}/mlflow.db").set_tag(run_id, "code_version", "c" * 20)
    refactored = Submitted(home, *PROBED, "--seeds", "2", "--levels", "shortcut=none,A,B")
    assert "2 of 6 runs done were trained by other sources of resnet_core" in " ".join(refactored.text.split())
    assert refactored.count_mlflow_runs() == 3 + 4 + 1
    assert refactored.run_ids() == more.run_ids()

    fewer = Submitted(home, *PROBED, "--seeds", "2")
    left_out = "The report will leave out 2 runs of the previous submission. Their results stay in MLflow"
    assert left_out in " ".join(fewer.text.split())
    assert "The report will leave out" not in first.text + again.text + more.text + refactored.text


@pytest.mark.nightly
def test_streamed_images_are_trained_on_and_their_wait_is_a_metric(home: Path) -> None:
    for i, (split, label) in enumerate(itertools.product(("train", "val"), ("cat", "dog"))):
        (home / split / label).mkdir(parents=True)
        for j in range(8):
            Image.new("RGB", (50, 40), (20 * j, 60 * i, 9)).save(home / split / label / f"{j}.jpg")
    data = ["data.name=imagefolder", f"data.root={home}", "data.stream=true", "data.image_size=16", "data.scale=18,24"]
    others = ["data.color_augmentation=true", "global_batch_size=8", "data.extra_tests=multi_scale"]
    streamed = Submitted(home, "--levels", "shortcut=A", "--set", *data, *others)
    assert streamed.entry().outcome == "completed", streamed.entry().tags.get("message")
    assert {"data_wait_seconds", "test/multi_scale_error"} <= streamed.entry().metrics.keys()


@pytest.mark.nightly
def test_cells_with_training_data_of_their_own_are_trained_found_and_reported_with_them(home: Path) -> None:
    small = {"depth": 8, "width": 8, "epochs": 1}
    amounts = Study(name="amounts", question="More?", factors={"train_examples": (64, 300)}, settings=small, seeds=1)
    trained = Submitted(home, study=amounts)
    assert (trained.code, trained.outcomes()) == (0, ["completed"] * 2), trained.text
    versions = {run.fingerprint: load_dataset(run.spec.data).version for run in trained.plan.runs}
    assert len(set(versions.values())) == 2
    for fingerprint, entry in trained.entries.items():
        (data,) = trained.client.get_run(entry.run_id).inputs.dataset_inputs
        assert entry.tags["data_version"] == data.dataset.digest == versions[fingerprint]
    assert "64 (train_examples=64), 300 (train_examples=300)" in " ".join(trained.text.split())
    assert "data version differs" not in trained.text
    page = Path(trained.client.download_artifacts(trained.parent().info.run_id, "report/report.html")).read_text()
    assert "64, 300 training images" in page
    assert "64 with train_examples=64, 300 with train_examples=300" in page
    assert all(version in page for version in versions.values())

    again = Submitted(home, "--levels", "train_examples=64,300", study=amounts)
    assert "all 2 runs are in MLflow already" in again.text
    assert again.parent().info.run_id == trained.parent().info.run_id


@pytest.fixture(scope="module")
def bad_luck(cluster: str, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Submitted, Submitted]:
    """A study of which one run diverges, one has a bug and one fails; submitted again after the repair."""
    home = tmp_path_factory.mktemp("bad-luck")
    shutil.copy(empty, home / "mlflow.db")
    arguments = ("--levels", "shortcut=A", "optim.lr=0.1,1e30,0.03,0.02", "--set", "data.validation=0.25")
    blocked = home / "checkpoints" / planned(*arguments).runs[-1].fingerprint
    blocked.parent.mkdir()
    blocked.write_text("a file where a folder should be")

    def forward(_: ResNet, images: torch.Tensor) -> torch.Tensor:
        return images.misspelt()  # type: ignore[attr-defined, no-any-return]

    class Misspelling(trainable.RunTrainable):
        def step(self) -> Report:
            with pytest.MonkeyPatch.context() as patch:
                if self.config["job"]["spec"]["optim.lr"] == 0.03:
                    patch.setattr(ResNet, "forward", forward)
                return super().step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune_runner, "RunTrainable", Misspelling)
        failed = Submitted(home, *arguments)
    blocked.unlink()
    blocked.mkdir()
    (blocked / DAMAGED).write_text("half of one")
    return failed, Submitted(home, *arguments)


def test_a_search_of_the_validation_split_leaves_the_test_set_alone(bad_luck: tuple[Submitted, Submitted]) -> None:
    _, searched = bad_luck
    assert "validation error %" in searched.text
    for entry in searched.entries.values():
        assert ("validation/error" in entry.metrics) == (entry.outcome == "completed")
        assert not any(name.startswith("test/") for name in entry.metrics)


def test_a_run_that_diverges_or_fails_leaves_the_others_alone(bad_luck: tuple[Submitted, Submitted]) -> None:
    failed, mended = bad_luck
    assert failed.outcomes() == ["completed", "diverged", "failed", "failed"]
    assert failed.code == 1
    assert "1 diverged" in failed.text
    blocked = failed.plan.runs[-1]
    assert f"{blocked}: failed, OSError: checkpoints in {failed.storage}/{blocked.fingerprint} cannot be read: " in failed.text
    assert "2 of 4 runs have no result. " in failed.text
    assert f"{blocked}: {failed.storage}/{blocked.fingerprint}/{DAMAGED} is damaged and is ignored\n" in mended.text
    assert mended.outcomes() == ["completed", "diverged", "completed", "completed"]
    assert mended.code == 0  # that it diverges is a result
    assert mended.run_ids() == failed.run_ids()


def test_a_bug_ends_its_run_with_a_reason_and_leaves_its_traceback_in_mlflow(bad_luck: tuple[Submitted, Submitted]) -> None:
    failed, _ = bad_luck
    reason = "AttributeError: 'Tensor' object has no attribute 'misspelt'"
    assert f"{failed.plan.runs[2]}: failed, {reason}" in failed.text
    assert failed.entry(2).tags["message"] == reason
    text = Path(failed.client.download_artifacts(failed.entry(2).run_id, "traceback.txt")).read_text()
    assert ", in forward\n    return images.misspelt()" in text
    assert text.endswith(f"{reason}\n")


def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_weights_of_an_undisturbed_training_here(home: Path) -> None:
    killer = Killer("ray::RunTrainable", lambda: any(int(p.name[6:12]) >= 3 for p in home.glob("checkpoints/*/epoch-*.pt")))
    with slow_epochs(0.3):
        killed = Submitted(home, "--levels", "shortcut=A", "--set", "optim.epochs=20", "optim.lr=0.01")
    assert killer.join()
    tags = killed.entry().tags
    assert (killed.code, killed.entry().outcome, tags["attempts"]) == (0, "completed", "2")
    assert tags["last_interruption"] == "its process was killed"
    assert killed.steps() == list(range(1, 21))
    torch.set_num_threads(1)
    *_, last = fit(killed.plan.runs[0].spec)
    assert not weights_differ(last.checkpoint()["model"], killed.checkpoint()["model"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workers", "4"], "--workers=4: each worker needs 1 CPU; the cluster has 2 CPUs"),
        (["--cpus-per-worker", "3"], "--workers=1: each worker needs 3 CPUs"),
        (["--gpus-per-worker", "1"], "each worker needs 1 CPU and 1 GPU; the cluster has 2 CPUs and 0 GPUs"),
    ],
)
def test_more_than_the_cluster_can_ever_give_is_refused(home: Path, arguments: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        Submitted(home, *arguments)
    assert named in str(error.value)
    client = connect(f"sqlite:///{home}/mlflow.db")
    assert not client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_capacity_counts_whole_workers_on_each_node() -> None:
    assert capacity.RunResources(workers=2).current_capacity() == 1
    assert capacity.RunResources(cpus_per_worker=0.5).current_capacity() == 4
    assert capacity.RunResources(cpus_per_worker=1.5).current_capacity() == 1
    assert capacity.RunResources(gpus_per_worker=0.5).current_capacity() == 0
    assert not has_autoscaler()
