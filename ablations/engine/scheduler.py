"""Runs on a Ray cluster through Ray Tune: concurrency, retries, reports."""

import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

# Before Ray is imported: no result files per trial, MLflow has them; no snapshots every few seconds.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import cloudpickle, tune
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, Searcher

from ablations.engine import deaths, tune_loop
from ablations.engine.trial import Job, end_training, train
from resnet_core.fields import reject

CAPACITY_SECONDS = 5.0
MOST_STARTING = 200
"""How many processes may start at the same time; Tune's own number for grids."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one run takes from the cluster."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0

    def capacity(self) -> int:
        """How many such runs the cluster holds at a time, as it is now, if it does nothing else."""
        return sum(self._workers_on(node["Resources"]) for node in ray.nodes() if node["Alive"]) // self.workers

    def _workers_on(self, resources: Mapping[str, float]) -> int:
        fits = [resources.get("CPU", 0) / self.cpus_per_worker]
        if self.gpus_per_worker:
            fits.append(resources.get("GPU", 0) / self.gpus_per_worker)
        return int(min(fits) + 1e-9)

    def check(self) -> None:
        """Raises ConfigError if the cluster can never hold one run."""
        if self.capacity() or autoscales():
            return
        total = ray.cluster_resources()
        has = f"{total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs on {len(ray.nodes())} nodes"
        needs = f"{self.cpus_per_worker:g} CPUs" + (f" and {self.gpus_per_worker:g} GPUs" if self.gpus_per_worker else "")
        raise reject("--workers", self.workers, f"needs {needs} for each worker; the cluster has {has} and does not grow")


def connect() -> None:
    """Joins the cluster that RAY_ADDRESS or this machine offers, else starts one here that ends with this process."""
    # Workers' output stays in Ray's logs: what they have to say comes as reports.
    if not ray.is_initialized():
        terminate = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, terminate)  # Ray's own ends the process at once
    # Tune logs a traceback for each death of a process, which the listener is told of anyway.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def check_reachable(option: str, value: str) -> None:
    """Raises ConfigError for a local path on a cluster of several nodes: each would see another folder."""
    if "://" in value or (len(ray.nodes()) == 1 and not autoscales()):
        return
    raise reject(option, value, "a local path on several nodes; set s3://…, gs://…, http://…, or file:///… if all nodes share it")


class Listener(Protocol):
    """Who wants to know how jobs fare. Called in the driver, by one thread; must return quickly."""

    def started(self, fingerprint: str) -> None: ...
    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None: ...
    def died(self, fingerprint: str, reason: str, *, outcome: str | None) -> None:
        """A run's process died. `outcome` is how that ends the run, None if it goes on from its checkpoint."""


class Source(Protocol):
    """Who decides what runs next, and what is not worth going on with. Called in the driver, by one thread; must answer quickly."""

    def next(self) -> Job | None:
        """The next run, or None if there is none now; asked again after every event, and ten times a second without one.

        A run that was stopped may be given again: it goes on from its last checkpoint.
        """

    @property
    def finished(self) -> bool:
        """Whether there will be no more runs; asked where `next` gave None."""

    def stops(self, fingerprint: str, report: Mapping[str, Any]) -> bool:
        """Whether a run ends with this report of an epoch. The listener hears of the epoch afterwards, and of no outcome."""


