"""Synthetic studies of designs other than factorial: their evidence, and findings that agree with it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import (
    AliasedEffect,
    Answer,
    Comparison,
    Effect,
    Findings,
    Ladder,
    LookAtSeeds,
    Rung,
    Screening,
    SeedPath,
)
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.study.design import Design
from tests.helpers import synthetic_figures, synthetic_study

TRICKS = (
    *("norm", "squeeze", "stem", "decay", "lr", "ema", "smoothing", "mixup"),
    *("warmup", "nesterov", "zero_init", "anti_alias", "dropout", "cutout", "swish"),
)
"""Names of 15 factors; each has the levels `off` and `on`."""
SIZES = (-2.1, -0.9, 0.15, 0.0, 1.2, -0.05, 0.1, -0.4, 0.0, 0.05, -1.4, 0.0, 0.2, 0.0, 0.6)
"""True effects of the factors on the error, in percentage points."""
LONG = "model.blocks.squeeze_and_excitation.reduction_ratio_of_the_bottleneck"


def screening(count: int = 8, resolution: int = 4, seeds: int = 3, names: Sequence[str] = TRICKS) -> tuple[Evidence, Findings]:
    """Return a screening of `count` factors in as few cells as the resolution allows, with an interaction `squeeze × stem`."""
    words = _words(count, resolution)
    base = max(words).bit_length()
    factors = names[:count]
    combos = [
        {
            name: ("on" if ((word & cell).bit_count() % 2) == word.bit_count() % 2 else "off")
            for name, word in zip(factors, words, strict=True)
        }
        for cell in range(2**base)
    ]
    given = _evidence("screening" if resolution == 4 else "screening-iii", factors, combos, seeds)
    values = _values(given)
    aliases: dict[int, list[str]] = {word: [name] for name, word in zip(factors, words, strict=True)}
    for (one, first), (other, second) in itertools.combinations(zip(factors, words, strict=True), 2):
        aliases.setdefault(first ^ second, []).append(f"{one} × {other}")
    masks = [*words, *sorted(set(range(1, 2**base)) - set(words))]
    raw = []
    for mask in masks:
        signs = np.array([1 if (mask & cell).bit_count() % 2 == mask.bit_count() % 2 else -1 for cell in range(2**base)])
        raw.append(estimate(signs @ values / 2 ** (base - 1)))
    adjusted = [replace(each, p_adjusted=each.p and min(1.0, each.p * len(raw))) for each in raw]
    contrasts = tuple(
        AliasedEffect(terms=tuple(aliases.get(mask, ())), difference=each) for mask, each in zip(masks, adjusted, strict=True)
    )
    found = Screening(resolution=resolution, full_cells=2**count, contrasts=contrasts)
    effects = tuple(_effect(name, each) for name, each in zip(factors, adjusted, strict=False))
    return given, _findings(given, effects, screening=found)


def ladder(rungs: int = 6, seeds: int = 3, names: Sequence[str] = TRICKS) -> tuple[Evidence, Findings]:
    """Return a ladder whose changes are switched on one after another."""
    factors = names[: rungs - 1]
    combos = [{name: "on" if i < rung else "off" for i, name in enumerate(factors)} for rung in range(rungs)]
    given = _evidence("ladder", factors, combos, seeds)
    values = _values(given)
    steps = [None, *(_tested(later - earlier) for earlier, later in itertools.pairwise(values))]
    made = tuple(
        Rung(
            cell=cell.label, change=f"{factors[i - 1]}=on" if i else "", value=synthetic_figures.estimate(values[i]), step=steps[i]
        )
        for i, cell in enumerate(given.design.cells)
    )
    found = Ladder(rungs=made, total=_tested(values[-1] - values[0]), text="All changes together lower the test error.")
    effects = tuple(_effect(name, step) for name, step in zip(factors, steps[1:], strict=True) if step)
    return given, _findings(given, effects, ladder=found)


def one_at_a_time(count: int = 8, seeds: int = 3, names: Sequence[str] = TRICKS) -> tuple[Evidence, Findings]:
    """Return a study in which each factor is switched on by itself."""
    factors = names[:count]
    combos = [{name: "on" if name == changed else "off" for name in factors} for changed in ("", *factors)]
    given = _evidence("one-at-a-time", factors, combos, seeds)
    values = _values(given)
    effects = tuple(_effect(name, _tested(values[i] - values[0])) for i, name in enumerate(factors, 1))
    return given, _findings(given, effects)


def adaptive(count: int = 4, looks: Sequence[int] = (3, 5, 8, 12), *, finished: bool = False) -> tuple[Evidence, Findings]:
    """Return a study of one factor with adaptive seeds whose comparisons are decided one after another; the last stays open."""
    names = [f"shortcut={level} instead of A" for level in ("none", "B", "C", "D", "E", "F", "G", "H")[:count]]
    made = synthetic_study.design({"shortcut": ("A", *(name.split("=")[1].split()[0] for name in names))}, seeds=looks[-1])
    given = synthetic_study.evidence(
        replace(made, seed_looks=tuple(looks)), lambda levels, seed: 8 + ord(levels["shortcut"][0]) % 7 + seed / 9
    )
    states, still, found = itertools.cycle(("effect", "within margin", "hopeless")), names, []
    for i, seeds in enumerate(looks):
        through = len(still) if finished and i == len(looks) - 1 else len(names) * (i + 1) // len(looks) - (len(names) - len(still))
        through = min(through, len(still) if finished else len(still) - 1)
        decided, still = tuple((name, next(states)) for name in still[:through]), still[through:]
        found.append(LookAtSeeds(seeds=seeds, cells=len(still) + len(decided) + 1, decided=decided, open=tuple(still)))
    path = SeedPath(
        looks=tuple(found), runs=sum(each.cells for each in found) * 2, fixed_runs=looks[-1] * (count + 1), finished=finished
    )
    return given, replace(synthetic_figures.found(given), path=path)


def estimate(values: NDArray[np.float64]) -> Estimate:
    """Return a mean with its t interval and test."""
    given = values[np.isfinite(values)]
    if given.size < 2:
        return Estimate(n=given.size, mean=float(given[0]) if given.size else None)
    mean, std = float(given.mean()), float(given.std(ddof=1))
    se = std / given.size**0.5
    half = float(stats.t.ppf(0.975, given.size - 1)) * se
    p = float(2 * stats.t.sf(abs(mean) / se, given.size - 1)) if given.size > 2 else None
    return Estimate(n=given.size, mean=mean, std=std, se=se, low=mean - half, high=mean + half, p=p, p_adjusted=p)


def without_estimates(found: Findings, *positions: int) -> Findings:
    """Return findings in which these contrasts, effects and rungs have no estimate."""
    none = Estimate(n=0)
    parts: dict[str, Any] = {
        "effects": tuple(replace(each, difference=none) if i in positions else each for i, each in enumerate(found.effects))
    }
    if found.screening:
        contrasts = enumerate(found.screening.contrasts)
        kept = tuple(replace(each, difference=none) if i in positions else each for i, each in contrasts)
        parts["screening"] = replace(found.screening, contrasts=kept)
    if found.ladder:
        rungs = tuple(
            replace(
                each,
                value=none if i in positions else each.value,
                step=each.step and (none if {i, i - 1} & set(positions) else each.step),
            )
            for i, each in enumerate(found.ladder.rungs)
        )
        parts["ladder"] = replace(found.ladder, rungs=rungs)
    return replace(found, **parts)


def _words(count: int, resolution: int) -> list[int]:
    """Return the columns of the factors as products of base columns, in bits: odd words give resolution IV, all words III."""
    for base in range(2, 9):
        words = [mask for mask in range(1, 2**base) if resolution == 3 or mask.bit_count() % 2]
        if len(words) >= count:
            return sorted(words, key=lambda mask: (mask.bit_count() > 1, mask))[:count]
    raise AssertionError(count)


def _evidence(kind: str, factors: Sequence[str], combos: Sequence[Mapping[str, str]], seeds: int) -> Evidence:
    template = synthetic_study.design(
        {"depth": ("20",)}, {}, seeds=seeds, name="tricks", question="Which tricks matter, and by how much?"
    )
    cells = []
    for levels in combos:
        label = " ".join(f"{name}={level}" for name, level in levels.items())
        spec = {**template.cells[0].spec, **{f"model.{name}": level for name, level in levels.items()}}
        prints = tuple(f"{label}/{seed}" for seed in range(seeds))
        cells.append(replace(template.cells[0], label=label, levels=dict(levels), spec=spec, fingerprints=prints))
    design: Design = replace(
        template,
        kind=kind,
        factors=dict.fromkeys(factors, ("off", "on")),
        baseline=dict.fromkeys(factors, "off"),
        cells=tuple(cells),
    )
    sizes = dict(zip(factors, SIZES, strict=False))

    def truth(levels: Mapping[str, str], seed: int) -> float:
        on = [name for name in factors if levels[name] == "on"]
        both = len(factors) > 2 and factors[1] in on and factors[2] in on
        noise = np.random.default_rng([seed, *map(int, (name in on for name in factors))]).normal(0, 0.12)
        return float(9 + sum(sizes[name] for name in on) + 0.7 * both + 0.2 * seed + noise)

    return synthetic_study.evidence(design, truth, epochs=3)


def _values(given: Evidence) -> NDArray[np.float64]:
    """Return the values by cell and seed."""
    table = given.runs.pivot_table(index="cell", columns="seed", values="value")
    return table.loc[[cell.label for cell in given.design.cells]].to_numpy(float)


def _tested(differences: NDArray[np.float64]) -> Estimate:
    found = estimate(differences)
    return replace(found, p_adjusted=found.p and min(1.0, 5 * found.p))


def _effect(name: str, difference: Estimate) -> Effect:
    return Effect(factor=name, level="on", reference="off", difference=difference, combinations=1)


def _findings(given: Evidence, effects: tuple[Effect, ...], **more: Any) -> Findings:
    found, cells = synthetic_figures.found(given), given.design.cells
    answers = tuple(
        Answer(
            factor=each.factor, verdict="matters" if each.difference.significant else "no difference shown", text=f"{each.factor} …"
        )
        for each in effects
    )
    baseline = cells[0].label
    comparisons = tuple(
        Comparison(cell=cell.label, baseline=baseline, difference=each.difference, planned=len(cell.fingerprints))
        for cell, each in zip(cells[1:], effects, strict=False)
    )
    compared = comparisons if given.design.kind == "one-at-a-time" else ()
    return replace(
        found, effects=effects, answers=answers, comparisons=compared, tests=len(effects), no_anova="no factorial", **more
    )
