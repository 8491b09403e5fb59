"""Causes for the end of a Ray Train worker group: an exception of its workers' own code, or the crash of a process."""

import re
from typing import TYPE_CHECKING, Any

from ablations.engine.scheduling.ray_internals.train import crash_of_worker, is_train_error

if TYPE_CHECKING:
    from ablations.engine.trial.process_failures import ProcessFailure

OUTCOMES = {"Diverged": "diverged", "OutOfMemory": "oom"}
"""Outcome of a run by the name of the exception that ended it. Names instead of classes avoid an import of torch."""

LOST_PEER = re.compile("gloo|NCCL|Connection (closed|reset)", re.IGNORECASE)
"""Messages of the errors that torch.distributed raises in the other workers when one has crashed."""


def _raised(error: Any) -> list[Exception]:
    """Return the exceptions of the workers' own code: outcomes of a run first, then other errors, then errors about a lost peer."""
    from ray.exceptions import RayError

    raised = [failure for failure in _failures(error) if not isinstance(failure, RayError) and not is_train_error(failure)]
    return sorted(raised, key=lambda failure: (type(failure).__name__ not in OUTCOMES, _is_lost_peer(failure)))


def _failures(error: Any) -> list[Exception]:
    """Return the error of each worker that failed; empty if Train's own controller failed."""
    return list(getattr(error, "worker_failures", {}).values())


def _is_lost_peer(failure: Exception) -> bool:
    """Return whether a worker raised this only because another one crashed.

    torch.distributed raises RuntimeErrors. Errors of other types may contain the same words, for example about a storage server.
    """
    return isinstance(failure, RuntimeError) and bool(LOST_PEER.search(str(failure)))


def worker_exception(error: Any) -> Exception | None:
    """Return the exception of a worker's own code that ends the run; None if the group ended by the crash of a process."""
    raised = _raised(error)
    for failure in raised:
        failure.add_note(str(error))  # the workers' tracebacks
    if raised and type(raised[0]).__name__ not in OUTCOMES and (_has_crashed_worker(error) or _is_lost_peer(raised[0])):
        return None
    return next(iter(raised), None)


def _has_crashed_worker(error: Any) -> bool:
    """Return whether a worker ended without raising an exception."""
    return len(_raised(error)) < len(_failures(error))


def final_error(failure: "ProcessFailure", error: Any) -> Exception:
    """Return the error to raise for a group that is not retried. For an unexplained crash, a worker's own exception says more."""
    from ablations.engine.trial import process_failures

    raised = _raised(error)
    explained = failure.reason != process_failures.UNEXPLAINED
    if explained or not raised or (_has_crashed_worker(error) and _is_lost_peer(raised[0])):
        return failure
    return raised[0]


def explain_group_failure(error: Any, names: list[str]) -> "ProcessFailure":
    """Return the cause of a group's end if no exception of its workers' own code explains it.

    Args:
        error: exception that Train raised.
        names: names of the workers' records.
    """
    from ray.exceptions import RayActorError

    from ablations.engine.trial import process_failures

    controller = getattr(error, "controller_failure", error)  # without the attribute, the controller itself crashed
    failures = _failures(error) or [controller]
    cause = process_failures.explain_failure(names, [crash_of_worker(failure) for failure in failures])
    if cause.reason == process_failures.UNEXPLAINED and not _failures(error) and not isinstance(controller, RayActorError):
        reason = f"Ray Train failed: {type(controller).__name__}: {controller}".splitlines()[0]
        return process_failures.ProcessFailure(reason, "process")
    return cause
