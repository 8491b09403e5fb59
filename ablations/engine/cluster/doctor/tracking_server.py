"""Check of MLflow: it answers, a run can be written, and it asks for a password where others can reach it.

The doctor runs where the drivers of jobs run, so that this check uses the same connection as they do.
"""

import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from ablations.engine.cluster.doctor.check import Check, failed, not_checked, passed
from ablations.engine.cluster.doctor.network_exposure import requires_password
from resnet_core.fields import ConfigError, printable

DEFAULT_EXPERIMENT_ID = "0"
"""ID of the experiment `Default`, which every MLflow store has."""


@dataclass(frozen=True, kw_only=True)
class TrackingMeasurement:
    """The outcome of writing a run to MLflow."""

    new: bool = False
    """True if the database does not exist yet."""
    seconds: float = 0
    """Time to connect, create a run and delete it."""
    error: str = ""
    password: bool | None = None
    """True if the server asks for a password; None: a database, or no answer."""


class MeasurementThread(threading.Thread):
    """A thread that talks to MLflow, so that a server that hangs delays nothing else."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.uri = uri
        self.result: TrackingMeasurement | None = None

    def run(self) -> None:
        self.result = measure(self.uri)

    def wait(self, timeout_seconds: float) -> TrackingMeasurement:
        """Return the result, or an error if there is none within the time limit."""
        self.join(max(timeout_seconds, 0))
        return self.result or TrackingMeasurement(error=f"{self.uri} does not answer in time")


def measure(uri: str) -> TrackingMeasurement:
    """Create a run in MLflow and delete it. It shows up only in a list of deleted runs."""
    from mlflow.exceptions import MlflowException

    from ablations.engine.tracking.connection import connect, is_new_database
    from ablations.engine.tracking.mlflow_errors import check_experiment, describe_error, first_line

    password = requires_password(uri) if uri.startswith("http") else None
    began = time.monotonic()
    try:
        if is_new_database(uri):
            return TrackingMeasurement(new=True)
        client = connect(uri)
        check_experiment(client, client.get_experiment(DEFAULT_EXPERIMENT_ID))
        client.delete_run(client.create_run(DEFAULT_EXPERIMENT_ID, run_name="doctor").info.run_id)
    except ConfigError as error:
        return TrackingMeasurement(error=first_line(error), password=password)
    except MlflowException as error:
        return TrackingMeasurement(error=f"no run can be written to {uri}: {describe_error(error)}", password=password)
    return TrackingMeasurement(seconds=time.monotonic() - began, password=password)


def evaluate(uri: str, measured: TrackingMeasurement) -> Check:
    """Return the verdict on the MLflow that studies would use."""
    shown = printable(uri)
    if measured.new:
        return not_checked("MLflow", f"{shown} does not exist yet; the first study creates it")
    if measured.error:
        remedy = (
            "start MLflow (on one machine: ablations up; on a cluster: ablations mlflow on the head), or set "
            "MLFLOW_TRACKING_URI to another one"
        )
        if measured.password:
            remedy += "; store its password in ~/.mlflow/credentials on the head"
        return failed("MLflow", measured.error, remedy)
    wrote = f"{shown}; a run was written and deleted in {measured.seconds:.2f} s"
    if measured.password is None:
        return passed("MLflow", wrote)
    if not measured.password and not _is_loopback(uri):
        return failed("MLflow", f"{wrote}, without a password", "start it with ablations mlflow, which asks for a password")
    return passed("MLflow", f"{wrote}; {'it asks for a password' if measured.password else 'no password, on loopback'}")


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a host name
        return False
