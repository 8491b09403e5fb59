"""Tests of the queue of runs: what starts next, what is retried, and what ends a run."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import pytest

from ablations.engine.scheduling.run_queue import RunList, RunQueue
from ablations.engine.scheduling.tune_adapters import NothingToRun, RunScheduler, RunSearch, TuneCallback
from ablations.engine.trial.job import Job
from ablations.engine.trial.process_failures import MAX_NODE_LOSSES, ProcessFailure
from tests.helpers.ray_jobs import make_job

KILLED = ProcessFailure("its process was killed", "process")
LOST = ProcessFailure("its node 10.0.0.7 was lost", "node")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return make_job(tmp_path_factory.mktemp("queue"), "a", max_failures=1)


def make_queue(job: Job, names: str, slots: int) -> RunQueue:
    queue = RunQueue(RunList([replace(job, fingerprint=name) for name in names]), Mock())
    queue.slots = slots
    return queue


def start(queue: RunQueue, trial_id: str, *, process: bool = True) -> str:
    """Start the next run; return its fingerprint, empty if there is none."""
    started = queue.start(trial_id)
    if not started:
        return ""
    queue.active[trial_id].trial = trial_id
    if process:
        queue.started(trial_id)
    return started.fingerprint


def events(queue: RunQueue) -> list[object]:
    return [each for each in queue._listener.mock_calls if each[0] == "crashed"]  # type: ignore[attr-defined]


def test_runs_start_in_order_while_there_are_slots(job: Job) -> None:
    queue = make_queue(job, "abc", 2)
    assert [start(queue, trial) for trial in "123"] == ["a", "b", ""]
    assert queue.left == 3
    queue.ended("1")
    assert start(queue, "4") == "c"
    assert not queue.finished
    queue.ended("2")
    queue.ended("4")
    assert queue.finished


def test_a_run_whose_process_crashed_starts_again_until_it_has_crashed_too_often(job: Job) -> None:
    queue = make_queue(job, "ab", 1)
    start(queue, "1")
    queue.crashed("1", KILLED)
    assert not queue.finished
    assert start(queue, "2") == "a"
    queue.crashed("2", KILLED)
    assert events(queue) == [call.crashed("a", KILLED.reason, outcome=None), call.crashed("a", KILLED.reason, outcome="failed")]
    assert start(queue, "3") == "b"
    queue.ended("3")
    assert queue.finished


@pytest.mark.parametrize(("epochs", "crashes"), [(False, MAX_NODE_LOSSES + 2), (True, None)])
def test_a_run_may_lose_nodes_as_long_as_it_makes_progress(job: Job, epochs: bool, crashes: int | None) -> None:
    queue = make_queue(job, "a", 1)
    for number in range(30):
        if not start(queue, str(number)):
            break
        if epochs:
            queue.reported(str(number), {"epoch": number + 1})
        queue.crashed(str(number), LOST)
    last = events(queue)[-1]
    assert len(events(queue)) == (crashes or 30)
    assert last == call.crashed(
        "a",
        f"{LOST.reason}, and {crashes - 1} before it without a new epoch" if crashes else LOST.reason,
        outcome="failed" if crashes else None,
    )


def test_the_latest_runs_without_a_process_are_withdrawn_and_start_again_in_order(job: Job) -> None:
    queue = make_queue(job, "abcde", 4)
    for trial in "1234":
        start(queue, trial, process=trial in "12")
    queue.slots = 1  # one of the two with a process is above it, too, and trains to its end
    assert [run.trial for run in queue.withdraw_excess()] == ["4", "3"]
    queue.ended("4")  # as Tune says of each trial that it stops
    assert queue.withdraw_excess() == []
    assert queue.left == 5
    queue.slots = 5
    assert [start(queue, trial) for trial in "567"] == ["c", "d", "e"]


def test_a_run_without_a_slot_is_neither_finished_nor_lost(job: Job) -> None:
    queue = make_queue(job, "ab", 1)
    start(queue, "1")
    queue.crashed("1", KILLED)
    assert queue.has_next()
    queue.slots = 0  # another study has its turn
    assert not queue.has_next()
    assert not queue.finished
    queue.slots = 2
    assert [start(queue, trial) for trial in "23"] == ["a", "b"]


def test_an_error_of_the_source_reaches_the_caller_and_no_trial(job: Job) -> None:
    queue = RunQueue(Mock(spec=["next", "finished"], next=Mock(side_effect=ValueError("of a source"))), Mock())
    queue.slots = 1
    assert not queue.has_next()
    assert not queue.finished
    with pytest.raises(ValueError, match="of a source"):
        queue.refresh()


def test_tune_keeps_a_process_only_for_a_run_that_may_start_and_ends_when_none_may(job: Job) -> None:
    queue = make_queue(job, "abc", 2)
    search, callback = RunSearch(queue), TuneCallback(queue, Mock())
    callback.on_step_begin()
    start(queue, "1")
    start(queue, "2")
    assert search.is_finished()  # no process would be kept
    queue.ended("1")
    assert not search.is_finished()
    queue.slots = 1
    assert search.is_finished()
    queue.ended("2")
    assert not search.is_finished()
    queue.slots = 0
    with pytest.raises(NothingToRun):
        callback.on_step_begin()
    assert not search.is_finished()  # the callback ends Tune


def test_a_study_that_withdrew_runs_gives_up_the_process_that_tune_keeps_for_them(job: Job, tmp_path: Path) -> None:
    queue = make_queue(job, "abc", 3)
    scheduler, controller = RunScheduler(queue), Mock()
    controller.stop_trial.side_effect = lambda trial: scheduler.on_trial_remove(controller, trial)
    for trial in "123":
        start(queue, trial, process=trial != "3")
    queue.slots = 1
    assert scheduler.choose_trial_to_run(controller) is None  # type: ignore[func-returns-value]
    controller.stop_trial.assert_called_once_with("3")
    controller._cleanup_cached_actors.assert_called_once_with(force_all=True)


def test_a_source_without_a_run_is_asked_again_only_in_the_next_round_or_after_an_event(job: Job) -> None:
    source = Mock(spec=["next", "finished"], next=Mock(side_effect=[job, None, None, None]), finished=False)
    queue = RunQueue(source, Mock())
    queue.slots = 2
    start(queue, "1")
    assert not any(queue.has_next() for _ in range(5))
    queue.refresh()
    assert not queue.has_next()
    queue.ended("1")
    assert not queue.has_next()
    assert source.next.call_count == 4
