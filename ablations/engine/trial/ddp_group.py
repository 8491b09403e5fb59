"""A run trained by a Ray Train worker group: one DDP worker per process, led by the process of its trial."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from threading import Thread
from typing import TYPE_CHECKING, Any

from ablations.engine.environment.storage import check_still_exists
from ablations.engine.trial.group_failures import explain_group_failure, final_error, is_resource_shortage, worker_exception
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.worker import train_monitored
from resnet_core.fields import ConfigError

if TYPE_CHECKING:
    from ray.util.queue import Queue

    from ablations.engine.trial.process_failures import ProcessFailure

# Each report waits for the controller's next poll; epochs here can be shorter than Train's default of 2 s.
# The watcher and the metrics exporter are one process and one import of opencensus each, in every trial.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

REPLACEMENT_INTERVAL_SECONDS = 5.0
"""How often a group looks for a node in place of a lost one."""

POLL_SECONDS = 0.2
"""How long the leader waits for a report before it looks whether the group has ended."""

GRACE_SECONDS = 15.0
"""How much longer than the hang timeout a group may be silent. Workers that hang end themselves, and say more about it."""


def train_group(job: Job, report: Report, alive: Callable[[], object]) -> None:
    """Train a run by a worker group, in the process that leads it; start another group when one of its processes dies or hangs.

    Args:
        job: the run.
        report: is called in this thread.
        alive: is called several times a second while the leader gets on.

    Raises:
        Death: processes died more often than is borne; the last of them.
        ConfigError: the cluster was started with an older Ray Train.
        OSError: the storage is gone. Train would make it anew.
        Exception: what its workers' code raised, if that ended the run, or if nothing else tells why it ended so often.
    """
    os.environ.update(TRAIN_ENVIRONMENT)
    from ray import train as ray_train
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    if not hasattr(ray_train, "UserCallback"):  # decided by the environment of the node's processes
        raise ConfigError("RAY_TRAIN_V2_ENABLED=0: accepted: 1, or unset, in the environment in which `ray start` runs")
    from ablations.engine.trial.process_failures import NodeLossBudget, ProcessFailure

    failures, losses = 0, NodeLossBudget()
    while True:
        check_still_exists(job.storage)
        alive()
        try:
            _train_once(job, report, alive)
            return
        except ProcessFailure as hung:
            death, error = hung, hung
        except (TrainingFailedError, RayActorError) as ended:
            if is_resource_shortage(ended):  # it held the group before: nodes were lost, and others come
                time.sleep(REPLACEMENT_INTERVAL_SECONDS)
                continue
            raised = worker_exception(ended)
            if raised is not None:
                raise raised from None
            death, error = explain_group_failure(ended, worker_names(job.spec["world_size"])), ended
        death = losses.charge(death, _newest_epoch(job) if death.preempted else 0)
        failures += not death.preempted
        if failures > job.max_failures:
            raise final_error(death, error) from None
        report({"restart": death.reason})


def _train_once(job: Job, report: Report, alive: Callable[[], object]) -> None:
    """Start a group and report what its workers report, until it ends.

    Raises:
        TrainingFailedError: Train ended the group.
        RayActorError: the group's controller or queue died.
        Death: the group hung, and was ended.
    """
    from ray.train import TrainingFailedError

    from ablations.engine.trial import process_failures, worker_group

    worker_group.propagate_cluster_address()
    queue = worker_group.make_queue()
    training = _in_thread(_trainer(job, queue).fit)
    silence = _GroupStallDetector(job)
    try:
        # A group that has ended puts no more into the queue: then one last look is enough.
        while not training.done() or not queue.empty():
            alive()
            if (item := _next(queue)) is not None and not worker_group.store_controller(item):
                report(item)
            if (hung := silence.verdict()) is not None:
                raise hung
        training.result()
    except TrainingFailedError:
        raise  # the group has ended
    except process_failures.ProcessFailure:
        worker_group.abort_group(timeout=0)
        for name in worker_names(job.spec["world_size"]):
            process_failures.delete_record(name)
        raise
    except Exception:
        worker_group.abort_group()
        raise
    finally:
        queue.shutdown(force=True)  # an error's traceback would keep its process
        worker_group.release_controller()
        process_failures.delete_record(controller_name())


def _in_thread(work: Callable[[], object]) -> Future[object]:
    """Run this in a thread that ends with the process, whatever it waits for."""
    future: Future[object] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="group", daemon=True).start()
    return future


def _next(queue: "Queue") -> dict[str, Any] | None:
    from ray.util.queue import Empty

    try:
        item: dict[str, Any] = queue.get(timeout=POLL_SECONDS)
    except Empty:
        return None
    return item


class _GroupStallDetector:
    """Finds out by the heartbeats of a group's processes that the group hangs."""

    def __init__(self, job: Job) -> None:
        from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval

        self._silence, self._interval = StallDetector(), heartbeat_interval(job.hang_timeout)
        self._workers = worker_names(job.spec["world_size"])
        self._controller = controller_name()
        self._timeout = job.hang_timeout + GRACE_SECONDS
        self._start_timeout = max(self._timeout, START_TIMEOUT_SECONDS)

    def verdict(self) -> "ProcessFailure | None":
        """Return how the group hangs; None if it does not, or if it is not time to look."""
        from ray.exceptions import RpcError

        from ablations.engine.trial import process_failures

        if not self._silence.should_poll(self._interval):
            return None
        try:
            records = {name: process_failures.read_record(name) for name in (*self._workers, self._controller)}
        except RpcError:
            return None  # a head that is busy answers the next time
        # A record that has just been made is a sign of life, before its process has made a step.
        silent = self._silence.update({name: record.get("steps", 0) if record else None for name, record in records.items()})
        controller = records[self._controller]
        # While it starts a group, its loop goes round once a minute.
        if silent[self._controller] > (self._timeout if controller.get("trains") else self._start_timeout):
            return process_failures.ProcessFailure(
                f"the controller of its workers stood still for {silent[self._controller]:.0f} s", "process"
            )
        # One worker that gets on is enough: the others cannot be far, and end themselves where they hang.
        quiet = min(silent[name] for name in self._workers)
        begun = any(records[name] for name in self._workers)
        if controller.get("trains") and quiet > (self._timeout if begun else self._start_timeout):
            return process_failures.ProcessFailure(f"its workers made no step for {quiet:.0f} s", "process")
        return None


