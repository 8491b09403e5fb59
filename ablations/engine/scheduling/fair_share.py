"""Studies that run at the same time on one cluster share it: each says with Ray what it has and wants, and takes its part."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import ray
from ray.exceptions import RpcError

# Ray's own store of small values, kept by the head: every driver reaches it. There is no public door to it.
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

KEY = "ablations/share/"
CLAIM_TIMEOUT_SECONDS = 20.0
"""After so long without a word, a study is taken for dead."""


@dataclass(frozen=True)
class ResourceClaim:
    """What a study says of itself. All are numbers of its own runs."""

    capacity: int
    """That the cluster holds now, if it does nothing else."""
    wants: int
    """That it would have at a time if it were alone."""
    runs: int
    """That are under way."""


def divide_evenly(room: int, wants: Sequence[int]) -> list[int]:
    """Equal parts, but to nobody more than they want, so that nothing is left while somebody wants more; the first get what
    cannot be divided, and everyone gets at least 1.
    """
    parts = [0] * len(wants)
    while room > 0 and (hungry := [index for index, part in enumerate(parts) if part < wants[index]]):
        each = max(1, room // len(hungry))
        for index in hungry:
            given = min(each, wants[index] - parts[index], room)
            parts[index] += given
            room -= given
    return [max(1, part) for part in parts]


def quota_of(name: str, claims: Mapping[str, ResourceClaim], room: int) -> int:
    """How many of its runs the study of this name may have at a time, where the cluster holds `room` of them."""
    names = sorted(claims)
    wants = [math.ceil(_in_runs_of(claims[name], claims[each], claims[each].wants)) for each in names]
    return divide_evenly(room, wants)[names.index(name)]


def current_quota(name: str, claims: Mapping[str, ResourceClaim]) -> int:
    """The same of what there is now, of which those have no part whose runs fit on no node that is there."""
    able = {each: claim for each, claim in claims.items() if claim.capacity or each == name}
    return quota_of(name, able, claims[name].capacity)


def should_yield(name: str, claims: Mapping[str, ResourceClaim]) -> bool:
    """Whether this study has more than its part of what there is now, and another has less than its own."""
    own = claims[name]
    parts = {each: current_quota(each, claims) for each, claim in claims.items() if claim.capacity}
    return own.runs > parts.get(name, 0) and any(claims[each].runs < part for each, part in parts.items())


def must_release_last_slot(name: str, claims: Mapping[str, ResourceClaim]) -> bool:
    """Whether there are more studies than runs that the cluster holds at a time, and another one has none."""
    able = {each: claim for each, claim in claims.items() if claim.capacity and claim.wants}
    crowded = name in able and sum(current_quota(each, able) / able[each].capacity for each in able) > 1 + 1e-9
    return crowded and any(claim.runs == 0 for each, claim in able.items() if each != name)


def _in_runs_of(own: ResourceClaim, other: ResourceClaim, runs: int) -> float:
    """Runs of another study, in runs of this one that take as much of the cluster; as many, where no node tells how much."""
    return runs * own.capacity / other.capacity if own.capacity and other.capacity else runs


class ClaimRegistry:
    """This program's word among those of others. Left with `with`, it is taken back."""

    def __init__(self) -> None:
        self.name = f"{ray.get_runtime_context().get_job_id()}-{os.getpid()}"
        self.beat = 0
        self.heard: dict[str, tuple[bytes, float]] = {}
        """The last word of each study, and when this program first heard it: clocks of machines differ."""

    def publish(self, claim: ResourceClaim) -> dict[str, ResourceClaim]:
        """Says what this study has and wants; returns what all say, this one among them, by name."""
        self.beat += 1
        _internal_kv_put(KEY + self.name, json.dumps({"claim": asdict(claim), "beat": self.beat}), overwrite=True)
        claims = {self.name: claim}
        for key in _internal_kv_list(KEY):
            name, word = key.decode().removeprefix(KEY), _internal_kv_get(key)
            if name == self.name or not word:
                continue
            last, since = self.heard.get(name, (b"", 0.0))
            if word != last:
                self.heard[name] = word, time.monotonic()
            elif time.monotonic() > since + CLAIM_TIMEOUT_SECONDS:
                _internal_kv_del(key)
                continue
            with suppress(ValueError, TypeError, KeyError):  # another version of this program may say something else
                claims[name] = ResourceClaim(**json.loads(word)["claim"])
        return claims

    def __enter__(self) -> "ClaimRegistry":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RpcError):  # the others leave it out after a while anyway
            _internal_kv_del(KEY + self.name)
