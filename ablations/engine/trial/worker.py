"""One run trained in this process, alone or as one worker of a group: `train_epochs`.

Everything a trial has to say goes to Tune as a report: `{"epoch": n, "metrics": {…}, "probes": […], "conditions": {…}}` after each
epoch, with a `"note"` where there is something to say, and at the end `{"outcome": …, "message": …}`.
"""

import os
import platform
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.engine.environment import paths

if TYPE_CHECKING:
    from ablations.engine.trial.checkpoints import CheckpointFolder
    from ablations.engine.trial.liveness import ProcessMonitor
    from resnet_core import Dataset, RunSpec

from ablations.engine.trial.job import Job, Report

NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|bad_alloc|STATUS_ALLOC_FAILED", re.IGNORECASE)
"""What there is to read, in errors of any type, where memory is short: of torch's allocators, C++, cuBLAS, cuDNN and Linux."""

POLL_SECONDS = 0.01
AGREEMENT_SECONDS = 0.2
"""How long workers that found different checkpoints wait before they look again."""


class OutOfMemory(Exception):  # noqa: N818 - an outcome of a run, not a mistake
    """A run needs more memory than there is."""


def train_monitored(job: Job, device: str, report: Report, *, names: Sequence[str], rank: int) -> None:
    """Train as `train_epochs` does, as one worker of a group, watched over: a process that hangs ends itself, and
    `process_failures.explain_failure` tells why by its name, one of those of all workers by rank."""
    from ablations.engine.trial.liveness import PeerMonitor, monitored

    with monitored(names[rank], job.hang_timeout) as watch:
        peers = PeerMonitor([name for name in names if name != names[rank]], job.hang_timeout, watch.alive)
        train_or_exit_on_gpu_error(job, device, report, watch, rank=rank, waiting=peers.check_progress)


def train_or_exit_on_gpu_error(
    job: Job, device: str, report: Report, watch: "ProcessMonitor", *, rank: int = 0, waiting: Callable[[], object] = lambda: None
) -> None:
    """Train as `train_epochs` does. A process whose GPU fails ends itself: whatever it asks of its GPU from now on would fail, for
    its next run too. A new one goes on from the last epoch."""
    try:
        train_epochs(job, device, report, rank=rank, alive=watch.alive, waiting=waiting)
    except RuntimeError as error:
        if not str(error).startswith("CUDA error"):
            raise
        watch.end_process(gpu_error=str(error).splitlines()[0])


def train_epochs(
    job: Job,
    device: str,
    report: Report,
    *,
    rank: int = 0,
    alive: Callable[[], object] = lambda: None,
    waiting: Callable[[], object] = lambda: None,
) -> None:
    """Trains a run from its last checkpoint to its end, in this process, as worker `rank`.

    Epochs before the checkpoint are reported again, since their first report may have been lost; the reader knows them.
    `alive` is called after every step, and after each piece of other work: data loaded, checkpoint read, epoch delivered; `waiting`
    many times a second while the other workers of a group have not come as far.

    Raises:
        OutOfMemory: of the device or of this machine; says which, and how large the batch was.
    """
    try:
        _train_epochs(job, device, report, rank, alive, waiting)
    except (MemoryError, RuntimeError, OSError) as error:
        want = _find_memory_error(error)
        if not want:
            raise
        images = job.spec["optim.global_batch_size"] // job.spec["world_size"]
        where = _name_of(device)
        detail = str(want).splitlines()[0] if str(want) else type(want).__name__
        raise OutOfMemory(f"a batch of {images} images on {where}: {detail}") from error


def _find_memory_error(error: BaseException | None) -> BaseException | None:
    """The error, or the one that it came up in, that is about memory: a graph whose capture fails only says that it does."""
    while error and not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
        error = error.__context__
    return error


