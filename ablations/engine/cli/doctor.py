"""The options of `ablations doctor`."""

import argparse

from ablations.engine.cli import options
from ablations.engine.cluster import local_service
from ablations.engine.cluster.doctor.request import DoctorRequest
from ablations.engine.environment import paths, validation
from resnet_core import PRESETS, override, preset
from resnet_core.fields import reject
from resnet_core.overrides import assignments

HELP = "check every node of a cluster and print what to repair"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command. Options that studies also have mean the same here."""
    parser.description = (
        "Check versions, clocks, disks, GPUs, open ports, storage, data, MLflow and the network of every node, and print one "
        "line for each check. Exit code 0: no check failed; 1: a check failed; 2: wrong options."
    )
    parser.epilog = options.ENVIRONMENT_HELP
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = options.fill(parser.description)
    parser.add_argument(
        "--preset",
        default="digits",
        metavar="NAME",
        help=f"preset whose data are checked: {', '.join(PRESETS)} (default: digits)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="override fields of the preset, as in data.root=~/photos",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="reserve N workers as a run does, which makes an autoscaler add nodes, and check them (default: check current nodes)",
    )
    parser.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="CPUs of each worker (default: 1)")
    parser.add_argument(
        "--gpus-per-worker",
        default=validation.AUTO,
        metavar="X",
        help="GPUs of each worker; auto: one where the cluster has any (default: auto)",
    )
    parser.add_argument(
        "--wait", type=float, default=600.0, metavar="SECONDS", help="how long to wait for --workers (default: 600)"
    )
    options.add_tracking_options(parser)


def run(given: argparse.Namespace) -> int:
    """Run the checks. Return 0 if none failed, otherwise 1. Raise ConfigError for wrong options."""
    local_service.select_ray_cluster()
    request = _request(given)
    paths.protect_home()
    from ablations.engine.cluster.doctor.checklist import run_checks  # imports Ray, which takes seconds

    return run_checks(request)


def _request(given: argparse.Namespace) -> DoctorRequest:
    if given.workers is not None and given.workers < 1:
        raise reject("--workers", given.workers, "accepted: 1 or more")
    if not 0 < given.wait < float("inf"):
        raise reject("--wait", given.wait, "accepted: seconds above 0")
    validation.check_worker_cpus(given.cpus_per_worker)
    tracking_uri = given.tracking_uri or paths.default_tracking_uri()
    validation.check_address("--storage", given.storage)
    validation.check_address("--tracking-uri", tracking_uri)
    data = override(preset(given.preset), assignments("--set", given.set)).data
    if data.name == "own":
        raise reject("data.name", data.name, "is read by a study's reader, which doctor does not know; accepted: other data")
    return DoctorRequest(
        data=data,
        storage=paths.storage_address("--storage", given.storage),
        tracking_uri=tracking_uri,
        workers=given.workers,
        cpus_per_worker=given.cpus_per_worker,
        gpus_per_worker=validation.read_worker_gpus("--gpus-per-worker", given.gpus_per_worker),
        worker_timeout_seconds=given.wait,
    )
