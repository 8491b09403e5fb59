"""The plan of a search: its cells, space and budget, and the study that confirms the chosen configurations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablations.engine.environment.console import format_duration
from ablations.engine.search.optimizer import Optimizer, SearchSettings
from ablations.engine.search.space import Space, check_space, parse_space, restrict_space
from ablations.engine.study.definition import Study
from ablations.engine.study.design import SearchCell, SearchDesign
from ablations.engine.study.designs import FACTORIAL
from ablations.engine.study.expansion import MAX_RUNS, check_storable, expand_runs, make_draft, resolve_draft
from ablations.engine.study.factors import Level, format_level
from ablations.engine.study.pareto import pareto_front
from ablations.engine.study.plan import CONFIGURATION, DEFAULT, TUNED, Cell, Draft, Plan, Run, SearchTrial
from ablations.engine.study.request import DEFAULT_TRIALS, OBJECTIVES, SearchRequest, StudyRequest
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted, reject

MAX_FRONT_CONFIGURATIONS = 4
"""Maximum number of configurations of a Pareto front that are confirmed, from the cheapest to the best."""
FIRST_TRIAL_SEED = MAX_RUNS
"""Lowest seed of trials. It is above the seeds of all runs of a study."""


@dataclass(frozen=True, kw_only=True)
class ChosenConfiguration:
    """A configuration that a search chose, to be confirmed."""

    level: str
    """Level of the factor `configuration`, such as `tuned`."""
    number: int
    """Number of the trial."""
    values: Mapping[str, Any]
    """Values of the searched fields, by dotted name."""


@dataclass(frozen=True, kw_only=True)
class ScoredTrial:
    """A completed trial with its scores."""

    values: Mapping[str, Any]
    value: float
    """Value of the search's metric in the final epoch."""
    loss: float
    """Loss on the same data in the final epoch, which breaks ties; infinite if trials do not report it."""
    cost: float | None
    """Value of the second objective; None if there is none."""

    @property
    def objectives(self) -> tuple[float, ...]:
        """Value of each objective."""
        return (self.value,) if self.cost is None else (self.value, self.cost)


