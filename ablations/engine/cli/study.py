"""The command line of a study: `main(STUDY)` is the only call in a study file."""

import sys
from types import TracebackType
from typing import NoReturn

from ablations.engine.environment import signals

INTERRUPTED_MESSAGE = "interrupted; run the same command to continue"

if signals.is_imported_by_program():  # before the other imports, which take most of a second
    signals.exit_on_signals(INTERRUPTED_MESSAGE)

from ablations.engine.cli import datasets, options
from ablations.engine.cluster import local_service
from ablations.engine.environment import crash_report
from ablations.engine.environment.console import document_on_stdout
from ablations.engine.environment.provenance import redact_secrets
from ablations.engine.study.definition import Study
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

    The exit code is 0 if every run has a result, 1 if a run has none or the program was interrupted, and 2 for wrong options. With
    `--expect`, it is 3 or 4 if every run has a result but an expectation is not shown, or is contradicted.
    """

    def work() -> int:
        if not isinstance(study, Study):
            raise reject("main", study, "accepted: a Study")
        local_service.select_ray_cluster()
        chosen = options.parse_options(study, sys.argv[1:])
        if not chosen.json:
            return datasets.carry_out(study, chosen, print)
        with document_on_stdout() as emit:
            return datasets.carry_out(study, chosen, emit)

    signals.exit_ignoring_first_signal(crash_report.run_program(work, INTERRUPTED_MESSAGE))
