"""Kills processes of runs whose heartbeat has stopped. Tune would wait for them forever."""

from contextlib import suppress

from ray.exceptions import RpcError

from ablations.engine.scheduling.ray_internals.compatibility import is_available
from ablations.engine.scheduling.ray_internals.key_value_store import KEY_VALUE_STORE
from ablations.engine.trial import process_failures
from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval


class HangMonitor:
    """Watches the processes of this program's runs.

    Args:
        hang_timeout: time without a heartbeat after which a process is killed, in seconds.
    """

    def __init__(self, hang_timeout: float) -> None:
        self.hang_timeout = hang_timeout
        self._stalls = StallDetector()
        self._started: set[str] = set()

    def check(self) -> None:
        """Kill the processes that hang. Cheap between two looks."""
        if not is_available(KEY_VALUE_STORE) or not self._stalls.should_poll(heartbeat_interval(self.hang_timeout)):
            return
        with suppress(RpcError):  # the head is busy and answers the next time
            beats = {name: record.get("beats") for name, record in process_failures.run_records().items()}
            self._started |= {name for name, beat in beats.items() if beat is not None}
            for name, silent in self._stalls.update(beats).items():
                limit = self.hang_timeout if name in self._started else max(self.hang_timeout, START_TIMEOUT_SECONDS)
                if silent > limit + 2 * heartbeat_interval(limit):
                    process_failures.kill_hung_process(name, silent)
