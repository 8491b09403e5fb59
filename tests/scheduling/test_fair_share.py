"""Tests of fair sharing: two studies on one cluster each get their quota, and a study alone gets everything."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from ray.util.state import list_placement_groups

from ablations.engine.scheduling import concurrency, fair_share, tune_runner
from ablations.engine.scheduling.capacity import RunResources
from ablations.engine.scheduling.fair_share import (
    CLAIM_PREFIX,
    ClaimRegistry,
    ResourceClaim,
    current_quota,
    divide_evenly,
    must_release_last_slot,
    quota_of,
    should_yield,
)
from ablations.engine.scheduling.ray_internals.key_value_store import kv_delete, kv_keys, kv_put
from ablations.engine.scheduling.run_queue import RunQueue
from tests.helpers.project import PROJECT
from tests.helpers.ray_jobs import RecordingListener, make_job, resources_in_use, wait_until

ONE_CPU = RunResources()
MANY = 500
"""Runs of a study that is stopped before it has done all."""


# What a study has


@pytest.mark.parametrize(
    ("room", "wants", "parts"),
    [
        (8, [100], [8]),
        (8, [3], [3]),
        (8, [100, 100], [4, 4]),
        (5, [100, 100], [3, 2]),  # nothing is left over
        (8, [100, 1, 100], [4, 1, 3]),  # what one does not want, the others have
        (8, [2, 2, 100], [2, 2, 4]),
        (2, [9, 9, 9], [1, 1, 1]),  # everyone has at least one, though the third will wait for it
        (0, [5, 5], [1, 1]),
        (1000, [10**9, 300, 10**9], [350, 300, 350]),
    ],
)
def test_capacity_is_divided_equally_and_none_is_left_unused_while_a_study_wants_it(
    room: int, wants: list[int], parts: list[int]
) -> None:
    assert divide_evenly(room, wants) == parts


def test_quotas_account_for_the_size_of_runs() -> None:
    # Eight GPUs: runs of one, and groups of four.
    claims = {"a": ResourceClaim(capacity=8, wants=50, runs=8), "b": ResourceClaim(capacity=2, wants=50, runs=0)}
    assert [quota_of(name, claims, claim.capacity) for name, claim in claims.items()] == [4, 1]
    # One group more is all that the other wants: it leaves the rest.
    claims["b"] = ResourceClaim(capacity=8, wants=1, runs=1)
    assert quota_of("a", claims, 8) == 7


def test_a_study_whose_runs_fit_on_no_current_node_takes_no_quota_from_others() -> None:
    claims = {"cpus": ResourceClaim(capacity=32, wants=50, runs=32), "gpus": ResourceClaim(capacity=0, wants=8, runs=0)}
    assert current_quota("cpus", claims) == 32
    assert not should_yield("cpus", claims)
    assert quota_of("gpus", claims, 8) == 4  # of the nodes that may come, they have theirs


def test_a_search_without_further_runs_leaves_its_capacity_to_others(tmp_path: Path) -> None:
    jobs = iter([make_job(tmp_path, "last")])
    queue = RunQueue(Mock(spec=["next", "finished"], next=lambda: next(jobs, None), finished=False), Mock())
    queue.slots = 2
    assert queue.left == math.inf
    assert queue.start("a")
    assert not queue.start("b")
    assert queue.left == 2  # the run, and one that may come of it
    queue.ended("a")
    assert queue.left == 1


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (2, 0, True),  # it has all, the other nothing
        (1, 0, False),  # it has its part; the other waits for nodes, as its own further runs do
        (2, 1, False),  # the other has its part
    ],
)
def test_a_study_above_its_quota_yields_to_a_study_below_its_own(own: int, other: int, expected: bool) -> None:
    assert (
        should_yield("a", {"a": ResourceClaim(capacity=2, wants=9, runs=own), "b": ResourceClaim(capacity=2, wants=9, runs=other)})
        is expected
    )


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"a": (1, 9, 1), "b": (1, 9, 0)}, True),  # the only place is a's
        ({"a": (1, 9, 1), "b": (1, 9, 1)}, False),  # two processes for a moment: b has begun
        ({"a": (2, 9, 2), "b": (2, 9, 0)}, False),  # there is a place for each
        ({"a": (2, 9, 1), "b": (2, 9, 1), "c": (2, 9, 0)}, True),
        ({"a": (8, 9, 4), "b": (2, 9, 0)}, False),  # groups of four
        ({"a": (8, 9, 4), "b": (1, 9, 0)}, True),  # a group that takes the whole cluster
        ({"a": (1, 9, 1), "b": (0, 9, 0)}, False),  # b fits on no node that is there
        ({"a": (1, 9, 1), "b": (1, 0, 0)}, False),  # b wants nothing any more
        ({"a": (1, 9, 1)}, False),
    ],
)
def test_a_study_must_release_its_last_slot_if_there_are_more_studies_than_slots(
    claims: dict[str, tuple[int, ...]], expected: bool
) -> None:
    assert must_release_last_slot("a", {name: ResourceClaim(*numbers) for name, numbers in claims.items()}) is expected


def test_a_time_slice_expires_after_its_time_and_survives_a_gap_between_two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    turn = concurrency.TimeSlice()
    assert (turn.smooth(0), turn.has_expired(60)) == (0, False)  # it has not begun, and asks for a place
    assert [turn.smooth(runs) for runs in (2, 0, 1)] == [2, 1, 1]
    now += 59
    assert not turn.has_expired(60)
    now += 2
    assert turn.has_expired(60)
    assert [turn.smooth(0), turn.smooth(0)] == [1, 0]
    assert turn.has_expired(60)  # it has left, and does not ask for a while
    now += concurrency.HANDOVER_SECONDS
    assert not turn.has_expired(60)
    turn.smooth(1)
    now += 59
    assert not turn.has_expired(60)  # a new turn


# On Ray


@pytest.fixture(scope="module")
def address(cluster: str) -> str:
    return cluster


class Timed(RecordingListener):
    """Also writes down when runs began and ended, in seconds since 1970."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.began: dict[str, float] = {}
        self.over: dict[str, float] = {}
        self.every_pid: set[int] = set()

    def reported(self, fingerprint: str, report: Mapping[str, Any]) -> None:
        self.began.setdefault(fingerprint, time.time())
        if "outcome" in report:
            self.over[fingerprint] = time.time()
        self.every_pid.add(report["pid"])
        super().reported(fingerprint, report)

    def at(self, moment: float) -> int:
        """Return the number of runs in training."""
        return sum(begin <= moment < self.over.get(name, math.inf) for name, begin in self.began.copy().items())


