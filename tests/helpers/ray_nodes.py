"""Nodes of a Ray cluster on this machine, which tests add and remove."""

from contextlib import suppress

import psutil
from ray._private.state import actors


def kill_node_processes(raylet: psutil.Process) -> None:
    """Kill a raylet and its node's processes at once, as a power failure does.

    Without their raylet, the processes would train for up to a second: they check once a second whether it is alive.
    """
    for process in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


TRIAL_ACTOR = "RunTrainable"
"""Class name of the actors in which Tune runs trials."""


def actor_nodes() -> dict[str, list[str]]:
    """Return the node IDs of living actors, by class name."""
    found: dict[str, list[str]] = {}
    for actor in actors().values():
        name = actor["ActorClassName"].rpartition(".")[2]
        if actor["State"] == "ALIVE" and name != "_AutoscalingCoordinatorActor":  # Ray's own actor, which all programs share
            found.setdefault(name, []).append(actor["Address"]["NodeID"])
    return found
