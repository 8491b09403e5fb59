"""The plan of a study as JSON for programs, `--plan --json`. `docs/plan.schema.json` is its schema."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ablations.engine.analysis.statistics.looks import looks_at
from ablations.engine.study.plan import Run
from ablations.engine.submission.planning.cost_and_power import Power, power
from ablations.engine.submission.planning.preview import Preview
from ablations.engine.submission.planning.searches import search_plan

if TYPE_CHECKING:
    from ablations.engine.submission.planning.seed_forecast import SeedForecast

SCHEMA = "ablations-plan/1"
"""Name and version of the format."""


def plan_document(preview: Preview) -> dict[str, Any]:
    """Return what a study would train, cost and detect, as JSON values."""
    plan, done, estimate, needs = preview.plan, preview.done, preview.estimate, preview.resources.resources
    of_cell: dict[str, list[Run]] = {str(cell): [] for cell in plan.cells}
    for run in plan.runs:
        of_cell[str(run.cell)].append(run)
    values = {name: record.metrics[plan.metric.name] for name, record in done.items() if record.completed}
    return {
        "schema": SCHEMA,
        "study": {"name": plan.study.name, "question": plan.study.question},
        "preset": plan.preset,
        "design": plan.grid.kind,
        "dataset": plan.dataset.name,
        "metric": plan.metric.to_dict(),
        "factors": {name: list(levels) for name, levels in plan.factors.items()},
        "baseline": dict(plan.baseline),
        "search": search_plan(plan) is not None,
        "runs": len(plan.runs),
        "done": sum(run.fingerprint in done for run in plan.runs),
        "missing": sum(run.fingerprint not in done for run in plan.runs),
        "trials": len(preview.trials),
        "cells": [
            {
                "cell": str(cell),
                "levels": dict(cell.levels),
                "runs": [
                    {"seed": run.seed, "fingerprint": run.fingerprint, "done": run.fingerprint in done}
                    for run in of_cell[str(cell)]
                ],
            }
            for cell in plan.cells
        ],
        "skipped": [{"cell": str(cell), "reason": reason} for cell, reason in plan.skipped],
        "estimate": {
            "runs": estimate.runs_estimated,
            "seconds": estimate.total_seconds if estimate.runs_estimated else None,
            "at_once": estimate.at_once,
            "hours": estimate.hours if estimate.runs_estimated else None,
            "gpu_hours": estimate.gpu_hours,
            "usd": estimate.usd,
            "source": estimate.source,
        },
        "resources": {
            "workers": needs.workers,
            "cpus_per_worker": needs.cpus_per_worker,
            "gpus_per_worker": needs.gpus_per_worker,
            "reason": preview.resources.reason,
            "other_devices": preview.other_devices,
        },
        "looks": _looks(preview),
        "adaptive_seeds": _seeds(preview.seeds),
        "power": _power(power(preview.design, values, preview.looks)),
        "warning": preview.warning,
    }


def _looks(preview: Preview) -> dict[str, Any]:
    """Return the looks at the study: those taken, and the factor by which the next one multiplies p-values."""
    found = looks_at(preview.design, preview.looks)
    return {"taken": list(preview.looks), "planned_seeds": found.planned, "p_factor": found.p_factor}


def _seeds(found: "SeedForecast | None") -> dict[str, Any] | None:
    """Return the forecast of an adaptive study; None for a fixed number of seeds."""
    if found is None:
        return None
    costs = {"best": found.best, "expected": found.expected, "worst": found.worst}
    return {"looks": list(found.looks), **{name: cost and asdict(cost) for name, cost in costs.items()}, "source": found.source}


def _power(found: Power | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "seeds": found.seeds,
        "comparisons": found.comparisons,
        "difference_std": found.difference_std,
        "difference_std_low": found.difference_std_low,
        "difference_std_high": found.difference_std_high,
        "source": found.source,
        "seeds_needed": found.seeds_needed,
        "target": found.target,
        "detectable": found.detectable_alone,
        "detectable_adjusted": found.detectable_corrected,
    }
