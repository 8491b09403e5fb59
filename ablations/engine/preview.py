"""What a study would do, cost and find, before anything starts."""

import os
import socket
from collections.abc import Sequence
from functools import partial

from ablations.engine import ledger, terminal, trials
from ablations.engine.estimate import Finished, look_ahead, runs_at_once
from ablations.engine.ledger import Entry
from ablations.engine.options import Options
from ablations.engine.plan_view import plan_view
from ablations.engine.provenance import submission_id
from ablations.engine.search import SearchPlan
from ablations.engine.searches import Searches
from ablations.engine.study import Plan, Run
from ablations.engine.tracking import answering, connect, is_new
from ablations.engine.trials import PastTrial
from resnet_core.identity import TRAINING_VERSION

ANSWER_SECONDS = 2.0


def preview(plan: Plan, options: Options) -> int:
    """Prints a plan; returns the exit code."""
    done, finished, past = _known(plan, options)
    to_come: list[Run] = []
    if isinstance(plan, SearchPlan):
        searches = Searches(plan, past, lambda run: None)
        if searches.finished:
            plan = plan.confirming(searches.choices())
            done, *_ = _known(plan, options)
        else:
            to_come, plan = plan.trials_left(searches.ended_in), plan.foreseen()
    missing = [*to_come, *(run for run in plan.runs if run.fingerprint not in done)]
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
    terminal.make_console().print(plan_view(plan, done, outlook, to_come))
    return 0


def _known(plan: Plan, options: Options) -> tuple[dict[str, Entry], list[Finished], Sequence[PastTrial]]:
    """The plan's runs that are done, others that tell how long runs take, and the trials of a search."""
    if is_new(options.tracking_uri):
        return {}, [], ()  # nor is a database made to say so
    client = connect(options.tracking_uri)
    with answering(options.tracking_uri):
        done = {} if options.fresh else ledger.done(ledger.find(client, plan))
        by = ledger.trained_by(str(TRAINING_VERSION), "")
        past = trials.read(client, plan.asked(), by) if isinstance(plan, SearchPlan) else []
        return done, list(ledger.finished(client, plan.dataset.version)), past


def _on_a_cluster() -> bool:
    """Whether this is the head of a cluster, or a job on it: others train there."""
    return os.environ.get("RAY_ADDRESS", "local") != "local" or submission_id() is not None


def _runs_at_once(plan: Plan, options: Options) -> int | None:
    """Runs at a time on the cluster, or on this machine; None where a cluster would have to tell and does not."""
    workers, cpus, gpus = plan.base.world_size, options.cpus_per_worker, options.gpus_per_worker
    if _on_a_cluster():
        if not _answers(os.environ.get("RAY_ADDRESS", "")):
            return None
        from ablations.engine import scheduler

        scheduler.connect()
        needs = scheduler.Needs(workers=workers, cpus_per_worker=cpus, gpus_per_worker=gpus)
        held = needs.potential() or needs.capacity()
    elif gpus:
        return None
    else:
        held = runs_at_once(workers, cpus_per_worker=cpus, gpus_per_worker=gpus, cpus=os.cpu_count() or 1, gpus=0)
    return min(held, options.max_concurrent or held) or None


def _answers(address: str) -> bool:
    """Whether somebody listens there: Ray itself would wait for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True
