"""The console command `ablations`: the local service, the studies that MLflow has, and replays of single runs."""

import argparse
import shlex
from collections.abc import Sequence
from importlib import metadata

from ablations.engine.cli import doctor, export, fields, options
from ablations.engine.cli.compare import command as compare
from ablations.engine.cli.studies import (
    clean_command,
    completion,
    du_command,
    list_command,
    logs_command,
    runs_command,
    show_command,
    stop_command,
)
from ablations.engine.cluster import local_service, mlflow_server
from ablations.engine.environment import crash_report, paths, validation
from resnet_core import ConfigError
from resnet_core.command import Parser
from resnet_core.fields import reject

PROGRAM = "ablations"
DISTRIBUTION = "resnet-ablations"
INTERRUPTED_MESSAGE = "interrupted"
MAX_PORT = 65_535
"""Highest TCP port."""
SERVERS = {"mlflow": "MLflow server", "dashboard": "Ray dashboard and job server", "ray": "Ray head"}
"""The service's servers by the name of their port option."""
COMMAND_MODULES = {
    "list": list_command,
    "show": show_command,
    "runs": runs_command,
    "compare": compare,
    "logs": logs_command,
    "stop": stop_command,
    "du": du_command,
    "clean": clean_command,
    "completion": completion,
    "fields": fields,
    "export": export,
    "doctor": doctor,
    "mlflow": mlflow_server,
}
"""Modules of commands. Each has `HELP`, `add_arguments(parser)` and `run(given)`."""
EXAMPLES = """examples:
  ablations up
  ray job submit --working-dir . -- python my_study.py --preset smoke
  ablations list
  ablations show my-shortcuts
  ablations clean --dry-run
  ablations replay 3f2a91
  ablations down

A study file is a program of its own: python my_study.py --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    return crash_report.run_program(lambda: _run(arguments), INTERRUPTED_MESSAGE)


def _run(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    completion.answer_shell(parser)
    given = parser.parse_args(arguments)
    if given.command == "up":
        local_service.up(_ports(given))
    elif given.command == "env":
        for name, value in _running_service().environment().items():
            print(f"export {name}={shlex.quote(value)}")
    elif given.command == "down":
        print("the service has ended" if local_service.down() else "the service was not running")
    elif given.command in COMMAND_MODULES:
        return int(COMMAND_MODULES[given.command].run(given))
    else:
        return _replay(given)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the console command and its subcommands."""
    parser = Parser(
        prog=PROGRAM,
        description=options.fill(
            "Ablation and hyperparameter studies of residual networks on Ray, with every run in MLflow. This command manages the "
            "servers that studies use, and finds, compares, stops and cleans up the studies themselves."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{DISTRIBUTION} {_version()}", help="print the version")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    up = commands.add_parser(
        "up",
        help="start Ray and MLflow on this machine, or print their addresses if they run",
        description="Start Ray and MLflow on this machine, for this machine only. If they run already, print their addresses.",
    )
    for name, server in SERVERS.items():
        default = getattr(local_service.Ports, name)
        up.add_argument(
            f"--{name}-port", type=int, default=default, metavar="PORT", help=f"port of the {server} (default: {default})"
        )
    commands.add_parser(
        "down", help="end the processes that `ablations up` started", description="End the processes that `ablations up` started."
    )
    commands.add_parser(
        "env",
        help="print shell commands that point Ray's and MLflow's clients at the service",
        description="Print shell commands that point Ray's and MLflow's clients at the service: eval \"$(ablations env)\"",
    )
    for name, command in COMMAND_MODULES.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    replay = commands.add_parser(
        "replay",
        help="train a finished run again from its record and compare the results",
        description=options.fill(
            "Train a finished run again from its record in MLflow and compare the results. Exit code 0: equal; 1: different; "
            "2: wrong options."
        ),
        epilog=options.ENVIRONMENT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("run", metavar="RUN", help="run ID in MLflow, or fingerprint, or at least the first 6 characters of either")
    replay.add_argument("--data-root", metavar="FOLDER", help="folder of the data set (default: the run's own)")
    replay.add_argument("--data-download", action="store_true", help="download the data set if it is missing")
    replay.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="CPUs of each worker (default: 1)")
    replay.add_argument(
        "--gpus-per-worker",
        default=validation.AUTO,
        metavar="X",
        help="GPUs of each worker; auto: a GPU if the run trained on one (default: auto)",
    )
    options.add_tracking_options(replay)
    return parser


def _version() -> str:
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # the source folder is on the path, but not installed
        return "(not installed)"


def _replay(given: argparse.Namespace) -> int:
    local_service.select_ray_cluster()
    tracking_uri = given.tracking_uri or paths.default_tracking_uri()
    validation.check_worker_cpus(given.cpus_per_worker)
    gpus_per_worker = validation.read_worker_gpus("--gpus-per-worker", given.gpus_per_worker)
    validation.check_address("--storage", given.storage)
    validation.check_address("--tracking-uri", tracking_uri)
    from ablations.engine.submission.replay import ReplayRequest, replay  # imports MLflow and SciPy, which takes seconds

    paths.protect_home()
    return replay(
        ReplayRequest(
            run=given.run,
            tracking_uri=tracking_uri,
            data_root=given.data_root,
            cpus_per_worker=given.cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
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


def _running_service() -> local_service.ServiceState:
    state = local_service.running_service()
    if state is None:
        raise ConfigError("the service is not running; start it: ablations up")
    return state
