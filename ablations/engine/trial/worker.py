"""One run trained in this process, alone or as one worker of a group: `train_epochs`.

A training is an iterator of reports, which Tune sends to the driver: after each epoch
`{"epoch": n, "metrics": {…}, "probes": […], "conditions": {…}}`, with a `"note"` if a checkpoint was damaged and `"predictions"`
(Base64) after the last epoch, and at the end `{"outcome": …, "message": …}`. It goes on only when it is asked for the next report:
a run that is stopped early rests at the end of an epoch, and closing the iterator ends it.
"""

import base64
import os
import pickle
import platform
import re
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.engine.environment import paths

if TYPE_CHECKING:
    from ablations.engine.task.predictions import Predictions
    from ablations.engine.task.workload import Workload
    from ablations.engine.trial.checkpoints import CheckpointFolder
    from ablations.engine.trial.liveness import ProcessMonitor

from ablations.engine.trial.job import Job, Report, process_name

NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|bad_alloc|STATUS_ALLOC_FAILED", re.IGNORECASE)
"""Messages of out-of-memory errors of any type: from torch's allocators, C++, cuBLAS, cuDNN and Linux."""

POLL_INTERVAL_SECONDS = 0.01
"""Time between two checks whether the other workers have reached the same point, in seconds."""
AGREEMENT_INTERVAL_SECONDS = 0.2
"""Pause before workers that found different checkpoints search again, in seconds."""


class OutOfMemory(Exception):  # noqa: N818 - an outcome of a run, not a mistake
    """A run needs more memory than its device or this machine has."""


def train_monitored(job: Job, device: str, *, names: Sequence[str], rank: int) -> Generator[Report, None, None]:
    """Train as one worker of a group, as `train_epochs` does, in a monitored process.

    Args:
        names: names of the records of all workers, by rank. `process_failures.explain_failure` reads them after a crash.
        rank: rank of this worker.
    """
    from ablations.engine.trial.liveness import PeerMonitor, monitored

    with monitored(names[rank], job.hang_timeout) as monitor:
        peers = PeerMonitor([name for name in names if name != names[rank]], job.hang_timeout, monitor.alive)
        for report in train_or_exit_on_gpu_error(job, device, monitor, rank=rank, on_peer_wait=peers.check_progress):
            with monitor.waiting():
                yield report


def train_or_exit_on_gpu_error(
    job: Job, device: str, monitor: "ProcessMonitor", *, rank: int = 0, on_peer_wait: Callable[[], object] = lambda: None
) -> Generator[Report, None, None]:
    """Train as `train_epochs` does, and exit the process if its GPU fails.

    After a CUDA error, every later use of the GPU by the same process fails, for its next run too. A new process continues from the
    last epoch.
    """
    try:
        yield from train_epochs(job, device, rank=rank, alive=monitor.alive, on_peer_wait=on_peer_wait)
    except RuntimeError as error:
        if not str(error).startswith("CUDA error"):
            raise
        monitor.end_process(gpu_error=str(error).splitlines()[0])


def train_epochs(
    job: Job,
    device: str,
    *,
    rank: int = 0,
    alive: Callable[[], object] = lambda: None,
    on_peer_wait: Callable[[], object] = lambda: None,
) -> Generator[Report, None, None]:
    """Train a run from its last checkpoint to its end, in this process. Yield a report after each epoch.

    Epochs before the checkpoint are reported again, since their first report may have been lost. The driver ignores duplicates.

    Args:
        rank: rank of this worker in its group.
        alive: called after every step and after each piece of other work: data loaded, checkpoint read, epoch delivered.
        on_peer_wait: called many times a second while this worker waits for the others of its group.

    Raises:
        OutOfMemory: the device or this machine has too little memory. The message names the device and the batch size.
    """
    try:
        yield from _train_epochs(job, device, rank, alive, on_peer_wait)
    except (MemoryError, RuntimeError, OSError) as error:
        shortage = _find_memory_error(error)
        if not shortage:
            raise
        workload, where = load_workload(job), _device_model(device)
        what = workload.describe_step(workload.from_flat(job.spec))
        detail = str(shortage).splitlines()[0] if str(shortage) else type(shortage).__name__
        raise OutOfMemory(f"{what} on {where}: {detail}") from error


def _find_memory_error(error: BaseException | None) -> BaseException | None:
    """Return the out-of-memory error among an error and the errors in its context; None if there is none.

    For example, a CUDA graph capture that runs out of memory fails with an error that names no cause.
    """
    while error and not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
        error = error.__context__
    return error


