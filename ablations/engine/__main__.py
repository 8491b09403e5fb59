"""`python -m ablations.engine up | down | env`: the local service."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from ablations.engine import service
from resnet_core import ConfigError
from resnet_core.command import Parser
from resnet_core.fields import reject

HIGHEST_PORT = 65_535


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    try:
        given = _parser().parse_args(arguments)
        if given.command == "up":
            service.up(_ports(given))
        elif given.command == "env":
            for name, value in _running().environment().items():
                print(f"export {name}={shlex.quote(value)}")
        else:
            print("ended" if service.down() else "nothing was running")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m ablations.engine", description="The local service: Ray and MLflow on loopback.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, or say where it is")
    for name in ("mlflow", "dashboard", "ray"):
        default = getattr(service.Ports, name)
        up.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT", help="default: %(default)s")
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("env", help='print what makes a shell use it: eval "$(python -m ablations.engine env)"')
    return parser


def _ports(given: argparse.Namespace) -> service.Ports:
    ports = {"mlflow": given.mlflow_port, "dashboard": given.dashboard_port, "ray": given.ray_port}
    for name, port in ports.items():
        if not 0 < port <= HIGHEST_PORT:
            raise reject(f"--{name}-port", port, f"accepted: 1 to {HIGHEST_PORT}")
    return service.Ports(**ports)


def _running() -> service.State:
    state = service.running()
    if state is None:
        raise ConfigError("the service is not running; python -m ablations.engine up starts it")
    return state


if __name__ == "__main__":
    sys.exit(main())
