"""Tests of one trial without a cluster: how a run ends, where it resumes, and what it reports."""

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from torch.distributed import DistBackendError

from ablations.engine.task.predictions import Predictions
from ablations.engine.trial import ddp_group, outcomes, process_failures, worker, worker_group
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.outcomes import WorkerError
from ablations.engine.trial.process_failures import UNEXPLAINED, ProcessFailure
from ablations.engine.trial.worker_group import GroupCrash
from resnet_core import ConfigError, Diverged
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import make_job

GLOO = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4321")
NCCL = DistBackendError("NCCL communicator was aborted on rank 1.")
DIED = ActorDiedError()


# What ends a run


def test_lack_of_memory_is_reported_even_if_another_error_hides_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def capture(*_: Any) -> None:
        try:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB.")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(worker, "_train_epochs", capture)
    with pytest.raises(
        worker.OutOfMemory, match=r"^a batch of 32 images on .+: CUDA out of memory\. Tried to allocate 2\.00 MiB\.$"
    ):
        next(worker.train_epochs(make_job(tmp_path, "run"), "cpu"))


class Ended(BaseException):
    """Stands for the end of the process."""


def test_a_process_whose_gpu_fails_exits_and_records_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later.")

    def end(**reason: object) -> None:
        raise Ended(reason)

    monkeypatch.setattr(worker, "train_epochs", fail)
    monitor: Any = SimpleNamespace(alive=lambda: None, end_process=end)
    with pytest.raises(Ended) as ended:
        next(worker.train_or_exit_on_gpu_error(make_job(tmp_path, "run"), "cpu", monitor))
    (reason,) = ended.value.args
    assert reason == {"gpu_error": "CUDA error: unspecified launch failure"}

    monkeypatch.setattr(process_failures, "kv_get", lambda _: json.dumps({"node": "n", "oom_kills": 0, **reason}))
    monkeypatch.setattr(process_failures, "kv_delete", lambda _: None)
    monkeypatch.setattr("ray.nodes", list)
    death = process_failures.explain_failure(["actor"])
    assert (death.reason, death.cause) == ("its GPU failed: CUDA error: unspecified launch failure", "process")


# Where a run goes on from


def saved(job: Job, *epochs: int) -> list[Path]:
    """Checkpoint files of a run, oldest first."""
    checkpoints = CheckpointFolder(job.storage, job.folder)
    for epoch in epochs:
        checkpoints.save({"history": [{}] * epoch}, epoch)
    return sorted(Path(job.storage, job.folder).iterdir())


def test_workers_agree_on_a_checkpoint_once_a_damaged_read_is_repaired(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = make_job(tmp_path, "run")
    _, newest = saved(job, 1, 2)
    content, seen = newest.read_bytes(), []

    def agreed(restore: dict[str, Any], *_: object) -> bool:
        """As the others see it, who found the newest whole."""
        seen.append(len(restore["history"]))
        newest.write_bytes(content)
        return seen[-1] == 2

    monkeypatch.setattr(worker, "_all_agree", agreed)
    newest.write_bytes(content[:-10])
    began = time.monotonic()
    worker._restore(job, "cpu")
    assert seen == [1, 2]
    assert time.monotonic() - began >= worker.AGREEMENT_INTERVAL_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_reported_once_with_the_first_epoch(tmp_path: Path, damaged: int) -> None:
    job = make_job(tmp_path, "run", optim__epochs=3)
    list(worker.train_epochs(job, "cpu"))
    files = sorted(Path(job.storage, "run").iterdir())[::-1][:damaged]
    for file in files:
        file.write_bytes(b"half of")
    reports = list(worker.train_epochs(job, "cpu"))
    note = "; ".join(f"{file} is damaged and is ignored" for file in files)
    assert [(report["epoch"], report.get("note")) for report in reports] == [(1, note), (2, None), (3, None)]


def test_a_damaged_checkpoint_of_a_branch_is_reported(tmp_path: Path) -> None:
    (file,) = saved(make_job(tmp_path, "parent"), 1)
    file.write_bytes(b"half of")
    first = next(worker.train_epochs(replace(make_job(tmp_path, "child"), branch="parent", branch_epoch=1), "cpu"))
    assert first["note"] == f"{file} is damaged and is ignored"


def test_the_last_epoch_reports_predictions_and_does_so_again_after_a_restart(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path, "run"), predictions=True)
    first, last = worker.train_epochs(job, "cpu")
    assert "predictions" not in first
    found = Predictions.from_bytes(base64.b64decode(last["predictions"]))
    assert len(found.classes) == 50
    assert 100 * np.mean(~found.correct) == last["metrics"]["test/error"]

    again = list(worker.train_epochs(job, "cpu"))  # the process crashed after its last checkpoint
    assert [each.get("predictions") for each in again] == [None, last["predictions"]]
    others = [*worker.train_epochs(job, "cpu", rank=1), *worker.train_epochs(replace(job, predictions=False), "cpu")]
    assert not any("predictions" in each for each in others), "one worker of a group is enough, and none if nobody asks"


