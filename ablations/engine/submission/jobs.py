"""Jobs that train runs: their resources, their checkpoint folders, and the checks of the cluster before they start."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from ablations.engine.cluster.doctor import preflight
from ablations.engine.environment import paths
from ablations.engine.scheduling import gpu_choice
from ablations.engine.scheduling.capacity import RunResources, starts_local_ray
from ablations.engine.scheduling.gpu_choice import ClusterResources, ResourceChoice
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.planning import gpu_share
from ablations.engine.tracking.run_queries import CompletedRun, RunRecord
from ablations.engine.trial.job import Job
from resnet_core.fields import counted


def check_before_start(plan: Plan, options: Options) -> None:
    """Check this machine, if Ray would start here, and the storage. Call it before anything is created.

    Raises:
        ConfigError: this machine cannot hold one run, or the storage cannot be used.
    """
    from ablations.engine.environment.storage import check_storage  # imports pyarrow, which a plan does without

    if starts_local_ray():
        needs = _worker_resources(plan, options)
        choice = gpu_choice.choose_resources(needs, options.gpus_per_worker, gpu_choice.this_machine())
        choice.resources.check_machine()
    check_storage(options.storage)


def prepare_cluster(
    plan: Plan, options: Options, runs: Sequence[Run] = (), finished: Callable[[], Iterable[CompletedRun]] = tuple
) -> ResourceChoice:
    """Connect to Ray, create the storage and examine the nodes; return the resources of one run.

    Args:
        plan: the study.
        options: its options.
        runs: runs to train, as far as they are known.
        finished: returns completed runs on the same data.

    Raises:
        ConfigError: the cluster cannot hold one run, or an address is not reachable from all nodes.
    """
    from ablations.engine.environment.storage import make_storage
    from ablations.engine.scheduling import connection  # imports Ray, which only a study with missing runs needs

    check_before_start(plan, options)
    connection.connect()
    choice = choose_resources(plan, options, runs, gpu_choice.joined_cluster(), finished)
    choice.resources.check()
    connection.check_reachable("--storage", options.storage)
    connection.check_reachable("--tracking-uri", options.tracking_uri.removeprefix("sqlite:///"))
    make_storage(options.storage)
    preflight.check_nodes(options.storage)
    return choice


def choose_resources(
    plan: Plan, options: Options, runs: Sequence[Run], there: ClusterResources, finished: Callable[[], Iterable[CompletedRun]]
) -> ResourceChoice:
    """Return the resources of one run on a cluster; arguments and errors are those of `prepare_cluster`."""
    choice = gpu_choice.choose_resources(_worker_resources(plan, options), options.gpus_per_worker, there)
    if options.gpus_per_worker is not None or not choice.resources.gpus_per_worker:
        return choice
    at_once = min(len(runs), options.max_concurrent or len(runs))
    return gpu_share.with_share(choice, there, at_once, lambda: gpu_share.peak_memory_mb(plan.workload, runs, finished()))


def _worker_resources(plan: Plan, options: Options) -> RunResources:
    return RunResources(workers=plan.base.world_size, cpus_per_worker=options.cpus_per_worker, placement=options.placement)


def describe_other_devices(done: Mapping[str, RunRecord], needs: RunResources) -> str:
    """Return a sentence about finished runs that trained on another kind of device than the next ones will; empty if none did.

    The same seed gives other numbers there, so that a comparison of both kinds is flagged in the report.
    """
    on_gpu = needs.gpus_per_worker > 0
    others = sum((record.metrics.get("gpu_hours", 0) > 0) != on_gpu for record in done.values() if record.completed)
    if not others:
        return ""
    was, here = ("CPUs", "GPUs") if on_gpu else ("GPUs", "CPUs")
    keep = "--gpus-per-worker 0 continues on CPUs" if on_gpu else "--gpus-per-worker 1 continues on GPUs"
    return (
        f"{others} of {counted(len(done), 'run')} done trained on {was}, and the others will train on {here}: the report flags "
        f"comparisons between them. {keep}; --rerun trains all runs again."
    )


def make_job(run: Run, data_version: str, generation: int, needs: RunResources, options: Options) -> Job:
    """Return the job that trains a run."""
    return Job(
        fingerprint=run.fingerprint,
        spec=run.spec.flat(),
        data_version=data_version,
        folder=checkpoint_folder(run.fingerprint, generation),
        storage=options.storage,
        cache=str(paths.data_cache()),
        cpus_per_worker=needs.cpus_per_worker,
        gpus_per_worker=needs.gpus_per_worker,
        download=options.request.download,
        hang_timeout=options.hang_timeout,
        predictions=options.predictions and run.trial is None,
    )


def checkpoint_folder(fingerprint: str, generation: int) -> str:
    """Return the name of the folder with a run's checkpoints. Each generation (`--rerun`) has its own."""
    return fingerprint if generation == 1 else f"{fingerprint}-{generation}"
