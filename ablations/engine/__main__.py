"""`python -m ablations.engine up | down | env`: the local service."""

import argparse
import shlex
import sys

from ablations.engine import service
from resnet_core import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ablations.engine", description="The local service: Ray and MLflow on loopback."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start it, or say where it is")
    for name in ("mlflow", "dashboard", "ray"):
        default = getattr(service.Ports, name)
        up.add_argument(f"--{name}-port", type=int, default=default, metavar="PORT", help="default: %(default)s")
    commands.add_parser("down", help="end what `up` started")
    commands.add_parser("env", help='print what makes a shell use it: eval "$(python -m ablations.engine env)"')
    given = parser.parse_args()
    try:
        if given.command == "up":
            service.up(service.Ports(mlflow=given.mlflow_port, dashboard=given.dashboard_port, ray=given.ray_port))
        elif given.command == "env":
            for name, value in _running().environment().items():
                print(f"export {name}={shlex.quote(value)}")
        else:
            print("ended" if service.down() else "nothing was running")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _running() -> service.State:
    state = service.running()
    if state is None:
        raise ConfigError("the service is not running; python -m ablations.engine up starts it")
    return state


if __name__ == "__main__":
    sys.exit(main())
