"""One worker of a group: a process that trains its part of one run after another, as the leader of the group asks."""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.outcomes import with_outcome
from ablations.engine.trial.worker import train_monitored

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Timeout of a collective operation. The watchdog of a worker ends a hung one earlier, unless its own timeout is longer."""


@dataclass(frozen=True)
class WorkerProcess:
    """The process of a worker."""

    node: str
    pid: int
    created: float

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

    def __init__(self, rank: int, names: list[str], backend: str) -> None:
        """
        Args:
            rank: rank of this worker.
            names: names of the process records of all workers, by rank.
            backend: backend of torch.distributed, `gloo` or `nccl`.
        """
        import torch.distributed  # noqa: F401 - takes seconds, which pass in all workers at the same time

        self._rank, self._names, self._backend = rank, names, backend
        self._reports: Generator[Report, None, None] | None = None

    def process(self) -> "WorkerProcess":
        """Return where this worker runs."""
        own = psutil.Process()
        return WorkerProcess(ray.get_runtime_context().get_node_id(), own.pid, own.create_time())

    def open_store(self) -> tuple[str, int]:
        """Open the store at which the workers meet, on a free port; return its address."""
        self._store = self._tcp_store("0.0.0.0", 0)  # noqa: S104 - as torch's own stores
        return ray.util.get_node_ip_address(), self._store.port

    def connect(self, host: str, port: int) -> None:
        """Form a process group with the other workers. It replaces an earlier one, whose collectives may be out of step."""
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
        if self._rank:
            self._store = self._tcp_store(host, port)
        distributed.init_process_group(
            self._backend, store=self._store, rank=self._rank, world_size=len(self._names), timeout=COLLECTIVE_TIMEOUT
        )

    def _tcp_store(self, host: str, port: int) -> Any:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its list of names

        return TCPStore(host, port, world_size=len(self._names), is_master=not self._rank, wait_for_workers=False)

    def begin(self, job: Job) -> None:
        """Prepare to train a run."""
        device = "cuda" if job.gpus_per_worker else "cpu"
        self._reports = with_outcome(train_monitored(job, device, names=self._names, rank=self._rank))

    def advance(self) -> Report:
        """Train until this worker's next report, and return it."""
        assert self._reports
        return next(self._reports)

    def end(self) -> None:
        """End the run, which may have been stopped early."""
        if self._reports:
            self._reports.close()
