"""The cheap part of the doctor's list: what would fail a study, or falsify it, on one of several nodes."""

import logging
from functools import partial
from typing import TYPE_CHECKING

from ablations.engine.cluster.doctor.check import listed
from ablations.engine.cluster.doctor.node_facts import Facts, judge_clocks, judge_disks, judge_versions, measure
from ablations.engine.environment import paths
from resnet_core.fields import ConfigError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ablations.engine.cluster.doctor.shared_storage import Written

SECONDS = 10.0
"""For one node to answer. Most answer in 2."""
LOOKING_SECONDS = 5.0
DOCTOR = "python -m ablations.engine doctor"


def examine(storage: str) -> None:
    """Raises ConfigError where a node has other versions, cannot use the storage or sees another, or has no room or a wrong clock.

    It returns at once on one node. A node that goes meanwhile, or is too busy to answer, is no error: studies survive that.

    Args:
        storage: where checkpoints go, which this process could write to.
    """
    from ablations.engine.cluster.doctor import nodes, shared_storage  # Ray and pyarrow

    present = nodes.alive()
    if len(present) == 1:
        return
    with shared_storage.folder_in(storage, present) as folder:
        asked = {node: partial(_look, str(paths.home()), storage, folder, node.id) for node in present}
        answers, silent = nodes.ask(asked, SECONDS)
        there = list(answers)
        seen = shared_storage.look(storage, folder, there, LOOKING_SECONDS)
    if mute := listed(f"{node.name} {silence.reason}" for node, silence in silent.items() if not silence.lost):
        logger.warning("not examined: %s; %s says more", mute, DOCTOR)
    if not there:
        return
    facts = {node.name: fact for node, (fact, _) in answers.items()}
    stored = shared_storage.Storage({node.name: written for node, (_, written) in answers.items()}, seen)
    for check in (
        shared_storage.judge(storage, {node.name: node.id for node in there}, stored),
        judge_versions(facts),
        judge_disks(facts),
        judge_clocks({node.name: skew for node, skew in nodes.skews(there, 1, LOOKING_SECONDS).items()}),
    ):
        if check.state == "wrong":
            raise ConfigError(f"{check.name}: {check.value}; {check.remedy} ({DOCTOR} shows all)")


def _look(home: str, storage: str, folder: str, name: str) -> "tuple[Facts, Written]":
    from ablations.engine.cluster.doctor.shared_storage import write

    return measure(home), write(storage, folder, name)
