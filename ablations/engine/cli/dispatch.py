"""From parsed options to their effect: a plan, a report, or a training, and what a program reads of it."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablations.engine.environment import paths
from ablations.engine.environment.provenance import redact_secrets
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft, make_plan
from ablations.engine.study.expectations import Expectation, parse_expectations
from ablations.engine.study.factors import Level
from ablations.engine.study.plan import CONFIGURATION, DEFAULT, TUNED, Draft, Plan
from ablations.engine.study.request import ALL_DESIGNS, Options
from resnet_core.fields import ConfigError, reject

if TYPE_CHECKING:
    from ablations.engine.analysis.verdicts.expectations import Assessment
    from ablations.engine.submission.reporting import StoredStudy

# Ray and MLflow take seconds to import. The functions below import them only if the options are right.

NOT_SHOWN_EXIT_CODE, CONTRADICTED_EXIT_CODE = 3, 4
"""Exit codes of a study that is complete, if an expectation is not shown or is contradicted."""


def carry_out(study: Study, options: Options, emit: Callable[[str], object]) -> int:
    """Do what the options ask for with a study on one data set; return the exit code.

    Args:
        study: the study.
        options: its parsed command line.
        emit: receives the JSON document, if `options.json`.
    """
    if options.request.design == ALL_DESIGNS:
        return _show_designs(study, options, emit)
    if options.report:
        drafted = draft(study, options)
        expected = expectations(drafted, options)
        from ablations.engine.submission.reporting import read_study, rebuild_report

        stored = read_study(drafted, options)
        return _conclude(stored, expected, options, emit, rebuild_report(stored))
    plan = make_plan_of(study, options)
    expected = expectations(plan, options)
    if options.plan:
        return _show_plan(plan, options, emit)
    code = train(plan, replace(options, ends_ray=True))
    if not (options.json or expected):
        return code
    from ablations.engine.submission.reporting import read_study

    try:
        stored = read_study(plan, options, details=False)
    except ConfigError as error:
        if not code:
            raise
        print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
        return code
    return _conclude(stored, expected, options, emit, code)


def draft(study: Study, options: Options) -> Draft:
    """Return the study's cells without reading data; raise ConfigError for a wrong request."""
    if not options.search:
        return make_draft(study, options.request)
    from ablations.engine.search.plan import draft_search

    return draft_search(study, options.request, options.search)[0]


def make_plan_of(study: Study, options: Options) -> Plan:
    """Return the study's runs; raise ConfigError for a wrong request or a cluster that cannot be used."""
    if (address := os.environ["RAY_ADDRESS"]) != "local":  # `select_ray_cluster` has set it
        from ablations.engine.scheduling import connection

        connection.check_address(address)  # before the data set is read and MLflow's database is created
    paths.protect_home()
    if not options.search:
        return make_plan(study, options.request, cache=paths.data_cache())
    from ablations.engine.search.plan import plan_search  # imports Optuna, which other studies do not need

    return plan_search(study, options.request, options.search, cache=paths.data_cache())


def expectations(study: Draft | Plan, options: Options) -> tuple[Expectation, ...]:
    """Return the parsed expectations; raise ConfigError for one that the study cannot decide."""
    factors: Mapping[str, Sequence[Level]] = study.factors
    if options.search and not options.search.objective:  # the level `tuned` exists once the search has ended
        factors = {**factors, CONFIGURATION: (DEFAULT, TUNED)}
    return parse_expectations(options.expect, factors)


def train(plan: Plan, options: Options) -> int:
    """Train what a study lacks, and report; return the exit code."""
    from ablations.engine.cli.start_up import start_ray_beside_mlflow

    start_ray_beside_mlflow(plan, options)
    if options.search:
        from ablations.engine.submission.search_submission import run_search as act
    elif plan.seed_looks:
        from ablations.engine.submission.adaptive_submission import run_adaptive_study as act
    else:
        from ablations.engine.submission.study_submission import run_study as act
    return act(plan, options)


def _show_plan(plan: Plan, options: Options, emit: Callable[[str], object]) -> int:
    from ablations.engine.submission.planning.preview import examine, preview

    if not options.json:
        return preview(plan, options)
    from ablations.engine.report.findings_json import to_json
    from ablations.engine.submission.planning.plan_json import plan_document

    emit(to_json(plan_document(examine(plan, options))))
    return 0


def _show_designs(study: Study, options: Options, emit: Callable[[str], object]) -> int:
    """Print what each design of a study costs and finds; return the exit code."""
    if options.search:
        raise reject("--design", ALL_DESIGNS, "accepted for a study without a search space")
    paths.protect_home()
    from ablations.engine.environment.console import make_console
    from ablations.engine.report.findings_json import to_json
    from ablations.engine.submission.planning.designs import compare_designs, designs_document, designs_view

    compared = compare_designs(study, options)
    if options.json:
        emit(to_json(designs_document(compared)))
    else:
        make_console().print(designs_view(compared))
    return 0


def _conclude(
    stored: "StoredStudy", expected: Sequence[Expectation], options: Options, emit: Callable[[str], object], code: int
) -> int:
    """Print the assessed expectations, emit the findings, and return the exit code."""
    from ablations.engine.analysis.verdicts.expectations import assess
    from ablations.engine.environment.console import make_console, print_line
    from ablations.engine.report.findings_json import findings_document, to_json

    assessed = assess(expected, stored.evidence, stored.findings)
    console = make_console()
    for each in assessed:
        print_line(console, each.text)
    if options.json:
        emit(to_json(findings_document(stored.evidence, stored.findings, assessed)))
    return code or expectations_exit_code(assessed)


def expectations_exit_code(assessed: "Sequence[Assessment]") -> int:
    """Return the exit code of a complete study with these assessed expectations."""
    from ablations.engine.analysis.verdicts.expectations import CONTRADICTED, SHOWN

    verdicts = {each.verdict for each in assessed}
    if CONTRADICTED in verdicts:
        return CONTRADICTED_EXIT_CODE
    return 0 if verdicts <= {SHOWN} else NOT_SHOWN_EXIT_CODE
