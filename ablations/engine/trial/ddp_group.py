"""A run trained by a Ray Train worker group: one DDP worker per process, led by the process of its trial."""

import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from threading import Thread
from typing import TYPE_CHECKING, Any

from ablations.engine.environment.storage import check_still_exists
from ablations.engine.scheduling.ray_internals.compatibility import is_available
from ablations.engine.scheduling.ray_internals.key_value_store import KEY_VALUE_STORE
from ablations.engine.scheduling.ray_internals.train import (
    TRAIN_CONTROLLER,
    TRAIN_ENVIRONMENT,
    controller_callbacks,
    is_resource_shortage,
    propagate_cluster_address,
)
from ablations.engine.trial.group_failures import explain_group_failure, final_error, worker_exception
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.worker import train_monitored
from resnet_core.fields import ConfigError

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from ablations.engine.trial.process_failures import ProcessFailure

REPLACEMENT_INTERVAL_SECONDS = 5.0
"""Time between two attempts to start a group that lacks a node, in seconds."""

REPORT_TIMEOUT_SECONDS = 0.2
"""Time for which the leader waits for a report before it checks whether the group has ended, in seconds."""

GRACE_SECONDS = 15.0
"""Time by which a group's timeout exceeds the hang timeout, in seconds. A worker that hangs exits by itself before, with a better
reason."""


def train_group(job: Job, alive: Callable[[], object]) -> Generator[Report, None, None]:
    """Train a run with a worker group, which this process leads. If a process of the group crashes or hangs, start another group.

    Yield the reports of its first worker, and one when another group starts.

    Args:
        job: the run.
        alive: called several times a second while the leader makes progress.

    Raises:
        ProcessFailure: processes crashed more often than `job.max_failures` allows; the last failure.
        ConfigError: the processes of the cluster use version 1 of Ray Train.
        OSError: the storage is gone. Without this check, Train would create a new one.
        Exception: what the workers' code raised, if that ended the run or if nothing else explains the last crash.
    """
    os.environ.update(TRAIN_ENVIRONMENT)
    from ray import train as ray_train
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    if not hasattr(ray_train, "UserCallback"):  # the environment in which a node's Ray was started decides the version of Train
        raise ConfigError("RAY_TRAIN_V2_ENABLED=0: accepted: 1, or unset, in the environment in which `ray start` runs")
    from ablations.engine.trial.process_failures import NodeLossBudget, ProcessFailure

    failures, losses = 0, NodeLossBudget()
    while True:
        check_still_exists(job.storage)
        alive()
        try:
            yield from _train_once(job, alive)
            return
        except ProcessFailure as hung:
            cause, error = hung, hung
        except (TrainingFailedError, RayActorError) as ended:
            if is_resource_shortage(ended):  # the cluster could hold the group before: nodes were lost, and new ones will join
                time.sleep(REPLACEMENT_INTERVAL_SECONDS)
                continue
            raised = worker_exception(ended)
            if raised is not None:
                raise raised from None
            cause, error = explain_group_failure(ended, worker_names(job.spec["world_size"])), ended
        cause = losses.charge(cause, _latest_epoch(job) if cause.preempted else 0)
        failures += not cause.preempted
        if failures > job.max_failures:
            raise final_error(cause, error) from None
        yield {"restart": cause.reason}


def _train_once(job: Job, alive: Callable[[], object]) -> Generator[Report, None, None]:
    """Start a group and yield the reports of its first worker until it ends.

    Raises:
        TrainingFailedError: Train ended the group.
        RayActorError: the group's controller or queue crashed.
        ProcessFailure: the group hung and was aborted.
    """
    from ray.train import TrainingFailedError

    from ablations.engine.trial import process_failures, worker_group

    propagate_cluster_address()
    queue = worker_group.make_queue()
    training = _in_thread(_trainer(job, queue).fit)
    stalls = _GroupStallDetector(job)
    try:
        # A group that has ended puts nothing more into the queue, so the loop empties it.
        while not training.done() or not queue.empty():
            alive()
            if (item := _next_item(queue)) is not None and not worker_group.store_controller(item):
                yield item
            if (hung := stalls.failure()) is not None:
                raise hung
        training.result()
    except TrainingFailedError:
        raise  # the group has ended
    except process_failures.ProcessFailure:
        worker_group.abort_group(timeout_seconds=0)
        for name in worker_names(job.spec["world_size"]):
            process_failures.delete_record(name)
        raise
    except BaseException:
        worker_group.abort_group()
        for name in worker_names(job.spec["world_size"]):
            process_failures.delete_record(name)
        raise
    finally:
        queue.shutdown(force=True)  # otherwise, the traceback of an error would keep the queue's process alive
        worker_group.release_controller()
        process_failures.delete_record(controller_name())


