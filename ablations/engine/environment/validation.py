"""Checks of option values that several commands share."""

import re

from resnet_core.fields import reject

MIN_RESOURCE_SHARE = 0.001
"""Of a CPU or a GPU. Ray counts in ten-thousandths."""
PASSWORD = re.compile(
    r"://[^?#]*:(?!\d{1,5}/)[^?#]*@|^https?://[^/?#]*@|[?&](?:\w*(?:secret|token|password|credential)\w*|\w*_key|api_?key|sig)=",
    re.IGNORECASE,
)
"""In an address: `user:password@`, also a password that is not escaped as it should be, and parameters that are keys."""
_OF_MLFLOW = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or ~/.mlflow/credentials"
CREDENTIAL_SOURCES = {
    "http": _OF_MLFLOW,
    "https": _OF_MLFLOW,
    "postgresql": "PGPASSWORD, or ~/.pgpass",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role",
}
"""Where passwords and keys of an address belong, by its scheme."""


def check_worker_resources(cpus: float, gpus: float) -> None:
    """Raises ConfigError for what no worker can take."""
    if not MIN_RESOURCE_SHARE <= cpus < float("inf"):
        raise reject("--cpus-per-worker", cpus, f"accepted: {MIN_RESOURCE_SHARE} or more")
    if gpus != 0 and not MIN_RESOURCE_SHARE <= gpus <= 1:  # a worker is one process, and trains on one GPU
        accepted = f"accepted: 0, or {MIN_RESOURCE_SHARE} to 1, for a worker uses one GPU; a run on several has --workers N"
        raise reject("--gpus-per-worker", gpus, accepted)


def check_address(option: str, text: str) -> None:
    """Raises ConfigError for what is none, and for one with a password: Ray keeps a job's command line, and so does its log."""
    if not text.strip() or not text.isprintable():
        raise reject(option, text, "accepted: a folder or an address, without control characters")
    if "://" in text and PASSWORD.search(text):
        scheme = text.partition("://")[0]
        instead = CREDENTIAL_SOURCES.get(scheme.partition("+")[0], "the variables, files or roles of whoever keeps it")
        raise reject(option, f"{scheme}://…", f"has a password or a key in it, which others would read; accepted: {instead}")


def check_positive(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise reject(option, value, "accepted: 1 or more")
