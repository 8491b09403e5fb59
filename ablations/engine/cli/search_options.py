"""The options of a search: parsing, checks and help."""

import argparse
import re

from ablations.engine.environment.validation import check_positive
from ablations.engine.study.request import (
    DEFAULT_TRIALS,
    DEFAULT_VALIDATION_SHARE,
    OBJECTIVES,
    SAMPLERS,
    SCHEDULERS,
    SearchRequest,
)
from resnet_core.fields import ConfigError, reject

RENAMED_OPTIONS = {"--fresh": "--rerun", "--against": "--objective", "--search": "--space"}
"""Old names of options. They work for one release and are not in the help."""


def add_search_options(group: "argparse._ArgumentGroup") -> None:
    """Add the options of a search."""
    group.add_argument(
        "--space",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD",
        help="fields to search: names of the study's space, or any field with a range or choices, as in lr=0.001..1:log "
        "width=8,16,24 (default: the study's whole space)",
    )
    group.add_argument(
        "--per-cell",
        nargs="*",
        metavar="FACTOR",
        help="run a search of equal budget for each level of these factors, of all factors if none is named (default: one search)",
    )
    group.add_argument(
        "--trials", type=int, metavar="N", help=f"trials of each search; with pbt, the population size (default: {DEFAULT_TRIALS})"
    )
    group.add_argument(
        "--time-budget", metavar="TIME", help="training time of each search: 90s, 30m, 8h (default: bounded by --trials only)"
    )
    group.add_argument("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: tpe; random with pbt)")
    group.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"method that stops poor trials early: {', '.join(SCHEDULERS)} (default: asha; none with --objective)",
    )
    group.add_argument(
        "--objective",
        metavar="COST",
        help=f"second objective besides the metric: {' or '.join(OBJECTIVES)}; the search finds the Pareto front (default: none)",
    )
    group.add_argument(
        "--validation",
        type=float,
        default=DEFAULT_VALIDATION_SHARE,
        metavar="SHARE",
        help="share of each class's training images held out to score trials; the test set is not read (default: %(default)s)",
    )
    group.add_argument("--search-seed", type=int, default=0, metavar="N", help="seed of the search (default: 0)")


def options_of_searches(study: str) -> dict[str, str]:
    """Return the options above, each with where a study without a search finds them."""
    parser = argparse.ArgumentParser(add_help=False)
    add_search_options(parser.add_argument_group())
    where = f"{study} searches nothing; accepted by a study with space=…, such as ablations/hyperparameters.py (docs/searching.md)"
    options = [option for action in parser._actions for option in action.option_strings]
    return dict.fromkeys([*options, *(old for old, new in RENAMED_OPTIONS.items() if new in options)], where)


def search_request(given: argparse.Namespace) -> SearchRequest:
    """Return the part of a request that concerns the search; raise ConfigError for wrong options."""
    check_positive("--trials", given.trials)
    if given.rerun:
        raise ConfigError("--rerun: a search continues from its finished trials; accepted: another --search-seed")
    return SearchRequest(
        per_cell=given.per_cell,
        space=tuple(given.space),
        trials=given.trials,
        seconds=None if given.time_budget is None else _seconds("--time-budget", given.time_budget),
        sampler=given.sampler,
        scheduler=given.scheduler,
        objective=given.objective,
        seed=given.search_seed,
        validation_share=given.validation,
    )


def _seconds(option: str, text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smh]?)", text, re.ASCII)
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if seconds <= 0:
        raise reject(option, text, "accepted: a time above 0, such as 90s, 30m or 8h")
    return seconds
