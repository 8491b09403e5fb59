"""What a study would do, cost and find, before anything starts."""

import os
from functools import partial

from ablations.engine import ledger, terminal
from ablations.engine.estimate import look_ahead, runs_at_once
from ablations.engine.options import Options
from ablations.engine.plan_view import plan_view
from ablations.engine.provenance import submission_id
from ablations.engine.study import Plan
from ablations.engine.tracking import answering, connect


def preview(plan: Plan, options: Options) -> int:
    """Prints a plan; returns the exit code."""
    client = connect(options.tracking_uri)
    with answering(options.tracking_uri):
        done = {} if options.fresh else ledger.done(ledger.find(client, plan))
        finished = list(ledger.finished(client, plan.dataset.version))
    missing = [run for run in plan.runs if run.fingerprint not in done]
    measure = None
    if options.calibrate or (options.calibrate is None and not _on_a_cluster()):
        from ablations.engine.calibration import calibrate

        measure = partial(
            calibrate,
            image_size=plan.dataset.image_size,
            cpus_per_worker=options.cpus_per_worker,
            gpus_per_worker=options.gpus_per_worker,
        )
    at_once = _runs_at_once(plan, options)
    outlook = look_ahead(plan, missing, finished, measure, at_once=at_once, gpus_per_worker=options.gpus_per_worker)
    terminal.make_console().print(plan_view(plan, done, outlook))
    return 0


def _on_a_cluster() -> bool:
    """Whether this is the head of a cluster, or a job on it: others train there."""
    return bool(os.environ.get("RAY_ADDRESS") or submission_id())


def _runs_at_once(plan: Plan, options: Options) -> int | None:
    """Runs at a time on the cluster, or on this machine; None where only a cluster could tell."""
    workers, cpus, gpus = plan.base.world_size, options.cpus_per_worker, options.gpus_per_worker
    if _on_a_cluster():
        from ablations.engine import scheduler

        scheduler.connect()
        held = scheduler.Needs(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus).capacity()
    elif gpus:
        return None
    else:
        held = runs_at_once(workers, cpus_per_worker=cpus, gpus_per_worker=gpus, cpus=os.cpu_count() or 1, gpus=0)
    return min(held, options.max_concurrent or held) or None
