"""The options of a study's command line: parsing, checks before anything starts, and help."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ablations.engine.cli.cost_options import add_cost_options, read_rates
from ablations.engine.cli.search_options import RENAMED_OPTIONS, add_search_options, options_of_searches, search_request
from ablations.engine.cli.supervision_options import add_supervision_options, check_supervision, read_webhook
from ablations.engine.cli.training_options import add_cluster_options, add_training_options
from ablations.engine.environment import paths
from ablations.engine.environment.validation import check_address, check_positive, check_worker_cpus, read_worker_gpus
from ablations.engine.study.definition import Study, check_margin
from ablations.engine.study.designs import DESIGNS, check_design
from ablations.engine.study.factors import format_level, split_at_commas, split_levels
from ablations.engine.study.request import ALL_DESIGNS, Options, StudyRequest
from ablations.engine.study.seeds import format_seeds, read_seeds
from resnet_core.command import Parser
from resnet_core.fields import ConfigError, reject
from resnet_core.schema import Schema

PLACEMENTS = ("pack", "spread")
MAX_HANG_TIMEOUT_SECONDS = 7 * 24 * 3600
"""One week. The watchdog's timer overflows above some 290 years, which would leave a run without a watchdog."""
ENVIRONMENT_HELP = """environment variables:
  MLFLOW_TRACKING_URI        default of --tracking-uri
  RAY_ADDRESS                Ray cluster to use (default: the local service, a
                             cluster on this machine, or a temporary Ray)
  RESNET_ABLATIONS_HOME      folder of local state
  RESNET_ABLATIONS_STORAGE   folder or address that all nodes share
  RESNET_ABLATIONS_NOTIFY    default of --notify"""
EXAMPLES = """examples:
  python {program} --plan
  python {program} --preset smoke
  python {program} --levels {factor} --seeds 5
  ray job submit --working-dir . -- python {program} --workers 2"""
SEARCH_EXAMPLE = """
  python {program} --per-cell --space lr=0.001..1:log --trials 20"""


def parse_options(study: Study, arguments: Sequence[str]) -> Options:
    """Return the parsed command line of a study. Raise ConfigError for wrong options."""
    parser = make_parser(study)
    return from_namespace(study, parser.parse_args([_current_name(parser, word) for word in arguments]))


def from_namespace(study: Study, given: argparse.Namespace) -> Options:
    """Return the options that a namespace of `make_parser` stands for; raise ConfigError for wrong ones.

    `levels` and `set` are lists of arguments such as `depth=20,56`, or mappings by field.
    """
    check_positive("--workers", given.workers)
    check_positive("--max-concurrent", given.max_concurrent)
    if given.margin is not None:
        check_margin("--margin", given.margin)
    if given.design is not None and not (given.design == ALL_DESIGNS and given.plan):
        check_design("--design", given.design)
    if given.placement not in PLACEMENTS:
        raise reject("--placement", given.placement, f"accepted: {', '.join(PLACEMENTS)}")
    if not 0 < given.hang_timeout <= MAX_HANG_TIMEOUT_SECONDS:
        accepted = f"accepted: seconds above 0, at most {MAX_HANG_TIMEOUT_SECONDS} (a week)"
        raise reject("--hang-timeout", given.hang_timeout, accepted)
    check_worker_cpus(given.cpus_per_worker)
    check_supervision(given)
    for one, others in (("report", ("plan", "rerun", "log_models")), ("plan", ("log_models",))):
        if getattr(given, one) and (other := next((name for name in others if getattr(given, name)), None)):
            raise ConfigError(f"--{one}, --{other.replace('_', '-')}: accepted: one of them")
    if given.calibrate is not None and not given.plan:
        raise ConfigError("--calibrate: accepted with --plan only")
    check_address("--storage", given.storage)
    tracking_uri = paths.default_tracking_uri() if given.tracking_uri is None else given.tracking_uri
    check_address("--tracking-uri", tracking_uri)
    schema, levels = study.workload.schema, given.levels
    if not isinstance(levels, Mapping):
        levels = _parse_levels(study, levels)
    request = StudyRequest(
        preset=given.preset,
        datasets=given.datasets,
        design=given.design,
        seeds=None if given.seeds is None else read_seeds("--seeds", given.seeds),
        levels=levels,
        overrides=_overrides(given, schema),
        probes=tuple(given.probe),
        workers=given.workers,
        download=given.data_download,
        margin=given.margin,
        rates=read_rates(given),
    )
    return Options(
        request=request,
        search=search_request(given) if study.space else None,
        cpus_per_worker=given.cpus_per_worker,
        gpus_per_worker=read_worker_gpus("--gpus-per-worker", given.gpus_per_worker),
        max_concurrent=given.max_concurrent,
        placement=given.placement,
        hang_timeout=given.hang_timeout,
        storage=paths.storage_address("--storage", given.storage),
        tracking_uri=tracking_uri,
        plan=given.plan,
        calibrate=given.calibrate,
        report=given.report,
        rerun=given.rerun,
        log_models=given.log_models,
        predictions=given.predictions,
        json=given.json,
        expect=tuple(given.expect),
        keep_checkpoints=given.keep_checkpoints,
        stop_after_failures=given.stop_after_failures,
        notify=read_webhook(given.notify),
        notify_after=given.notify_after,
    )


