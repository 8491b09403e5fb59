"""Tests of one trial without a cluster: how a run ends, where it resumes, and what it reports."""

import base64
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.train import WorkerGroupError
from torch.distributed import DistBackendError

from ablations.engine.scheduling import tune_policy
from ablations.engine.scheduling.ray_internals.tune import JudgeFailures
from ablations.engine.task.predictions import Predictions
from ablations.engine.trial import ddp_group, group_failures, process_failures, trainable, worker
from ablations.engine.trial.checkpoints import CheckpointFolder
from ablations.engine.trial.job import Job
from ablations.engine.trial.process_failures import UNEXPLAINED, ProcessFailure
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
        worker.train_epochs(make_job(tmp_path, "run"), "cpu", print)


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
        worker.train_or_exit_on_gpu_error(make_job(tmp_path, "run"), "cpu", print, monitor)
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
    job, reports = make_job(tmp_path, "run", optim__epochs=3), list[dict[str, Any]]()
    worker.train_epochs(job, "cpu", lambda _: None)
    files = sorted(Path(job.storage, "run").iterdir())[::-1][:damaged]
    for file in files:
        file.write_bytes(b"half of")
    worker.train_epochs(job, "cpu", reports.append)
    note = "; ".join(f"{file} is damaged and is ignored" for file in files)
    assert [(report["epoch"], report.get("note")) for report in reports] == [(1, note), (2, None), (3, None)]


def test_a_damaged_checkpoint_of_a_branch_is_reported(tmp_path: Path) -> None:
    (file,) = saved(make_job(tmp_path, "parent"), 1)
    file.write_bytes(b"half of")
    reports: list[dict[str, Any]] = []
    worker.train_epochs(replace(make_job(tmp_path, "child"), branch="parent", branch_epoch=1), "cpu", reports.append)
    assert reports[0]["note"] == f"{file} is damaged and is ignored"


def test_the_last_epoch_reports_predictions_and_does_so_again_after_a_restart(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    job = replace(make_job(tmp_path, "run"), predictions=True)
    worker.train_epochs(job, "cpu", reports.append)
    first, last = reports
    assert "predictions" not in first
    found = Predictions.from_bytes(base64.b64decode(last["predictions"]))
    assert len(found.classes) == 50
    assert 100 * np.mean(~found.correct) == last["metrics"]["test/error"]

    again: list[dict[str, Any]] = []
    worker.train_epochs(job, "cpu", again.append)  # the process crashed after its last checkpoint
    assert [each.get("predictions") for each in again] == [None, last["predictions"]]
    worker.train_epochs(job, "cpu", again.append, rank=1)
    worker.train_epochs(replace(job, predictions=False), "cpu", again.append)
    assert not any("predictions" in each for each in again[2:]), "one worker of a group is enough, and none if nobody asks"


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
    trial.train_epochs(job, "cpu", print, alive=watchdog.alive)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stdout) == (1, "hung\n"), done.stderr


# What ends a group


def failed(*failures: Exception) -> WorkerGroupError:
    """A group of which each worker ended by one of these."""
    return WorkerGroupError("tracebacks of all", dict(enumerate(failures)))


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
@pytest.mark.parametrize("others", [[GLOO], [NCCL], []], ids=["gloo", "NCCL", "alone"])
def test_a_workers_own_exception_ends_the_run_whatever_its_text(own: Exception, others: list[Exception]) -> None:
    assert group_failures.worker_exception(failed(*others, own)) is own
    assert "tracebacks of all" in own.__notes__[-1]


@pytest.mark.parametrize("failures", [[GLOO, GLOO], [NCCL], [DIED, GLOO], [DIED], [DIED, KeyError("of a process that dies")]])
def test_a_group_that_lost_a_peer_or_a_process_is_restarted(failures: list[Exception]) -> None:
    assert group_failures.worker_exception(failed(*failures)) is None


