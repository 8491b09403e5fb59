"""The contrasts of a screening, and which effects its fraction of the combinations cannot tell apart."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ablations.engine.analysis.findings import AliasedEffect, Screening
from ablations.engine.analysis.statistics import contrasts
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.statistics.inference import estimate_average
from ablations.engine.study.design import Design
from ablations.engine.study.designs import RESOLUTIONS, alias_groups, resolution


def find_contrasts(design: Design, family: Family) -> Screening | None:
    """Return the contrasts of a screening with their estimates; None for another design, or for a part of a screening.

    Main effects are tested as the study's effects. Contrasts of interactions have an estimate and no test: one that is large says
    that some interaction of its sum exists, and not which.
    """
    if design.kind not in RESOLUTIONS or not (effects := list(contrasts.average_effects(design))):
        return None
    signs, factors = contrasts.design_signs(design), list(contrasts.reference_levels(design))
    main = {each.factors[0]: family.difference(each.terms) for each in effects}
    found = [
        AliasedEffect(terms=tuple(terms), difference=main[terms[0]] if terms[0] in main else _estimate(column, family))
        for terms, column in alias_groups(signs, factors)
    ]
    return Screening(resolution=resolution(signs), full_cells=2 ** len(factors), contrasts=tuple(found))


def aliases_of(screening: Screening | None, factor: str) -> Sequence[str]:
    """Return the interactions that the main effect of a factor is estimated together with."""
    groups: Mapping[str, Sequence[str]] = {each.terms[0]: each.terms[1:] for each in screening.contrasts} if screening else {}
    return groups.get(factor, ())


def _estimate(column: npt.NDArray[np.int_], family: Family) -> Estimate:
    """Return the mean of the cells with a positive sign minus that of the others, paired by seed, without a test."""
    pairs = zip(np.flatnonzero(column > 0).tolist(), np.flatnonzero(column < 0).tolist(), strict=True)
    parts = [family.values[row] - family.values[other] for row, other in pairs]
    estimate, _ = estimate_average(parts, family.scale, whole=True)
    return replace(estimate, p=None, effect_size=None)
