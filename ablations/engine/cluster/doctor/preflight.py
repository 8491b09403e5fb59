"""The cheap checks that run before each study on several nodes: whatever would fail the study or falsify its results."""

import logging
from functools import partial
from typing import TYPE_CHECKING

from ablations.engine.cluster.doctor.check import join_names
from ablations.engine.cluster.doctor.node_facts import NodeFacts, evaluate_clocks, evaluate_disks, evaluate_versions, measure
from ablations.engine.environment import paths
from resnet_core.fields import ConfigError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from ablations.engine.cluster.doctor.shared_storage import WriteResult

NODE_ANSWER_TIMEOUT_SECONDS = 10.0
"""Time limit for a node's first answer. Most answer within 2 seconds."""
SECOND_ANSWER_TIMEOUT_SECONDS = 5.0
"""Time limit for each later answer, when the node's process has already started."""
DOCTOR_COMMAND = "ablations doctor"


def check_nodes(storage: str) -> None:
    """Check versions, storage, disks and clocks of all nodes. On a single node, return at once.

    A node that leaves in the meantime, or is too busy to answer, raises no error: studies survive that.

    Args:
        storage: address of the checkpoint storage, which this process could write to.

    Raises:
        ConfigError: a node has other versions, cannot use the storage or sees a different one, has a full disk or a wrong clock.
    """
    from ablations.engine.cluster.doctor import nodes, shared_storage  # Ray and pyarrow take long to import

    alive = nodes.alive_nodes()
    if len(alive) == 1:
        return
    with shared_storage.temporary_folder(storage, alive) as folder:
        functions = {node: partial(_measure_node, str(paths.home()), storage, folder, node.id) for node in alive}
        answers, no_answers = nodes.run_on_nodes(functions, NODE_ANSWER_TIMEOUT_SECONDS)
        answering = list(answers)
        read = shared_storage.read_on_nodes(storage, folder, answering, SECOND_ANSWER_TIMEOUT_SECONDS)
    if silent := join_names(f"{node.name} {answer.reason}" for node, answer in no_answers.items() if not answer.lost):
        logger.warning("not checked: %s; %s says more", silent, DOCTOR_COMMAND)
    if not answering:
        return
    facts = {node.name: fact for node, (fact, _) in answers.items()}
    stored = shared_storage.StorageMeasurements({node.name: written for node, (_, written) in answers.items()}, read)
    skews = nodes.clock_skews(answering, 1, SECOND_ANSWER_TIMEOUT_SECONDS)
    for check in (
        shared_storage.evaluate(storage, {node.name: node.id for node in answering}, stored),
        evaluate_versions(facts),
        evaluate_disks(facts),
        evaluate_clocks({node.name: skew for node, skew in skews.items()}),
    ):
        if check.status == "failed":
            raise ConfigError(f"{check.name}: {check.detail}; {check.remedy} ({DOCTOR_COMMAND} shows all)")


def _measure_node(home: str, storage: str, folder: str, name: str) -> "tuple[NodeFacts, WriteResult]":
    from ablations.engine.cluster.doctor.shared_storage import write_test_file

    return measure(home), write_test_file(storage, folder, name)
