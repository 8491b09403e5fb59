"""Names, sentences and lines of the terminal about designs other than factorial and about adaptive seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ablations.engine.analysis.findings import AliasedEffect, Effect, Findings, Screening, SeedPath
from ablations.engine.analysis.statistics.adaptive import EFFECT, HOPELESS, WITHIN_MARGIN
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL
from ablations.engine.analysis.verdicts.claims import claims_difference, claims_failures, is_tested, possible
from ablations.engine.study.design import Design
from ablations.engine.study.designs import LADDER
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted

BASELINE = "baseline"
"""Name of the cell that has every reference level."""
NO_ESTIMATE = "no estimate"
"""Text of a contrast, a value or a step that lacks runs."""
HIGHER_ORDER = "interactions of three or more"
"""Name of a contrast that no main effect and no two-way interaction contributes to."""
OPEN = "open"
"""State of a comparison that gets more seeds."""
STATES = (EFFECT, WITHIN_MARGIN, HOPELESS, OPEN)
"""States of a comparison after a look."""
ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII"}


def cell_name(design: Design, levels: Mapping[str, str]) -> str:
    """Return the name of a cell: what differs from the baseline, `norm=group ema=on`; on a ladder, from the rung before."""
    reference: Mapping[str, str] = {name: reference_level(design, name) for name in design.factors}
    sign, rungs = "", [cell.levels for cell in design.cells] if design.kind == LADDER else []
    if levels in rungs[1:]:
        reference, sign = rungs[rungs.index(levels) - 1], "+ "
    changed = [f"{name}={level}" for name, level in levels.items() if reference.get(name) != level]
    return sign + " ".join(changed) if changed else BASELINE


def reference_level(design: Design, factor: str) -> str:
    """Return the level of a factor that its other levels are compared with: that of the baseline, otherwise the first."""
    return design.baseline.get(factor, design.factors[factor][0])


def is_main(design: Design, contrast: AliasedEffect) -> bool:
    """Return whether a contrast is that of a factor."""
    return bool(contrast.terms) and contrast.terms[0] in design.factors


def contrast_name(design: Design, contrast: AliasedEffect) -> str:
    """Return a short name of a contrast: `norm=group`, the level of its upper side, or `squeeze × stem + 3 more`."""
    if not contrast.terms:
        return HIGHER_ORDER
    first, *others = contrast.terms
    if not is_main(design, contrast):
        return f"{first} + {len(others)} more" if others else first
    upper = [level for level in design.factors[first] if level != reference_level(design, first)]
    return f"{first}={upper[0]}" if len(upper) == 1 else first


def fraction_sentence(design: Design, screening: Screening) -> str:
    """Return which part of the combinations was trained."""
    resolution = ROMAN.get(screening.resolution, str(screening.resolution))
    return (
        f"The study trains {len(design.cells):,} of {screening.full_cells:,} combinations, a fraction of resolution {resolution}."
    )


def alias_sentence(screening: Screening) -> str:
    """Return what the design cannot tell apart."""
    if screening.resolution <= 3:
        return (
            "Each main effect is estimated as the sum of it and the interactions listed with it, so a large one may be due to "
            "them. A design of resolution IV would tell main effects from two-way interactions."
        )
    if screening.resolution == 4:
        return (
            "Main effects are estimated clear of two-way interactions. Each interaction contrast is the sum of those listed, and a "
            "large one does not say which of them it is."
        )
    return "Main effects and two-way interactions are estimated clear of each other."


def effect_verdict(effect: Effect, metric: Metric, effects: Sequence[Effect]) -> str:
    """Return the verdict on the effect of one level of a study, in the words of the verdicts on factors."""
    if claims_difference(effect, metric) or claims_failures(effect):
        return "matters"
    of_factor = [each for each in effects if each.factor == effect.factor]
    if effect in possible(of_factor) or (effect.failures and effect.failures.p < 1 - CONFIDENCE_LEVEL):
        return "may matter"
    if not is_tested(effect.difference):
        return "cannot be said"
    within = effect.p_within_margin is not None and effect.p_within_margin < 1 - CONFIDENCE_LEVEL
    return "no effect within margin" if within else "no difference shown"


class SeedRow(NamedTuple):
    """A comparison of an adaptive study with its state after the last look at it."""

    comparison: str
    state: str
    """One of `STATES`."""
    seeds: int
    """Number of seeds of that look."""


def seed_rows(path: SeedPath) -> list[SeedRow]:
    """Return the comparisons of an adaptive study in the order of their decisions; open ones come last."""
    decided = [SeedRow(name, state, look.seeds) for look in path.looks for name, state in look.decided]
    return decided + [SeedRow(name, OPEN, last.seeds) for last in path.looks[-1:] for name in last.open]


def path_sentence(path: SeedPath) -> str:
    """Return the runs of an adaptive study beside those of a fixed number of seeds."""
    verb, so_far = ("needed", "") if path.finished else ("needs", " so far")
    share = f"{100 * path.runs / max(1, path.fixed_runs):.0f} %"
    most = f"{share} of the {path.fixed_runs} that the largest number of seeds in every cell would take"
    return f"The study {verb} {counted(path.runs, 'run')}{so_far}, {most}."


def design_lines(design: Design, findings: Findings) -> list[str]:
    """Return the lines of the terminal about the design; none for a factorial design."""
    lines = []
    if findings.screening:
        lines += [f"{fraction_sentence(design, findings.screening)} {alias_sentence(findings.screening)}"]
    if findings.ladder:
        lines.append(findings.ladder.text)
    return lines
