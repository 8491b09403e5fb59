"""`python -m ablations.engine up | down | address`: the local service."""

import argparse
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
    commands.add_parser("address", help="print where jobs are submitted")
    given = parser.parse_args()
    try:
        if given.command == "up":
            service.up(service.Ports(mlflow=given.mlflow_port, dashboard=given.dashboard_port, ray=given.ray_port))
        elif given.command == "address":
            print(service.dashboard_address())
        else:
            print("ended" if service.down() else "nothing was running")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