def execute(
    folder: Path, name: str, runs: int, needs: RunResources = ONE_CPU, *, epochs: int = 25, heard: Timed | None = None
) -> Timed:
    """Runs of about a second."""
    heard = heard or Timed()
    jobs = [make_job(folder, f"{name}-{index}", optim__epochs=epochs, world_size=needs.workers) for index in range(runs)]
    tune_runner.train_runs(jobs, needs, max_concurrent=None, listener=heard, scratch=folder / "tune")
    return heard


SECOND = """
import json, sys
from pathlib import Path
import ray
from ablations.engine.scheduling import connection
from ablations.engine.scheduling.capacity import RunResources
from tests.scheduling.test_fair_share import execute, wait_until
address, folder, needs = sys.argv[1], Path(sys.argv[2]), RunResources(**json.loads(sys.argv[3]))
ray.init(address, log_to_driver=False, logging_level="ERROR")
connection.connect()
wait_until((folder / "go").exists)
heard = execute(folder, "second", 2, needs)
print("heard:", json.dumps([heard.began, heard.over, heard.ended]))
"""


class Both:
    """A study of many runs; when two have ended, somebody submits one of two. It is stopped when it has all to itself again.

    Args:
        address: of a Ray with two CPUs.
        folder: for what they write.
        needs: what a run of the first takes.
        others: what a run of the second takes.
    """

    def __init__(self, address: str, folder: Path, needs: RunResources = ONE_CPU, others: RunResources = ONE_CPU) -> None:
        self.folder, self.first, self.second, self.places = folder, Timed(), Timed(), needs.current_capacity()
        command = [sys.executable, "-c", SECOND, address, str(folder), json.dumps(asdict(others))]
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=pipe, stderr=pipe, text=True) as self.process:
            watching = threading.Thread(target=self._watch, daemon=True)
            watching.start()
            execute(folder, "first", MANY, needs, heard=self.first)
            watching.join()
            out, error = self.process.communicate(timeout=180)
        self.second.began, self.second.over, self.second.ended = json.loads(out.partition("heard:")[2] or f'"{error}"')
        self.left = kv_keys(CLAIM_PREFIX)
        wait_until(lambda: not resources_in_use(), 30)

    def _watch(self) -> None:
        wait_until(lambda: len(self.first.over) >= 2)
        (self.folder / "go").touch()
        wait_until(lambda: self.process.poll() is not None, 500)
        wait_until(lambda: self.first.at(time.time()) == self.places)
        self.two_again = time.time()
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def both(address: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(address, tmp_path_factory.mktemp("both"))


@pytest.mark.slow
@pytest.mark.cluster
def test_a_short_second_study_ends_long_before_the_first(both: Both) -> None:
    assert {name: outcome for name, (outcome, _) in both.second.ended.items()} == {"second-0": "completed", "second-1": "completed"}
    assert len(both.first.over) < MANY / 2
    assert {outcome for outcome, _ in both.first.ended.values()} == {"completed"}
    assert not both.first.deaths
    assert both.left == []  # neither leaves a word


@pytest.mark.slow
@pytest.mark.cluster
def test_a_study_shares_the_cluster_only_while_another_study_runs(both: Both) -> None:
    came, left = min(both.second.began.values()), max(both.second.over.values())
    moments = sorted(both.first.began.values())
    assert max(both.first.at(moment) for moment in moments if moment < came) == 2
    assert {both.first.at(moment) for moment in moments if came < moment < left} == {1}
    assert left < both.two_again
    assert len(both.first.every_pid) == 3  # one was given back, and later another taken


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("needs", "others"),
    [
        pytest.param(RunResources(cpus_per_worker=2), RunResources(cpus_per_worker=2), marks=pytest.mark.cluster),
        # A group that takes the places of two runs.
        pytest.param(RunResources(), RunResources(workers=2), marks=pytest.mark.nightly),
    ],
    ids=["alike", "group"],
)
def test_a_study_that_does_not_fit_beside_the_first_gets_a_turn_before_the_first_ends(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needs: RunResources, others: RunResources
) -> None:
    monkeypatch.setattr(concurrency, "MIN_TURN_SECONDS", 1.0)
    both = Both(address, tmp_path, needs, others)
    assert [outcome for outcome, _ in both.second.ended.values()] == ["completed"] * 2
    came, left = min(both.second.began.values()), max(both.second.over.values())
    assert max(both.first.at(moment) for moment in (came, left)) == 0
    assert left < both.two_again
    assert len(both.first.over) < MANY / 2
    assert not both.first.deaths


