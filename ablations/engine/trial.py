"""One trial: a run trained in this process, or by a Ray Train worker group. Both train by `train_epochs`.

Everything a trial has to say goes to Tune as a report: `{"epoch": n, "metrics": {…}, "probes": […], "conditions": {…}}` after each
epoch, with a `"note"` where there is something to say, and at the end `{"outcome": …, "message": …}`.
"""

import gc
import os
import platform
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.engine import paths
from ablations.engine.group_failures import OUTCOMES, explain, is_too_small, raised_by_workers, reason_of
from ablations.engine.storage import check_there

if TYPE_CHECKING:
    from ablations.engine.checkpoints import CheckpointFolder
    from resnet_core import Dataset, RunSpec

Report = Callable[[dict[str, Any]], None]

# Each report waits for the controller's next poll; epochs here can be shorter than Train's default of 2 s.
# The watcher and the metrics exporter are one process and one import of opencensus each, in every trial.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


NO_MEMORY = re.compile(r"out of memory|can(no|')t allocate memory|bad_alloc|STATUS_ALLOC_FAILED", re.IGNORECASE)
"""What there is to read, in errors of any type, where memory is short: of torch's allocators, C++, cuBLAS, cuDNN and Linux."""

END_SECONDS = 60.0
"""How long a stopped training has for what it does when it ends, such as to end processes that read its images."""

AGREEMENT_SECONDS = 0.2
"""How long workers that found different checkpoints wait before they look again."""

REPLACEMENT_SECONDS = 5.0
"""How often a group looks for a node in place of a lost one."""


class OutOfMemory(Exception):  # noqa: N818 - an outcome of a run, not a mistake
    """A run needs more memory than there is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a trial process needs to know of a run: plain values, sent through Tune."""

    fingerprint: str
    spec: Mapping[str, Any]
    """`RunSpec.flat()`, resolved."""
    data_version: str
    folder: str
    """Name of the checkpoint folder in `storage`."""
    storage: str
    cache: str
    """Folder of decoded data, on nodes that do not say themselves where theirs is, by `RESNET_ABLATIONS_HOME`."""
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int = 3
    """How often a run is taken up again after one of its processes died; the loss of a node does not count, see `deaths.Losses`."""
    placement: str = "pack"
    """How Ray lays a group's workers onto nodes: `pack`, on as few as it can, or `spread`, on as many."""
    hang_timeout: float = 600.0
    """Seconds without a step after which a process counts as hung."""
    download: bool = False
    """Whether data that this node lacks may be downloaded."""
    branch: str = ""
    """Name of the folder of the run whose checkpoint of epoch `branch_epoch` this run starts from, if it has none of its own and
    that one is still there. Up to that epoch both train alike, so that the result is the same."""
    branch_epoch: int = 0


def train(config: dict[str, Any]) -> None:
    """Tune's trainable."""
    import ray
    from ray import tune

    job = Job(**config["job"])
    if job.spec["world_size"] == 1:
        device = "cuda" if job.gpus_per_worker else "cpu"
        name = ray.get_runtime_context().get_actor_id()
        report_outcome(tune.report, lambda: train_watched(job, device, tune.report, name=name))
    else:
        report_outcome(tune.report, lambda: train_group(job, tune.report))


def end_training(trainable: Any) -> None:
    """Ends the training of a stopped trial, in its process: its thread waits in a report, with all that it holds."""
    from ray.train._internal.session import get_session

    workers = trainable.config["job"]["spec"]["world_size"]
    if workers > 1:
        from ablations.engine import deaths, worker_group

        worker_group.abort()
        for worker in _worker_names(workers):
            deaths.forget(worker)
    session = get_session()
    session.finish(timeout=END_SECONDS)
    if session.training_thread.is_alive():
        os._exit(1)  # the next trial of this process fails, and says so; Tune would forget it without a word


