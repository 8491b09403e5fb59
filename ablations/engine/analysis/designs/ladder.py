"""The rungs of a ladder, and what all its changes do together."""

import itertools
from collections.abc import Mapping, Sequence

from ablations.engine.analysis.findings import CellFinding, Comparison, Ladder, Rung
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.verdicts.sentences import Sentences, sentence
from ablations.engine.study.design import Design


def find_ladder(
    design: Design, cells: Sequence[CellFinding], comparisons: Sequence[Comparison], family: Family, formats: ValueFormat
) -> Ladder | None:
    """Return the rungs of a ladder, with their steps; None for another design."""
    whole = family.whole_ladder
    if whole is None:
        return None
    steps = {each.cell: each.difference for each in comparisons}
    levels = [cell.levels for cell in cells]
    changes = ["", *(_change(below, above) for below, above in itertools.pairwise(levels))]
    return Ladder(
        rungs=tuple(
            Rung(cell=cell.label, change=change, value=cell.value, step=steps.get(cell.label))
            for cell, change in zip(cells, changes, strict=True)
        ),
        total=whole.difference,
        text=f"{sentence(Sentences(formats, family.tests).claim(whole))}.",
    )


def _change(below: Mapping[str, str], above: Mapping[str, str]) -> str:
    return " ".join(f"{name}={level}" for name, level in above.items() if below[name] != level)
