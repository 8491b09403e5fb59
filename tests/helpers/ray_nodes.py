"""Nodes of a Ray cluster on this machine, which tests add and take away."""

from contextlib import suppress

import psutil
from ray._private.state import actors


def kill_node_processes(raylet: psutil.Process) -> None:
    """A node's processes end with its raylet at once: they would look whether it lives once a second only, and train on."""
    for process in [raylet, *raylet.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


TRIAL_ACTOR = "ImplicitFunc"
"""The class of trials."""


def actor_nodes() -> dict[str, list[str]]:
    """The nodes of living actors, by class."""
    found: dict[str, list[str]] = {}
    for actor in actors().values():
        name = actor["ActorClassName"].rpartition(".")[2]
        if actor["State"] == "ALIVE" and name != "_AutoscalingCoordinatorActor":  # Ray's own, for all programs
            found.setdefault(name, []).append(actor["Address"]["NodeID"])
    return found
