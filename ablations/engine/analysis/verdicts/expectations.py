"""Assess expectations about a study by its paired, adjusted tests: shown, not shown, or contradicted."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ablations.engine.analysis.designs.screening import aliases_of
from ablations.engine.analysis.evidence import FAILED_OUTCOMES, Evidence
from ablations.engine.analysis.findings import Effect, Findings
from ablations.engine.analysis.number_format import MIN_DISPLAYED_P, ValueFormat, p_value
from ablations.engine.analysis.statistics.contrasts import reference_levels
from ablations.engine.analysis.statistics.estimate import CONFIDENCE_LEVEL, MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.statistics.inference import shifted_p_value
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.verdicts.sentences import gain_interval
from ablations.engine.study.designs import LADDER
from ablations.engine.study.expectations import Expectation
from ablations.engine.task.metric import Metric
from resnet_core.fields import counted

SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown", "contradicted"


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """The outcome of an expectation in a study."""

    expectation: str
    verdict: str
    """`shown`, `not shown` or `contradicted`."""
    text: str
    """The finding in one line."""


def assess(expectations: Iterable[Expectation], evidence: Evidence, findings: Findings) -> tuple[Assessment, ...]:
    """Return what the evidence says about each expectation.

    A comparison of levels is decided by the average effect over the other factors, paired by seed. Its p-value is adjusted for all
    tests of the study, by Bonferroni's bound for a difference other than zero. An improvement is not shown if runs of the better
    level failed more often than those of the other, since its failed seeds are not in the average. That a factor matters is
    contradicted if the study shows that it has no effect within its margin.
    """
    return tuple(_assess(each, evidence, findings) for each in expectations)


def _assess(expectation: Expectation, evidence: Evidence, findings: Findings) -> Assessment:
    if expectation.kind == "matters":
        answers = [each for each in findings.answers if each.factor == expectation.factor]
        if not answers:
            return Assessment(
                expectation=expectation.text, verdict=NOT_SHOWN, text=f"{expectation.text}: {NOT_SHOWN}: it has one level"
            )
        answer = answers[0]
        verdict = {"matters": SHOWN, "no effect within margin": CONTRADICTED}.get(answer.verdict, NOT_SHOWN)
        return Assessment(expectation=expectation.text, verdict=verdict, text=f"{expectation.text}: {verdict}: {answer.text}")
    metric = evidence.design.metric
    effect, findings = _effect(expectation, evidence, findings)
    if effect is None:
        why = "no combination of the other factors has runs of both levels"
        if evidence.design.kind == LADDER:
            why = "a ladder compares each level with the one that it replaces"
        return Assessment(expectation=expectation.text, verdict=NOT_SHOWN, text=f"{expectation.text}: {NOT_SHOWN}: {why}")
    if aliases := aliases_of(findings.screening, expectation.factor):
        why = f"a screening of resolution III estimates it together with {', '.join(name.lstrip('−') for name in aliases)}"
        return Assessment(expectation=expectation.text, verdict=NOT_SHOWN, text=f"{expectation.text}: {NOT_SHOWN}: {why}")
    gain = _gain(effect.difference, metric)
    verdict, why = _decide(expectation, gain, findings)
    failed, reference_failed = (
        _failures(evidence, expectation.factor, level) for level in (expectation.level, expectation.reference)
    )
    if (verdict == SHOWN and failed > reference_failed) or (verdict == CONTRADICTED and reference_failed > failed):
        level, count = (expectation.level, failed) if verdict == SHOWN else (expectation.reference, reference_failed)
        verdict, why = (
            NOT_SHOWN,
            f"{why}, but {counted(count, 'run')} of {level} failed and {'is' if count == 1 else 'are'} left out",
        )
    return Assessment(
        expectation=expectation.text,
        verdict=verdict,
        text=f"{expectation.text}: {verdict}: {_found(gain, ValueFormat.of(findings))}{why}",
    )


def _effect(expectation: Expectation, evidence: Evidence, findings: Findings) -> tuple[Effect | None, Findings]:
    """Return the effect of the level against the reference, and the findings that it is one of."""
    factor, design = expectation.factor, evidence.design
    if reference_levels(design).get(factor) != expectation.reference:  # the same family of tests, against another reference
        rebased = replace(design, baseline={**design.baseline, factor: expectation.reference}, search=None)
        findings = analyze_study(replace(evidence, design=rebased))
    wanted = factor, expectation.level, expectation.reference
    found = [each for each in findings.effects if (each.factor, each.level, each.reference) == wanted]
    if not found:  # a ladder compares with the level below, whichever of the two is expected to be better
        turned = factor, expectation.reference, expectation.level
        found = [_turned(each) for each in findings.effects if (each.factor, each.level, each.reference) == turned]
    return (found[0] if found else None), findings


def _turned(effect: Effect) -> Effect:
    """Return the effect of the reference relative to the level."""
    difference = effect.difference
    if difference.mean is None:
        return effect
    low, high = (None if bound is None else -bound for bound in (difference.high, difference.low))
    turned = replace(difference, mean=-difference.mean, low=low, high=high)
    return replace(effect, level=effect.reference, reference=effect.level, difference=turned, failures=None)


def _gain(difference: Estimate, metric: Metric) -> Estimate:
    """Return the improvement: the difference with the sign at which positive is better."""
    if metric.better == "higher" or difference.mean is None:
        return difference
    low, high = (None if bound is None else -bound for bound in (difference.high, difference.low))
    return replace(difference, mean=-difference.mean, low=low, high=high)


def _decide(expectation: Expectation, gain: Estimate, findings: Findings) -> tuple[str, str]:
    """Return the verdict and its reason: whether the improvement is above or below the expected one, by a two-sided test."""
    if gain.n < MIN_SEEDS_FOR_P_VALUE:
        return NOT_SHOWN, f"; a test needs {MIN_SEEDS_FOR_P_VALUE} seeds"
    if gain.p is None or gain.p_adjusted is None or gain.mean is None:
        return NOT_SHOWN, "; the differences do not vary and so allow no t test"
    threshold = expectation.amount if expectation.kind == "better" else -expectation.amount
    p = gain.p_adjusted
    if threshold:
        if not gain.se:
            return NOT_SHOWN, "; the differences do not vary and so allow no t test"
        std = gain.se * math.sqrt(gain.n)
        p = min(1.0, findings.effect_bonferroni * shifted_p_value(gain.mean, std, gain.n, threshold))
    shown = p_value(p) if p < MIN_DISPLAYED_P else f"= {p_value(p)}"
    tests = findings.tests
    adjusted = f"; p {shown}" if tests == 1 else f"; p {shown}, adjusted for {counted(tests, 'test')}"
    if not p < 1 - CONFIDENCE_LEVEL or math.isclose(gain.mean, threshold):
        return NOT_SHOWN, adjusted
    return (SHOWN if gain.mean > threshold else CONTRADICTED), adjusted


def _found(gain: Estimate, formats: ValueFormat) -> str:
    label = formats.metric.label
    if gain.mean is None:
        return f"no seed has all runs of the comparison in {label}"
    word = "better" if gain.mean >= 0 else "worse"
    interval = f" ({gain_interval(gain.low, gain.high, formats)})" if gain.low is not None and gain.high is not None else ""
    return f"{label} is {formats.size(gain.mean)} {word}{interval} over {counted(gain.n, 'seed')}"


def _failures(evidence: Evidence, factor: str, level: str) -> int:
    labels = [cell.label for cell in evidence.design.cells if cell.levels[factor] == level]
    runs = evidence.runs
    return int((runs["cell"].isin(labels) & runs["outcome"].isin(FAILED_OUTCOMES)).sum())
