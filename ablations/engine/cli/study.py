"""The command line of a study: `main(STUDY)` is the only call in a study file."""

import os
import sys
from types import TracebackType
from typing import NoReturn

from ablations.engine.environment import signals

INTERRUPTED_MESSAGE = "interrupted; run the same command to continue"

if signals.is_imported_by_program():  # before the other imports, which take most of a second
    signals.exit_on_signals(INTERRUPTED_MESSAGE)

from ablations.engine.cli import options
from ablations.engine.cluster import local_service
from ablations.engine.environment import crash_report, paths
from ablations.engine.environment.provenance import redact_secrets
from ablations.engine.study import request
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft, make_plan
from ablations.engine.study.plan import Draft, Plan
from resnet_core.fields import ConfigError, reject
from resnet_core.streams import accept_everything

_previous_excepthook = sys.excepthook


def _print_config_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a ConfigError as one line and exit with 2, as `main` does. A study's wrong definition raises it before `main` runs."""
    if not isinstance(error, ConfigError):
        _previous_excepthook(kind, error, traceback)
        return
    accept_everything()
    print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
    raise SystemExit(2)


sys.excepthook = _print_config_error


def main(study: Study) -> NoReturn:
    """Run a study as its command line says, and exit.

    The exit code is 0 if every run has a result, 1 if a run has none or the program was interrupted, and 2 for wrong options.
    """

    def work() -> int:
        if not isinstance(study, Study):
            raise reject("main", study, "accepted: a Study")
        local_service.select_ray_cluster()
        chosen = options.parse_options(study, sys.argv[1:])
        # Ray and MLflow take seconds to import. Import them only if the options are right.
        if chosen.report:
            drafted = _make_draft(study, chosen)
            from ablations.engine.submission.reporting import rebuild_report

            return rebuild_report(drafted, chosen)
        return _plan_or_run(study, chosen)

    signals.exit_ignoring_first_signal(crash_report.run_program(work, INTERRUPTED_MESSAGE))


def _make_draft(study: Study, chosen: request.Options) -> Draft:
    if not chosen.search:
        return make_draft(study, chosen.request)
    from ablations.engine.search.plan import draft_search

    return draft_search(study, chosen.request, chosen.search)[0]


def _plan_or_run(study: Study, chosen: request.Options) -> int:
    if (address := os.environ["RAY_ADDRESS"]) != "local":  # `select_ray_cluster` has set it
        from ablations.engine.scheduling import connection

        connection.check_address(address)  # before the data set is read and MLflow's database is created
    paths.protect_home()
    plan: Plan
    if chosen.search:
        from ablations.engine.search.plan import plan_search  # imports Optuna, which other studies do not need

        plan = plan_search(study, chosen.request, chosen.search, cache=paths.data_cache())
    else:
        plan = make_plan(study, chosen.request, cache=paths.data_cache())
    if chosen.plan:
        from ablations.engine.submission.planning.preview import preview as act
    elif chosen.search:
        from ablations.engine.submission.search_submission import run_search as act
    else:
        from ablations.engine.submission.study_submission import run_study as act
    return act(plan, chosen)
