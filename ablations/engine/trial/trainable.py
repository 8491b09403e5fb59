"""What Ray Tune runs in the process of a trial, and how it ends."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ablations.engine.trial.ddp_group import controller_name, train_group, worker_names
from ablations.engine.trial.group_failures import OUTCOMES
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.worker import train_or_exit_on_gpu_error

END_SECONDS = 60.0
"""How long a stopped training has for what it does when it ends, such as to end processes that read its images."""


def train(config: dict[str, Any]) -> None:
    """Tune's trainable: train one run to its end."""
    import ray
    from ray import tune

    from ablations.engine.trial.liveness import monitored

    job = Job(**config["job"])
    with monitored(ray.get_runtime_context().get_actor_id(), job.hang_timeout) as watch:

        def report(content: dict[str, Any]) -> None:
            with watch.waiting():
                tune.report(content)

        if job.spec["world_size"] == 1:
            device = "cuda" if job.gpus_per_worker else "cpu"
            report_outcome(report, lambda: train_or_exit_on_gpu_error(job, device, report, watch))
        else:
            report_outcome(report, lambda: train_group(job, report, watch.alive))


def end_training(trainable: Any) -> None:
    """End the training of a stopped trial, in its process: its thread waits in a report, with all that it holds."""
    from ray.train._internal.session import get_session

    workers, session = trainable.config["job"]["spec"]["world_size"], get_session()
    try:
        if workers > 1:
            from ablations.engine.trial import process_failures, worker_group

            worker_group.abort_group()
            for name in (*worker_names(workers), controller_name()):
                process_failures.delete_record(name)
    finally:
        session.finish(timeout=END_SECONDS)
        if session.training_thread.is_alive():
            os._exit(1)  # the next trial of this process fails, and says so; Tune would forget it without a word


def report_outcome(report: Report, work: Callable[[], object]) -> None:
    """Run `work` and report how it ended. What ends the process itself is Tune's to see, and to try again."""
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
    """Give back what this process still holds of a GPU: other runs may share it, and this process may wait for its next one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # what a failed run held hangs in cycles
        with suppress(RuntimeError):  # the outcome is told, and the next run will find a GPU that fails
            torch.cuda.empty_cache()


def outcome_of(error: Exception) -> tuple[str, str]:
    """Return how a run ends that this ended, and one line that says why."""
    from ablations.engine.trial.process_failures import ProcessFailure

    if isinstance(error, ProcessFailure):
        return error.outcome, error.reason
    return OUTCOMES.get(type(error).__name__, "failed"), f"{type(error).__name__}: {error}".splitlines()[0]
