"""The Tune trainable that trains a run."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from ray import tune

from ablations.engine.trial.ddp_group import train_group
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.outcomes import with_outcome
from ablations.engine.trial.worker import train_or_exit_on_gpu_error
from ablations.engine.trial.worker_group import WorkerGroup

if TYPE_CHECKING:
    from ablations.engine.trial.liveness import ProcessHeartbeat


class RunTrainable(tune.Trainable):
    """A process that trains one run at a time, and another one when Tune resets it. With several workers, it leads them.

    A class rather than a function: Tune runs a function in a thread that waits in its report when the run is stopped, and that
    keeps the run's memory. Here, the run is an iterator that Tune's next call advances or closes.
    """

    def __init_subclass__(cls) -> None:
        """Keep the name: Tune makes subclasses, after whose qualified names Ray would name the processes."""
        cls.__qualname__ = RunTrainable.__qualname__

    def setup(self, config: dict[str, Any], workload: bytes = b"") -> None:
        """Prepare to train. `workload` is that of the study, as in `Job.workload`."""
        import ray

        from ablations.engine.trial.liveness import ProcessHeartbeat, heartbeat_interval
        from ablations.engine.trial.process_failures import actor_entries

        self._workload, self._group = workload, WorkerGroup()
        # The heartbeat continues between two runs: Tune would wait forever for a process that is suspended there.
        interval = heartbeat_interval(config["job"]["hang_timeout"])
        self._heartbeat = ProcessHeartbeat(ray.get_runtime_context().get_actor_id(), interval, **actor_entries())
        self._reports = self._run(config)

    def step(self) -> Report:
        """Train until the run's next report, and return it."""
        report = next(self._reports)
        return report | {"done": "outcome" in report}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the current run, which may have been stopped early, and prepare for another one."""
        self._reports.close()
        self._reports = self._run(new_config)
        return True

    def cleanup(self) -> None:
        """End the current run, and the workers. Tune calls this before it ends the process."""
        try:
            self._reports.close()
            self._group.close()
        finally:
            self._heartbeat.stop()

    def _run(self, config: dict[str, Any]) -> Generator[Report, None, None]:
        return run_reports(Job(**{**config["job"], "workload": self._workload}), self._group, self._heartbeat)


def run_reports(job: Job, group: WorkerGroup, heartbeat: "ProcessHeartbeat") -> Generator[Report, None, None]:
    """Train a run to its end in this process, or with the group that it leads. The last report has the run's outcome."""
    from ablations.engine.trial.liveness import watched

    heartbeat.record.begin_run()
    with watched(heartbeat, job.hang_timeout) as monitor:
        if job.spec["world_size"] == 1:
            reports = train_or_exit_on_gpu_error(job, "cuda" if job.gpus_per_worker else "cpu", monitor)
        else:
            reports = train_group(job, group, monitor.alive)
        for report in with_outcome(reports):
            with monitor.waiting():
                yield report
