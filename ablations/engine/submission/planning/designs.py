"""Comparison of designs before anything starts (`--plan --design all`): what each costs, and which effects it can find."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from ablations.engine.environment import paths
from ablations.engine.environment.console import format_duration
from ablations.engine.report.fitted_table import FittedTable
from ablations.engine.study.definition import Study
from ablations.engine.study.design import Design
from ablations.engine.study.designs import DESIGNS
from ablations.engine.study.expansion import make_plan
from ablations.engine.study.plan import Plan, Run
from ablations.engine.study.request import Options
from ablations.engine.submission.planning.cost_and_power import difference_spread, wall_seconds
from ablations.engine.submission.planning.preview import Preview, examine
from ablations.engine.task.metric import Metric
from resnet_core.fields import ConfigError, printable

if TYPE_CHECKING:
    from ablations.engine.analysis.statistics.power import Spread

SCHEMA = "ablations-designs/1"
"""Name and version of the format of `--plan --design all --json`."""


@dataclass(frozen=True, kw_only=True)
class DesignPreview:
    """Runs, cost and detectable effect of one design of a study."""

    design: str
    cells: int
    runs: int
    missing: int
    """Number of runs without a result."""
    seconds: float | None
    """Training time of the missing runs, one after another; None if it is not known for all of them."""
    hours: float | None
    """Hours from the first start to the last end; None if it is not known."""
    effects: int
    """Number of effects that are tested: one per level besides the reference, and the whole of a ladder."""
    detectable: float | None
    """Smallest true effect that is found with 80 % power as one of all these, in the unit of differences; None if not known."""


@dataclass(frozen=True, kw_only=True)
class DesignComparison:
    """The designs that a study's factors allow."""

    study: Study
    metric: Metric
    dataset: str
    seeds: int
    found: Sequence[DesignPreview]
    impossible: Mapping[str, str]
    """Designs that the factors do not allow, each with the reason."""


def compare_designs(study: Study, options: Options) -> DesignComparison:
    """Return what each design of a study would train, cost and find; raise ConfigError if the factors allow none."""
    plans: dict[str, Plan] = {}
    impossible: dict[str, str] = {}
    for kind in DESIGNS:
        try:
            plans[kind] = make_plan(study, replace(options.request, design=kind), cache=paths.data_cache())
        except ConfigError as error:
            impossible[kind] = str(error)
    if not plans:
        raise ConfigError(next(iter(impossible.values())))
    largest = max(plans.values(), key=lambda plan: len(plan.runs))
    every = {run.fingerprint: run for plan in plans.values() for run in plan.runs}
    # Designs share most of their runs, so MLflow is read and steps are timed once for all.
    cells = tuple(dict.fromkeys(run.cell for run in every.values()))
    preview = examine(replace(largest, runs=tuple(every.values()), cells=cells, seed_looks=()), options)
    values = {name: record.metrics[largest.metric.name] for name, record in preview.done.items() if record.completed}
    known = difference_spread(Design.from_plan(largest, {}), values)
    return DesignComparison(
        study=largest.study,
        metric=largest.metric,
        dataset=largest.dataset.name,
        seeds=len({run.seed for run in largest.runs}),
        found=[_preview(kind, plan, preview, known[0] if known else None) for kind, plan in plans.items()],
        impossible=impossible,
    )


def _preview(kind: str, plan: Plan, preview: Preview, spread: "Spread | None") -> DesignPreview:
    from ablations.engine.analysis.statistics import contrasts  # with power, imports scipy
    from ablations.engine.analysis.statistics.power import smallest_detectable

    design = Design.from_plan(plan, {})
    missing: list[Run] = [run for run in plan.runs if run.fingerprint not in preview.done]
    seconds = [each for run in missing if (each := preview.estimate.seconds.get(run.fingerprint)) is not None]
    at_once = preview.estimate.at_once
    effects = list(contrasts.average_effects(design))
    tests = len(effects) + (contrasts.whole_ladder(design) is not None)
    fewest = min((len(each.terms) for each in effects), default=1)
    # The mean of several differences, whose runs are different ones, varies less than each.
    averaged = spread and replace(spread, std=spread.std / math.sqrt(fewest))
    return DesignPreview(
        design=kind,
        cells=len(plan.cells),
        runs=len(plan.runs),
        missing=len(missing),
        seconds=sum(seconds) if len(seconds) == len(missing) else None,
        hours=wall_seconds(seconds, at_once) / 3600 if at_once and len(seconds) == len(missing) else None,
        effects=tests,
        detectable=smallest_detectable(averaged, design.seeds, max(1, tests)) if averaged else None,
    )


def designs_document(compared: DesignComparison) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "schema": SCHEMA,
        "study": {"name": compared.study.name, "question": compared.study.question},
        "dataset": compared.dataset,
        "metric": compared.metric.to_dict(),
        "seeds": compared.seeds,
        "designs": [asdict(each) for each in compared.found],
        "impossible": [{"design": name, "reason": reason} for name, reason in compared.impossible.items()],
    }


def designs_view(compared: DesignComparison) -> RenderableType:
    """Return a table with a row per design, and lines about what the columns mean and which designs are impossible."""
    columns = ["cells", "runs", "to train", "time", "effects", "finds"]
    table = FittedTable(["design"], columns, optional=("effects", "time"), elsewhere="see a wider terminal")
    unit = compared.metric.difference_unit
    for each in compared.found:
        seconds = each.seconds if each.hours is None else 3600 * each.hours
        time = "–" if seconds is None else format_duration(seconds)
        finds = "–" if each.detectable is None else f"{each.detectable:.2g} {unit}".rstrip()
        table.add_row([each.design, str(each.cells), str(each.runs), str(each.missing), time, str(each.effects), finds])
    lines = [f"{name} is not possible: {reason}" for name, reason in compared.impossible.items()]
    if all(each.detectable is None for each in compared.found):
        meaning = "What each finds is not known before two seeds of a cell have finished."
    else:
        meaning = (
            f"Finds: the smallest effect of a level that {compared.seeds} seeds show with 80 % power, if all effects of the design "
            "are tested. A factorial design also tests interactions; a screening only sums of them, and the others none."
        )
    title = Text(printable(f"{compared.study.name} on {compared.dataset}: {compared.study.question}"), "bold")
    return Group(title, table, *(Text(printable(line)) for line in (*lines, meaning)))