def _newest_epoch(job: Job) -> int:
    """Of which there is a checkpoint; 0 where the storage does not answer just now."""
    from ablations.engine.trial.checkpoints import CheckpointFolder

    with suppress(OSError):
        return CheckpointFolder(job.storage, job.folder).latest_epoch()
    return 0


def worker_names(workers: int) -> list[str]:
    """Return the names of the records of the workers of this process's group, by rank."""
    import ray

    return [f"{ray.get_runtime_context().get_actor_id()}-{rank}" for rank in range(workers)]


def controller_name() -> str:
    """Return the name of the record of the controller of this process's group."""
    import ray

    return f"{ray.get_runtime_context().get_actor_id()}-controller"


def _trainer(job: Job, queue: "Queue") -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from ablations.engine.trial.liveness import heartbeat_interval
    from ablations.engine.trial.worker_group import QueueReports, ShareControllerHandle

    resources = {"CPU": job.cpus_per_worker} | ({"GPU": job.gpus_per_worker} if job.gpus_per_worker else {})
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
            callbacks=[QueueReports(queue), ShareControllerHandle(queue, controller_name(), heartbeat_interval(job.hang_timeout))],
            # Train would also repeat what a bug or too large a batch ended; `train_group` knows the difference.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a group."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    rank = ray_train.get_context().get_world_rank()
    train_monitored(Job(**config["job"]), str(get_device()), ray_train.report, names=config["names"], rank=rank)
