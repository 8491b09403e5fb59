"""`python -m ablations.engine`: the local service (`up`, `down`, `env`), what clusters need (`mlflow`, `doctor`), and `replay`."""

import argparse
import shlex
from collections.abc import Sequence

from ablations.engine.cli import doctor
from ablations.engine.cluster import local_service, mlflow_server
from ablations.engine.environment import crash_report, paths, validation
from resnet_core import ConfigError
from resnet_core.command import Parser
from resnet_core.fields import reject

INTERRUPTED = "interrupted"
MAX_PORT = 65_535
COMMANDS = {"mlflow": mlflow_server, "doctor": doctor}
"""Those with a module of their own, which has `HELP`, `add_arguments(parser)` and `run(given)`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    return crash_report.run_program(lambda: _run(arguments), INTERRUPTED)


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    if given.command == "up":
        local_service.up(_ports(given))
    elif given.command == "env":
        for name, value in _running().environment().items():
            print(f"export {name}={shlex.quote(value)}")
    elif given.command == "down":
        print("ended" if local_service.down() else "nothing was running")
    elif given.command in COMMANDS:
        return int(COMMANDS[given.command].run(given))
    else:
        return _replay(given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m ablations.engine",
        description="The local service, Ray and MLflow on loopback; its parts on a cluster; and single runs.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, or say where it is")
    for name in ("mlflow", "dashboard", "ray"):
        default = getattr(local_service.Ports, name)
        up.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT", help="default: %(default)s")
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("env", help='print what makes a shell use it: eval "$(python -m ablations.engine env)"')
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    replay = commands.add_parser(
        "replay", help="train a finished run again from its record, and say whether the result is the same"
    )
    replay.add_argument("run", help="its id in MLflow, or its fingerprint, or the first 6 characters or more of that")
    replay.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: the service's, MLFLOW_TRACKING_URI, or local)")
    replay.add_argument(
        "--storage", default=paths.default_storage(), metavar="URI", help="checkpoints meanwhile (default: %(default)s)"
    )
    replay.add_argument("--data-root", metavar="FOLDER", help="where the data are now (default: where they were)")
    replay.add_argument("--data-download", action="store_true", help="download the data set where it is missing")
    replay.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="default: 1")
    replay.add_argument("--gpus-per-worker", type=float, default=0.0, metavar="X", help="default: 0")
    return parser


def _replay(given: argparse.Namespace) -> int:
    local_service.adopt()
    tracking_uri = given.tracking_uri or paths.default_tracking_uri()
    validation.check_worker_resources(given.cpus_per_worker, given.gpus_per_worker)
    validation.check_address("--storage", given.storage)
    validation.check_address("--tracking-uri", tracking_uri)
    from ablations.engine.submission.replay import ReplayRequest, replay  # MLflow and scipy take seconds to import

    paths.protect_home()
    return replay(
        ReplayRequest(
            run=given.run,
            tracking_uri=tracking_uri,
            data_root=given.data_root,
            cpus_per_worker=given.cpus_per_worker,
            gpus_per_worker=given.gpus_per_worker,
            download=given.data_download,
            storage=paths.storage_address("--storage", given.storage),
        )
    )


def _ports(given: argparse.Namespace) -> local_service.Ports:
    ports = {"mlflow": given.mlflow_port, "dashboard": given.dashboard_port, "ray": given.ray_port}
    for name, port in ports.items():
        if not 0 < port <= MAX_PORT:
            raise reject(f"--{name}-port", port, f"accepted: 1 to {MAX_PORT}")
    return local_service.Ports(**ports)


def _running() -> local_service.State:
    state = local_service.running()
    if state is None:
        raise ConfigError("the service is not running; python -m ablations.engine up starts it")
    return state
