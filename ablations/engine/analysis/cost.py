"""Cost of a study: time, GPU-hours, energy, and at given rates money and CO₂."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.environment.console import format_duration, format_money
from ablations.engine.study.request import Rates
from resnet_core.fields import counted

ENERGY_COLUMN = "system/gpu_energy_kwh"
"""Column of `Evidence.runs` with the energy of each run's GPUs; it exists if a run measured it."""


@dataclass(frozen=True, kw_only=True)
class StudyCost:
    """The cost of the completed runs of a study, and of the trials of its search."""

    runs: int
    """Number of completed runs that report their training time."""
    seconds: float
    """Training time of these runs and of all trials, one after another."""
    gpu_hours: float
    energy_kwh: float | None
    """Energy of the GPUs, as they counted it; None if no run measured it."""
    runs_with_energy: int
    rates: Rates

    @property
    def usd(self) -> float | None:
        """Price of the GPU-hours; None without a rate."""
        return None if self.rates.usd_per_gpu_hour is None else self.gpu_hours * self.rates.usd_per_gpu_hour

    @property
    def co2_grams(self) -> float | None:
        """Emission of the energy; None without a rate or a measurement."""
        rate = self.rates.co2_grams_per_kwh
        return None if rate is None or self.energy_kwh is None else self.energy_kwh * rate


def study_cost(evidence: Evidence) -> StudyCost | None:
    """Return the cost of a study; None if no run reports its training time."""
    runs = evidence.runs[evidence.runs["outcome"] == "completed"]
    timed = runs["seconds"].notna()
    if not timed.any():
        return None
    trials = evidence.trials
    energy: list[float] = runs[ENERGY_COLUMN].dropna().tolist() if ENERGY_COLUMN in runs else []
    return StudyCost(
        runs=int(timed.sum()),
        seconds=_total(runs["seconds"]) + (_total(trials["seconds"]) if trials is not None else 0.0),
        gpu_hours=_total(runs["gpu_hours"]) + (_total(trials["gpu_hours"]) if trials is not None else 0.0),
        energy_kwh=_total(energy) if energy else None,
        runs_with_energy=len(energy),
        rates=evidence.design.rates,
    )


def cost_sentence(cost: StudyCost | None) -> str:
    """Return what a study cost in a sentence; empty if there is nothing to say beyond the times of the table.

    Example: `Cost: 24 runs, 1 h 12 min of training, 1.2 GPU-hours, 0.41 kWh (GPUs only), 156 g CO₂ at 380 g/kWh, $3.60 at $3 per
    GPU-hour.`
    """
    if cost is None or not (cost.gpu_hours or cost.rates != Rates()):
        return ""
    parts = [counted(cost.runs, "run"), f"{format_duration(cost.seconds)} of training"]
    parts += [f"{cost.gpu_hours:.3g} GPU-hours"] if cost.gpu_hours else ["no GPU"]
    if cost.energy_kwh is not None:
        some = "" if cost.runs_with_energy == cost.runs else f" of {cost.runs_with_energy} of {counted(cost.runs, 'run')}"
        parts.append(f"{cost.energy_kwh:.3g} kWh (GPUs only{some})")
    if (rate := cost.rates.co2_grams_per_kwh) is not None:
        grams = cost.co2_grams
        parts.append(
            "CO₂ not known, since no GPU's energy was measured" if grams is None else f"{mass(grams)} CO₂ at {rate:g} g/kWh"
        )
    if (price := cost.rates.usd_per_gpu_hour) is not None:
        parts.append(f"{format_money(cost.usd or 0.0)} at ${price:g} per GPU-hour")
    return f"Cost: {', '.join(parts)}."


def mass(grams: float) -> str:
    """Return a mass: `156 g`, `1.6 kg`."""
    return f"{grams / 1000:.3g} kg" if grams >= 1000 else f"{grams:.3g} g"


def _total(values: Iterable[float]) -> float:
    return math.fsum(value for value in values if not math.isnan(value))
