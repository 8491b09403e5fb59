"""Why a Ray Train worker group ended: what its workers' own code raised, or how a process of theirs died."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablations.engine.trial.process_failures import ProcessFailure

OUTCOMES = {"Diverged": "diverged", "OutOfMemory": "oom"}
"""How runs end by the name of what they raise, known here without importing torch."""

LOST_PEER = re.compile("gloo|NCCL|Connection (closed|reset)", re.IGNORECASE)
"""What torch.distributed says in the workers that are left when one has died."""


def _raised(error: Any) -> list[Exception]:
    """What code of a group's workers raised: outcomes first, then errors of their own, then what tells of a lost peer only."""
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    raised = [failure for failure in _failures(error) if not isinstance(failure, RayError | RayTrainError)]
    return sorted(raised, key=lambda failure: (type(failure).__name__ not in OUTCOMES, _lost_its_peer(failure)))


def _failures(error: Any) -> list[Exception]:
    """How a group's workers ended; none where Train's own controller failed."""
    return list(getattr(error, "worker_failures", {}).values())


def _lost_its_peer(failure: Exception) -> bool:
    """Whether a worker raised this because another one died: that is no error of its own. torch.distributed raises RuntimeErrors;
    connections to storage, and files called like a library, are in the texts of others."""
    return isinstance(failure, RuntimeError) and bool(LOST_PEER.search(str(failure)))


def worker_exception(error: Any) -> Exception | None:
    """What a worker's own code raised, and what ends the run therefore; None if it began with the death of a process."""
    raised = _raised(error)
    for failure in raised:
        failure.add_note(str(error))  # the workers' tracebacks
    if raised and type(raised[0]).__name__ not in OUTCOMES and (_one_died(error) or _lost_its_peer(raised[0])):
        return None
    return next(iter(raised), None)


def _one_died(error: Any) -> bool:
    """Whether a worker ended without raising anything."""
    return len(_raised(error)) < len(_failures(error))


def final_error(death: "ProcessFailure", error: Any) -> Exception:
    """Why a group ended that is not started again: where nobody knows of a death, what the workers raised says more."""
    from ablations.engine.trial import process_failures

    raised = _raised(error)
    if death.reason != process_failures.UNEXPLAINED or not raised or (_one_died(error) and _lost_its_peer(raised[0])):
        return death
    return raised[0]


def explain_group_failure(error: Any, names: list[str]) -> "ProcessFailure":
    """Why a group ended that its workers' own code did not end."""
    from ray.exceptions import RayActorError

    from ablations.engine.trial import process_failures

    controller = getattr(error, "controller_failure", error)  # or the controller itself died
    failures = _failures(error) or [controller]
    death = process_failures.explain_failure(names, [getattr(failure, "health_check_failure", failure) for failure in failures])
    if death.reason == process_failures.UNEXPLAINED and not _failures(error) and not isinstance(controller, RayActorError):
        return process_failures.ProcessFailure(
            f"Ray Train failed: {type(controller).__name__}: {controller}".splitlines()[0], "process"
        )
    return death


def is_resource_shortage(error: Any) -> bool:
    """Whether Train did not start a group because the cluster cannot hold it."""
    return type(getattr(error, "controller_failure", None)).__name__ == "InsufficientClusterResourcesError"
