"""A run trained by a group of workers, one DDP worker per process, which the process of its trial leads."""

from collections.abc import Callable, Generator
from contextlib import suppress
from typing import TYPE_CHECKING

from ablations.engine.trial.job import Job, Report

if TYPE_CHECKING:
    from ablations.engine.trial.worker_group import WorkerGroup


def train_group(job: Job, group: "WorkerGroup", alive: Callable[[], object]) -> Generator[Report, None, None]:
    """Train a run with a group. If one of its processes crashes or hangs, start another group.

    Yield the reports of its first worker, and one when another group starts.

    Args:
        job: the run.
        group: the workers that this process leads.
        alive: called several times a second while the leader makes progress.

    Raises:
        ProcessFailure: processes crashed more often than `job.max_failures` allows; the last failure.
        WorkerError: the workers' code raised an error that ended the run, or nothing else explains the last crash.
    """
    from ablations.engine.trial import process_failures
    from ablations.engine.trial.process_failures import NodeLossBudget, ProcessFailure
    from ablations.engine.trial.worker_group import GroupCrash

    failures, losses = 0, NodeLossBudget()
    while True:
        try:
            yield from _train_once(job, group, alive)
            return
        except GroupCrash as crash:
            group.kill()
            found = [each for each in crash.crashes if isinstance(each, ProcessFailure)]
            cause, error = found[0] if found else process_failures.explain_failure(group.names, crash.crashes), crash.error
        cause = losses.charge(cause, _latest_epoch(job) if cause.cause == "node" else 0)
        failures += cause.cause != "node"
        if failures > job.max_failures:
            raise error if error and cause.reason == process_failures.UNEXPLAINED else cause
        yield {"restart": cause.reason}


def _train_once(job: Job, group: "WorkerGroup", alive: Callable[[], object]) -> Generator[Report, None, None]:
    """Yield the reports of the first worker until the run is complete."""
    group.begin(job, alive)
    try:
        while (report := group.advance()) is not None:
            yield report
    finally:
        group.end()


def _latest_epoch(job: Job) -> int:
    """Return the epoch of the run's latest checkpoint; 0 if there is none or the storage does not answer."""
    from ablations.engine.trial.checkpoints import CheckpointFolder

    with suppress(OSError):
        return CheckpointFolder(job.storage, job.folder).latest_epoch()
    return 0
