"""Over data sets: means and intervals hold their level, ranks and scores agree with their definitions, sentences claim no more."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import t, trim_mean

from ablations.engine.analysis.datasets import random_effects, scores
from ablations.engine.analysis.datasets.findings import COMMON, DIFFERS, NOT_SHOWN, UNTESTED, DatasetStudy, EffectOverDatasets
from ablations.engine.analysis.datasets.summary import analyze_datasets
from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.statistics.estimate import Estimate
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.task.metric import Metric, error_metric
from tests.helpers import synthetic_study
from tests.helpers.synthetic_datasets import found, studies, study_on
from tests.helpers.synthetic_study import without

ERROR = error_metric("test")


def estimates(means: list[float], ses: list[float], n: int = 5) -> dict[str, Estimate]:
    pairs = zip(means, ses, strict=True)
    return {f"d{i}": Estimate(n=n, mean=mean, se=se, std=se * math.sqrt(n)) for i, (mean, se) in enumerate(pairs)}


def effect_of(level: str, given: Any) -> EffectOverDatasets:
    (effect,) = (each for each in given.effects if each.level == level)
    assert isinstance(effect, EffectOverDatasets)
    return effect


# --- mean and spread ---


def test_the_mean_counts_each_data_set_once_with_the_t_interval_over_them() -> None:
    mean = random_effects.mean_effect(list(estimates([1.0, 2.0, 6.0], [0.1, 5.0, 1.0]).values()))
    half = t.isf(0.025, 2) * np.std([1, 2, 6], ddof=1) / math.sqrt(3)
    assert (mean.n, mean.mean) == (3, 3.0)
    assert [mean.low, mean.high] == pytest.approx([3 - half, 3 + half])
    with_looks = random_effects.mean_effect(list(estimates([1.0, 2.0, 6.0], [0.1, 5.0, 1.0]).values()), share=0.1)
    assert mean.p
    assert with_looks.p == pytest.approx(min(1, 10 * mean.p))
    assert with_looks.low is not None
    assert mean.low is not None
    assert with_looks.low < mean.low


def test_two_data_sets_have_an_interval_but_no_p() -> None:
    mean = random_effects.mean_effect(list(estimates([1.0, 1.1], [0.1, 0.1]).values()))
    assert mean.low is not None
    assert mean.p is None


def test_equal_effects_have_no_interval() -> None:
    assert random_effects.mean_effect(list(estimates([1.0, 1.0, 1.0], [0.1] * 3).values())).low is None


def test_heterogeneity_and_weighted_mean_agree_with_their_definitions() -> None:
    means, ses = [0.1, 0.9, 2.2, 0.4, 1.5], [0.2, 0.3, 0.25, 0.5, 0.1]
    spread = random_effects.heterogeneity(estimates(means, ses))
    assert spread
    y, v = np.array(means), np.array(ses) ** 2
    w = 1 / v
    q = float((w * (y - (w * y).sum() / w.sum()) ** 2).sum())
    assert spread.q == pytest.approx(q)
    assert spread.i_squared == pytest.approx(100 * (q - 4) / q)
    w = 1 / (v + spread.tau**2)  # Paule and Mandel: the generalized Q equals its degrees of freedom
    center = (w * y).sum() / w.sum()
    assert (w * (y - center) ** 2).sum() == pytest.approx(4, abs=1e-4)
    weighted = random_effects.weighted_mean(list(estimates(means, ses).values()))
    assert weighted
    assert weighted.mean == pytest.approx(center)
    half = t.isf(0.025, 4) * math.sqrt((w * (y - center) ** 2).sum() / 4 / w.sum())  # Hartung and Knapp
    assert weighted.high == pytest.approx(center + half)


def test_equal_effects_are_not_heterogeneous() -> None:
    spread = random_effects.heterogeneity(estimates([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]))
    assert spread
    assert (spread.q, spread.i_squared, spread.tau, spread.p) == (0, 0, 0, 1)


def test_heterogeneity_names_the_pair_that_differs_most_clearly() -> None:
    spread = random_effects.heterogeneity(estimates([0.0, 3.0, 3.5], [0.1, 0.1, 2.0]))
    assert spread
    assert spread.pair == ("d0", "d1")
    assert spread.p < 0.001
    assert random_effects.heterogeneity(estimates([1.0], [0.1])) is None


def test_a_prediction_interval_takes_three_data_sets_and_is_wider_than_that_of_the_mean() -> None:
    for count in (2, 3, 5):
        given = estimates([1.0, 2.0, 6.0, 1.5, 0.2][:count], [0.2] * count)
        mean = random_effects.mean_effect(list(given.values()))
        predicted = random_effects.prediction_interval(mean, random_effects.heterogeneity(given))
        if count == 2:
            assert predicted is None
        else:
            assert predicted
            assert mean.low is not None
            assert predicted[0] < mean.low


def false_rates(count: int, seeds: int, ratio: float, repetitions: int) -> tuple[float, float]:
    """Return how often a mean effect, and a difference of effects, is found at 5 % where there is none."""
    random = np.random.default_rng([count, seeds])
    spreads = np.geomspace(1, ratio, count)[:, None]
    common = differs = 0
    for _ in range(repetitions):
        values = spreads * random.normal(size=(count, seeds))
        ses = values.std(axis=1, ddof=1) / math.sqrt(seeds)
        given = estimates(values.mean(axis=1).tolist(), ses.tolist(), n=seeds)
        common += (random_effects.mean_effect(list(given.values())).p or 1) < 0.05
        # the test of `heterogeneity` without its descriptive parts
        pairs = list(itertools.combinations(given.values(), 2))
        differs += len(pairs) * min(random_effects._difference_p_value(*pair) for pair in pairs) < 0.05
    return common / repetitions, differs / repetitions


@pytest.mark.parametrize(("count", "seeds", "ratio"), [(3, 3, 10.0), (5, 3, 1.0)])
def test_tests_over_data_sets_hold_their_level_with_three_seeds(count: int, seeds: int, ratio: float) -> None:
    assert max(false_rates(count, seeds, ratio, 250)) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 250)


@pytest.mark.nightly
@pytest.mark.parametrize(("count", "seeds", "ratio"), list(itertools.product((3, 5, 7), (3, 5, 10), (1.0, 10.0))))
def test_tests_over_data_sets_hold_their_level(count: int, seeds: int, ratio: float) -> None:
    assert max(false_rates(count, seeds, ratio, 3000)) <= 0.056 + 3 * math.sqrt(0.05 * 0.95 / 3000)


# --- ranks and scores ---


@pytest.mark.slow
def test_ranks_agree_with_scikit_posthocs() -> None:
    import scikit_posthocs

    given = studies(7, effect=0.4, spread=0.5)
    ranks = found(given).ranks
    assert ranks
    values = [scores.run_values(each) for each in given]
    means = np.array([[each[cell].mean() for cell in ranks.mean_ranks] for each in values])
    p = scikit_posthocs.posthoc_nemenyi_friedman(means).to_numpy()
    cells = list(ranks.mean_ranks)
    for i, j in itertools.combinations(range(len(cells)), 2):
        apart = abs(ranks.mean_ranks[cells[i]] - ranks.mean_ranks[cells[j]]) > ranks.critical_difference
        assert apart == (p[i, j] < 0.05)
    order = np.argsort(np.argsort(means, axis=1), axis=1).sum(axis=0) + len(given)  # sums of ranks, without ties
    k, n = means.shape[1], len(given)
    assert ranks.statistic == pytest.approx(12 / (n * k * (k + 1)) * (order**2).sum() - 3 * n * (k + 1))


def test_groups_are_cells_within_the_critical_difference_once_ranks_differ() -> None:
    ranks = found(studies(7)).ranks
    assert ranks
    assert ranks.significant
    for group in ranks.groups:
        inside = [ranks.mean_ranks[cell] for cell in group]
        assert max(inside) - min(inside) < ranks.critical_difference
    joined = {frozenset(pair) for group in ranks.groups for pair in itertools.combinations(group, 2)}
    near = {
        frozenset(pair)
        for pair in itertools.combinations(ranks.mean_ranks, 2)
        if abs(ranks.mean_ranks[pair[0]] - ranks.mean_ranks[pair[1]]) < ranks.critical_difference
    }
    assert joined == near
    assert len(scores.grouped(replace(ranks, p_adjusted=0.2)).groups) == 1


def test_more_is_better_turns_the_ranks() -> None:
    values = [{"a": np.array([1.0]), "b": np.array([2.0]), "c": np.array([3.0])}] * 5
    lower, higher = (scores.rank_cells(values, Metric("valid/x", better=better)) for better in ("lower", "higher"))
    assert lower
    assert higher
    assert list(lower.mean_ranks) == ["a", "b", "c"]
    assert list(higher.mean_ranks) == ["c", "b", "a"]


@pytest.mark.slow
def test_the_interquartile_mean_is_that_of_rliable() -> None:
    random = np.random.default_rng(3)
    of_datasets = [random.uniform(size=4) for _ in range(5)]
    (score,) = scores.score_cells([{"a": values} for values in of_datasets])
    ordered = np.sort(np.concatenate(of_datasets))
    assert score.iqm == pytest.approx(ordered[5:15].mean())  # the middle half of 20 runs
    assert score.iqm == pytest.approx(trim_mean(np.concatenate(of_datasets), 0.25))
    assert score.runs == 20
    # an independent bootstrap: the runs of each data set are drawn anew, the data sets stay
    draw = [trim_mean(np.concatenate([random.choice(values, len(values)) for values in of_datasets]), 0.25) for _ in range(2000)]
    assert [score.low, score.high] == pytest.approx(np.quantile(draw, (0.025, 0.975)).tolist(), abs=0.02)


def test_a_score_is_zero_for_guessing_and_one_for_no_error() -> None:
    study = study_on("digits", {}, noise=0, level=45.0)
    normalized = scores.normalized_scores(study)
    assert normalized
    assert all(values == pytest.approx([0.5] * 3) for values in normalized.values())  # guessing gives 90 %
    unknown = replace(study, evidence=replace(study.evidence, design=replace(study.evidence.design, chance=None)))
    assert scores.normalized_scores(unknown) is None


def test_a_run_that_diverged_counts_as_guessing_in_ranks_and_scores() -> None:
    study = study_on("digits", {}, noise=0)
    given = without(study.evidence, "shortcut=none depth=20/1", "diverged")
    values = scores.run_values(replace(study, evidence=given))
    assert sorted(values["shortcut=none depth=20"].tolist()) == pytest.approx([10, 10, 90])
    no_chance = replace(given, design=replace(given.design, chance=None))
    assert "shortcut=none depth=20" not in scores.run_values(replace(study, evidence=no_chance))


# --- the summary ---


def test_two_data_sets_agree_but_claim_nothing_about_others() -> None:
    given = found(studies(2))
    effect = effect_of("none", given)
    assert effect.verdict == NOT_SHOWN
    assert "too few for a test of a common effect" in effect.text
    assert "in the same direction on both" in effect.text
    assert "raises" not in effect.text
    assert given.ranks is None
    assert given.no_scores == "Ranks and normalized scores take 5 data sets"


def test_a_common_effect_is_claimed_from_three_data_sets_on() -> None:
    effect = effect_of("none", found(studies(3)))
    assert effect.verdict == COMMON
    assert effect.text.startswith("shortcut: on data sets like these, none instead of A raises the test error by ")
    assert effect.prediction


def test_an_effect_that_differs_is_said_to_differ() -> None:
    effect = effect_of("none", found(studies(3, spread=2.0)))
    assert effect.verdict == DIFFERS
    assert "The effect differs between the data sets, most clearly between digits and mnist5k" in effect.text
    assert "no common effect shown" in effect.text


def test_all_tests_of_the_summary_are_one_family() -> None:
    given = found(studies(7))
    assert given.tests == 3 + 3 + 1  # mean effects, their differences, ranks
    smallest = min(each.mean.p or 1 for each in given.effects)
    p = [each.mean.p_adjusted for each in given.effects if each.mean.p == smallest]
    assert p
    assert p[0] is not None
    assert p[0] >= smallest
    assert found(studies(2)).tests == 3  # differences only


@pytest.mark.nightly
def test_chance_alone_claims_little() -> None:
    claims = 0
    for number in range(12):
        given = found(studies(5, effect=0.0, random=number + 1))
        claims += any(each.verdict in (COMMON, DIFFERS) and each.level != "56" for each in given.effects)
    assert claims <= 3


def test_an_effect_on_one_data_set_only_is_not_summarized() -> None:
    first, second = studies(2)
    kept = [cell for cell in second.evidence.design.cells if cell.levels["shortcut"] != "B"]
    fewer = replace(second.evidence.design, cells=tuple(kept), factors={"shortcut": ("A", "none"), "depth": ("20", "56")})
    runs = second.evidence.runs
    cut = Evidence(fewer, runs[runs["cell"].isin([cell.label for cell in kept])], second.evidence.curves, second.evidence.probes)
    given = analyze_datasets([first, replace(second, evidence=cut, findings=analyze_study(cut))])
    effect = effect_of("B", given)
    assert effect.verdict == UNTESTED
    assert "has an estimate on digits only" in effect.text
    assert any("differ in factors or levels" in flag for flag in given.flags)


def failing(given: Any) -> Any:
    """Let all runs of `none` at 56 layers on the second data set but one diverge."""
    evidence = given[1].evidence
    for seed in (0, 1):
        evidence = without(evidence, f"shortcut=none depth=56/{seed}", "diverged")
    return [given[0], replace(given[1], evidence=evidence, findings=analyze_study(evidence)), *given[2:]]


def test_failures_to_train_are_named_and_a_level_that_fails_is_not_called_better() -> None:
    given = found(failing(studies(3, effect=-3.0)))
    effect = effect_of("none", given)
    assert effect.verdict != COMMON
    assert "lowers" not in effect.text
    assert "on mnist5k, none fails to train in 2 of 6 runs, A in 0 of 6" in effect.text.replace("On", "on")


def test_caveats_name_missing_runs_few_seeds_and_one_data_set_in_two_guises() -> None:
    one, two, three = studies(3)
    missing = without(one.evidence, "shortcut=none depth=56/0")
    part = replace(one, evidence=missing, findings=analyze_study(missing))
    again = replace(three, evidence=replace(three.evidence, design=replace(three.evidence.design, dataset="mnist5k")))
    given = analyze_datasets([part, two, again])
    assert not given.complete
    assert any("runs have no result on digits" in flag for flag in given.flags)
    assert any(flag.startswith("mnist5k and fashion5k are the same data set, mnist5k") for flag in given.flags)
    assert any("Fewer than 3 seeds on" in flag for flag in found(studies(2, seeds=2)).flags)


def test_looks_cost_the_summary_as_much_as_its_studies() -> None:
    given = studies(3)
    looked = [replace(each, evidence=replace(each.evidence, looks=(2, 3, 5, 8))) for each in given[:1]] + given[1:]
    before, after = effect_of("none", found(given)).mean, effect_of("none", analyze_datasets(looked)).mean
    assert before.p
    assert after.p
    assert after.p >= before.p


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_results_that_do_not_vary_make_a_summary(value: float) -> None:
    given = [study_on(name, {}, noise=0.0, level=value) for name in ("digits", "mnist5k", "fashion5k", "cifar10", "cifar100")]
    summary = found(given)
    assert summary.ranks is None
    assert all(each.text for each in summary.effects)


def test_a_summary_without_any_result_says_so() -> None:
    given = []
    for study in studies(2):
        evidence = study.evidence
        for fingerprint in evidence.runs["fingerprint"]:
            evidence = without(evidence, fingerprint)
        given.append(replace(study, evidence=evidence, findings=analyze_study(evidence)))
    summary = analyze_datasets(given)
    assert summary.effects == ()
    assert not summary.complete


def test_a_data_set_on_which_a_level_never_trains_is_named_and_ends_the_common_effect() -> None:
    given = studies(4, effect=-2.0, seeds=5)
    last = given[3].evidence
    for cell in last.design.cells:
        for run in cell.fingerprints if cell.levels["shortcut"] == "none" else ():
            last = without(last, run, "diverged")
    effect = effect_of("none", found([*given[:3], replace(given[3], evidence=last, findings=analyze_study(last))]))
    assert list(effect.without_estimate) == ["cifar10"]
    assert effect.verdict != COMMON
    assert "which the failures may explain" in effect.text
    assert "On cifar10, none fails to train in 10 of 10 runs, A in 0 of 10" in effect.text


def test_an_aliased_effect_is_no_common_effect() -> None:
    factors = dict.fromkeys("abc", ("off", "on"))
    given = []
    for size, name in enumerate(("digits", "mnist5k", "fashion5k"), start=30):
        made = replace(synthetic_study.design(factors, seeds=5, kind="screening-iii"), dataset=name)

        def truth(levels: Mapping[str, str], seed: int, size: int = size) -> float:
            return 10 + 0.1 * size * (levels["a"] == "on") + 0.01 * (seed % 3)

        evidence = synthetic_study.evidence(made, truth, epochs=1)
        given.append(DatasetStudy(name, evidence, analyze_study(evidence)))
    effect = next(each for each in found(given).effects if each.factor == "a")
    assert effect.mean.significant
    assert effect.verdict == NOT_SHOWN
    assert "together with interactions that the design does not tell apart from it" in effect.text


def test_scores_are_those_of_the_seeds_that_all_cells_have() -> None:
    given = study_on("digits", {}, seeds=6)
    cells = [replace(cell, fingerprints=cell.fingerprints[: 3 if i else 6]) for i, cell in enumerate(given.evidence.design.cells)]
    fewer = replace(given, evidence=replace(given.evidence, design=replace(given.evidence.design, cells=tuple(cells))))
    normalized = scores.normalized_scores(fewer)
    assert normalized
    assert {len(values) for values in normalized.values()} == {3}


def test_effects_of_a_ladder_say_where_they_hold() -> None:
    given = []
    for name in ("digits", "mnist5k"):
        made = replace(synthetic_study.design({"a": ("0", "1"), "b": ("0", "1")}, seeds=3, kind="ladder"), dataset=name)
        evidence = synthetic_study.evidence(made, epochs=1)
        given.append(DatasetStudy(name, evidence, analyze_study(evidence)))
    assert found(given).effects[1].text.startswith("b, added to the rung below: going from 0 to 1 gives ")
