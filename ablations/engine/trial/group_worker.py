"""One worker of a group: a process that trains its part of one run after another, as the leader of the group asks.

Ray Train drives it in its local mode, in which `TorchTrainer` trains in processes that something else has started, `torchrun` for
example. Here that is the leader of the group. Ray Train selects the device and forms the process group: NCCL on GPUs, gloo on CPUs.
"""

import os
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.outcomes import with_outcome
from ablations.engine.trial.worker import train_monitored

Result = TypeVar("Result")


@dataclass(frozen=True)
class Place:
    """The node and the address of a worker."""

    node: str
    """Ray's ID of the node."""
    gpus: tuple[str, ...]
    """The worker's GPUs, as `CUDA_VISIBLE_DEVICES` names them."""
    host: str
    """Address of the node."""
    port: int
    """A free port of the node."""


def torchrun_environment(places: Sequence[Place], rank: int) -> dict[str, str]:
    """Return the environment variables that `torchrun` sets for a worker, and the GPUs that it sees.

    All workers of a node see the GPUs of all of them, since NCCL copies directly only between GPUs that both processes see.

    Args:
        places: places of the workers, by rank.
        rank: rank of the worker.
    """
    peers = [other for other, place in enumerate(places) if place.node == places[rank].node]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(places)),
        "LOCAL_RANK": str(peers.index(rank)),
        "LOCAL_WORLD_SIZE": str(len(peers)),
        "MASTER_ADDR": places[0].host,
        "MASTER_PORT": str(places[0].port),
        "CUDA_VISIBLE_DEVICES": ",".join(gpu for peer in peers for gpu in places[peer].gpus),
    }


@dataclass(frozen=True)
class WorkerProcess:
    """The process of a worker."""

    node: str
    """Ray's ID of the node."""
    pid: int
    created: float
    """Time at which the process started, in seconds since 1970. Another process may get the same `pid`."""

    def kill(self) -> None:
        """Kill the process, from any node. Ray itself does not kill an actor whose process has been stopped (SIGSTOP)."""
        if self.node == ray.get_runtime_context().get_node_id():
            _kill(self.pid, self.created)
        else:
            there = NodeAffinitySchedulingStrategy(self.node, soft=False)
            ray.remote(num_cpus=0)(_kill).options(scheduling_strategy=there).remote(self.pid, self.created)


def _kill(pid: int, created: float) -> None:
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.create_time() == created:
            process.kill()


class GroupWorker:
    """A Ray actor. Its leader calls one method at a time, in the same order in all workers of the group."""

    def __init__(self, rank: int, names: list[str]) -> None:
        """
        Args:
            rank: rank of this worker.
            names: names of the process records of all workers, by rank.
        """
        os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # the environment of the node's Ray may select version 1
        import ray.train.torch  # noqa: F401 - takes seconds, which pass in all workers at the same time

        self._rank, self._names = rank, names
        self._trainer: Thread | None = None
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        """Calls for the thread in which Ray Train runs the training function; None ends it."""
        self._reports: Generator[Report, None, None] | None = None

    def process(self) -> WorkerProcess:
        """Return the process of this worker."""
        own = psutil.Process()
        return WorkerProcess(ray.get_runtime_context().get_node_id(), own.pid, own.create_time())

    def place(self) -> Place:
        """Return where this worker runs."""
        context = ray.get_runtime_context()
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        gpus = tuple(context.get_accelerator_ids()["GPU"])
        return Place(context.get_node_id(), gpus, ray.util.get_node_ip_address(), port)

    def connect(self, places: Sequence[Place]) -> None:
        """Form a process group with the other workers. It replaces an earlier one, whose collectives may be out of step."""
        from ray.train.torch import get_device

        if self._trainer:
            self._work.put(None)
            self._trainer.join()
        os.environ.update(torchrun_environment(places, self._rank))
        self._work, connected = SimpleQueue(), Future[Any]()
        self._work.put((connected, get_device))
        self._trainer = Thread(target=self._fit, args=[connected], name="trainer", daemon=True)
        self._trainer.start()
        self._device = str(connected.result())

    def _fit(self, connected: "Future[Any]") -> None:
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        try:
            TorchTrainer(self._train, scaling_config=ScalingConfig(num_workers=0)).fit()
        except Exception as error:
            if not connected.done():
                connected.set_exception(error)

    def _train(self) -> None:
        """Do what the leader asks. This is Ray Train's training function."""
        while (asked := self._work.get()) is not None:
            future, work = asked
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

    def _in_training(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()
        self._work.put((future, work))
        return future.result()

    def begin(self, job: Job) -> None:
        """Prepare to train a run."""
        self._reports = with_outcome(train_monitored(job, self._device, names=self._names, rank=self._rank))

    def advance(self) -> Report:
        """Train until this worker's next report, and return it."""
        assert self._reports
        reports = self._reports
        return self._in_training(lambda: next(reports))

    def end(self) -> None:
        """End the run, which may have been stopped early."""
        if self._reports:
            self._in_training(self._reports.close)
