"""Lifecycle of a submission: lock the study, train it, deliver its records to MLflow, and conclude it.

However a submission ends, its records are delivered or stored before its lock is released.
"""

import os
from collections.abc import Callable
from typing import Protocol, TypeVar

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from ablations.engine.environment import provenance, signals
from ablations.engine.environment.console import make_console, print_line
from ablations.engine.scheduling import connection
from ablations.engine.study.plan import Plan
from ablations.engine.study.request import Options
from ablations.engine.submission.jobs import check_before_start
from ablations.engine.submission.supervision.supervisor import Supervisor
from ablations.engine.tracking.connection import connect, is_new_database, mlflow_errors_as_config_errors
from ablations.engine.tracking.journal import Journal
from ablations.engine.tracking.lease import LeaseLost
from ablations.engine.tracking.mlflow_errors import check_study, describe_error
from ablations.engine.tracking.writer import Writer
from resnet_core.fields import counted

CLOSE_TIMEOUT_SECONDS = 60.0
"""Timeout at the end of a study while MLflow accepts nothing, in seconds. Undelivered records wait for the next submission."""
INTERRUPTED_CLOSE_TIMEOUT_SECONDS = min(10.0, float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S") or "3") * 2 / 3)
"""Value of `CLOSE_TIMEOUT_SECONDS` for an interrupted study. It is below the time after which `ray job stop` kills the job."""
MESSAGE_DELAY_SECONDS = 5.0
"""Delay before the terminal explains what the end of a study is waiting for, in seconds."""


class Work(Protocol):
    """A study or search whose lock this process holds."""

    supervisor: Supervisor

    def train(self) -> bool:
        """Train what is missing; return False if the study was interrupted."""

    def conclude(self, pending: int, *, interrupted: bool) -> int:
        """Print and publish the results; return the exit code. `pending` is the number of undelivered records."""

    def describe_end(self) -> str:
        """Return what came of the study, as one line."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)
StartWork = Callable[[Console, MlflowClient, AnyPlan, Options, Writer], Work]
"""Begins the work on a study, such as `study_submission.StudySubmission`. Raises ConfigError for a wrong request."""


def submit(plan: AnyPlan, options: Options, start: StartWork[AnyPlan]) -> int:
    """Lock a study, train it and print its results; return the exit code."""
    console = make_console()
    if is_new_database(options.tracking_uri):  # all runs are missing, so check the resources before a file is created
        check_before_start(plan, options)
    client = connect(options.tracking_uri)
    # Check before opening the journal: MLflow would refuse its earlier records if the experiment was deleted.
    with mlflow_errors_as_config_errors(options.tracking_uri):
        check_study(client, plan.study.name)
    with Journal(options.tracking_uri, plan.study.name, plan.base_id) as journal:
        writer = Writer(client, journal)
        try:
            return _train_and_conclude(console, client, plan, options, writer, start)
        except (LeaseLost, KeyboardInterrupt):
            if not writer.lost_to:
                raise
        finally:
            writer.release()
        print_line(console, f"{plan.study.name}: {writer.lost_to}.")
        return 1


def _train_and_conclude(
    console: Console, client: MlflowClient, plan: AnyPlan, options: Options, writer: Writer, start: StartWork[AnyPlan]
) -> int:
    """Train and conclude a study whose journal this process has; return the exit code.

    Raises:
        LeaseLost: another process has taken the study over.
    """
    try:
        if writer.journal.recovered:
            _deliver_earlier_records(console, writer)
        with mlflow_errors_as_config_errors(options.tracking_uri):
            work = start(console, client, plan, options, writer)
    except BaseException:
        _close(console, writer, interrupted=True)
        raise
    try:
        code = _carry_out(console, options, writer, work)
    except BaseException as error:
        interrupted = isinstance(error, (KeyboardInterrupt, LeaseLost))
        what = "interrupted" if interrupted else f"failed with an unexpected error ({type(error).__name__})"
        work.supervisor.notify_end(f"{what}; the same command continues.", interrupted=interrupted)
        raise
    return code


def _carry_out(console: Console, options: Options, writer: Writer, work: Work) -> int:
    """Train and conclude a study, and send a notification of its end; return the exit code.

    Raises:
        LeaseLost: another process has taken the study over.
    """
    interrupted, supervisor = True, work.supervisor
    try:
        with supervisor.watching():
            if count := supervisor.stop_requests.discarded:
                were = "was" if count == 1 else "were"
                print_line(console, f"{counted(count, 'tag')} stop in MLflow from before this submission {were} removed.")
            interrupted = not work.train()
    finally:  # always before the journal is unlocked: another process may deliver these records from then on
        pending = _close(console, writer, interrupted)
        supervisor.retention.close()
    if options.ends_ray:
        connection.end_own_ray()
    if writer.lost_to:
        raise LeaseLost(writer.lost_to)
    if interrupted:
        signals.note_interrupt()
    if reason := supervisor.stop_reason:
        continued = "Once the cause is fixed, the" if supervisor.halted else "The"
        print_line(console, f"{reason[0].upper()}{reason[1:]}. {continued} same command continues it.")
    code = _conclude(console, writer, work, pending, interrupted=interrupted)
    state = supervisor.stop_reason or ("interrupted" if interrupted else "incomplete" if code else "complete")
    supervisor.notify_end(f"{state}. {work.describe_end()}", interrupted=interrupted)
    return code


def _conclude(console: Console, writer: Writer, work: Work, pending: int, *, interrupted: bool) -> int:
    """Print and publish the results of a study, or say how to continue; return the exit code."""
    try:
        if not (interrupted and pending):  # an interrupted study does not wait for a server that is down
            return work.conclude(pending, interrupted=interrupted)
    except MlflowException as error:
        print_line(console, f"There is no table: {describe_error(error)}.")
    left = f"{counted(pending, 'record')} {'waits' if pending == 1 else 'wait'} for MLflow. " if pending else ""
    print_line(console, f"{left}Continue with: {provenance.resubmit_command()}")
    return 1


def _deliver_earlier_records(console: Console, writer: Writer) -> None:
    pending = writer.flush(CLOSE_TIMEOUT_SECONDS)
    count = counted(len(writer.journal.recovered), "record")
    console.print(f"Delivered records of an earlier submission: {count}{', not all' if pending else ''}.")


def _close(console: Console, writer: Writer, interrupted: bool) -> int:
    """Deliver what can be delivered now and end the writer; return the number of undelivered records."""
    if interrupted or writer.lost_to:
        return writer.close(INTERRUPTED_CLOSE_TIMEOUT_SECONDS, max_seconds=INTERRUPTED_CLOSE_TIMEOUT_SECONDS)
    if (pending := writer.flush(MESSAGE_DELAY_SECONDS, max_seconds=MESSAGE_DELAY_SECONDS)) and not writer.deletion_messages():
        console.print(
            f"Waiting for MLflow to accept {counted(pending, 'record')}; after Ctrl-C, the next submission delivers what is left."
        )
    return writer.close(CLOSE_TIMEOUT_SECONDS)
