"""One trial: a run trained in this process, or by a Ray Train worker group. Both train by `train_epochs`.

Everything a trial has to say goes to Tune as a report: `{"epoch": n, "metrics": {…}, "probes": […]}` after each epoch, and at the
end `{"outcome": …, "message": …}`.
"""

import os
import platform
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Report = Callable[[dict[str, Any]], None]

# Each report waits for the controller's next poll; epochs here can be shorter than Train's default of 2 s.
# The watcher and the metrics exporter are one process and one import of opencensus each, in every trial.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


OUTCOMES = {"Diverged": "diverged", "OutOfMemoryError": "oom", "MemoryError": "oom"}
"""How runs end by the name of what they raise: torch's and Ray's own errors, known here without importing torch."""


LOST_PEER = re.compile("gloo|NCCL|Connection (closed|reset)", re.IGNORECASE)
"""What torch.distributed says in the workers that are left when one has died."""


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
    cpus_per_worker: float
    gpus_per_worker: float
    max_failures: int = 3
    """How often a worker group is started again after it died."""
    download: bool = False
    """Whether data that this node lacks may be downloaded."""


def train(config: dict[str, Any]) -> None:
    """Tune's trainable."""
    from ray import tune

    job = Job(**config["job"])
    if job.spec["world_size"] == 1:
        device = "cuda" if job.gpus_per_worker else "cpu"
        report_outcome(tune.report, lambda: train_epochs(job, device, tune.report))
    else:
        report_outcome(tune.report, lambda: train_group(job, tune.report))


def train_epochs(job: Job, device: str, report: Report, *, rank: int = 0) -> None:
    """Trains a run from its last checkpoint to its end, in this process, as worker `rank`.

    Epochs before the checkpoint are reported again, since their first report may have been lost; the reader knows them.
    """
    import torch  # here and not above: the job's driver imports this module, and trains nothing

    from ablations.engine.checkpoints import CheckpointFolder
    from resnet_core import fit, load_dataset
    from resnet_core.fields import reject
    from resnet_core.overrides import from_flat

    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    spec = from_flat(job.spec)
    dataset = load_dataset(spec.data, Path(job.cache), download=job.download)
    if dataset.version != job.data_version:
        accepted = f"the data that the study was planned with, version {job.data_version}; here is {dataset.version}"
        raise reject("data.root", spec.data.root or spec.data.name, accepted)
    checkpoints = CheckpointFolder(job.storage, job.folder)
    restore = checkpoints.latest()
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    history = restore["history"] if restore else []
    for epoch, metrics in enumerate(history, 1):
        probes = restore["probes"] if restore and epoch == len(history) else []
        report({"epoch": epoch, "metrics": _with_gpu_hours(metrics, job), "probes": probes, "device": where})
    for result in fit(spec, dataset=dataset, device=device, restore=restore):
        if rank == 0:
            checkpoints.save(result.checkpoint(), result.epoch)
        probes = result.state.probes if result.last else []
        report({"epoch": result.epoch, "metrics": _with_gpu_hours(result.metrics, job), "probes": probes, "device": where})


def _with_gpu_hours(metrics: Mapping[str, float], job: Job) -> dict[str, float]:
    """The last epoch's metrics carry the GPU-hours of the whole run; a share of a GPU counts as that share."""
    gpus = job.gpus_per_worker * job.spec["world_size"]
    return {**metrics, **({"gpu_hours": metrics["train_seconds"] * gpus / 3600} if "train_seconds" in metrics else {})}


def train_group(job: Job, report: Report) -> None:
    """Trains a run by a Ray Train worker group, one DDP worker per process; starts it again when a worker's process dies."""
    os.environ.update(TRAIN_ENVIRONMENT)
    from ray.train import WorkerGroupError

    for attempt in range(job.max_failures + 1):
        try:
            _trainer(job).fit()
            return
        except WorkerGroupError as error:
            raised = _raised_by_workers(error)
            if raised is not None:
                raise raised from None
            if attempt == job.max_failures:
                raise
            report({"restart": str(error).splitlines()[-1]})


def _trainer(job: Job) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    resources = {"CPU": job.cpus_per_worker} | ({"GPU": job.gpus_per_worker} if job.gpus_per_worker else {})
    return TorchTrainer(
        train_worker,
        train_loop_config=asdict(job),
        # NCCL refuses two workers on one GPU.
        torch_config=TorchConfig(backend="nccl" if job.gpus_per_worker >= 1 else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.spec["world_size"], use_gpu=job.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=f"{job.folder}/ray-train",
            storage_path=job.storage,
            callbacks=[TuneReportCallback()],
            # Train would also repeat what a bug or too large a batch ended; `train_group` knows the difference.
            failure_config=FailureConfig(max_failures=0),
        ),
    )


def _raised_by_workers(error: Any) -> BaseException | None:
    """What a worker's own code raised, and what ends the run therefore; None if it began with the death of a process."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    failures = error.worker_failures.values()
    wrapped = [failure for failure in failures if isinstance(failure, UserExceptionWithTraceback)]
    for failure in wrapped:
        failure._base_exc.add_note(failure._traceback_str)
    raised = sorted((failure._base_exc for failure in wrapped), key=lambda e: type(e).__name__ not in OUTCOMES)
    if not raised or type(raised[0]).__name__ in OUTCOMES:
        return next(iter(raised), None)
    # The others lose their connection when one dies: that is no error of theirs.
    bereaved = len(wrapped) < len(failures) or all(LOST_PEER.search(str(e)) for e in raised)
    return None if bereaved else next(e for e in raised if not LOST_PEER.search(str(e)))


def train_worker(config: dict[str, Any]) -> None:
    """One worker of a group."""
    from ray import train as ray_train
    from ray.train.torch import get_device

    train_epochs(Job(**config), str(get_device()), ray_train.report, rank=ray_train.get_context().get_world_rank())


def report_outcome(report: Report, work: Callable[[], object]) -> None:
    """Runs `work` and reports how it ended. What ends the process itself is Tune's to see, and to try again."""
    try:
        work()
    except Exception as error:  # whatever it is, it ends this run and no other
        outcome = OUTCOMES.get(type(error).__name__, "failed")
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        report({"outcome": outcome, "message": message, "traceback": traceback.format_exc()})
    else:
        report({"outcome": "completed"})
