"""The command line of a study: `main(STUDY)` is all that a study's file calls."""

import os
import sys
from types import TracebackType
from typing import NoReturn

from ablations.engine.environment import signals

INTERRUPTED = "interrupted: the same command goes on from here"

if signals.is_imported_by_program():  # before the imports that take most of a second
    signals.exit_on_signals(INTERRUPTED)

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

_excepthook = sys.excepthook


def _refuse(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print a mistake in a study's file, which is found before `main` is reached, as `main` would, and exit with 2."""
    if not isinstance(error, ConfigError):
        _excepthook(kind, error, traceback)
        return
    accept_everything()
    print(f"error: {redact_secrets(str(error))}", file=sys.stderr)
    raise SystemExit(2)


sys.excepthook = _refuse


def _drafted(study: Study, chosen: request.Options) -> Draft:
    if not chosen.search:
        return make_draft(study, chosen.request)
    from ablations.engine.search.plan import draft_search

    return draft_search(study, chosen.request, chosen.search)[0]


def _act(study: Study, chosen: request.Options) -> int:
    if (address := os.environ["RAY_ADDRESS"]) != "local":  # `adopt` has set it
        from ablations.engine.scheduling import connection

        connection.check_address(address)  # before data are read and MLflow's database is made
    paths.protect_home()
    plan: Plan
    if chosen.search:
        from ablations.engine.search.plan import plan_search  # Optuna: for searches only

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


def main(study: Study) -> NoReturn:
    """Runs a study as its command line says and exits: 0 every run has a result, 1 some has none, 2 the request was wrong."""

    def work() -> int:
        if not isinstance(study, Study):
            raise reject("main", study, "accepted: a Study")
        local_service.adopt()
        chosen = options.parse(study, sys.argv[1:])
        # Ray and MLflow take seconds to import: only for a request that is right.
        if chosen.report:
            drafted = _drafted(study, chosen)
            from ablations.engine.submission.reporting import rebuild_report

            return rebuild_report(drafted, chosen)
        return _act(study, chosen)

    signals.exit_ignoring_first_signal(crash_report.run_program(work, INTERRUPTED))