def train_watched(job: Job, device: str, report: Report, *, name: str, rank: int = 0) -> None:
    """Trains as `train_epochs` does. A process that hangs or whose GPU fails ends itself, and `deaths.explain(name)` knows why."""
    from ablations.engine import deaths
    from ablations.engine.watchdog import Watchdog

    deaths.leave_word(name)
    with Watchdog(job.hang_timeout, lambda: deaths.leave_word(name, hung_seconds=job.hang_timeout)) as watchdog:
        try:
            train_epochs(job, device, report, rank=rank, alive=watchdog.alive)
        except RuntimeError as error:
            if not str(error).startswith("CUDA error"):
                raise
            # Whatever this process asks of its GPU from now on fails, for its next run too. A new one goes on from the last epoch.
            deaths.leave_word(name, gpu_error=str(error).splitlines()[0])
            os._exit(1)
        finally:
            deaths.forget(name)


def train_epochs(job: Job, device: str, report: Report, *, rank: int = 0, alive: Callable[[], object] = lambda: None) -> None:
    """Trains a run from its last checkpoint to its end, in this process, as worker `rank`.

    Epochs before the checkpoint are reported again, since their first report may have been lost; the reader knows them.
    `alive` is called after every step, and after each piece of other work: data loaded, checkpoint read, epoch delivered.

    Raises:
        OutOfMemory: of the device or of this machine; says which, and how large the batch was.
    """
    try:
        _train_epochs(job, device, report, rank, alive)
    except (MemoryError, RuntimeError, OSError) as error:
        want = _want_of_memory(error)
        if not want:
            raise
        images = job.spec["optim.global_batch_size"] // job.spec["world_size"]
        where = _name_of(device)
        detail = str(want).splitlines()[0] if str(want) else type(want).__name__
        raise OutOfMemory(f"a batch of {images} images on {where}: {detail}") from error


def _want_of_memory(error: BaseException | None) -> BaseException | None:
    """The error, or the one that it came up in, that is about memory: a graph whose capture fails only says that it does."""
    while error and not (isinstance(error, MemoryError) or NO_MEMORY.search(str(error))):
        error = error.__context__
    return error


def _train_epochs(job: Job, device: str, report: Report, rank: int, alive: Callable[[], object]) -> None:
    import torch  # here and not above: the job's driver imports this module, and trains nothing

    from resnet_core import fit
    from resnet_core.overrides import from_flat

    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    spec = from_flat(job.spec)
    dataset = _load(job, spec, alive)
    alive()
    checkpoints, restore, damaged = _restored(job, device)
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
    for result in fit(spec, dataset=dataset, device=device, restore=restore, alive=alive):
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
        dataset = load_dataset(spec.data, cache, download=job.download, alive=alive)
        if dataset.version != job.data_version:
            accepted = f"the data that the study was planned with, version {job.data_version}; here is {dataset.version}"
            raise reject("data.root", spec.data.root or spec.data.name, accepted)
    except ConfigError as error:
        raise ConfigError(f"on node {socket.gethostname()}: {error}; every node needs its own copy") from error
    return dataset


def _restored(job: Job, device: str) -> tuple["CheckpointFolder", dict[str, Any] | None, list[str]]:
    """The run's checkpoints, the one from which all of its workers go on, if there is one, and lines on damaged ones.

    Workers may see different ones: a predecessor that was killed saved once more and is gone in a moment, or one worker read what
    the storage mended later. No sign of life is given: those that never agree are ended as hung.
    """
    from ablations.engine.checkpoints import CheckpointFolder

    while True:
        damaged: list[str] = []
        # A new one: one that was used does not look at damaged files again.
        checkpoints = CheckpointFolder(job.storage, job.folder, damaged.append)
        restore = checkpoints.latest() or _branched(job, damaged.append)
        if _agreed(restore, device):
            return checkpoints, restore, damaged
        time.sleep(AGREEMENT_SECONDS)


