"""The Tune trainable that trains a run, and how a run ends."""

import gc
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

from ray import tune

from ablations.engine.trial.ddp_group import train_group
from ablations.engine.trial.group_failures import OUTCOMES
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.worker import train_or_exit_on_gpu_error


class RunTrainable(tune.Trainable):
    """A process that trains one run at a time, and another one when Tune resets it.

    A class rather than a function: Tune runs a function in a thread that waits in its report when the run is stopped, and that
    keeps the run's memory. Here, the run is an iterator that Tune's next call advances or closes.
    """

    def setup(self, config: dict[str, Any], workload: bytes = b"") -> None:
        """Prepare to train. `workload` is that of the study, as in `Job.workload`."""
        self._workload = workload
        self._reports = run_reports(Job(**{**config["job"], "workload": workload}))

    def step(self) -> Report:
        """Train until the run's next report, and return it."""
        report = next(self._reports)
        return report | {"done": "outcome" in report}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the current run, which may have been stopped early, and prepare for another one."""
        self._reports.close()
        self._reports = run_reports(Job(**{**new_config["job"], "workload": self._workload}))
        return True

    def cleanup(self) -> None:
        """End the current run. Tune calls this before it ends the process."""
        self._reports.close()


def run_reports(job: Job) -> Generator[Report, None, None]:
    """Train a run to its end in this process, or as the leader of its workers. The last report has its outcome."""
    import ray

    from ablations.engine.trial.liveness import monitored

    with monitored(ray.get_runtime_context().get_actor_id(), job.hang_timeout) as monitor:
        if job.spec["world_size"] == 1:
            reports = train_or_exit_on_gpu_error(job, "cuda" if job.gpus_per_worker else "cpu", monitor)
        else:
            reports = train_group(job, monitor.alive)
        for report in with_outcome(reports):
            with monitor.waiting():
                yield report


def with_outcome(reports: Iterator[Report]) -> Iterator[Report]:
    """Yield reports, and at last how the run ended. If the process itself crashes, Tune notices and retries."""
    try:
        yield from reports
        last = {"outcome": "completed"}
    except Exception as error:  # any error ends this run and no other
        outcome, message = outcome_of(error)
        last = {"outcome": outcome, "message": message, "traceback": traceback.format_exc()}
    finally:
        _free_gpu_memory()
    yield last


def _free_gpu_memory() -> None:
    """Free the GPU memory that torch caches: other runs may share the device while this process waits for its next run."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # tensors of a failed run are in reference cycles
        with suppress(RuntimeError):  # the next run will detect that the GPU fails
            torch.cuda.empty_cache()


def outcome_of(error: Exception) -> tuple[str, str]:
    """Return the outcome of a run that ended with an error, and the reason in one line."""
    from ablations.engine.trial.process_failures import ProcessFailure

    if isinstance(error, ProcessFailure):
        return error.outcome, error.reason
    return OUTCOMES.get(type(error).__name__, "failed"), f"{type(error).__name__}: {error}".splitlines()[0]
