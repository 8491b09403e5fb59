"""The workers of a run with several, as seen from the process that leads them. They outlive the run and train the next one.

Tune reserves a group's resources together with those of its leader, in one placement group: the leader starts when there is room
for its workers, and whatever becomes of it, nothing stays taken.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RpcError
from ray.util import get_current_placement_group
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ablations.engine.scheduling.ray_internals.compatibility import is_available
from ablations.engine.scheduling.ray_internals.key_value_store import KEY_VALUE_STORE
from ablations.engine.trial import process_failures
from ablations.engine.trial.group_worker import GroupWorker, WorkerProcess
from ablations.engine.trial.job import Job, Report
from ablations.engine.trial.liveness import START_TIMEOUT_SECONDS, StallDetector, heartbeat_interval
from ablations.engine.trial.outcomes import WorkerError
from ablations.engine.trial.process_failures import ProcessFailure

POLL_SECONDS = 0.2
"""Time for which the leader waits for its workers before it reports that it is alive itself, in seconds."""
PATIENCE_SECONDS = 5.0
"""Time for which the leader waits for the other workers once one has ended a run with an error or has crashed, in seconds. They may
wait for that worker for ever."""
GRACE_SECONDS = 15.0
"""Time by which a group's timeout exceeds the hang timeout, in seconds. A worker that hangs exits by itself before, with a better
reason."""

Answer: TypeAlias = Report | RayError | None
"""Answer of a worker: a report, its crash, or none yet."""


class GroupCrash(Exception):  # noqa: N818 - an event that a new group follows
    """The crash of a worker, or the loss of its connection to another one."""

    def __init__(self, crashes: Sequence[RayError], error: WorkerError | None = None) -> None:
        """
        Args:
            crashes: what Ray raised.
            error: what the code of another worker raised.
        """
        super().__init__(*crashes)
        self.crashes, self.error = crashes, error


class WorkerGroup:
    """The workers of this process, which leads them. They start with their first run."""

    def __init__(self) -> None:
        self._workers: list[ActorHandle[GroupWorker]] = []
        self._processes: list[WorkerProcess] = []
        self._in_step = False
        """True if the workers are connected and have taken part in the same collective operations."""
        self.names: list[str] = []
        """Names of the records of the workers, by rank."""

    def begin(self, job: Job, alive: Callable[[], object]) -> None:
        """Prepare the workers for a run. Start them if there are none, or if one has crashed since the run before.

        Args:
            job: the run.
            alive: called several times a second while the group makes progress.

        Raises:
            GroupCrash: a worker crashed or hangs.
        """
        self._alive, self._stalls = alive, _StallDetector(job, self)
        warm = bool(self._workers)
        try:
            self._prepare(job)
        except GroupCrash:
            self.kill()
            if not warm:
                raise
            self._prepare(job)

    def _prepare(self, job: Job) -> None:
        if not self._workers:
            self._start(job)
            self._processes = self._ask("process")
        if not self._in_step:
            self._ask("connect", self._ask("place"))
            self._in_step = True
        self._ask("begin", job)

    def advance(self) -> Report | None:
        """Let all workers train until their next report, and return that of the first; None if the run is complete.

        Raises:
            WorkerError: the run ended with an error.
            GroupCrash: a worker crashed or hangs.
        """
        answers: list[Answer] = self._answers([worker.advance.remote() for worker in self._workers])
        outcomes = [answer.get("outcome") if isinstance(answer, dict) else None for answer in answers]
        if set(outcomes) == {"completed"}:
            return None
        # All workers find a divergence in the same numbers. After another error, collectives may be out of step.
        self._in_step = set(outcomes) in ({None}, {"diverged"})
        if not all(isinstance(answer, dict) for answer in answers):
            self.kill()
        check(answers)
        first = answers[0]
        assert isinstance(first, dict)
        return first

    def end(self) -> None:
        """End the run in all workers."""
        for worker in self._workers:
            worker.end.remote()

    def kill(self) -> None:
        """Kill the workers. The next run starts others."""
        for worker in self._workers:
            ray.kill(worker)
        for process in self._processes:
            process.kill()
        self._workers, self._processes, self._in_step = [], [], False

    def close(self) -> None:
        """Kill the workers, and delete their records."""
        self.kill()
        self._delete_records()

    def _delete_records(self) -> None:
        for name in self.names:
            process_failures.delete_record(name)

    def _start(self, job: Job) -> None:
        leader, workers = ray.get_runtime_context().get_actor_id(), job.spec["world_size"]
        self.names = [f"{leader}-{rank}" for rank in range(workers)]
        self._delete_records()  # those of killed workers would look like new ones that hang
        placement, worker = get_current_placement_group(), ray.remote(GroupWorker)
        self._workers = [
            worker.options(
                num_cpus=job.cpus_per_worker,
                num_gpus=job.gpus_per_worker,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement, placement_group_bundle_index=1 + rank),
            ).remote(rank, self.names)
            for rank in range(workers)
        ]

    def _ask(self, method: str, *arguments: object) -> list[Any]:
        """Call a method of all workers, and return their answers."""
        answers = self._answers([getattr(worker, method).remote(*arguments) for worker in self._workers])
        if crashes := [answer for answer in answers if isinstance(answer, RayError)]:
            raise GroupCrash(crashes)
        return answers

    def _answers(self, calls: Sequence["ray.ObjectRef[Any]"]) -> list[Any]:
        """Wait for the results of calls, one for each worker. Once one has ended with an error, do not wait long for the others."""
        answers: list[Any] = [None] * len(calls)
        waiting, deadline = {call: rank for rank, call in enumerate(calls)}, float("inf")
        while waiting and time.monotonic() < deadline:
            done, _ = ray.wait(list(waiting), timeout=POLL_SECONDS)
            self._alive()
            for call in done:
                rank = waiting.pop(call)
                try:
                    answers[rank] = ray.get(call)
                except RayError as crash:
                    answers[rank] = crash
                if _is_error(answers[rank]):
                    deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            if not done and (hung := self._stalls.failure()):
                raise GroupCrash([hung])
        return answers

    def is_placed(self) -> bool:
        """Return whether the workers have their places. After the loss of a node, they wait for another one."""
        placed: bool = placement_group_table(get_current_placement_group())["state"] == "CREATED"
        return placed


def _is_error(answer: Answer) -> bool:
    if isinstance(answer, dict):
        return bool(answer.get("outcome", "completed") != "completed")
    return isinstance(answer, RayError)


def check(answers: Sequence[Answer]) -> None:
    """Check the answers of all workers of a group, one of which may have ended the run or crashed.

    A divergence or a lack of memory ends the run, whatever else happened. Another error does so if all processes live and it is
    not about a lost connection: otherwise, it is a consequence of a crash.

    Raises:
        WorkerError: the run ended with this error.
        GroupCrash: a worker crashed.
    """
    crashes = [answer for answer in answers if isinstance(answer, RayError)]
    failed = [answer for answer in answers if isinstance(answer, dict) and _is_error(answer)]
    failed.sort(key=lambda answer: (answer["outcome"] == "failed", "lost_peer" in answer))
    error = WorkerError(failed[0]) if failed else None
    lost_peer = error is not None and "lost_peer" in error.report
    if error and error.report["outcome"] != "failed":
        raise error
    if crashes or lost_peer:
        raise GroupCrash(crashes, None if crashes and lost_peer else error)
    if error:
        raise error


class _StallDetector:
    """Detects from the heartbeats of a group's workers that all of them hang."""

    def __init__(self, job: Job, group: WorkerGroup) -> None:
        self._group, self._stalls = group, StallDetector()
        self._interval = heartbeat_interval(job.hang_timeout)
        self._timeout = job.hang_timeout + GRACE_SECONDS
        self._start_timeout = max(self._timeout, START_TIMEOUT_SECONDS)

    def failure(self) -> ProcessFailure | None:
        """Return a failure that says how long the workers have hung; None if they do not, or if the next poll is not due."""
        if not is_available(KEY_VALUE_STORE) or not self._stalls.should_poll(self._interval):
            return None
        try:
            records = {name: process_failures.read_record(name) for name in self._group.names}
            begun = any(records.values())
            waits = not begun and not self._group.is_placed()
        except RpcError:
            return None  # the head is busy and answers the next time
        # A new record is a sign of life, before its process has made a step.
        signs = {
            name: time.monotonic() if waits else record.get("steps", 0) if record else None for name, record in records.items()
        }
        # One worker that makes progress is enough: the others only wait for it, or exit by themselves if they hang.
        seconds = min(self._stalls.update(signs).values())
        if seconds > (self._timeout if begun else self._start_timeout):
            return ProcessFailure(f"its workers made no step for {seconds:.0f} s", "process")
        return None