def _parse_levels(study: Study, words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the levels of `--levels`, by factor. Levels of arms and of paired factors are names."""
    schema, found, fields = study.workload.schema, dict[str, tuple[str, ...]](), list[str]()
    for word in words:
        name, _, text = word.partition("=")
        if name not in study.compound_factors:
            fields.append(word)
        elif name in found:
            raise reject("--levels", word, "is named twice")
        else:
            found[name] = split_at_commas(text)
    return found | {name: split_levels(schema, name, text) for name, text in schema.assignments("--levels", fields).items()}


def fill(text: str) -> str:
    """Return text wrapped to the width of the terminal, for help that argparse leaves as it is."""
    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 100) - 2)


def add_tracking_options(group: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add `--tracking-uri` and `--storage`, which studies, `replay` and `doctor` have in common."""
    group.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow server or database (default: MLFLOW_TRACKING_URI, otherwise the local service or a database)",
    )
    group.add_argument(
        "--storage",
        default=paths.default_storage(),
        metavar="URI",
        help="folder or address of checkpoints: a path, s3://…, gs://… (default: the folder checkpoints in "
        "RESNET_ABLATIONS_STORAGE or RESNET_ABLATIONS_HOME)",
    )


def make_parser(study: Study) -> Parser:
    """Return the parser of a study's command line."""
    factors = "\n".join(f"  {name}: {', '.join(map(format_level, levels))}" for name, levels in study.factors.items())
    first = next(iter(study.factors), None)
    example = f"{first}={','.join(map(format_level, study.factors[first][:2]))}" if first else "depth=20,56"
    parser = Parser(
        usage="%(prog)s [options]",
        description=f"{fill(study.question)}\n\nfactors and levels:\n{factors}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    examples = (EXAMPLES + (SEARCH_EXAMPLE if study.space else "")).format(program=parser.prog, factor=example)
    parser.epilog = f"{examples}\n\n{ENVIRONMENT_HELP}".replace("%", "%%")
    _add_study_options(parser.add_argument_group("study"), study)
    training = parser.add_argument_group("training")
    add_training_options(training)
    add_supervision_options(training, parser.add_argument_group("notification"))
    add_cluster_options(parser.add_argument_group("cluster"))
    add_cost_options(parser.add_argument_group("cost"))
    add_tracking_options(parser.add_argument_group("tracking"))
    if study.space:
        add_search_options(parser.add_argument_group("search"))
    else:
        parser.elsewhere = options_of_searches(study.name)
    return parser


def _add_study_options(group: "argparse._ArgumentGroup", study: Study) -> None:
    group.add_argument(
        "--preset", metavar="NAME", help=f"data set and recipe: {', '.join(study.workload.presets)} (default: {study.preset})"
    )
    own = f" (default: {', '.join(study.datasets)})" if study.datasets else ""
    group.add_argument(
        "--datasets",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help=f"repeat the study on several data sets, presets or names of data, and summarize over them{own}",
    )
    group.add_argument(
        "--seeds",
        metavar="N",
        help="number of replicates of each cell, or a range such as 3..12: cells get more seeds only while a comparison of theirs "
        f"is undecided; 3,5,8,12 states the looks (default: {format_seeds(study.seeds)})",
    )
    group.add_argument(
        "--design",
        metavar="NAME",
        help=f"combinations of levels to train: {', '.join(DESIGNS)}; --plan --design all compares them (default: {study.design})",
    )
    group.add_argument(
        "--levels",
        nargs="+",
        action="extend",
        default=[],
        metavar="FACTOR=A,B",
        help="replace the levels of a factor, or add a field as a factor: depth=20,56; if each level is a list, write "
        "'milestones=[0.5,0.75],[0.3,0.6]'",
    )
    group.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="FIELD=VALUE", help="override fields of every run: optim.lr=0.05"
    )
    group.add_argument(
        "--probe",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="record layer statistics besides those of the study: responses, gradients; choose epochs by --set probe_epochs=1,10",
    )
    group.add_argument(
        "--plan", action="store_true", help="print cells, cost and the smallest detectable difference; start nothing"
    )
    group.add_argument(
        "--calibrate",
        action=argparse.BooleanOptionalAction,
        help="let --plan train a few steps here to estimate times that no finished run provides (default: no)",
    )
    group.add_argument(
        "--report",
        action="store_true",
        help="rebuild the report of the latest submission from MLflow, of all cells or of these --levels and --seeds",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print findings.json, or with --plan the plan, to standard output and everything else to standard error",
    )
    group.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="TEXT",
        help="state the outcome beforehand: 'shortcut=B better than A by 0.5', 'shortcut=B no worse than A by 0.5', 'depth "
        "matters'; exit code 3 if it is not shown, 4 if it is contradicted",
    )
    default = "none" if study.margin is None else f"{study.margin:g}"
    group.add_argument(
        "--margin",
        type=float,
        metavar="X",
        help="largest difference that counts as no effect, in the unit of differences, such as percentage points; a smaller effect "
        f"can then be shown to be none (default: {default})",
    )


def _current_name(parser: Parser, word: str) -> str:
    """Return a word of the command line with the current name of its option, and print a note if it has an old one."""
    option, mark, value = word.partition("=")
    if option not in RENAMED_OPTIONS or option in parser.elsewhere:
        return word
    print(f"note: {option} is now called {RENAMED_OPTIONS[option]}; the next release drops the old name", file=sys.stderr)
    return f"{RENAMED_OPTIONS[option]}{mark}{value}"


def _overrides(given: argparse.Namespace, schema: Schema) -> Mapping[str, Any]:
    from_python = isinstance(given.set, Mapping)
    overrides: Mapping[str, Any] = given.set if from_python else schema.assignments("--set", given.set)
    if given.probe and "probes" in map(schema.field_name, overrides):
        raise reject("--set", "probes", "--probe sets them as well; accepted: one of the two")
    return overrides
