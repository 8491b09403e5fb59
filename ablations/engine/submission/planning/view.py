"""Terminal view of a plan: the cells of a study, their cost and duration, and the differences it can detect."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from ablations.engine.analysis.statistics.looks import looks_at
from ablations.engine.environment.console import format_duration, format_money
from ablations.engine.report.fitted_table import FittedTable
from ablations.engine.study.design import Design
from ablations.engine.study.factors import format_level
from ablations.engine.study.plan import Cell, Plan, Run
from ablations.engine.submission.planning.cost_and_power import MAX_SEEDS, CostEstimate, Power, power
from ablations.engine.submission.planning.searches import search_plan
from ablations.engine.task.metric import Metric
from ablations.engine.tracking.run_queries import RunRecord
from resnet_core.fields import counted, printable

if TYPE_CHECKING:
    from ablations.engine.search.plan import SearchPlan
    from ablations.engine.submission.planning.seed_forecast import PathCost, SeedForecast


def plan_view(
    plan: Plan,
    design: Design,
    done: Mapping[str, RunRecord],
    estimate: CostEstimate,
    trials: Sequence[Run] = (),
    seeds: "SeedForecast | None" = None,
    resources: Sequence[str] = (),
    looks: tuple[int, ...] = (),
) -> RenderableType:
    """Return a table of cells with cost, duration and finished runs, and lines about skipped cells, total cost and power.

    The column `MB / image` is the activation memory of a training step. `time / run` is measured if the cell has a finished run.

    Args:
        plan: the study.
        design: its design, with the planned seeds that MLflow has.
        done: its finished runs by fingerprint.
        estimate: estimated duration of the missing runs.
        trials: trials of a search, which come before the study's runs.
        seeds: cost of an adaptive study, whose runs are those that it may need.
        resources: sentences about the resources of a run.
        looks: numbers of seeds at which the study's answer was shown before.
    """
    missing = [run for run in plan.runs if run.fingerprint not in done]
    finished = len(plan.runs) - len(missing)
    if seeds and not seeds.worst.missing:
        missing = []  # the comparisons are decided without the others
    lines = [f"skipped {cell}: {reason}" for cell, reason in plan.skipped]
    most = "At most " if seeds else ""
    lines.append(
        f"{most}{counted(len(plan.runs), 'run')}, {len(missing)} to train, {finished} done already"
        + (f": {work:.2e} multiply-adds" if (work := _multiply_adds(plan, missing)) or not plan.workload.task_name else "")
    )
    if searched := search_plan(plan):
        lines[:0] = _search_lines(searched, trials)
    if missing or trials:
        lines += [*resources, _time(len(missing) + len(trials), estimate, plan.workload.task_name)]
    if seeds:
        lines += _seed_lines(seeds)
    values = {name: entry.metrics[plan.metric.name] for name, entry in done.items() if entry.completed}
    lines += _power_lines(power(design, values, looks), plan.metric)
    if not plan.seed_looks and (about := looks_at(design, looks).forecast()):
        lines.append(f"{about}, for which these differences allow.")
    title = Text(f"{plan.study.name} on {plan.dataset.name}: {plan.study.question}", "bold")
    data = [Text(printable(f"Data: {plan.data_summary}"))] if plan.data_summary else []
    return Group(title, *data, _cells(plan, done, estimate), *map(Text, lines))


def _seed_lines(found: "SeedForecast") -> list[str]:
    """Return lines on the cost of an adaptive study."""
    *first, last = found.looks
    lines = [f"Adaptive seeds, with looks at {', '.join(map(str, first))} and {last}: {_path_cost(found.best)} if every comparison"]
    lines[0] += f" is decided at the next look; {_path_cost(found.worst)} if none is before the last"
    if found.expected:
        lines[0] += f"; {_path_cost(found.expected)} expected"
        lines.append(
            f"Expected in simulated studies, whose spread is {found.source}; cells with fewer than two results have no effect."
        )
    elif found.best == found.worst:
        lines = ["Adaptive seeds: no comparison is open"]
    return [lines[0] + ".", *lines[1:]]


def _path_cost(cost: "PathCost") -> str:
    took = (
        ""
        if not cost.missing or cost.seconds is None
        else f" ({_format_seconds(3600 * cost.hours if cost.hours else cost.seconds)})"
    )
    return f"{cost.missing:.0f} to train of {counted(round(cost.runs), 'run')}{took}"


def _search_lines(plan: "SearchPlan", trials: Sequence[Run]) -> list[str]:
    from ablations.engine.search.plan import describe_budget

    if plan.chosen:
        return [f"The search is over: {describe_budget(plan)}"]
    left = f": {len(trials)} to train, at most {_multiply_adds(plan, trials):.2e} multiply-adds" if plan.settings.trials else ""
    data = printable(f"Data of the search: {plan.trial_data.summary}")
    return [
        f"First {describe_budget(plan)}{left}",
        data,
        "Then the study above. Its cost is that of the default configuration, since the tuned one is not known yet",
    ]


def _cells(plan: Plan, done: Mapping[str, RunRecord], estimate: CostEstimate) -> FittedTable:
    of_cell: dict[Cell, list[Run]] = {}
    for run in plan.runs:
        of_cell.setdefault(run.cell, []).append(run)
    examples = {cell: plan.training_examples(runs[0]) for cell, runs in of_cell.items()}
    costs = {cell: plan.workload.cost(runs[0].spec, plan.dataset_for_run(runs[0])) for cell, runs in of_cell.items()}
    differ = len(set(examples.values())) > 1
    known = {
        "parameters": {cell: cost.parameters for cell, cost in costs.items()},
        "multiply-adds": {cell: cost.flops for cell, cost in costs.items()},
        "MB / image": {cell: cost.activation_bytes and cost.activation_bytes / 1e6 for cell, cost in costs.items()},
    }
    known = {name: values for name, values in known.items() if any(value is not None for value in values.values())}
    columns = [*(["images"] if differ else []), "seeds", "done", "epochs", *known, "time / run"]
    optional = tuple(name for name in ("MB / image", "parameters", "epochs", "multiply-adds", "time / run") if name in columns)
    table = FittedTable(list(plan.factors), columns, optional=optional, elsewhere="see a wider terminal")
    for cell in plan.cells:
        runs = of_cell[cell]
        entries = [done[run.fingerprint] for run in runs if run.fingerprint in done]
        epochs = plan.total_epochs(runs[0])
        row = [*(format_level(level) for _, level in cell.levels), *([f"{examples[cell]:,}"] if differ else [])]
        row += [str(len(runs)), str(len(entries)), "–" if epochs is None else str(epochs)]
        for name, values in known.items():
            row.append("–" if (value := values[cell]) is None else f"{value:,.{2 if name == 'MB / image' else 0}f}")
        seconds = [estimate.seconds[run.fingerprint] for run in runs if run.fingerprint in estimate.seconds]
        seconds = seconds or [entry.metrics["train_seconds"] for entry in entries if "train_seconds" in entry.metrics]
        table.add_row([*row, _format_seconds(statistics.fmean(seconds)) if seconds else "–"])
    return table


def _multiply_adds(plan: Plan, missing: Sequence[Run]) -> float:
    """Return the multiply-adds of training, without the tests after each epoch; 0 if they are not known."""
    of_spec = Counter(replace(run.spec, seed=0) for run in missing)
    costs = {spec: plan.workload.cost(spec, plan.dataset_for_spec(spec)).training_flops or 0 for spec in of_spec}
    return sum(n * costs[spec] for spec, n in of_spec.items())


def _time(missing: int, estimate: CostEstimate, task: str) -> str:
    """Return a line on the duration of the missing runs, or on how to estimate it."""
    if not estimate.runs_estimated:
        how = "the first run of a study shows it" if task else "--calibrate times a few steps on this machine"
        return f"Their duration is not known, since no such run has finished; {how}."
    parts = [f"{_format_seconds(estimate.total_seconds)} one after another"]
    if estimate.hours is not None and estimate.at_once != 1:
        parts.insert(0, f"{_format_seconds(3600 * estimate.hours)} with {estimate.at_once} at a time")
    if estimate.gpu_hours:
        parts.append(f"{estimate.gpu_hours:.2g} GPU-hours")
    if estimate.usd is not None:
        parts.append(f"{format_money(estimate.usd)} at ${estimate.usd_per_gpu_hour:g} per GPU-hour")
    some = "" if estimate.runs_estimated == missing else f" for {estimate.runs_estimated} of {counted(missing, 'run')}"
    return f"About {', '.join(parts)}{some}; estimated from {estimate.source}."


def _power_lines(found: Power | None, metric: Metric) -> list[str]:
    """Return lines on the differences that the study can detect."""
    if found is None:
        return ["The smallest detectable difference is not known before two seeds of a cell have finished."]
    if found.detectable_alone is None or found.detectable_corrected is None:
        finds = f"{counted(found.seeds, 'seed')} {'is' if found.seeds == 1 else 'are'} too few for a test"
    else:
        finds = f"{found.seeds} seeds find a true difference of {_format_difference(found.detectable_alone, metric)}"
        if found.comparisons > 1:
            corrected = _format_difference(found.detectable_corrected, metric)
            finds += f" if it is the only one tested, and one of {corrected} if all {found.comparisons} comparisons are tested"
    low, high = (_format_difference(value, metric) for value in (found.difference_std_low, found.difference_std_high))
    need = f"more than {MAX_SEEDS}" if found.seeds_needed is None else str(found.seeds_needed)
    of_all = " if all are tested" if found.comparisons > 1 else ""
    estimate = f"{_format_difference(found.difference_std, metric)}, {found.source}"
    return [
        f"{finds}; {_format_difference(found.target, metric)} take {need} seeds{of_all}.",
        "To find a difference means that it is significant at 5 % in 80 % of such studies (power). This depends on the standard "
        f"deviation of differences over seeds. It is estimated as {estimate}, and lies between {low} and {high} with 80 % "
        "probability; the power is an average over its possible values.",
    ]


def _format_difference(value: float, metric: Metric) -> str:
    return (f"{value:.2g}" if value < 10 else f"{value:,.0f}") + f" {metric.difference_unit}".rstrip()


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else format_duration(seconds)