@dataclass(frozen=True, kw_only=True)
class SearchPlan(Plan):
    """A resolved search. `cells` and `runs` belong to the confirming study: the default and the chosen configurations."""

    spaces: Mapping[Cell, Space]
    """Space of each cell. Conditional parts of a space may depend on the levels of the cell."""
    settings: SearchSettings
    fields: Mapping[str, Mapping[str, Any]]
    """Searched fields, as in `SearchDesign.fields`."""
    objective: str | None
    """Second objective besides the metric: `flops` or `seconds`."""
    specs: Mapping[Cell, Any]
    """Default configuration of each cell of the search, trained on all training images."""
    trial_specs: Mapping[Cell, Any]
    """Configuration of the trials of each cell, with default values for the searched fields."""
    seeds: int
    """Number of replicates of each confirmed configuration."""
    chosen: Mapping[Cell, Sequence[ChosenConfiguration]]
    """Chosen configurations, by cell of the search; empty until the search has ended."""

    @property
    def max_trials(self) -> int | None:
        """Maximum number of trials of all cells; None if it is not known in advance."""
        settings = self.settings
        return None if settings.scheduler == "pbt" or not settings.trials else settings.trials * len(self.trial_specs)

    @property
    def baseline(self) -> Mapping[str, Level]:
        """Reference levels of the factors: without factors, the default configuration."""
        return super().baseline if self.study.factors else {CONFIGURATION: DEFAULT}

    @property
    def trial_metric(self) -> Metric:
        """Metric by which all trials are scored."""
        return self.settings.metric

    @property
    def trial_data(self) -> Any:
        """Data set on which all trials are trained and scored."""
        return self.dataset_for_spec(next(iter(self.trial_specs.values())))

    def trial_run(self, cell: Cell, trial: SearchTrial) -> Run:
        """Return the run of a trial; raise ConfigError if its configuration is invalid."""
        spec = self.workload.resolve(self.workload.override(self.trial_specs[cell], trial.values), self.trial_data)
        check_storable(spec)
        return Run(cell, spec.seed, spec, self.workload.fingerprint(spec, self.trial_data.version), trial)

    def confirmation_plan(self, chosen: Mapping[Cell, Sequence[ChosenConfiguration]]) -> "SearchPlan":
        """Return the plan of the study that compares chosen configurations with the default one, on seeds that no trial uses."""
        specs, skipped = {}, list(self.skipped)
        for cell, spec in self.specs.items():
            specs[_configured(cell, DEFAULT)] = spec
            for each in chosen.get(cell, ()):
                configured, tuned = _configured(cell, each.level), self.workload.override(spec, each.values)
                if tuned == spec:
                    skipped.append((configured, "the search chose the default configuration"))
                else:
                    specs[configured] = tuned
        levels = tuple(dict.fromkeys(str(dict(cell.levels)[CONFIGURATION]) for cell in specs))
        return replace(
            self,
            factors={**self.factors, CONFIGURATION: (DEFAULT, *sorted(levels[1:]))},
            cells=tuple(specs),
            skipped=tuple(skipped),
            runs=expand_runs(self.workload, specs, self.seeds, self.data),
            chosen=chosen,
        )

    def preview_plan(self) -> "SearchPlan":
        """Return the confirmation plan before the search, with a copy of the default in place of each future choice."""
        specs = {_configured(cell, level): spec for cell, spec in self.specs.items() for level in (DEFAULT, TUNED)}
        runs = [
            run if dict(run.cell.levels)[CONFIGURATION] == DEFAULT else replace(run, fingerprint=f"{run.fingerprint}-{TUNED}")
            for run in expand_runs(self.workload, specs, self.seeds, self.data)
        ]
        return replace(self, cells=tuple(specs), runs=tuple(runs))

    def remaining_trials(self, ended: Mapping[Cell, int]) -> list[Run]:
        """Return the trials left to train, as runs of the default configuration, for estimates of cost.

        Args:
            ended: number of ended trials by cell of the search.
        """
        return [
            Run(cell, spec.seed, spec, f"{cell} trial={number}")
            for cell, spec in self.trial_specs.items()
            for number in range(ended.get(cell, 0), self.settings.trials or 0)
        ]

    def to_design(self) -> SearchDesign:
        """Return the design of the search as plain data."""
        settings, data = self.settings, self.trial_data
        return SearchDesign(
            cells=tuple(
                SearchCell(
                    label=str(cell),
                    levels={name: format_level(level) for name, level in cell.levels},
                    spec=json.loads(json.dumps({name: value for name, value in spec.flat().items() if name != "seed"})),
                )
                for cell, spec in self.trial_specs.items()
            ),
            fields=self.fields,
            sampler=settings.sampler,
            scheduler=settings.scheduler,
            trials=settings.trials or 0,
            seconds=settings.seconds,
            objective=self.objective,
            epochs=settings.epochs,
            seed=settings.seed,
            metric=self.trial_metric,
            train_examples=self.workload.training_examples(data),
            validation_examples=self.workload.evaluation_examples(data),
            data_version=data.version,
            base=self.base_id,
            chosen={str(cell): {each.level: each.number for each in choices} for cell, choices in self.chosen.items()},
        )


def choose_configurations(scored: Mapping[int, ScoredTrial], metric: Metric) -> tuple[ChosenConfiguration, ...]:
    """Choose the completed trial with the best value; the lower loss breaks ties. With two objectives, choose along the front.

    Of a Pareto front with more than `MAX_FRONT_CONFIGURATIONS` trials, evenly spaced ones are chosen, including both ends.

    Args:
        scored: completed trials by number.
        metric: metric of their values.
    """
    by_loss = sorted(scored, key=lambda number: (scored[number].loss, number))
    # Cost first, so that the front starts at the cheapest trial.
    points = [(*scored[number].objectives[1:], metric.minimized(scored[number].value)) for number in by_loss]
    unique = {points[i]: by_loss[i] for i in reversed(pareto_front(points))}  # of equal points, the one with the lowest loss
    front = list(reversed(unique.values()))
    if not front or len(scored[front[0]].objectives) == 1:
        return tuple(ChosenConfiguration(level=TUNED, number=number, values=scored[number].values) for number in front[:1])
    count = min(len(front), MAX_FRONT_CONFIGURATIONS)
    spread = [front[round(i * (len(front) - 1) / max(1, count - 1))] for i in range(count)]
    return tuple(
        ChosenConfiguration(level=f"front-{i}", number=number, values=scored[number].values) for i, number in enumerate(spread, 1)
    )