@pytest.mark.slow
def test_the_claim_of_a_crashed_study_times_out(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_share, "CLAIM_TIMEOUT_SECONDS", 0.2)
    claim = ResourceClaim(capacity=2, wants=9, runs=2)
    kv_put(f"{CLAIM_PREFIX}01000000-7", json.dumps({"claim": asdict(claim), "beat": 1}))
    with ClaimRegistry() as own:
        assert own.publish(claim) == {"01000000-7": claim, own.name: claim}
        time.sleep(0.3)
        assert own.publish(claim) == {own.name: claim}
        assert len(kv_keys(CLAIM_PREFIX)) == 1
    assert not kv_keys(CLAIM_PREFIX)


@pytest.mark.slow
@pytest.mark.nightly
def test_waiting_runs_are_withdrawn_for_a_study_below_its_quota(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(concurrency, "has_autoscaler", lambda: True)  # so that all runs are asked for at once
    monkeypatch.setattr(concurrency, "CAPACITY_INTERVAL_SECONDS", 0.2)  # so that all of it happens while they are

    def waiting() -> int:
        return sum(group.state == "PENDING" for group in list_placement_groups(address, limit=10_000))

    def other() -> None:
        wait_until(lambda: waiting() == 3)
        kv_put(f"{CLAIM_PREFIX}0", json.dumps({"claim": asdict(ResourceClaim(capacity=2, wants=9, runs=0)), "beat": 1}))
        wait_until(lambda: not waiting())
        kv_delete(f"{CLAIM_PREFIX}0")
        wait_until(waiting)

    watching = threading.Thread(target=other, daemon=True)
    watching.start()
    heard = execute(tmp_path, "waiting", 5, epochs=120)
    watching.join(1)
    assert not watching.is_alive()
    assert [outcome for outcome, _ in heard.ended.values()] == ["completed"] * 5
    assert not heard.deaths