def test_divergence_ends_the_run_even_if_a_process_crashes() -> None:
    diverged = Diverged("the loss is not finite in epoch 1")
    assert group_failures.worker_exception(failed(DIED, GLOO, diverged)) is diverged


class Group:
    """Ray Train, where groups of workers end by what is given, one after another; then one comes to its end."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        job: Job,
        *errors: Exception,
        death: ProcessFailure = ProcessFailure(UNEXPLAINED, "process"),  # noqa: B008 - a constant
        epochs: bool = False,
    ) -> None:
        """
        Args:
            death: what is found out of each end.
            epochs: whether each group gets an epoch further.
        """
        left = enumerate(errors, 1)

        def train_once(*_: object) -> None:
            for epoch, error in left:
                if epochs:
                    saved(job, epoch)
                raise error

        monkeypatch.setattr(ddp_group, "_train_once", train_once)
        monkeypatch.setattr(ddp_group, "worker_names", lambda _: ["one", "two"])
        monkeypatch.setattr(process_failures, "explain_failure", lambda *_: death)
        self.reports: list[dict[str, Any]] = []
        report = self.reports.append
        trainable.report_outcome(report, lambda: ddp_group.train_group(job, report, lambda: None))

    @property
    def end(self) -> tuple[str, str]:
        return self.reports[-1]["outcome"], self.reports[-1].get("message", "")


def test_a_group_whose_storage_is_gone_fails_and_does_not_recreate_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = make_job(tmp_path, "group", world_size=2)
    Path(job.storage).rmdir()
    group = Group(monkeypatch, job)
    assert group.end == ("failed", f"FileNotFoundError: storage {job.storage} is gone")


@pytest.mark.parametrize(
    ("last", "explained", "reason"),
    [
        ([GLOO, GLOO], UNEXPLAINED, f"RuntimeError: {GLOO}"),  # nobody died, as far as anybody knows
        ([DIED, KeyError("x")], UNEXPLAINED, "KeyError: 'x'"),
        ([GLOO, DIED], UNEXPLAINED, UNEXPLAINED),
        ([GLOO, GLOO], "made no step for 600 s", "made no step for 600 s"),
    ],
)
def test_after_the_last_retry_the_reason_is_a_known_crash_or_a_workers_exception(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, last: list[Exception], explained: str, reason: str
) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=1)
    group = Group(monkeypatch, job, failed(DIED), failed(*last), death=ProcessFailure(explained, "process"))
    assert group.reports[0] == {"restart": explained}
    assert group.end == ("failed", reason)


LOST = ProcessFailure("its node 10.0.0.7 was lost", "node")


def test_a_group_that_loses_one_node_after_the_other_without_an_epoch_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=1)
    group = Group(monkeypatch, job, *[failed(DIED)] * 30, death=LOST)
    assert len(group.reports) == 10 + 1 + 1  # losses that count for nothing, one that is borne as a failure, and the end
    assert group.end == ("failed", "its node 10.0.0.7 was lost, and 11 before it without a new epoch")


def test_a_group_that_makes_progress_may_lose_any_number_of_nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = make_job(tmp_path, "group", world_size=2, max_failures=0)
    group = Group(monkeypatch, job, *[failed(DIED)] * 30, death=LOST, epochs=True)
    assert group.reports == [{"restart": LOST.reason}] * 30 + [{"outcome": "completed"}]


def test_a_crash_that_tune_reports_twice_counts_once() -> None:
    """The process dies as it is handed from one trial to the next: the first word puts the trial back among those that wait."""
    trial = Mock(status="PENDING", PENDING="PENDING")
    failure = ProcessFailure("its process was killed", "process")
    assert tune_policy.RunPolicy(lambda: 1).judge_failure(trial, failure) is None

    controller: Any = JudgeFailures()
    controller.policy, controller._resetting_trials = Mock(judge_failure=lambda *_: None), {trial}
    controller._process_trial_failure(trial, failure)
    assert not controller._resetting_trials  # or it would never get another process
