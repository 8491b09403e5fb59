"""A Ray Train worker group that can be ended at once, from outside the thread that waits for it.

Were the process of its trial just ended, Ray would end the group's processes too, but keep what they had reserved of the cluster
until a cleaner of Train's finds that out: seconds later, or never where there is another Ray on its machine.
"""

from contextlib import suppress
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train._internal.session import get_session
from ray.train.v2._internal.execution.callback import ControllerCallback

CONTROLLER = "controller"


class Announced(ControllerCallback):
    """Makes the group's controller known to the process of its trial, in which this is made."""

    def __init__(self) -> None:
        self.trial = ray.get_runtime_context().current_actor

    def after_controller_start(self, train_run_context: Any) -> None:
        # It hears of it between two reports, so before anybody can have decided by the first.
        self.trial.execute.remote(partial(_remember, ray.get_runtime_context().current_actor))


def _remember(controller: Any, trainable: Any) -> None:
    get_session().set_state(CONTROLLER, controller)


def abort() -> None:
    """Ends the group of this process's trial: its processes are dead and its part of the cluster is free when this returns."""
    with suppress(RayActorError):  # the last that it does is to end its own process
        ray.get(get_session().get_state(CONTROLLER).abort.remote())
