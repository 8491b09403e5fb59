"""State for each factor whether it matters, in sentences that claim no more than the tests support."""

from collections.abc import Sequence
from dataclasses import dataclass

from ablations.engine.analysis.findings import Answer, CellFinding, Effect, Interaction, SimpleEffect
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL
from ablations.engine.analysis.verdicts.claims import (
    Contrast,
    claims_dependence,
    claims_difference,
    claims_failures,
    is_tested,
    possible,
)
from ablations.engine.analysis.verdicts.sentences import MAX_NAMED, Sentences, sentence
from ablations.engine.study.designs import FACTORIAL, LADDER, ONE_AT_A_TIME, RESOLUTIONS
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted

MIN_SEEDS_OF_A_CELL = 2
"""Fewest results of a cell of a screening for which its main effects are estimated."""


@dataclass(frozen=True, kw_only=True)
class FactorEvidence:
    """Everything that the verdict on one factor stands on."""

    effects: Sequence[Effect]
    """Average effects of the factor's levels."""
    interactions: Sequence[Interaction]
    """Interactions of the factor with others."""
    simple: Sequence[SimpleEffect]
    """Simple effects of the factor, at every combination of the other factors."""
    others: Sequence[str]
    """Other factors of the study with at least two levels."""
    cells: Sequence[CellFinding]
    """All cells of the study."""
    tests: int
    """Number of tests in the study's family."""
    margin: float | None = None
    """Largest difference that counts as no effect; None if the study does not say."""
    kind: str = FACTORIAL
    """Design of the study."""
    aliases: Sequence[str] = ()
    """Interactions that a screening estimates together with the factor's main effect."""


def conclude_factor(factor: str, evidence: FactorEvidence, formats: ValueFormat) -> Answer:
    """Return the verdict on one factor of a study, with the sentences that support it.

    - `matters`: a test of the factor is significant in the study's family: an average effect, an interaction, a simple effect, or
      that a level makes more runs fail to train. A difference among the runs that trained does not count if the level that it
      favors fails more often, nor an interaction of cells in which runs diverged.
    - `may matter`: one would be significant if the factor's tests of its kind were the only ones (Holm).
    - `no effect within margin`: every level's average effect is within the study's margin.
    - `no difference shown`: every level is tested, and none of the above holds.
    - `cannot be said`: a level has no test.

    A screening that estimates a main effect together with interactions does not say which of them matters, so the verdict is `may
    matter` at most. Failures to train, which often need several levels at once, do not make a factor of a screening matter either.

    Args:
        factor: A factor with at least two levels.
        evidence: The factor's tests.
        formats: Formats of the study's values.
    """
    words, verdict = Sentences(formats, evidence.tests), _verdict(evidence, formats.metric)
    averaged = _averaged_over(evidence)
    if verdict == "no effect within margin":
        margin = formats.size(evidence.margin or 0)
        lead = f"{factor} has no effect larger than {margin}"
        if averaged:
            lead = f"{sentence(averaged).replace('Averaged', 'On average')}{lead}"
        texts = [words.bounds(evidence.effects, evidence.margin)]
    elif verdict == "no difference shown":
        lead, texts = f"No difference is shown for {factor}", [averaged + words.bounds(evidence.effects)]
        if evidence.margin is not None:
            texts.append(f"that all are within ±{formats.size(evidence.margin)} is not shown either")
    else:
        lead = {"matters": f"{factor} matters", "may matter": f"{factor} may matter"}.get(
            verdict, f"The effect of {factor} cannot be said yet"
        )
        texts = [
            *_effect_texts(factor, evidence, words, formats.metric, averaged),
            words.within_margin(evidence.effects, evidence.margin),
        ]
    if evidence.kind in RESOLUTIONS:
        texts += _fraction_texts(factor, evidence)
    first, *rest = [text for text in (*texts, _missing_runs_text(evidence.cells)) if text]
    return Answer(factor=factor, verdict=verdict, text=" ".join([f"{lead}: {first}.", *(f"{sentence(text)}." for text in rest)]))