def _train_epochs(
    job: Job, device: str, report: Report, rank: int, alive: Callable[[], object], waiting: Callable[[], object]
) -> None:
    import torch  # here and not above: the job's driver imports this module, and trains nothing

    from resnet_core import fit
    from resnet_core.overrides import from_flat

    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    spec = from_flat(job.spec)
    dataset = _load(job, spec, alive)
    alive()
    checkpoints, restore, damaged = _restored(job, device, waiting)
    alive()
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": str(torch.get_num_threads())}
    conditions = {"conditions": {"device": _name_of(device), **versions}}
    # With an epoch, since workers of a group report as often as each other. This process's own output nobody sees.
    unsaid = {"note": "; ".join(damaged)} if damaged else {}

    def tell(epoch: int, metrics: Mapping[str, float], probes: Sequence[Mapping[str, Any]]) -> None:
        report({"epoch": epoch, "metrics": _with_gpu_hours(metrics, job), "probes": probes, **conditions, **unsaid})
        unsaid.clear()
        alive()

    history = restore["history"] if restore else []
    for epoch, metrics in enumerate(history, 1):
        tell(epoch, metrics, restore["probes"] if restore and epoch == len(history) else [])
    if rank == 0 and len(history) < spec.optim.total_epochs(len(dataset.train.labels)):
        checkpoints.check_writable()
    for result in fit(spec, dataset=dataset, device=device, restore=restore, heartbeat=alive):
        if rank == 0:
            checkpoints.save(result.checkpoint(), result.epoch)
        tell(result.epoch, result.metrics, result.state.probes if result.last else [])


def _load(job: Job, spec: "RunSpec", alive: Callable[[], object]) -> "Dataset":
    """The run's data, as this node has them.

    Raises:
        ConfigError: it has none, or others than those the study was planned with; says which node.
    """
    from resnet_core import ConfigError, load_dataset
    from resnet_core.fields import reject

    cache = paths.data_cache() if os.environ.get("RESNET_ABLATIONS_HOME") else Path(job.cache)
    try:
        dataset = load_dataset(spec.data, cache, download=job.download, heartbeat=alive)
        if dataset.version != job.data_version:
            accepted = f"the data that the study was planned with, version {job.data_version}; here is {dataset.version}"
            raise reject("data.root", spec.data.root or spec.data.name, accepted)
    except ConfigError as error:
        raise ConfigError(f"on node {socket.gethostname()}: {error}; every node needs its own copy") from error
    return dataset


def _restored(
    job: Job, device: str, waiting: Callable[[], object] = lambda: None
) -> tuple["CheckpointFolder", dict[str, Any] | None, list[str]]:
    """The run's checkpoints, the one from which all of its workers go on, if there is one, and lines on damaged ones.

    Workers may see different ones: a predecessor that was killed saved once more and is gone in a moment, or one worker read what
    the storage mended later. No sign of life is given: those that never agree are ended as hung.
    """
    from ablations.engine.trial.checkpoints import CheckpointFolder

    while True:
        damaged: list[str] = []
        # A new one: one that was used does not look at damaged files again.
        checkpoints = CheckpointFolder(job.storage, job.folder, damaged.append)
        restore = checkpoints.latest() or _branched(job, damaged.append)
        if _agreed(restore, device, waiting):
            return checkpoints, restore, damaged
        time.sleep(AGREEMENT_SECONDS)


def _branched(job: Job, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """The checkpoint of another run that this one may start from, if it can be had."""
    from pickle import UnpicklingError

    from ablations.engine.trial.checkpoints import CheckpointFolder

    with suppress(OSError, UnpicklingError):
        if job.branch:
            return CheckpointFolder(job.storage, job.branch, warn).latest(job.branch_epoch)
    return None


def _agreed(restore: Mapping[str, Any] | None, device: str, waiting: Callable[[], object]) -> bool:
    """Return whether all workers of a group go on from the same epoch. Others may still prepare data that this one has."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    epoch = len(restore["history"]) if restore else 0
    bounds = torch.tensor([epoch, -epoch], device=device)
    reduced = distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX, async_op=True)
    while not reduced.is_completed():
        waiting()
        time.sleep(POLL_SECONDS)
    reduced.wait()
    return bool((bounds[0] == -bounds[1]).item())


def _name_of(device: str) -> str:
    """The model of a GPU or a processor: the same seed gives other numbers on another one."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def _with_gpu_hours(metrics: Mapping[str, float], job: Job) -> dict[str, float]:
    """The last epoch's metrics carry the GPU-hours of the whole run; a share of a GPU counts as that share."""
    gpus = job.gpus_per_worker * job.spec["world_size"]
    return {**metrics, **({"gpu_hours": metrics["train_seconds"] * gpus / 3600} if "train_seconds" in metrics else {})}
