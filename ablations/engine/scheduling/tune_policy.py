"""Policy for Tune's trials: how many may run, which ones hang, and which crashes count as failures."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayTaskError, RpcError

from ablations.engine.scheduling.ray_internals.compatibility import is_available
from ablations.engine.scheduling.ray_internals.key_value_store import KEY_VALUE_STORE
from ablations.engine.scheduling.ray_internals.tune import last_report
from ablations.engine.trial import process_failures
from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval
from ablations.engine.trial.process_failures import NodeLossBudget, ProcessFailure


class RunPolicy:
    """The `TunePolicy` of this project.

    Args:
        max_runs: returns the number of runs that may hold resources of the cluster, which may change at any time.
    """

    def __init__(self, max_runs: Callable[[], int]) -> None:
        self.max_runs = max_runs
        self._node_losses: defaultdict[str, NodeLossBudget] = defaultdict(NodeLossBudget)
        """Lost nodes, by Tune's trial ID."""
        self._stalls = StallDetector()

    def hung_trials(self, trials: Mapping[str, Any]) -> list[str]:
        """Return the actor IDs of trials whose heartbeat has stopped for longer than their hang timeout.

        Args:
            trials: Tune's trials, by the ID of the actor that trains them.
        """
        timeouts = {name: float(trial.config["job"]["hang_timeout"]) for name, trial in trials.items()}
        interval = heartbeat_interval(min(timeouts.values(), default=math.inf))
        if not is_available(KEY_VALUE_STORE) or not self._stalls.should_poll(interval):
            return []
        hung = []
        with suppress(RpcError):  # the head is busy and answers the next time
            beats = {name: process_failures.read_record(name).get("beats") for name in trials}
            silent = self._stalls.update(beats)
            for name, timeout in timeouts.items():
                limit = timeout if beats[name] is not None else max(timeout, START_TIMEOUT_SECONDS)
                if silent[name] > limit + 2 * heartbeat_interval(limit):
                    process_failures.record_stall(name, silent[name])
                    hung.append(name)
        return hung

    def judge_failure(self, trial: Any, error: Exception) -> Exception | None:
        """Return the failure to count for a trial; None if it was counted before.

        If a process crashes while Tune hands it from one trial to the next, Tune reports the crash twice. By the second report, the
        trial is pending again, and counting the crash would end it. Tune never counts the loss of a node; here, a loss beyond the
        budget counts as a crash.
        """
        if not isinstance(error, ProcessFailure):
            return error
        if trial.status == trial.PENDING:
            return None
        counted: Exception = self._node_losses[trial.trial_id].charge(error, last_report(trial).get("epoch", 0))
        return counted

    def explain(self, error: Exception) -> Exception:
        """Return the cause of an actor's crash; errors that a task raised stay as they are."""
        actor = getattr(error, "actor_id", None)
        raised = isinstance(error, RayTaskError)
        explained: Exception = error if raised else process_failures.explain_failure([actor] if actor else [], [error])
        return explained