def draft_search(
    study: Study, request: StudyRequest, search: SearchRequest
) -> tuple[Draft, Mapping[Cell, Space], Mapping[str, Mapping[str, Any]]]:
    """Expand a search without reading data; raise ConfigError if any part of the request is invalid.

    Returns:
        The draft with the cells of the search, the space of each cell, and the searched fields as in `SearchDesign.fields`.
    """
    if request.design not in (None, FACTORIAL):
        raise reject("--design", request.design, f"accepted for a search: {FACTORIAL}")
    study = _keep_per_cell_factors(study.for_preset(request.preset or study.preset), request, search)
    drafted = make_draft(study, request)
    if drafted.seed_looks:
        looks = ",".join(map(str, drafted.seed_looks))
        raise reject("--seeds", looks, "a search trains what it chooses with a fixed number of seeds; accepted: one number")
    workload, field_name = study.workload, study.workload.schema.field_name
    for name in filter(workload.selects_data, map(field_name, drafted.factors)):
        raise reject("--per-cell", name, "all cells of a search use the same images; accepted: other factors, or --set NAME=VALUE")
    given = {field_name(name) for name in request.overrides}
    if not workload.task_name and "data.validation" in given:
        raise reject("--set", "data.validation", "accepted: --validation SHARE; final results use all training images")
    if not 0 < search.validation_share < 1:
        raise reject("--validation", search.validation_share, "accepted: a share between 0 and 1, such as 0.2")
    fixed = {*map(field_name, drafted.factors), *given, *workload.not_searched(drafted.base)}
    asked, found = parse_space(search.space, workload.schema), dict[str, Mapping[str, Any]]()
    spaces = {cell: restrict_space(study.space, asked, spec, fixed, workload.schema) for cell, spec in drafted.specs.items()}
    for cell, spec in drafted.specs.items():
        found |= check_space(spaces[cell], spec, workload)
    for name in asked.keys() - found.keys():
        raise reject(
            "--space", name, f"the space suggests it only together with values that are not searched; accepted: choices, {name}=A,B"
        )
    return replace(drafted, searched=(*found, *workload.fields_of_trials)), spaces, found


def plan_search(study: Study, request: StudyRequest, search: SearchRequest, *, cache: Path) -> SearchPlan:
    """Resolve a search on its data; raise ConfigError if any part of the request is invalid."""
    drafted, spaces, fields = draft_search(study, request, search)
    settings = _settings(search, drafted)
    for space in spaces.values():
        Optimizer(space, settings, drafted.study.workload.schema)  # raises ConfigError if the scheduler cannot search the space
    plan, workload = resolve_draft(drafted, request, cache=cache), drafted.study.workload
    held_out = workload.search_spec(drafted.base, search.validation_share, settings.seed)
    data = workload.load_data(held_out, cache, download=request.download)
    specs = {run.cell: replace(run.spec, seed=0) for run in plan.runs}
    of_trials = {cell: workload.search_spec(spec, search.validation_share, settings.seed) for cell, spec in specs.items()}
    trial_specs = {cell: workload.resolve(spec, data) for cell, spec in of_trials.items()}
    epochs = workload.total_epochs(plan.base, data)
    if epochs is None:
        if settings.scheduler != "none":
            raise reject(
                "--scheduler",
                settings.scheduler,
                f"{workload.task_name} has no field epochs, so no trial can be stopped early; accepted: none",
            )
        epochs = 1
    found = SearchPlan(
        study=replace(drafted.study, factors=drafted.factors),
        preset=plan.preset,
        base=plan.base,
        factors=plan.factors,
        grid=plan.grid,
        cells=(),
        skipped=plan.skipped,
        runs=(),
        data={**plan.data, workload.data_key(held_out): data},
        searched=plan.searched,
        spaces=spaces,
        settings=replace(settings, epochs=epochs),
        fields=fields,
        objective=search.objective,
        specs=specs,
        trial_specs=trial_specs,
        seeds=drafted.seeds,
        chosen={},
    )
    return found.confirmation_plan({})


