"""A study on several data sets as a sequence of ordinary studies, one per data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ablations.engine.study.datasets import DatasetEntry, check_not_factors, dataset_entries
from ablations.engine.study.definition import Study
from ablations.engine.study.plan import Draft, Plan
from ablations.engine.study.request import StudyRequest
from resnet_core.fields import ConfigError, reject


@dataclass(frozen=True, kw_only=True)
class StudyOnDataset:
    """One of the ordinary studies: with the same runs, and the same place in MLflow, as if it were submitted by itself."""

    dataset: str
    """Name of the data set, as in `Study.datasets`."""
    study: Study
    request: StudyRequest


def split_by_dataset(study: Study, request: StudyRequest) -> tuple[StudyOnDataset, ...]:
    """Return the study on each of its data sets; none for a study on one data set.

    `--preset` without `--datasets` runs a study of several data sets on that preset alone.

    Raises:
        ConfigError: a wrong data set, or one that contradicts another part of the request.
    """
    entries = _entries(study, request)
    if not entries:
        return ()
    if study.space is not None:
        raise ConfigError("--datasets: a search is on one data set; accepted: a study without a search space")
    schema = study.workload.schema
    factors = [*study.factors, *(name for name in request.levels if name not in study.compound_factors)]
    check_not_factors("--datasets", entries, {schema.field_name(name): name for name in factors})
    asked = {schema.field_name(name): name for name in request.overrides}
    for entry in entries:
        if taken := sorted(entry.settings.keys() & asked.keys()):
            raise ConfigError(f"--set {asked[taken[0]]}: the data set {entry.name} sets it; accepted: one of the two")
        if entry.preset and request.preset:
            accepted = f"the data set {entry.name} is a preset itself; accepted: --preset alone, or --datasets alone"
            raise reject("--preset", request.preset, accepted)
    return tuple(
        StudyOnDataset(
            dataset=entry.name,
            study=replace(study, datasets=(), preset=entry.preset or study.preset),
            request=replace(
                request,
                datasets=(),
                preset=entry.preset or request.preset,
                overrides={**entry.settings, **request.overrides},
            ),
        )
        for entry in entries
    )


def check_plans(datasets: Sequence[str], plans: Sequence[Plan | Draft]) -> None:
    """Raise ConfigError unless all studies have the same metric, and no two of them are the same.

    Args:
        datasets: names of the data sets.
        plans: the study on each of them.
    """
    metrics = [each.study.workload.metric(each.base) for each in plans]
    for name, metric in zip(datasets, metrics, strict=True):
        if metric != metrics[0]:
            raise ConfigError(
                f"--datasets: {name} is compared by {metric.heading} ({metric.better} is better), {datasets[0]} by "
                f"{metrics[0].heading} ({metrics[0].better} is better); accepted: data sets with the same metric"
            )
    seen: dict[str, str] = {}
    for name, plan in zip(datasets, plans, strict=True):
        if isinstance(plan, Plan) and (other := seen.setdefault(plan.base_id, name)) != name:
            raise ConfigError(f"--datasets: {other} and {name} are the same data with the same settings; accepted: each once")


def _entries(study: Study, request: StudyRequest) -> tuple[DatasetEntry, ...]:
    """Return the requested data sets, or those of the study. A requested name means the study's own data set of that name."""
    own = dataset_entries("datasets", study.datasets, study.workload)
    if not request.datasets:
        return () if request.preset else own
    if isinstance(request.datasets, Mapping) or len(set(request.datasets)) < len(request.datasets):
        return dataset_entries("--datasets", request.datasets, study.workload)
    known = {entry.name: entry.settings or None for entry in own}
    return dataset_entries("--datasets", {name: known.get(name) for name in request.datasets}, study.workload)