def _branched(job: Job, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """The checkpoint of another run that this one may start from, if it can be had."""
    from pickle import UnpicklingError

    from ablations.engine.checkpoints import CheckpointFolder

    with suppress(OSError, UnpicklingError):
        if job.branch:
            return CheckpointFolder(job.storage, job.branch, warn).latest(job.branch_epoch)
    return None


def _agreed(restore: Mapping[str, Any] | None, device: str) -> bool:
    """Whether all workers of a group go on from the same epoch."""
    import torch
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return True
    epoch = len(restore["history"]) if restore else 0
    bounds = torch.tensor([epoch, -epoch], device=device)
    distributed.all_reduce(bounds, op=distributed.ReduceOp.MAX)
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


def train_group(job: Job, report: Report) -> None:
    """Trains a run by a Ray Train worker group, one DDP worker per process; starts it again when a worker's process dies.

    Raises:
        Death: processes died more often than is borne; the last of them.
        OSError: the storage is gone. Train would make it anew.
        Exception: what its workers' code raised, if that ended the run, or if nothing else tells why it ended so often.
    """
    os.environ.update(TRAIN_ENVIRONMENT)
    from ray.train import TrainingFailedError

    from ablations.engine.deaths import Losses

    failures, losses = 0, Losses()
    while True:
        check_there(job.storage)
        try:
            _trainer(job).fit()
            return
        except TrainingFailedError as error:
            if is_too_small(error):  # it held the group before: nodes were lost, and others come
                time.sleep(REPLACEMENT_SECONDS)
                continue
            raised = raised_by_workers(error)
            if raised is not None:
                raise raised from None
            death = explain(error, _worker_names(job.spec["world_size"]))
            death = losses.weigh(death, _newest_epoch(job) if death.preempted else 0)
            failures += not death.preempted
            if failures > job.max_failures:
                raise reason_of(death, error) from None
        report({"restart": death.reason})


def _newest_epoch(job: Job) -> int:
    """Of which there is a checkpoint; 0 where the storage does not answer just now."""
    from ablations.engine.checkpoints import CheckpointFolder

    with suppress(OSError):
        return CheckpointFolder(job.storage, job.folder).newest()
    return 0


def _worker_names(workers: int) -> list[str]:
    """Under which the workers of this process's group leave word, by rank."""
    import ray

    return [f"{ray.get_runtime_context().get_actor_id()}-{rank}" for rank in range(workers)]


def _trainer(job: Job) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from ablations.engine.worker_group import Announced

    resources = {"CPU": job.cpus_per_worker} | ({"GPU": job.gpus_per_worker} if job.gpus_per_worker else {})
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": asdict(job), "names": _worker_names(job.spec["world_size"])},
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
            callbacks=[TuneReportCallback(), Announced()],
            # Train would also repeat what a bug or too large a batch ended; `train_group` knows the difference.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a group."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    rank = ray_train.get_context().get_world_rank()
    train_watched(Job(**config["job"]), str(get_device()), ray_train.report, name=config["names"][rank], rank=rank)


def report_outcome(report: Report, work: Callable[[], object]) -> None:
    """Runs `work` and reports how it ended. What ends the process itself is Tune's to see, and to try again."""
    try:
        work()
    except Exception as error:  # whatever it is, it ends this run and no other
        outcome, message = outcome_of(error)
        report({"outcome": outcome, "message": message, "traceback": traceback.format_exc()})
    else:
        report({"outcome": "completed"})
    finally:
        _free_gpu()


def _free_gpu() -> None:
    """Gives back what this process still holds of a GPU: other runs may share it, and this process may wait for its next one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # what a failed run held hangs in cycles
        with suppress(RuntimeError):  # the outcome is told, and the next run will find a GPU that fails
            torch.cuda.empty_cache()


def outcome_of(error: Exception) -> tuple[str, str]:
    """How a run ends that this ended, and one line that says why."""
    from ablations.engine.deaths import Death

    if isinstance(error, Death):
        return error.outcome, error.reason
    return OUTCOMES.get(type(error).__name__, "failed"), f"{type(error).__name__}: {error}".splitlines()[0]