@pytest.mark.slow
def test_workers_that_never_agree_exit_as_hung(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from ablations.engine.trial import worker as trial
from ablations.engine.trial.watchdog import Watchdog
from tests.helpers.ray_jobs import make_job
trial._agreed = lambda *_: False
job = make_job(Path({str(tmp_path)!r}), "run")
with Watchdog(1, lambda: print("hung", flush=True)) as watchdog:
    list(trial.train_epochs(job, "cpu", alive=watchdog.alive))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (1, "hung\n"), done.stderr


# What ends a group


def failed(error: Exception) -> Report:
    """The last report of a worker in which this error was raised."""

    def train() -> Iterator[Report]:
        yield from ()
        raise error

    (report,) = outcomes.with_outcome(train())
    return report


@pytest.mark.parametrize(
    "own",
    [
        OSError("checkpoint of epoch 3 not saved in s3://bucket/run: Connection reset by peer"),
        ConfigError("data.root=/data/gloo: accepted: a folder"),
        KeyError("NCCL"),
        RuntimeError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("other", [failed(GLOO), failed(NCCL), {"epoch": 1}, None], ids=["gloo", "NCCL", "trains", "waits"])
def test_a_workers_own_error_ends_the_run_whatever_its_text(own: Exception, other: Report | None) -> None:
    with pytest.raises(WorkerError) as ended:
        worker_group.check([other, failed(own)])
    assert ended.value.report["message"] == f"{type(own).__name__}: {own}"
    assert "in train" in ended.value.report["traceback"]


@pytest.mark.parametrize(
    "answers",
    [
        [failed(GLOO), failed(GLOO)],
        [failed(NCCL), None],
        [DIED, failed(GLOO)],
        [DIED, None],
        [DIED, {"epoch": 1}],
        [DIED, failed(KeyError("of a process that dies"))],
    ],
)
def test_a_group_that_lost_a_peer_or_a_process_is_restarted(answers: list[Any]) -> None:
    with pytest.raises(GroupCrash):
        worker_group.check(answers)


def test_divergence_ends_the_run_even_if_a_process_crashes() -> None:
    with pytest.raises(WorkerError) as ended:
        worker_group.check([DIED, failed(GLOO), failed(Diverged("the loss is not finite in epoch 1"))])
    assert ended.value.report["outcome"] == "diverged"


def test_workers_that_report_an_epoch_go_on() -> None:
    worker_group.check([{"epoch": 1}, {"epoch": 1}])
    worker_group.check([{"outcome": "completed"}, {"outcome": "completed"}])


class Group:
    """A group whose workers end by what is given, one time after another; then they come to their end."""

    names = ("one", "two")

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        job: Job,
        *answers: list[Any],
        death: ProcessFailure = ProcessFailure(UNEXPLAINED, "process"),  # noqa: B008 - a constant
        epochs: bool = False,
    ) -> None:
        """
        Args:
            death: what is found out of each end.
            epochs: whether each group gets an epoch further.
        """
        self.left, self.job, self.epochs = enumerate(answers, 1), job, epochs
        monkeypatch.setattr(process_failures, "explain_failure", lambda *_: death)
        self.reports = list(outcomes.with_outcome(ddp_group.train_group(job, self, lambda: None)))  # type: ignore[arg-type]

    def begin(self, *_: object) -> None: ...

    def advance(self) -> None:
        for epoch, answers in self.left:
            if self.epochs:
                saved(self.job, epoch)
            worker_group.check(answers)

    def end(self) -> None: ...

    def kill(self) -> None: ...

    @property
    def end_of_run(self) -> tuple[str, str]:
        return self.reports[-1]["outcome"], self.reports[-1].get("message", "")


@pytest.mark.parametrize(
    ("last", "explained", "reason"),
    [
        ([failed(GLOO), failed(GLOO)], UNEXPLAINED, f"RuntimeError: {GLOO}"),  # nobody died, as far as anybody knows
        ([DIED, failed(KeyError("x"))], UNEXPLAINED, "KeyError: 'x'"),
        ([failed(GLOO), DIED], UNEXPLAINED, UNEXPLAINED),
        ([failed(GLOO), failed(GLOO)], "made no step for 600 s", "made no step for 600 s"),
    ],
)
def test_after_the_last_retry_the_reason_is_a_known_crash_or_a_workers_exception(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: list[Any], explained: str, reason: str
) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=1)
    group = Group(monkeypatch, job, [DIED, None], last, death=ProcessFailure(explained, "process"))
    assert group.reports[0] == {"restart": explained}
    assert group.end_of_run == ("failed", reason)


LOST = ProcessFailure("its node 10.0.0.7 was lost", "node")


def test_a_group_that_loses_one_node_after_the_other_without_an_epoch_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=1)
    group = Group(monkeypatch, job, *[[DIED, None]] * 30, death=LOST)
    assert len(group.reports) == 10 + 1 + 1  # losses that count for nothing, one that is borne as a failure, and the end
    assert group.end_of_run == ("failed", "its node 10.0.0.7 was lost, and 11 before it without a new epoch")


def test_a_group_that_makes_progress_may_lose_any_number_of_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=0)
    group = Group(monkeypatch, job, *[[DIED, None]] * 30, death=LOST, epochs=True)
    assert group.reports == [{"restart": LOST.reason}] * 30 + [{"outcome": "completed"}]