def _keep_per_cell_factors(study: Study, request: StudyRequest, search: SearchRequest) -> Study:
    """Return the study with only the factors that `--per-cell` names; without the option, a study without factors."""
    if search.per_cell is None:
        if request.levels:
            raise reject("--levels", next(iter(request.levels)), "accepted with --per-cell, which searches at each of these levels")
        return replace(study, on={}, factors={}, baseline={})
    field_name = study.workload.schema.field_name
    known = {field_name(name): name for name in (*study.factors, *request.levels)}
    wanted = [known.get(field_name(name), name) for name in search.per_cell] or list(known.values())
    for name in wanted:
        if name not in known.values():
            raise reject("--per-cell", name, f"accepted: {', '.join(known.values())}, or another field with its --levels {name}=…")
    for name in request.levels:
        if known[field_name(name)] not in wanted:
            raise reject("--levels", name, f"accepted: {', '.join(wanted)}, which --per-cell names")
    factors = {name: levels for name, levels in study.factors.items() if name in wanted}
    baseline = {name: level for name, level in study.baseline.items() if name in wanted}
    return replace(study, on={}, factors=factors, baseline=baseline)


def _settings(search: SearchRequest, drafted: Draft) -> SearchSettings:
    """Return sampler, scheduler and budget with defaults filled in; raise ConfigError if they cannot be combined."""
    scheduler = search.scheduler or ("none" if search.objective else "asha")
    sampler = search.sampler or ("random" if scheduler == "pbt" else "tpe")
    if search.objective not in (None, *OBJECTIVES):
        raise reject("--objective", search.objective, f"accepted: {', '.join(OBJECTIVES)}")
    if scheduler == "pbt" and drafted.study.workload.task_name:
        raise reject("--scheduler", "pbt", "changes settings during a training, which only image classification supports")
    if scheduler == "pbt" and drafted.base.optim.iterations:
        raise reject(
            "--scheduler", "pbt", "needs a training whose length is set in epochs, not iterations; accepted: --set optim.epochs=N"
        )
    if search.seed < 0:
        raise reject("--search-seed", search.seed, "accepted: 0 or more")
    workload = drafted.study.workload
    trials = DEFAULT_TRIALS if search.trials is None and search.seconds is None else search.trials
    return SearchSettings(
        sampler=sampler,
        scheduler=scheduler,
        trials=trials,
        seconds=search.seconds,
        epochs=1,  # `plan_search` fills it in, which knows the data
        seed=FIRST_TRIAL_SEED + search.seed,
        objectives=2 if search.objective else 1,
        metric=workload.metric(workload.search_spec(drafted.base, search.validation_share, FIRST_TRIAL_SEED + search.seed)),
    )


def _configured(cell: Cell, level: str) -> Cell:
    return Cell((*cell.levels, (CONFIGURATION, level)))


def describe_budget(plan: SearchPlan) -> str:
    """Return a description such as `4 searches, each of 12 trials, for optim.lr, by tpe and asha`."""
    settings, searches = plan.settings, len(plan.trial_specs)
    limits = [counted(settings.trials, "trial")] if settings.trials else []
    if settings.scheduler == "pbt":
        limits = [f"a population of {settings.trials}"]
    if settings.seconds:
        limits.append(f"{format_duration(settings.seconds)} of training")
    what = f"{searches} searches, each" if searches > 1 else "a search"
    return f"{what} of {' or '.join(limits)}, for {', '.join(plan.fields)}, by {settings.sampler} and {settings.scheduler}"