def _fraction_texts(factor: str, evidence: FactorEvidence) -> list[str]:
    """Return what a fraction of the combinations leaves open about a factor."""
    texts = []
    if evidence.aliases:
        signed = (f"minus that of {name[1:]}" if name.startswith("−") else f"plus that of {name}" for name in evidence.aliases)
        texts.append(f"this is the effect of {factor} {' '.join(signed)}, which the design does not tell apart")
    if evidence.effects and not any(each.difference.n for each in evidence.effects):
        few = [cell.label for cell in evidence.cells if cell.value.n < MIN_SEEDS_OF_A_CELL]
        texts.append(f"a screening needs two results of each of its cells, which {_names_or_count(few)} lacks")
    failing = [cell.label for cell in evidence.cells if cell.failed_to_train or cell.problems.get("diverged")]
    if failing and any(each.failures for each in evidence.effects):
        texts.append(f"runs fail to train in {_names_or_count(failing)}, perhaps because of several levels at once")
    return texts


def _names_or_count(labels: Sequence[str]) -> str:
    return "; ".join(labels) if len(labels) <= MAX_NAMED else counted(len(labels), "cell")


def _verdict(evidence: FactorEvidence, metric: Metric) -> str:
    contrasts: list[Contrast] = [*evidence.effects, *evidence.simple]
    fraction = evidence.kind in RESOLUTIONS
    if any(claims_difference(each, metric) or (claims_failures(each) and not fraction) for each in contrasts):
        return "may matter" if evidence.aliases else "matters"
    if any(map(claims_dependence, evidence.interactions)):
        return "matters"
    if possible(evidence.effects):
        return "may matter"
    if possible(evidence.simple):
        return "may matter"
    if possible(evidence.interactions):
        return "may matter"
    if any(each.failures and each.failures.p < 1 - CONFIDENCE_LEVEL for each in evidence.effects):
        return "may matter"
    if not evidence.effects or not all(is_tested(each.difference) for each in evidence.effects):
        return "cannot be said"
    within = [each.p_within_margin for each in evidence.effects]
    if all(p is not None and p < 1 - CONFIDENCE_LEVEL for p in within) and not evidence.aliases:
        return "no effect within margin"
    return "no difference shown"


def _effect_texts(factor: str, evidence: FactorEvidence, words: Sentences, metric: Metric, averaged: str) -> list[str]:
    """Return the average effects and those at combinations of other factors, in the order of their strength."""
    significant = sorted(filter(claims_dependence, evidence.interactions), key=lambda each: -abs(each.difference.mean or 0))
    average = averaged + words.average(evidence.effects)
    combinations = words.combinations(evidence.simple, significant, evidence.effects)
    at_combinations = any(claims_difference(each, metric) or claims_failures(each) for each in evidence.simple)
    if significant:
        moderators = dict.fromkeys(name for each in significant for name in each.factors if name != factor)
        place = f"level of {evidence.others[0]}" if len(evidence.others) == 1 else "combination of the other factors"
        alone = f", although no {place} shows one by itself" if combinations and not at_combinations else ""
        depends = f"the effect depends on {' and '.join(moderators)}{alone}: {words.dependence(significant[0])}"
        combinations = "; ".join(filter(None, (depends, combinations)))
    elif open_ := possible(evidence.interactions):
        (other,) = (name for name in open_[0].factors if name != factor)
        may = f"the effect may depend on {other}, but this may be chance: {words.dependence(open_[0])}"
        combinations = "; ".join(filter(None, (combinations, may)))
    shown = any(claims_difference(each, metric) or claims_failures(each) for each in evidence.effects)
    on_average = bool(possible(evidence.effects))
    first = shown or (on_average and not at_combinations and not significant)
    return [average, combinations] if first or not combinations else [combinations, average]


def _averaged_over(evidence: FactorEvidence) -> str:
    """Return where the effects of a factor hold, as the beginning of a clause; empty with one combination of the others."""
    if not evidence.others:
        return ""
    if evidence.kind == ONE_AT_A_TIME:
        return "with all other factors at the baseline, "
    if evidence.kind == LADDER:
        return "added to the rung below, "
    *names, last = evidence.others
    others = f"{', '.join(names)} and {last}" if names else last
    if len(evidence.others) > MAX_NAMED:
        others = f"the other {len(evidence.others)} factors"
    averages = any(each.combinations > 1 for each in evidence.effects)
    return f"averaged over {others}, " if averages else ""


def _missing_runs_text(cells: Sequence[CellFinding]) -> str:
    """Return which cells lack results of runs."""
    named = [
        f"{cell.label} ({', '.join(f'{n} of {cell.planned} {outcome}' for outcome, n in cell.problems.items())})"
        for cell in cells
        if cell.problems
    ]
    if not named:
        return ""
    if len(named) > MAX_NAMED:
        named = [*named[:MAX_NAMED], counted(len(named) - MAX_NAMED, "more cell")]
    return f"runs without a value: {', '.join(named)}"
