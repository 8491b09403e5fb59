"""The path of an adaptive study in its evidence, and in words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import LookAtSeeds, SeedPath
from ablations.engine.analysis.run_table import make_run_table
from ablations.engine.analysis.statistics.adaptive import EFFECT, HOPELESS, WITHIN_MARGIN, DecidedLook, Path, follow_looks
from ablations.engine.analysis.statistics.contrasts import Contrast
from ablations.engine.analysis.statistics.looks import declared_shares
from ablations.engine.study.design import Design
from resnet_core.fields import counted

RESULT_OUTCOMES = ("completed", "diverged", "oom", "failed")
"""Outcomes of runs that have ended. A run that failed for another reason than its training has no value, and may be repeated."""
MAX_NAMED = 4
"""Maximum number of comparisons that a sentence about a look names. It gives only their number if there are more."""


def with_path(evidence: Evidence) -> Evidence:
    """Return the evidence of an adaptive study with its path, without the runs that the path does not need."""
    if not evidence.design.seed_looks:
        return evidence
    table = make_run_table(evidence)
    ended = [[outcome if outcome in RESULT_OUTCOMES else "" for outcome in of_cell] for of_cell in table.outcomes]
    path = follow_looks(evidence.design, table.values, ended, declared_shares(evidence.design, evidence.looks))
    design = cut_to(evidence.design, path.seeds)
    needed = {fingerprint for cell in design.cells for fingerprint in cell.fingerprints}
    runs, curves = evidence.runs, evidence.curves
    runs = runs[runs["fingerprint"].isin(needed)].reset_index(drop=True)
    seeds = dict(zip((cell.label for cell in design.cells), path.seeds, strict=True))
    curves = curves[curves["seed"] < curves["cell"].map(seeds)].reset_index(drop=True)
    return replace(evidence, design=design, runs=runs, curves=curves, path=_seed_path(evidence.design, path))


def cut_to(design: Design, seeds: Sequence[int]) -> Design:
    """Return the design with a number of seeds for each cell."""
    cells = [replace(cell, fingerprints=cell.fingerprints[:n]) for cell, n in zip(design.cells, seeds, strict=True)]
    return replace(design, cells=tuple(cells))


def _seed_path(design: Design, path: Path) -> SeedPath:
    return SeedPath(
        looks=tuple(_look(each) for each in path.looks),
        runs=sum(path.seeds),
        fixed_runs=sum(len(cell.fingerprints) for cell in design.cells),
        finished=path.finished,
    )


def _look(found: DecidedLook) -> LookAtSeeds:
    return LookAtSeeds(
        seeds=found.seeds,
        cells=found.cells,
        decided=tuple((comparison_name(contrast), how) for contrast, how in found.decided),
        open=tuple(map(comparison_name, found.open)),
    )


def comparison_name(contrast: Contrast) -> str:
    """Return the name of a comparison, such as `shortcut=B instead of A`."""
    changes = zip(contrast.factors, contrast.levels, contrast.references, strict=True)
    return ", ".join(f"{factor}={level} instead of {reference}" for factor, level, reference in changes) or contrast.at


def path_sentences(path: SeedPath) -> list[str]:
    """Return the path in words: a sentence per look, and how many runs it took."""
    sentences = []
    for look in path.looks:
        parts = [_decided(look, how, said) for how, said in DECISIONS.items()]
        left = f"{len(look.open)} undecided" if look.open else ""
        found = "; ".join(filter(None, (*parts, left))) or "nothing to decide"
        sentences.append(f"At {counted(look.seeds, 'seed')} ({counted(look.cells, 'cell')}): {found}.")
    share = f"{100 * path.runs / max(1, path.fixed_runs):.0f} %"
    runs = f"{path.runs} of the {counted(path.fixed_runs, 'run')} with all seeds in all cells ({share})"
    needed = f"{runs} were needed" if path.finished else f"up to the next look, {runs} are needed"
    total = f"The seeds are adaptive: {needed}. A look decides by the results so far, the answers by all of them."
    return [*sentences, total]


DECISIONS: Mapping[str, tuple[str, str]] = {
    EFFECT: ("an effect", "effects"),
    WITHIN_MARGIN: ("no effect within the margin", "no effects within the margin"),
    HOPELESS: ("hopeless with the seeds left", "hopeless with the seeds left"),
}
"""Words for one comparison and for several that are decided in a way."""


def _decided(look: LookAtSeeds, how: str, said: tuple[str, str]) -> str:
    names = [name for name, decision in look.decided if decision == how]
    if not names:
        return ""
    one, several = said
    if len(names) > MAX_NAMED:
        return f"{len(names)} comparisons: {several}"
    return f"{', '.join(names)}: {one if len(names) == 1 else several}"