def _train_epochs(
    job: Job, device: str, rank: int, alive: Callable[[], object], on_peer_wait: Callable[[], object]
) -> Generator[Report, None, None]:
    import torch  # not at the top: the driver imports this module too, but trains nothing

    from ablations.engine.task.definition import Context
    from ablations.engine.trial.system_metrics import SystemMeter

    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    workload = load_workload(job)
    spec = workload.from_flat(job.spec)
    cache = _cache(job)
    data = _load(job, workload, spec, cache, alive)
    alive()
    checkpoints, restore, damaged = _restore(job, device, on_peer_wait)
    alive()
    versions = {"torch": str(torch.__version__), "python": platform.python_version(), "threads": str(torch.get_num_threads())}
    conditions = {"conditions": {"device": _device_model(device), **versions, **process_name()}}
    # The note goes with an epoch, since all workers of a group must send the same number of reports. Output of this process is
    # not shown to users.
    note = {"note": "; ".join(damaged)} if damaged else {}

    def epoch_report(
        epoch: int, metrics: Mapping[str, float], probes: Sequence[Mapping[str, Any]], predictions: "Predictions | None"
    ) -> Report:
        kept = predictions if job.predictions and rank == 0 else None
        final = {"predictions": base64.b64encode(kept.to_bytes()).decode()} if kept else {}
        report = {"epoch": epoch, "metrics": _with_gpu_hours(metrics, job), "probes": probes, **final, **conditions, **note}
        note.clear()
        return report

    history = workload.history(restore) if restore else []
    for epoch, metrics in enumerate(history, 1):
        latest = restore if epoch == len(history) else None
        probes, predictions = (workload.probes(latest), workload.predictions(latest, data)) if latest else ([], None)
        yield epoch_report(epoch, metrics, probes, predictions)
        alive()
    if rank == 0 and len(history) < (workload.total_epochs(spec, data) or len(history) + 1):
        checkpoints.check_writable()
    meter, trained_before = SystemMeter(job, device), sum(each.get("epoch_seconds", 0.0) for each in history)

    def stepped() -> None:
        meter.sample()
        alive()

    context = Context(
        seed=spec.seed, device=device, rank=rank, world_size=spec.world_size, restore=restore, cache=cache, alive=stepped
    )
    for epoch, result in enumerate(workload.train(spec, data, context), len(history) + 1):
        if rank == 0 and result.checkpoint is not None:
            checkpoints.save(dict(result.checkpoint() if callable(result.checkpoint) else result.checkpoint), epoch)
        values = {name: float(value) for name, value in result.metrics.items()}
        values = {**meter.metrics(values, trained_before), **values}
        yield epoch_report(epoch, values, getattr(result, "probes", ()), getattr(result, "predictions", None))
        alive()


def load_workload(job: Job) -> "Workload":
    """Return the workload of a job.

    Raises:
        ConfigError: this node lacks a package that the user's code imports.
    """
    from ablations.engine.task.image_classification import IMAGE_CLASSIFICATION
    from resnet_core.fields import ConfigError

    if not job.workload:
        return IMAGE_CLASSIFICATION
    try:
        workload: Workload = pickle.loads(job.workload)  # noqa: S301 - this study's driver has made it
    except (ImportError, AttributeError) as error:
        where = f"on node {socket.gethostname()}: the study's code cannot be loaded"
        raise ConfigError(f"{where}: {error}; accepted: packages that are installed on every node") from error
    return workload


def _cache(job: Job) -> Path:
    return paths.data_cache() if os.environ.get("RESNET_ABLATIONS_HOME") else Path(job.cache)


def _load(job: Job, workload: "Workload", spec: Any, cache: Path, alive: Callable[[], object]) -> Any:
    """Load the run's data on this node.

    Raises:
        ConfigError: the node lacks the data, or has another version than the study was planned with. The message names the node.
    """
    from resnet_core.fields import ConfigError, reject

    try:
        data = workload.load_data(spec, cache, download=job.download, alive=alive)
        if data.version != job.data_version:
            accepted = f"the data that the study was planned with, version {job.data_version}; here is {data.version}"
            raise reject("data_version" if workload.task_name else "data.root", workload.data_source(spec, data), accepted)
    except ConfigError as error:
        raise ConfigError(f"on node {socket.gethostname()}: {error}; every node needs its own copy") from error
    return data


def _restore(
    job: Job, device: str, on_peer_wait: Callable[[], object] = lambda: None
) -> tuple["CheckpointFolder", dict[str, Any] | None, list[str]]:
    """Return the run's checkpoint folder, the checkpoint from which all its workers continue, and warnings on damaged files.

    Workers may at first find different checkpoints: a killed predecessor may still save one, or the storage may have repaired a
    file between two reads. This loop sends no heartbeat, so the watchdog ends workers that never agree.
    """
    from ablations.engine.trial.checkpoints import CheckpointFolder

    while True:
        damaged: list[str] = []
        # A new object each time, since an object does not read a file again that it found damaged.
        checkpoints = CheckpointFolder(job.storage, job.folder, damaged.append)
        restore = checkpoints.latest() or _branch_checkpoint(job, damaged.append)
        if _all_agree(restore, device, on_peer_wait):
            return checkpoints, restore, damaged
        time.sleep(AGREEMENT_INTERVAL_SECONDS)


def _branch_checkpoint(job: Job, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """Return the checkpoint of another run that this one may start from; None if there is none or it cannot be read."""
    from pickle import UnpicklingError

    from ablations.engine.trial.checkpoints import CheckpointFolder

    with suppress(OSError, UnpicklingError):
        if job.branch:
            return CheckpointFolder(job.storage, job.branch, warn).latest(job.branch_epoch)
    return None


def _all_agree(restore: Mapping[str, Any] | None, device: str, on_peer_wait: Callable[[], object]) -> bool:
    """Wait for all workers of the group, and return whether they continue from the same epoch."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    epoch = len(restore["history"]) if restore else 0
    bounds = torch.tensor([epoch, -epoch], device=device)
    reduced = distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX, async_op=True)
    while not reduced.is_completed():
        on_peer_wait()
        time.sleep(POLL_INTERVAL_SECONDS)
    reduced.wait()
    return bool((bounds[0] == -bounds[1]).item())


def _device_model(device: str) -> str:
    """Return the model name of the GPU or processor. The same seed gives different numbers on different models."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def _with_gpu_hours(metrics: Mapping[str, float], job: Job) -> dict[str, float]:
    """Add the GPU-hours of the whole run to the metrics of its last epoch. A fraction of a GPU counts as that fraction."""
    gpus = job.gpus_per_worker * job.spec["world_size"]
    return {**metrics, **({"gpu_hours": metrics["train_seconds"] * gpus / 3600} if "train_seconds" in metrics else {})}
