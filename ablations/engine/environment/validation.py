"""Checks of option values that several commands share."""

import re

from resnet_core.fields import reject

AUTO = "auto"
"""Value of `--gpus-per-worker` with which a study takes the GPUs that the cluster has."""

MIN_RESOURCE_SHARE = 0.001
"""Smallest share of a CPU or GPU that a worker may take. Ray counts resources in ten-thousandths."""
PASSWORD = re.compile(
    r"://[^?#]*:(?!\d{1,5}/)[^?#]*@|^https?://[^/?#]*@|[?&](?:\w*(?:secret|token|password|credential)\w*|\w*_key|api_?key|sig)=",
    re.IGNORECASE,
)
"""Credentials in an address: `user:password@`, also with unescaped characters in the password, and query parameters with keys."""
_MLFLOW_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials"
CREDENTIAL_SOURCES = {
    "http": _MLFLOW_CREDENTIALS,
    "https": _MLFLOW_CREDENTIALS,
    "postgresql": "PGPASSWORD, or ~/.pgpass",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role",
}
"""Places to keep the credentials of an address, by URI scheme."""


def check_worker_cpus(cpus: float) -> None:
    """Raise ConfigError for a number of CPUs that one worker cannot use."""
    if not MIN_RESOURCE_SHARE <= cpus < float("inf"):
        raise reject("--cpus-per-worker", cpus, f"accepted: {MIN_RESOURCE_SHARE} or more")


def read_worker_gpus(option: str, value: object) -> float | None:
    """Return the number of GPUs of one worker, from text or a number; None for `AUTO`.

    Raises:
        ConfigError: neither `AUTO` nor a number of GPUs that one worker can use.
    """
    if value == AUTO:
        return None
    accepted = f"accepted: {AUTO}, 0, or {MIN_RESOURCE_SHARE} to 1, since a worker uses one GPU; to use several GPUs: --workers N"
    try:
        gpus = None if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        gpus = None
    if gpus is None:
        raise reject(option, value, accepted)
    if gpus != 0 and not MIN_RESOURCE_SHARE <= gpus <= 1:  # a worker is one process that trains on one GPU
        raise reject(option, gpus, accepted)
    return gpus


def check_address(option: str, text: str) -> None:
    """Raise ConfigError for text that is not an address, or for an address with credentials.

    Ray stores a job's command line and writes it to the job's log, where others can read it.
    """
    if not text.strip() or not text.isprintable():
        raise reject(option, text, "accepted: a folder or an address, without control characters")
    if "://" in text and PASSWORD.search(text):
        scheme = text.partition("://")[0]
        instead = CREDENTIAL_SOURCES.get(scheme.partition("+")[0], "the environment variables, files or roles of its provider")
        raise reject(option, f"{scheme}://…", f"contains a password or key that others could read; accepted: {instead}")


def check_positive(option: str, value: int | None) -> None:
    """Raise ConfigError for a number below 1."""
    if value is not None and value < 1:
        raise reject(option, value, "accepted: 1 or more")


def check_rate(option: str, value: float | None) -> float | None:
    """Return a price or an emission per unit; raise ConfigError unless it is finite and at least 0."""
    if value is not None and not 0 <= value < float("inf"):
        raise reject(option, value, "accepted: a finite number, at least 0")
    return value