def autoscales() -> bool:
    """Whether the cluster has an autoscaler, which may bring what is missing."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    # Every head publishes a status. Without an autoscaler, each node is there a type of its own, `node_<its id>`.
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}").get("autoscaler_report") or {}
    types = {**(report.get("active_nodes") or {}), **(report.get("idle_nodes") or {})}
    ids = {f"node_{node['NodeID']}" for node in ray.nodes()}
    return any(name not in ids for name in types)


def execute(jobs: Sequence[Job], needs: Needs, *, max_concurrent: int | None, listener: Listener, scratch: Path) -> None:
    """Runs all jobs to their end. Ctrl-C and SIGTERM stop them and return.

    Args:
        jobs: in the order in which to start them.
        needs: what each takes.
        max_concurrent: how many at a time. None: as many as the cluster holds, more when it grows.
        listener: is told of starts, reports and deaths.
        scratch: folder for Tune's own files, removed at the end.
    """
    grid = BasicVariantGenerator(max_concurrent=max_concurrent or 0)
    callbacks = [_Capacity(grid, needs, max_concurrent)] if needs.workers > 1 else []
    space = {"job": tune.grid_search([asdict(job) for job in jobs])}
    config = tune.TuneConfig(search_alg=grid, reuse_actors=True, trial_dirname_creator=_trial_folder)
    _fit(needs, config, space, [_Relay(listener), *callbacks], scratch, max_failures=jobs[0].max_failures)


def search(source: Source, needs: Needs, *, max_concurrent: int | None, listener: Listener, scratch: Path) -> None:
    """Runs what `source` gives until it has no more. Ctrl-C and SIGTERM stop what runs and return.

    Args:
        source: is asked for a run when there is room for it, and not before, so that it knows as much as it can.
        needs: what each run takes.
        max_concurrent: how many at a time. None: as many as the cluster holds. For a cluster that grows, one more is asked for,
            or all of `max_concurrent`: nodes come for runs that wait, one after another or all together.
        listener: is told of starts, reports and deaths.
        scratch: folder for Tune's own files, removed at the end.
    """
    proposals = _Proposals(source)
    # Tune starts as many processes at the same time as this says at first. Without, it is one: they take 1.6 s each here, so that
    # the last of 64 GPUs would wait 100 s. `_Capacity` then says how many runs there may be.
    limiter = ConcurrencyLimiter(proposals, max_concurrent=MOST_STARTING)
    config = tune.TuneConfig(search_alg=limiter, num_samples=-1, reuse_actors=True, trial_dirname_creator=_trial_folder)
    callbacks = [_Relay(listener), _Capacity(limiter, needs, max_concurrent, waiting=max_concurrent or 1), _Endings()]
    _fit(needs, config, {}, callbacks, scratch, max_failures=Job.max_failures, stop=proposals.stops)


def _fit(
    needs: Needs,
    config: tune.TuneConfig,
    space: Mapping[str, Any],
    callbacks: Sequence[tune.Callback],
    scratch: Path,
    *,
    max_failures: int,
    stop: Callable[[str, Mapping[str, Any]], bool] | None = None,
) -> None:
    """Lets Tune run to the end, or to the first signal."""
    # One name for each program: Tune keeps trainables of all programs on a cluster in one table, and several clusters may
    # share the scratch folder.
    name = f"train-{ray.get_runtime_context().get_job_id()}-{os.getpid()}"
    tune.register_trainable(name, tune.with_resources(train, _placement(needs)))
    tuner = tune.Tuner(
        name,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(scratch),
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            stop=stop,
            verbose=0,
        ),
    )
    tune_loop.install()
    interrupt = signal.getsignal(signal.SIGINT)
    previous = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # Tune stops at SIGINT
    try:
        tuner.fit()
    except KeyboardInterrupt:
        pass  # a second signal, or one before Tune listened
    finally:
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, interrupt)  # Tune leaves its own, which nobody listens to any more
        shutil.rmtree(scratch / name, ignore_errors=True)


def _placement(needs: Needs) -> tune.PlacementGroupFactory:
    """One worker is the trial itself. With more, the trial only leads: it stays on the head, which is never scaled away,
    and takes no CPU from the workers that it waits for."""
    if needs.workers > 1:
        return tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
    return tune.PlacementGroupFactory([{"CPU": needs.cpus_per_worker, "GPU": needs.gpus_per_worker}])


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)


class _Local:
    """What belongs to this process. Tune pickles callbacks and searchers to restore experiments, which nothing here does."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Capacity(_Local, tune.Callback):
    """Keeps as many runs alive as the cluster holds, and some waiting, so that an autoscaler sees the demand."""

    def __init__(
        self, limited: BasicVariantGenerator | ConcurrencyLimiter, needs: Needs, limit: int | None, waiting: int = 1
    ) -> None:
        self.limited, self.needs, self.limit, self.waiting, self.checked = limited, needs, limit or 10**9, waiting, 0.0

    def on_step_begin(self, **_: Any) -> None:
        if time.monotonic() > self.checked + CAPACITY_SECONDS:
            self.checked = time.monotonic()
            waiting = self.waiting if autoscales() else 0
            self.limited.max_concurrent = max(1, min(self.limit, self.needs.capacity() + waiting))


class _Proposals(_Local, Searcher):
    """What a Source decides, in Tune's words."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.fingerprints: dict[str, str] = {}
        """Of the runs that are under way, by Tune's name for the trial."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        job = self.source.next()
        if job is None:
            return Searcher.FINISHED if self.source.finished else None
        self.fingerprints[trial_id] = job.fingerprint
        return {"job": asdict(job)}

    def stops(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return "epoch" in result and self.source.stops(self.fingerprints[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        del self.fingerprints[trial_id]


class _Endings(_Local, tune.Callback):
    """Ends the training of a stopped trial at once. Tune lets it wait in its report until its process is wanted again."""

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        if "epoch" in trial.last_result:
            trial.temporary_state.ray_actor.execute.remote(end_training)


class _Relay(_Local, tune.Callback):
    """Tune's callbacks, in the words of a Listener."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        self.listener.started(trial.config["job"]["fingerprint"])

    def on_trial_result(self, *, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        self.listener.reported(trial.config["job"]["fingerprint"], result)

    def on_trial_recover(self, *, trial: Any, **_: Any) -> None:
        self.listener.died(trial.config["job"]["fingerprint"], _death(trial).reason, outcome=None)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        death = _death(trial)
        self.listener.died(trial.config["job"]["fingerprint"], death.reason, outcome=death.outcome)


def _death(trial: Any) -> deaths.Death:
    """The last death of a trial. What else ends one is an error of Tune's own."""
    # Where Tune puts it; `trial.get_pickled_error()` looks where Tune would upload it to at the end.
    error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error if isinstance(error, deaths.Death) else deaths.Death(f"{type(error).__name__}: {error}".splitlines()[0], "process")
