"""`python -m ablations.engine doctor`: what is wrong with a cluster, and what to do about it."""

import argparse

from ablations.engine.cli import options
from ablations.engine.cluster import local_service
from ablations.engine.cluster.doctor.request import Request
from ablations.engine.environment import paths, validation
from resnet_core import PRESETS, override, preset
from resnet_core.fields import reject
from resnet_core.overrides import assignments

HELP = "check every node of the cluster, what they share and what they show to the world"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the command line; what studies have too means the same here."""
    parser.description = "Exit code 0: nothing is wrong; 1: something is; 2: the request was wrong."
    parser.epilog = options.EPILOG
    parser.add_argument(
        "--preset", default="digits", metavar="NAME", help=f"whose data: {', '.join(PRESETS)} (default: %(default)s)"
    )
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="as studies have it, as in data.root=~/photos"
    )
    parser.add_argument("--storage", default=paths.default_storage(), metavar="URI", help="checkpoints (default: %(default)s)")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: the service's, MLFLOW_TRACKING_URI, or local)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="ask for so many workers, as a run would, and wait for the nodes that they bring (default: the nodes that are there)",
    )
    parser.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="default: 1")
    parser.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="X", help="default: 0")
    parser.add_argument("--wait", type=float, default=600.0, metavar="SECONDS", help="for --workers (default: 600)")


def run(given: argparse.Namespace) -> int:
    """Prints the list; returns 0 if nothing is wrong, else 1. Raises ConfigError for a wrong request."""
    local_service.adopt()
    request = _request(given)
    paths.protect_home()
    from ablations.engine.cluster.doctor.doctor import check_up  # Ray takes seconds to import

    return check_up(request)


def _request(given: argparse.Namespace) -> Request:
    if given.workers is not None and given.workers < 1:
        raise reject("--workers", given.workers, "accepted: 1 or more")
    if not 0 < given.wait < float("inf"):
        raise reject("--wait", given.wait, "accepted: seconds above 0")
    validation.check_worker_resources(given.cpus_per_worker, given.gpus_per_worker)
    tracking_uri = given.tracking_uri or paths.default_tracking_uri()
    validation.check_address("--storage", given.storage)
    validation.check_address("--tracking-uri", tracking_uri)
    return Request(
        data=override(preset(given.preset), assignments("--set", given.set)).data,
        storage=paths.storage_address("--storage", given.storage),
        tracking_uri=tracking_uri,
        workers=given.workers,
        cpus_per_worker=given.cpus_per_worker,
        gpus_per_worker=given.gpus_per_worker,
        wait=given.wait,
    )
