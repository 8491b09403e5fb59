"""The command line's options, parsed and checked before anything starts."""

import argparse
import re
from collections.abc import Sequence

from ablations.engine.environment import paths
from ablations.engine.environment.validation import check_address, check_positive, check_worker_resources
from ablations.engine.study.definition import Study
from ablations.engine.study.factors import format_level, split_levels
from ablations.engine.study.request import (
    DEFAULT_TRIALS,
    DEFAULT_VALIDATION_SHARE,
    OBJECTIVES,
    SAMPLERS,
    SCHEDULERS,
    Options,
    SearchRequest,
    StudyRequest,
)
from resnet_core import PRESETS
from resnet_core.command import Parser
from resnet_core.fields import ConfigError, reject
from resnet_core.overrides import assignments, field_name

PLACEMENTS = ("pack", "spread")
MAX_HANG_SECONDS = 7 * 24 * 3600
"""A week. The watchdog's timer takes some 290 years, and there would be no watchdog beyond."""
EPILOG = (
    "Environment: MLFLOW_TRACKING_URI, RAY_ADDRESS; RESNET_ABLATIONS_HOME is the folder of local state, RESNET_ABLATIONS_STORAGE "
    "a folder or address that all nodes share."
)


def parse(study: Study, arguments: Sequence[str]) -> Options:
    """The command line's options; raises ConfigError for wrong ones."""
    given = _parser(study).parse_args(arguments)
    check_positive("--workers", given.workers)
    check_positive("--max-concurrent", given.max_concurrent)
    if given.placement not in PLACEMENTS:
        raise reject("--placement", given.placement, f"accepted: {', '.join(PLACEMENTS)}")
    if not 0 < given.hang_timeout <= MAX_HANG_SECONDS:
        raise reject("--hang-timeout", given.hang_timeout, f"accepted: seconds above 0, at most {MAX_HANG_SECONDS} (a week)")
    check_worker_resources(given.cpus_per_worker, given.gpus_per_worker)
    for one, others in (("report", ("plan", "fresh", "log_models")), ("plan", ("log_models",))):
        if getattr(given, one) and (other := next((name for name in others if getattr(given, name)), None)):
            raise ConfigError(f"--{one}, --{other.replace('_', '-')}: accepted: one of them")
    if given.calibrate is not None and not given.plan:
        raise ConfigError("--calibrate: accepted with --plan only")
    check_address("--storage", given.storage)
    check_address("--tracking-uri", given.tracking_uri)
    levels = {name: split_levels(name, text) for name, text in assignments("--levels", given.levels).items()}
    request = StudyRequest(
        preset=given.preset,
        seeds=given.seeds,
        levels=levels,
        overrides=_overrides(given),
        probes=tuple(given.probe),
        workers=given.workers,
        download=given.data_download,
    )
    return Options(
        request=request,
        search=_search(given) if study.space else None,
        cpus_per_worker=given.cpus_per_worker,
        gpus_per_worker=given.gpus_per_worker,
        max_concurrent=given.max_concurrent,
        placement=given.placement,
        hang_timeout=given.hang_timeout,
        storage=paths.storage_address("--storage", given.storage),
        tracking_uri=given.tracking_uri,
        plan=given.plan,
        calibrate=given.calibrate,
        report=given.report,
        rerun=given.fresh,
        log_models=given.log_models,
    )


