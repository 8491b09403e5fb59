"""Looks at a study and its planned number of seeds, as tags of the study's own run in MLflow.

Each number of seeds at which a complete answer was shown is a tag of its own, so that concurrent processes lose none of them. Tags
survive resubmissions and crashes.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ablations.engine.analysis.statistics.looks import looks_at
from ablations.engine.study.plan import Plan

if TYPE_CHECKING:  # a plan reads looks without MLflow
    from mlflow import MlflowClient

    from ablations.engine.analysis.evidence import Evidence

PLANNED_SEEDS_TAG = "planned_seeds"
"""Tag of a study's run: the number of seeds that the study plans."""
LOOK_TAG_PREFIX = "look."
"""Beginning of the tag of a look, which the number of seeds follows. Its value is the time of the first such look."""


def study_tags(client: Any, plan: Plan) -> Mapping[str, str]:
    """Return the tags of a study's own run, which says which looks were taken; empty if MLflow has none yet."""
    experiment = client.get_experiment_by_name(plan.study.name)
    where = f"tags.base = '{plan.base_id}' and tags.study = '{plan.study.name}'"
    found = client.search_runs([experiment.experiment_id], where, max_results=1) if experiment else []
    return dict(found[0].data.tags) if found else {}


def recorded_looks(tags: Mapping[str, str]) -> tuple[int, ...]:
    """Return the numbers of seeds of all recorded looks, ascending, from the tags of a study's run."""
    numbers = (name.removeprefix(LOOK_TAG_PREFIX) for name in tags if name.startswith(LOOK_TAG_PREFIX))
    return tuple(sorted(int(number) for number in numbers if number.isdecimal()))


def planned_seeds(tags: Mapping[str, str], submitted: int, *, declared: bool = False) -> int:
    """Return the number of seeds that a study plans when it is submitted with a number of seeds.

    The number grows until the first look. Seeds that are added later are an extension of the plan.

    Args:
        tags: tags of the study's own run.
        submitted: number of seeds.
        declared: the number is that of the last declared look of an adaptive study, which replaces an earlier plan.
    """
    recorded, seen = int(tags.get(PLANNED_SEEDS_TAG, 0)), recorded_looks(tags)
    if seen:
        return recorded or seen[0]
    return submitted if declared else max(recorded, submitted)


def record_look(client: "MlflowClient", run_id: str, evidence: "Evidence") -> None:
    """Record that a complete answer to the whole study was shown. The same number of seeds twice is one look."""
    from mlflow.entities import RunTag

    design, now = evidence.design, datetime.now(UTC).isoformat(" ", "seconds")
    looks = looks_at(design, evidence.looks)
    # An adaptive study has looked at its results at each of its declared looks up to the present one.
    taken = {looks.seeds, *(seeds for seeds in design.seed_looks if seeds <= design.seeds)}
    wanted = {PLANNED_SEEDS_TAG: str(looks.planned)} | {f"{LOOK_TAG_PREFIX}{seeds}": now for seeds in sorted(taken)}
    tags = client.get_run(run_id).data.tags
    if missing := [RunTag(name, value) for name, value in wanted.items() if name not in tags]:
        client.log_batch(run_id, tags=missing)
