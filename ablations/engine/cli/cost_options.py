"""The options that turn what a study uses into money and emissions."""

import argparse

from ablations.engine.environment.validation import check_rate
from ablations.engine.study.request import Rates


def add_cost_options(group: "argparse._ArgumentGroup") -> None:
    """Add the options."""
    group.add_argument(
        "--price", type=float, metavar="USD", help="price of a GPU for an hour; --plan and the report then say what a study costs"
    )
    group.add_argument(
        "--co2-per-kwh", type=float, metavar="G", help="grams of CO2 per kWh of electricity, for the GPUs' energy in the report"
    )


def read_rates(given: argparse.Namespace) -> Rates:
    """Return the rates; raise ConfigError for one that is negative or not finite."""
    return Rates(
        usd_per_gpu_hour=check_rate("--price", given.price), co2_grams_per_kwh=check_rate("--co2-per-kwh", given.co2_per_kwh)
    )