def _parser(study: Study) -> argparse.ArgumentParser:
    factors = "; ".join(f"{name}: {', '.join(map(format_level, levels))}" for name, levels in study.factors.items())
    parser = Parser(description=f"{study.question}  Factors: {factors}.", epilog=EPILOG)
    what = parser.add_argument_group("what to run")
    what.add_argument("--preset", metavar="NAME", help=f"data set and recipe: {', '.join(PRESETS)} (default: {study.preset})")
    what.add_argument("--seeds", type=int, metavar="N", help=f"replicates of every cell (default: {study.seeds})")
    what.add_argument(
        "--levels",
        nargs="+",
        action="extend",
        default=[],
        metavar="FACTOR=A,B",
        help="other levels, as in depth=20,56 shortcut=A,B; of any field, and a level that is a list is in brackets: "
        "'milestones=[0.5,0.75],[0.3,0.6]'",
    )
    what.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="any field of RunSpec, as in optim.lr=0.05"
    )
    what.add_argument(
        "--probe",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="look inside the networks, besides what the study looks at: responses (figure 7), gradients; --set probe_epochs=1,10",
    )
    what.add_argument("--data-download", action="store_true", help="download the data set where it is missing (cifar10, cifar100)")
    what.add_argument("--fresh", action="store_true", help="train again what is done, as a new attempt; nothing is deleted")
    if study.space:
        _add_search(parser)
    where = parser.add_argument_group("on what")
    where.add_argument("--workers", type=int, default=1, metavar="N", help="data-parallel workers of a run (default: 1)")
    where.add_argument(
        "--placement",
        default="pack",
        metavar="NAME",
        help="a run's workers on as few nodes as can be, or on as many: pack, spread (default: %(default)s)",
    )
    where.add_argument("--cpus-per-worker", type=float, default=1.0, metavar="X", help="default: 1")
    where.add_argument(
        "--gpus-per-worker", type=float, default=0.0, metavar="X", help="0 to 1; a fraction shares a GPU between runs (default: 0)"
    )
    where.add_argument("--max-concurrent", type=int, metavar="N", help="runs at a time (default: as many as the cluster holds)")
    where.add_argument(
        "--hang-timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a process that makes no step for so long is ended and its run goes on from the last checkpoint; reading the data, "
        "reading or writing a checkpoint count as one step each (default: 600)",
    )
    records = parser.add_argument_group("where results go")
    records.add_argument(
        "--storage",
        default=paths.default_storage(),
        metavar="URI",
        help="checkpoints: a folder or s3://… (default: %(default)s)",
    )
    records.add_argument(
        "--tracking-uri", default=paths.default_tracking_uri(), metavar="URI", help="MLflow (default: %(default)s)"
    )
    records.add_argument("--log-models", action="store_true", help="log the final network of every run to MLflow")
    show = parser.add_argument_group("look first")
    show.add_argument(
        "--plan",
        action="store_true",
        help="print cells, what is skipped or done already, what it costs and how small a difference it can find; start nothing",
    )
    show.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="whether --plan trains a few steps here to estimate times that no finished run tells (default: not on a cluster)",
    )
    show.add_argument(
        "--report",
        action="store_true",
        help="make the report of what was submitted last again, from MLflow alone, of all or of these --levels and --seeds",
    )
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to search")
    group.add_argument(
        "--search",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD",
        help="what to search: fields of the study's space, or any field of RunSpec with a range or choices, as in "
        "lr=0.001..1:log width=8,16,24 (default: the study's whole space)",
    )
    group.add_argument(
        "--per-cell",
        nargs="*",
        metavar="FACTOR",
        help="a search of equal budget inside each level of these factors (default of --per-cell alone: all of the study)",
    )
    group.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help=f"budget of each search; of pbt, the size of its population (default: {DEFAULT_TRIALS})",
    )
    group.add_argument(
        "--time-budget", metavar="TIME", help="another budget of each search: its trials' training time, as in 90s, 30m or 8h"
    )
    group.add_argument("--sampler", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: tpe; of pbt random)")
    group.add_argument(
        "--scheduler",
        metavar="NAME",
        help=f"who ends hopeless trials early: {', '.join(SCHEDULERS)} (default: asha; with --against none)",
    )
    group.add_argument(
        "--against", metavar="COST", help=f"weigh error against {' or '.join(OBJECTIVES)}: the search is for the front of both"
    )
    group.add_argument(
        "--validation",
        type=float,
        default=DEFAULT_VALIDATION_SHARE,
        metavar="SHARE",
        help="of every class's training images, held out to score trials on; the test set is not read (default: %(default)s)",
    )
    group.add_argument("--search-seed", type=int, default=0, metavar="N", help="another one is another search (default: 0)")


def _search(given: argparse.Namespace) -> SearchRequest:
    check_positive("--trials", given.trials)
    if given.fresh:
        raise ConfigError("--fresh: a search goes on from the trials that are there; accepted: another --search-seed")
    return SearchRequest(
        per_cell=given.per_cell,
        space=tuple(given.search),
        trials=given.trials,
        seconds=None if given.time_budget is None else _seconds("--time-budget", given.time_budget),
        sampler=given.sampler,
        scheduler=given.scheduler,
        objective=given.against,
        seed=given.search_seed,
        validation_share=given.validation,
    )


def _seconds(option: str, text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smh]?)", text, re.ASCII)
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if seconds <= 0:
        raise reject(option, text, "accepted: a time above 0, such as 90s, 30m or 8h")
    return seconds


def _overrides(given: argparse.Namespace) -> dict[str, str]:
    overrides = assignments("--set", given.set)
    if given.probe and "probes" in map(field_name, overrides):
        raise reject("--set", "probes", "--probe names them too")
    return overrides
