"""Whether MLflow answers, can be written to, and asks for a password: from where the drivers of jobs run."""

import threading
import time
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from ablations.engine.cluster.doctor.check import Check, ok, unchecked, wrong
from ablations.engine.cluster.doctor.network_exposure import asks_for_password
from resnet_core.fields import ConfigError, printable

ANYBODYS = "0"
"""Id of the experiment that every MLflow has."""


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """What was measured."""

    new: bool = False
    """A database that the first study makes."""
    seconds: float = 0
    """For connecting, creating a run and deleting it."""
    error: str = ""
    password: bool | None = None
    """Whether a server asks for one."""


class Measurement(threading.Thread):
    """Talks to MLflow in a thread, so that one that hangs holds up nothing."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.uri = uri
        self.result: Tracking | None = None

    def run(self) -> None:
        self.result = measure(self.uri)

    def wait(self, seconds: float) -> Tracking:
        self.join(max(seconds, 0))
        return self.result or Tracking(error=f"{self.uri} does not answer in time")


def measure(uri: str) -> Tracking:
    """Creates a run and deletes it: nobody sees it, unless they ask for deleted ones."""
    from mlflow.exceptions import MlflowException

    from ablations.engine.tracking.connection import connect, is_new_database
    from ablations.engine.tracking.mlflow_errors import check_experiment, describe_error, first_line

    password = asks_for_password(uri) if uri.startswith("http") else None
    began = time.monotonic()
    try:
        if is_new_database(uri):
            return Tracking(new=True)
        client = connect(uri)
        check_experiment(client, client.get_experiment(ANYBODYS))
        client.delete_run(client.create_run(ANYBODYS, run_name="doctor").info.run_id)
    except ConfigError as error:
        return Tracking(error=first_line(error), password=password)
    except MlflowException as error:
        return Tracking(error=f"no run can be written to {uri}: {describe_error(error)}", password=password)
    return Tracking(seconds=time.monotonic() - began, password=password)


def judge(uri: str, tracking: Tracking) -> Check:
    """Of the MLflow that studies would use."""
    shown = printable(uri)
    if tracking.new:
        return unchecked("MLflow", f"{shown} does not exist yet; the first study makes it")
    if tracking.error:
        remedy = "start it (make up; on a cluster python -m ablations.engine mlflow), or name another: MLFLOW_TRACKING_URI"
        if tracking.password:
            remedy += "; its password belongs in ~/.mlflow/credentials on the head"
        return wrong("MLflow", tracking.error, remedy)
    wrote = f"{shown}, a run written and deleted in {tracking.seconds:.2f} s"
    if tracking.password is None:
        return ok("MLflow", wrote)
    if not tracking.password and not _loopback(uri):
        return wrong("MLflow", f"{wrote}, without a password", "python -m ablations.engine mlflow runs it with one")
    return ok("MLflow", f"{wrote}; {'it asks for a password' if tracking.password else 'no password, on loopback'}")


def _loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name
        return False
