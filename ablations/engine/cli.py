"""The command line of a study: `main(STUDY)` is all that a study's file calls."""

import atexit
import os
import sys
from typing import NoReturn

from ablations.engine import last_resort, options, paths, service
from ablations.engine.interrupts import Interrupts
from ablations.engine.provenance import without_secrets
from ablations.engine.study import Draft, Plan, Study, draft, make_plan
from resnet_core import ConfigError

INTERRUPTED = "interrupted: the same command goes on from here"


def _drafted(study: Study, chosen: options.Options) -> Draft:
    if not chosen.search:
        return draft(study, chosen.request)
    from ablations.engine.search import draft_search

    return draft_search(study, chosen.request, chosen.search)[0]


def _act(study: Study, chosen: options.Options) -> int:
    if (address := os.environ["RAY_ADDRESS"]) != "local":  # `adopt` has set it
        from ablations.engine import ray_address

        ray_address.check(address)  # before data are read and MLflow's database is made
    paths.protect_home()
    plan: Plan
    if chosen.search:
        from ablations.engine.search import plan_search  # Optuna: for searches only

        plan = plan_search(study, chosen.request, chosen.search, cache=paths.data_cache())
    else:
        plan = make_plan(study, chosen.request, cache=paths.data_cache())
    if chosen.plan:
        from ablations.engine.preview import preview as act
    elif chosen.search:
        from ablations.engine.searching import execute as act
    else:
        from ablations.engine.execution import execute as act
    return act(plan, chosen)


def main(study: Study) -> NoReturn:
    """Runs a study as its command line says and exits: 0 every run has a result, 1 some has none, 2 the request was wrong."""
    interrupts = Interrupts()
    try:
        service.adopt()
        chosen = options.parse(study, sys.argv[1:])
        # Ray and MLflow take seconds to import: only for a request that is right.
        if chosen.report:
            drafted = _drafted(study, chosen)
            from ablations.engine.reporting import rebuild

            code = rebuild(drafted, chosen)
        else:
            code = _act(study, chosen)
    except ConfigError as error:
        print(f"error: {without_secrets(str(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        code = 1
    except Exception as error:  # what nobody thought of is no wall of text either
        # A library that is interrupted may make an error of its own of it.
        print(INTERRUPTED if interrupts.heard else f"error: {last_resort.keep(error)}", file=sys.stderr)
        code = 1
    atexit.register(interrupts.ignore)  # what comes then is Ray's own end
    sys.exit(code)