def _in_thread(work: Callable[[], object]) -> Future[object]:
    """Run `work` in a daemon thread, which ends with the process even if it waits for something."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="group", daemon=True).start()
    return future


def _next_item(queue: "Queue") -> dict[str, Any] | None:
    from ray.util.queue import Empty

    try:
        item: dict[str, Any] = queue.get(timeout=REPORT_TIMEOUT_SECONDS)
    except Empty:
        return None
    return item


class _GroupStallDetector:
    """Detects from the heartbeats of a group's processes that the group hangs."""

    def __init__(self, job: Job) -> None:
        from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval

        self._stalls, self._interval = StallDetector(), heartbeat_interval(job.hang_timeout)
        self._workers = worker_names(job.spec["world_size"])
        self._controller = controller_name()
        self._timeout = job.hang_timeout + GRACE_SECONDS
        self._start_timeout = max(self._timeout, START_TIMEOUT_SECONDS)
        self._has_heartbeats = is_available(KEY_VALUE_STORE) and is_available(TRAIN_CONTROLLER)

    def failure(self) -> "ProcessFailure | None":
        """Return a failure that says which process hangs; None if none does, or if the next poll is not due."""
        from ray.exceptions import RpcError

        from ablations.engine.trial import process_failures

        if not self._has_heartbeats or not self._stalls.should_poll(self._interval):
            return None
        try:
            records = {name: process_failures.read_record(name) for name in (*self._workers, self._controller)}
        except RpcError:
            return None  # the head is busy and answers the next time
        # A new record is a sign of life, before its process has made a step.
        silent = self._stalls.update({name: record.get("steps", 0) if record else None for name, record in records.items()})
        controller = records[self._controller]
        # While the controller starts a group, its loop makes one round a minute.
        if silent[self._controller] > (self._timeout if controller.get("trains") else self._start_timeout):
            seconds = silent[self._controller]
            return process_failures.ProcessFailure(f"the controller of its workers stood still for {seconds:.0f} s", "process")
        # One worker that makes progress is enough: the others only wait for it, or exit by themselves if they hang.
        seconds = min(silent[name] for name in self._workers)
        begun = any(records[name] for name in self._workers)
        if controller.get("trains") and seconds > (self._timeout if begun else self._start_timeout):
            return process_failures.ProcessFailure(f"its workers made no step for {seconds:.0f} s", "process")
        return None


def _latest_epoch(job: Job) -> int:
    """Return the epoch of the run's latest checkpoint; 0 if there is none or the storage does not answer."""
    from ablations.engine.trial.checkpoints import CheckpointFolder

    with suppress(OSError):
        return CheckpointFolder(job.storage, job.folder).latest_epoch()
    return 0


def worker_names(workers: int) -> list[str]:
    """Return the names of the records of this process's workers, by rank."""
    import ray

    return [f"{ray.get_runtime_context().get_actor_id()}-{rank}" for rank in range(workers)]


def controller_name() -> str:
    """Return the name of the record of this process's controller."""
    import ray

    return f"{ray.get_runtime_context().get_actor_id()}-controller"


def _trainer(job: Job, queue: "Queue") -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from ablations.engine.trial.liveness import heartbeat_interval
    from ablations.engine.trial.worker_group import ControllerHeartbeat, QueueReports

    resources = {"CPU": job.cpus_per_worker} | ({"GPU": job.gpus_per_worker} if job.gpus_per_worker else {})
    heartbeat = ControllerHeartbeat(queue, controller_name(), heartbeat_interval(job.hang_timeout))
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": asdict(job), "names": worker_names(job.spec["world_size"])},
        # NCCL refuses two workers on one GPU.
        torch_config=TorchConfig(backend="nccl" if job.gpus_per_worker >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.spec["world_size"],
            use_gpu=job.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=job.placement.upper(),
        ),
        run_config=RunConfig(
            name=f"{job.folder}/ray-train",
            storage_path=job.storage,
            callbacks=[QueueReports(queue), *controller_callbacks(heartbeat)],
            # Train would also retry after a bug or an out-of-memory error. `train_group` retries crashes only.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker of a group. This is Ray Train's training function."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    rank = ray_train.get_context().get_world_rank()
    for report in train_monitored(Job(**config["job"]), str(get_device()), names=config["names"], rank=rank):
        ray_train.report(report)
