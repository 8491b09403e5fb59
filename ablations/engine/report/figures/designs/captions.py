"""Captions of the figures of designs: title, how to read the figure, and its main numbers for an alternative text."""

from collections.abc import Callable, Mapping

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Findings
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.verdicts.sentences import level_change, sentence
from ablations.engine.report.designs import (
    BASELINE,
    NO_ESTIMATE,
    contrast_name,
    effect_verdict,
    is_main,
    path_sentence,
    seed_rows,
)
from ablations.engine.report.figures.designs.changes import sorted_effects
from ablations.engine.report.figures.designs.screening import MAX_ROWS, large_from, named_contrasts, sorted_contrasts
from ablations.engine.report.figures.designs.seed_path import MAX_ROWS as MAX_COMPARISONS
from ablations.engine.report.figures.phrases import list_or_ends
from resnet_core.fields import counted

FILLED = "A filled mark is significant: its p-value, adjusted for all tests of the study, is below 0.05. A hollow mark is not."


def _effect_sizes(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    design, metric, formats = evidence.design, findings.metric, ValueFormat.of(findings)
    contrasts = sorted_contrasts(findings)
    mixed = {is_main(design, each) for each in contrasts} == {True, False}
    kinds = " Filled bars with a circle are main effects, hollow bars with a diamond are interactions." if mixed else ""
    left_out = len(contrasts) - MAX_ROWS
    more = f" The figure shows the {MAX_ROWS} largest; the table has {counted(left_out, 'more contrast')}." if left_out > 0 else ""
    text = (
        f"Sizes of the contrasts{_in_unit(findings)}, largest first, with 95 % confidence intervals, paired by seed. Numbers have "
        f"their sign: {_better(findings)} ones are better.{kinds} {FILLED}{more}"
    )
    items = [f"{contrast_name(design, each)} {formats.signed_with_interval(each.difference, NO_ESTIMATE)}" for each in contrasts]
    significant = sum(each.difference.significant for each in contrasts)
    verb = "is" if significant == 1 else "are"
    sums = [" + ".join(each.terms) for each in contrasts if each.difference.significant and len(each.terms) > 1]
    aliases = f" Sums among the significant ones: {'; '.join(sums)}." if sums else ""
    effects = f"Effects on {metric.label}{_in_unit(findings)}: {list_or_ends(items)}."
    alt = f"{significant} of {counted(len(contrasts), 'contrast')} {verb} significant. {effects}{aliases}"
    return "Sizes of effects", text, alt


def _half_normal(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    design, formats, margin = evidence.design, ValueFormat.of(findings), large_from(findings)
    contrasts = sorted_contrasts(findings)
    known = sum(each.difference.mean is not None for each in contrasts)
    unknown = len(contrasts) - known
    missing = f" {counted(unknown, 'contrast')} without an estimate {'is' if unknown == 1 else 'are'} left out." if unknown else ""
    text = (
        "Sizes of the contrasts against the quantiles of a half-normal distribution. Contrasts that are only noise lie near the "
        "dashed line through the origin, whose slope is Lenth's pseudo standard error (1989): 1.5 times the median size, without "
        "large ones. Those far above it stand out. Named are those that are significant or larger than Lenth's margin of error, "
        f"{formats.size(margin)}, which supposes that most effects are zero and is no test of the study. {FILLED}{missing}"
    )
    items = [f"{contrast_name(design, each)} {formats.size(each.difference.mean or 0.0)}" for each in named_contrasts(findings)]
    alt = f"Contrasts that stand out: {list_or_ends(items)}." if items else f"None of {counted(known, 'contrast')} stands out."
    return "Half-normal plot of effects", text, alt


def _ladder(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.ladder
    metric, formats, ladder = findings.metric, ValueFormat.of(findings), findings.ladder
    text = (
        f"Mean {metric.label} of each rung, with its 95 % confidence interval. A bar is the step from the rung before it, filled "
        "if it is better and hollow if it is worse; the number beside it is paired by seed. The last row is the difference between "
        f"the last rung and the first. {sentence(_better(findings))} steps are better. {FILLED}"
    )
    items = [
        f"{rung.change or BASELINE} {formats.with_unit(rung.value.mean)}"
        + (f" (step {formats.signed_with_interval(rung.step, NO_ESTIMATE)})" if rung.step else "")
        for rung in ladder.rungs
    ]
    total = formats.in_points(formats.signed_with_interval(ladder.total, NO_ESTIMATE))
    return "Steps of the ladder", text, f"{list_or_ends(items)}. All changes: {total}."


def _effects(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    metric, formats = findings.metric, ValueFormat.of(findings)
    effects = sorted_effects(findings)
    within = " with a dot, no effect within the margin;" if evidence.design.margin is not None else ""
    text = (
        f"Difference in {metric.label} to the baseline{_in_unit(findings)}, if one level is changed by itself, largest first, with "
        f"95 % confidence intervals, paired by seed. {sentence(_better(findings))} differences are better. Marks show the verdict: "
        f"filled, matters; half filled, may matter; hollow, no difference shown;{within} a cross, no test."
    )
    items = [
        f"{each.factor}, {level_change(each)}: {formats.signed_with_interval(each.difference, NO_ESTIMATE)}, "
        f"{effect_verdict(each, metric, findings.effects)}"
        for each in effects
    ]
    return "Effects, largest first", text, f"{counted(len(effects), 'effect')}{_in_unit(findings)}: {list_or_ends(items)}."


def _seed_path(evidence: Evidence, findings: Findings) -> tuple[str, str, str]:
    assert findings.path
    rows = seed_rows(findings.path)
    left_out = len(rows) - MAX_COMPARISONS
    more = f" The figure shows the first {MAX_COMPARISONS}; the table has all." if left_out > 0 else ""
    text = (
        "A line per comparison up to the last number of seeds at which it was looked at. Its mark shows what was decided there: a "
        "circle, an effect; a square, no effect larger than the margin; a cross, no hope of a decision within the budget. A "
        f"triangle is still open. Below are the runs of the study and those with the largest number of seeds in every cell.{more}"
    )
    items = [f"{row.comparison} {row.state} at {counted(row.seeds, 'seed')}" for row in rows]
    return "The path of the seeds", text, f"{list_or_ends(items)}. {path_sentence(findings.path)}"


def _in_unit(findings: Findings) -> str:
    return f" in {findings.metric.difference_unit}" if findings.metric.difference_unit else ""


def _better(findings: Findings) -> str:
    """Return which sign of a difference is better."""
    return "negative" if findings.metric.better == "lower" else "positive"


DESIGN_CAPTIONS: Mapping[str, Callable[[Evidence, Findings], tuple[str, str, str]]] = {
    "effect-sizes": _effect_sizes,
    "half-normal": _half_normal,
    "ladder": _ladder,
    "effects": _effects,
    "seed-path": _seed_path,
}
"""Functions that return title, text and alternative text, by name of the figure."""
