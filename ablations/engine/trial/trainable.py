"""The function that Ray Tune runs in the process of a trial, and how it ends."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ablations.engine.scheduling.ray_internals.tune import end_training_thread
from ablations.engine.trial.ddp_group import controller_name, train_group, worker_names
from ablations.engine.trial.group_failures import OUTCOMES
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.worker import train_or_exit_on_gpu_error

END_TIMEOUT_SECONDS = 60.0
"""Time for a stopped training to clean up, in seconds. For example, it ends the processes that read its images."""


def train(config: dict[str, Any], workload: bytes = b"") -> None:
    """Train one run to its end. This is Tune's trainable. `workload` is that of the study, as in `Job.workload`."""
    import ray
    from ray import tune

    from ablations.engine.trial.liveness import monitored

    job = Job(**{**config["job"], "workload": workload})
    with monitored(ray.get_runtime_context().get_actor_id(), job.hang_timeout) as monitor:

        def report(content: dict[str, Any]) -> None:
            with monitor.waiting():
                tune.report(content)

        if job.spec["world_size"] == 1:
            device = "cuda" if job.gpus_per_worker else "cpu"
            report_outcome(report, lambda: train_or_exit_on_gpu_error(job, device, report, monitor))
        else:
            report_outcome(report, lambda: train_group(job, report, monitor.alive))


def end_training(trainable: Any) -> None:
    """End the training of a stopped trial, in its process. Its thread would otherwise wait in a report and keep its memory."""
    workers = trainable.config["job"]["spec"]["world_size"]
    try:
        if workers > 1:
            from ablations.engine.trial import process_failures, worker_group

            worker_group.abort_group()
            for name in (*worker_names(workers), controller_name()):
                process_failures.delete_record(name)
    finally:
        if not end_training_thread(END_TIMEOUT_SECONDS):
            os._exit(1)  # the next trial in this process then fails with a message; otherwise Tune would drop it silently


def report_outcome(report: Report, work: Callable[[], object]) -> None:
    """Run `work` and report how it ended. If the process itself crashes, Tune notices and retries."""
    try:
        work()
    except Exception as error:  # any error ends this run and no other
        outcome, message = outcome_of(error)
        report({"outcome": outcome, "message": message, "traceback": traceback.format_exc()})
    else:
        report({"outcome": "completed"})
    finally:
        _free_gpu_memory()


def _free_gpu_memory() -> None:
    """Free the GPU memory that torch caches: other runs may share the device while this process waits for its next run."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # tensors of a failed run are in reference cycles
        with suppress(RuntimeError):  # the outcome is reported already; the next run will detect that the GPU fails
            torch.cuda.empty_cache()


def outcome_of(error: Exception) -> tuple[str, str]:
    """Return the outcome of a run that ended with an error, and the reason in one line."""
    from ablations.engine.trial.process_failures import ProcessFailure

    if isinstance(error, ProcessFailure):
        return error.outcome, error.reason
    return OUTCOMES.get(type(error).__name__, "failed"), f"{type(error).__name__}: {error}".splitlines()[0]
