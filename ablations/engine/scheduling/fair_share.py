"""Fair sharing of one cluster by studies that run at the same time.

Each study publishes a claim in Ray's key-value store: how many runs it has and how many it could have. Each study computes its own
quota from all claims.
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import ray
from ray.exceptions import RpcError

from ablations.engine.scheduling.ray_internals.key_value_store import kv_delete, kv_get, kv_keys, kv_put

CLAIM_PREFIX = "ablations/share/"
CLAIM_TIMEOUT_SECONDS = 20.0
"""Age in seconds at which an unchanged claim is removed, because its study has crashed."""


@dataclass(frozen=True)
class ResourceClaim:
    """A study's demand. All numbers are runs of that study."""

    capacity: int
    """Runs that the cluster would hold now if it did nothing else."""
    wants: int
    """Runs that the study would have at a time if it were alone."""
    runs: int
    """Runs in progress."""


def divide_evenly(capacity: int, wants: Sequence[int]) -> list[int]:
    """Divide a capacity into equal parts, none larger than wanted.

    Capacity that one part does not need goes to the others. The first parts get the remainder. Each part is at least 1.
    """
    parts = [0] * len(wants)
    while capacity > 0 and (unsatisfied := [index for index, part in enumerate(parts) if part < wants[index]]):
        each = max(1, capacity // len(unsatisfied))
        for index in unsatisfied:
            given = min(each, wants[index] - parts[index], capacity)
            parts[index] += given
            capacity -= given
    return [max(1, part) for part in parts]


def quota_of(name: str, claims: Mapping[str, ResourceClaim], capacity: int) -> int:
    """Return the number of runs that a study may have at a time on a cluster that holds `capacity` of its runs."""
    names = sorted(claims)
    wants = [math.ceil(_in_runs_of(claims[name], claims[each], claims[each].wants)) for each in names]
    return divide_evenly(capacity, wants)[names.index(name)]


def current_quota(name: str, claims: Mapping[str, ResourceClaim]) -> int:
    """Return the quota from current capacity, excluding studies whose runs fit on no current node."""
    able = {each: claim for each, claim in claims.items() if claim.capacity or each == name}
    return quota_of(name, able, claims[name].capacity)


def should_yield(name: str, claims: Mapping[str, ResourceClaim]) -> bool:
    """Return whether this study has more runs than its current quota while another study has fewer than its own quota."""
    own = claims[name]
    quotas = {each: current_quota(each, claims) for each, claim in claims.items() if claim.capacity}
    return own.runs > quotas.get(name, 0) and any(claims[each].runs < quota for each, quota in quotas.items())


def must_release_last_slot(name: str, claims: Mapping[str, ResourceClaim]) -> bool:
    """Return whether the cluster holds fewer runs than there are studies, and another study has no run."""
    able = {each: claim for each, claim in claims.items() if claim.capacity and claim.wants}
    crowded = name in able and sum(current_quota(each, able) / able[each].capacity for each in able) > 1 + 1e-9
    return crowded and any(claim.runs == 0 for each, claim in able.items() if each != name)


def _in_runs_of(own: ResourceClaim, other: ResourceClaim, runs: int) -> float:
    """Convert runs of another study into runs of this one that take as much of the cluster.

    If the cluster can hold runs of only one of the two, one run counts as one.
    """
    return runs * own.capacity / other.capacity if own.capacity and other.capacity else runs


class ClaimRegistry:
    """The claims of all studies on the cluster. As a context manager, it removes this study's claim at the end."""

    def __init__(self) -> None:
        self.name = f"{ray.get_runtime_context().get_job_id()}-{os.getpid()}"
        self._beat = 0
        self._last_seen: dict[str, tuple[bytes, float]] = {}
        """Latest claim of each study, and the local time at which this process first read it, since clocks of machines differ."""

    def publish(self, claim: ResourceClaim) -> dict[str, ResourceClaim]:
        """Store this study's claim; return the claims of all studies, this one included, by name."""
        self._beat += 1
        kv_put(CLAIM_PREFIX + self.name, json.dumps({"claim": asdict(claim), "beat": self._beat}))
        claims = {self.name: claim}
        for key in kv_keys(CLAIM_PREFIX):
            name, content = key.removeprefix(CLAIM_PREFIX), kv_get(key)
            if name == self.name or not content:
                continue
            last, since = self._last_seen.get(name, (b"", 0.0))
            if content != last:
                self._last_seen[name] = content, time.monotonic()
            elif time.monotonic() > since + CLAIM_TIMEOUT_SECONDS:
                kv_delete(key)
                continue
            with suppress(ValueError, TypeError, KeyError):  # another version of this program may store other fields
                claims[name] = ResourceClaim(**json.loads(content)["claim"])
        return claims

    def __enter__(self) -> "ClaimRegistry":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RpcError):  # others ignore the claim once it has timed out
            kv_delete(CLAIM_PREFIX + self.name)
