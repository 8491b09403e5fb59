"""Outcomes of runs, each in the last report of its run."""

import gc
import re
import sys
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress

from ablations.engine.trial.job import Report, process_name

OUTCOMES = {"Diverged": "diverged", "OutOfMemory": "oom"}
"""Outcome of a run by the name of the exception that ended it. Names instead of classes avoid an import of torch."""

LOST_PEER = re.compile("gloo|NCCL|Connection (closed|reset)", re.IGNORECASE)
"""Messages of the errors that torch.distributed raises in the other workers when one has crashed."""


class WorkerError(Exception):
    """An error of a run in one of the workers of a group, which has reported it as the outcome of the run."""

    def __init__(self, report: Report) -> None:
        super().__init__(report["message"])
        self.report = report


def with_outcome(reports: Iterator[Report]) -> Generator[Report, None, None]:
    """Yield reports, and at last how the run ended. If the process itself crashes, Tune or its leader notices and retries."""
    try:
        yield from reports
        last: Report = {"outcome": "completed"}
    except WorkerError as error:
        last = error.report
    except Exception as error:  # any error ends this run and no other
        outcome, message = outcome_of(error)
        last = {"outcome": outcome, "message": message, "traceback": traceback.format_exc(), "conditions": process_name()}
        if is_lost_peer(error):
            last["lost_peer"] = True
    finally:
        _free_gpu_memory()
    yield last


def _free_gpu_memory() -> None:
    """Free the GPU memory that torch caches: other runs may share the device while this process waits for its next run."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        gc.collect()  # tensors of a failed run are in reference cycles
        with suppress(RuntimeError):  # the next run will detect that the GPU fails
            torch.cuda.empty_cache()


def outcome_of(error: Exception) -> tuple[str, str]:
    """Return the outcome of a run that ended with an error, and the reason in one line."""
    from ablations.engine.trial.process_failures import ProcessFailure

    if isinstance(error, ProcessFailure):
        return error.outcome, error.reason
    return OUTCOMES.get(type(error).__name__, "failed"), f"{type(error).__name__}: {error}".splitlines()[0]


def is_lost_peer(error: Exception) -> bool:
    """Return whether a worker raised this only because another one crashed.

    torch.distributed raises RuntimeErrors. Errors of other types may contain the same words, for example about a storage server.
    """
    return isinstance(error, RuntimeError) and bool(LOST_PEER.search(str(error)))
