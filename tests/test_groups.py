"""Two workers train a run as one group: through the loss of its storage and of a worker, to what one worker comes to."""

import math
import shutil
import time
from pathlib import Path

import pytest
import ray
import torch
from object_store import object_store
from submitted import Killer, Submitted, planned

from ablations.engine.checkpoints import CheckpointFolder
from ablations.engine.replay import ReplayRequest, replay
from resnet_core import fit

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

EPOCHS = 14
ASKED = ("--levels", "shortcut=A", "--set", f"optim.epochs={EPOCHS}", "probe_epochs=2", "--probe", "responses", "gradients")


class BadDays:
    """A study whose object store goes; submitted again, one of its workers is killed."""

    def __init__(self, home: Path) -> None:
        with object_store() as line:
            arguments = ("--workers", "2", "--storage", line.store("group"), *ASKED)
            line.left = 600_000  # a checkpoint has 0.16 MB
            self.broken = Submitted(home, *arguments)
            line.left = math.inf
            self.before = self.broken.checkpoint()["history"]
            folder = CheckpointFolder(line.store("group"), self.broken.plan.runs[0].fingerprint)
            enough = f"epoch-{len(self.before) + 3:06d}"
            killer = Killer("ray::RayTrainWorker", lambda: max(folder._names()) > enough)
            self.ended = Submitted(home, *arguments)
            self.killed = killer.join()
            self.after = self.ended.checkpoint()["history"]


@pytest.fixture(scope="module")
def group(cluster: str, empty: Path, tmp_path_factory: pytest.TempPathFactory) -> BadDays:
    home = tmp_path_factory.mktemp("group")
    shutil.copy(empty, home / "mlflow.db")
    return BadDays(home)


def test_a_group_whose_object_store_was_gone_for_a_while_goes_on_from_there(group: BadDays) -> None:
    assert (group.broken.code, group.broken.entry().outcome) == (1, "failed")
    assert "not saved in s3://bucket/" in group.broken.entry().tags["message"]
    assert group.ended.run_ids() == group.broken.run_ids()
    assert 0 < len(group.before) < len(group.after) == EPOCHS
    assert group.after[: len(group.before)] == group.before  # to the nanosecond: not trained again


def test_a_group_goes_on_from_its_checkpoint_when_one_worker_is_killed(group: BadDays) -> None:
    assert group.killed
    entry = group.ended.entry()
    assert (group.ended.code, entry.outcome, entry.tags["attempts"]) == (0, "completed", "3")  # the store's failure was the first
    assert group.ended.steps() == list(range(1, EPOCHS + 1))


def test_two_workers_train_as_one_group_and_agree_with_one(group: BadDays) -> None:
    assert group.ended.entry().tags["world_size"] == "2"
    (alone,) = planned(*ASKED).runs
    assert alone.fingerprint not in group.ended.entries
    # Statistics of half batches differ a little from those of whole ones; the loss they reach does not differ much.
    torch.set_num_threads(1)
    losses = [result.metrics["train/loss"] for result in fit(alone.spec)]
    reached = [metric.value for metric in group.ended.history("train/loss")]
    assert all(math.isclose(*pair, rel_tol=0.2) for pair in zip(losses, reached, strict=True)), (losses, reached)


def test_what_the_probes_of_a_group_saw_is_an_artifact_of_its_run(group: BadDays) -> None:
    rows = group.ended.evidence().probes
    assert set(rows["probe"]) == {"responses", "gradients"}
    assert set(rows["epoch"]) == {2}
    assert (rows["quantity"] == "std").sum() == 7  # ResNet-8: stem and six more
    assert (rows["value"] > 0).all()


def test_a_replay_by_two_workers_without_bad_days_is_equal_to_the_last_bit(
    group: BadDays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{group.ended.home}/mlflow.db"
    assert replay(ReplayRequest(run=group.ended.entry().run_id, tracking_uri=uri, storage=str(tmp_path))) == 0
    assert f"exactly equal: {EPOCHS} epochs, every loss and error to the last bit" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_group_gives_everything_back(group: BadDays) -> None:
    deadline = time.monotonic() + 30  # processes end a moment after their study
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2
