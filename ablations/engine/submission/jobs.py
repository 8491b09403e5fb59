"""Jobs that train runs: their resources, their checkpoint folders, and the checks of the cluster before they start."""

from typing import TYPE_CHECKING

from ablations.engine.cluster.doctor import preflight
from ablations.engine.environment import paths
from ablations.engine.environment.storage import check_storage, make_storage
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.trial.job import Job

if TYPE_CHECKING:
    from ablations.engine.scheduling.capacity import RunResources


def check_before_start(plan: Plan, options: Options) -> "RunResources":
    """Return the resources of one run. Call it before anything is created.

    Raises:
        ConfigError: this machine cannot hold one run, or the storage cannot be used.
    """
    from ablations.engine.scheduling.capacity import RunResources

    resources = RunResources(
        workers=plan.base.world_size,
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        placement=options.placement,
    )
    resources.check_machine()
    check_storage(options.storage)
    return resources


def prepare_cluster(plan: Plan, options: Options) -> "RunResources":
    """Connect to Ray, create the storage and examine the nodes; return the resources of one run.

    Raises:
        ConfigError: the cluster cannot hold one run, or an address is not reachable from all nodes.
    """
    from ablations.engine.scheduling import connection  # imports Ray, which only a study with missing runs needs

    resources = check_before_start(plan, options)
    connection.connect()
    resources.check()
    connection.check_reachable("--storage", options.storage)
    connection.check_reachable("--tracking-uri", options.tracking_uri.removeprefix("sqlite:///"))
    make_storage(options.storage)
    preflight.check_nodes(options.storage)
    return resources


def make_job(run: Run, data_version: str, generation: int, options: Options) -> Job:
    """Return the job that trains a run."""
    return Job(
        fingerprint=run.fingerprint,
        spec=run.spec.flat(),
        data_version=data_version,
        folder=checkpoint_folder(run.fingerprint, generation),
        storage=options.storage,
        cache=str(paths.data_cache()),
        cpus_per_worker=options.cpus_per_worker,
        gpus_per_worker=options.gpus_per_worker,
        download=options.request.download,
        hang_timeout=options.hang_timeout,
        predictions=options.predictions and run.trial is None,
    )


def checkpoint_folder(fingerprint: str, generation: int) -> str:
    """Return the name of the folder with a run's checkpoints. Each generation (`--rerun`) has its own."""
    return fingerprint if generation == 1 else f"{fingerprint}-{generation}"
