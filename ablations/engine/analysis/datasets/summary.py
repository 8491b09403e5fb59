"""Analyze a study on several data sets: what its effects have in common, how they differ, and which cells rank first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablations.engine.analysis.datasets import random_effects, scores
from ablations.engine.analysis.datasets.findings import DatasetsFindings, DatasetStudy, EffectOverDatasets, Ranks
from ablations.engine.analysis.datasets.sentences import DatasetSentences
from ablations.engine.analysis.findings import Effect
from ablations.engine.analysis.number_format import ValueFormat
from ablations.engine.analysis.statistics.estimate import MIN_SEEDS_FOR_P_VALUE, Estimate
from ablations.engine.analysis.statistics.inference import holm_adjust
from ablations.engine.analysis.statistics.looks import looks_at, undeclared_sentence
from resnet_core.fields import counted

Level = tuple[str, str, str]
"""A factor, one of its levels, and the reference level."""


def analyze_datasets(studies: Sequence[DatasetStudy]) -> DatasetsFindings:
    """Return all findings over the data sets of a study.

    All tests of the summary are one family (Holm): of each mean effect, of whether each effect differs, and of ranks. The studies
    on the single data sets are families of their own.

    Args:
        studies: the study on each data set, at least two, all with the same metric.
    """
    # A mean over data sets is looked at once, when all studies have ended as declared. Pairs use the spreads over their seeds.
    seed_share = min(looks_at(each.evidence.design, each.evidence.looks).share for each in studies)
    declared = not any(undeclared_sentence(each.evidence.design, each.evidence.looks) for each in studies)
    share = 1.0 if declared else seed_share
    effects = [_estimated(level, of_level, share, seed_share, studies) for level, of_level in _effects_by_level(studies).items()]
    values = [scores.run_values(each) for each in studies]
    metric = studies[0].findings.metric
    effects, ranks, tests = _adjusted(effects, scores.rank_cells(values, metric, share))
    normalized = [found for each in studies if (found := scores.normalized_scores(each)) is not None]
    enough = len(studies) >= scores.MIN_DATASETS
    known = enough and len(normalized) == len(studies)
    formats = ValueFormat(metric, max(each.findings.decimals for each in studies))
    words = DatasetSentences(formats, tests, studies)
    return DatasetsFindings(
        study=studies[0].evidence.design.study,
        question=studies[0].evidence.design.question,
        metric=metric,
        decimals=formats.decimals,
        datasets=tuple(each.name for each in studies),
        effects=tuple(words.described(each) for each in effects),
        ranks=ranks and replace(ranks, text=words.ranking(ranks)),
        scores=scores.score_cells(normalized) if known else (),
        no_scores=_why_no_scores(enough=enough, known=known, ranks=ranks),
        tests=tests,
        complete=all(each.findings.complete for each in studies),
        flags=tuple(_flags(studies, share)),
    )


def _effects_by_level(studies: Sequence[DatasetStudy]) -> dict[Level, dict[str, Effect]]:
    """Return the effects of each level by data set, of levels with an estimate or failures to train on one of them."""
    found: dict[Level, dict[str, Effect]] = {}
    for each in studies:
        for effect in each.findings.effects:
            found.setdefault((effect.factor, effect.level, effect.reference), {})[each.name] = effect
    return {
        level: effects
        for level, effects in found.items()
        if any(each.difference.mean is not None or each.failures for each in effects.values())
    }


def _estimated(
    level: Level, of_level: Mapping[str, Effect], share: float, seed_share: float, studies: Sequence[DatasetStudy]
) -> EffectOverDatasets:
    known = {dataset: each for dataset, each in of_level.items() if each.difference.mean is not None}
    differences = {dataset: each.difference for dataset, each in known.items()}
    mean = random_effects.mean_effect(list(differences.values()), share)
    spread = random_effects.heterogeneity(differences, seed_share)
    low, high = studies[0].findings.metric.bounds
    prediction = random_effects.prediction_interval(mean, spread, share)
    factor, name, reference = level
    return EffectOverDatasets(
        factor=factor,
        level=name,
        reference=reference,
        by_dataset=known,
        without_estimate={dataset: each for dataset, each in of_level.items() if dataset not in known},
        mean=_within(mean, high - low),
        prediction=prediction and (max(prediction[0], low - high), min(prediction[1], high - low)),
        heterogeneity=spread,
        weighted=random_effects.weighted_mean(list(differences.values())),
    )


def _within(mean: Estimate, reach: float) -> Estimate:
    """Return a mean difference with its interval within what a difference can be."""
    if mean.low is None or mean.high is None:
        return mean
    return replace(mean, low=max(mean.low, -reach), high=min(mean.high, reach))


def _adjusted(effects: Sequence[EffectOverDatasets], ranks: Ranks | None) -> tuple[list[EffectOverDatasets], Ranks | None, int]:
    """Return effects and ranks with p-values adjusted as one family, and the number of tests in it."""
    p: dict[tuple[str, int], float] = {}
    for i, each in enumerate(effects):
        if each.mean.p is not None:
            p["mean", i] = each.mean.p
        if each.heterogeneity:
            p["spread", i] = each.heterogeneity.p
    if ranks:
        p["ranks", 0] = ranks.p
    adjusted = dict(zip(p, holm_adjust(list(p.values())).tolist(), strict=True))
    found = []
    for i, each in enumerate(effects):
        spread = each.heterogeneity
        found.append(
            replace(
                each,
                mean=replace(each.mean, p_adjusted=adjusted.get(("mean", i))),
                heterogeneity=spread and replace(spread, p_adjusted=adjusted.get(("spread", i))),
            )
        )
    return found, ranks and scores.grouped(replace(ranks, p_adjusted=adjusted["ranks", 0])), len(p)


def _why_no_scores(*, enough: bool, known: bool, ranks: Ranks | None) -> str:
    """Return why there are no ranks or no normalized scores; empty if there are both."""
    if not enough:
        return f"Ranks and normalized scores take {scores.MIN_DATASETS} data sets"
    missing = []
    if ranks is None:
        missing.append(f"ranks take {scores.MIN_RANKED_CELLS} cells with different results on all data sets")
    if not known:
        missing.append("normalized scores take a metric in percent whose value of guessing is known")
    return "; ".join(missing)[:1].upper() + "; ".join(missing)[1:]


def _flags(studies: Sequence[DatasetStudy], share: float) -> list[str]:
    """Return caveats of the summary."""
    flags = []
    if unfinished := [each.name for each in studies if not each.findings.complete]:
        flags.append(f"The summary is incomplete: runs have no result on {', '.join(unfinished)}")
    seeds = {each.name: each.evidence.design.seeds for each in studies}
    if few := [name for name, count in seeds.items() if count < MIN_SEEDS_FOR_P_VALUE]:
        flags.append(f"Fewer than {MIN_SEEDS_FOR_P_VALUE} seeds on {', '.join(few)}: the studies on these data sets have no tests")
    if len(set(seeds.values())) > 1:
        flags.append(f"Data sets differ in seeds: {', '.join(f'{count} ({name})' for name, count in seeds.items())}")
    names = [each.evidence.design.dataset for each in studies]
    for name in dict.fromkeys(names):
        same = [each.name for each in studies if each.evidence.design.dataset == name]
        if len(same) > 1 and name not in ("own", "imagefolder", "huggingface", "parquet"):
            flags.append(
                f"{', '.join(same[:-1])} and {same[-1]} are the same data set, {name}, with different settings: they count as "
                f"{counted(len(same), 'data set')}, but say less about others"
            )
    levels = {tuple((name, *of_factor) for name, of_factor in each.evidence.design.factors.items()) for each in studies}
    if len(levels) > 1:
        flags.append("Data sets differ in factors or levels: each effect is summarized over the data sets that have it")
    if share < 1:
        flags.append(f"The looks at the studies count here: p is {1 / share:.1f} times that of one look, and intervals are wider")
    return flags
