"""Findings of made-up studies: what is averaged, compared, corrected and flagged, and what is left unsaid."""

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.findings import Anova, Comparison, Effect, Findings
from ablations.engine.analysis.statistics.failures import find_failures
from ablations.engine.analysis.statistics.family import Family
from ablations.engine.analysis.statistics.inference import Scale, holm_adjust, zero_tolerance
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.study.design import Design
from tests.helpers.synthetic_study import design, evidence, without

NOISE = {level: np.random.default_rng(i).normal(0, 0.3, 20) for i, level in enumerate(("none", "A", "B"))}


def additive(levels: Mapping[str, str], seed: int) -> float:
    """Without shortcut 2 points more, with 56 layers 1 less; seeds differ by a point, noise by shortcut and not by depth."""
    return 8 + 2 * (levels["shortcut"] == "none") - (levels["depth"] == "56") + seed + float(NOISE[levels["shortcut"]][seed])


def changed(given: Evidence, cells: list[str], **values: Any) -> Evidence:
    """The same, runs of some cells under other conditions."""
    runs = given.runs.copy()
    for name, value in values.items():
        runs.loc[runs["cell"].isin(cells), name.replace("__", ".")] = value
    return replace(given, runs=runs)


def compared(found: Findings, cell: str) -> Comparison:
    return next(each for each in found.comparisons if each.cell == cell)


def effect(found: Findings, level: str) -> Effect:
    return next(each for each in found.effects if each.level == level)


def missing_cell(made: Design, label: str) -> Design:
    cells = tuple(cell for cell in made.cells if cell.label != label)
    return replace(made, cells=cells, skipped=((label, "does not exist"),))


def test_a_cell_is_the_mean_of_its_completed_runs() -> None:
    found = analyze_study(evidence(truth=additive)).cells
    cell = next(cell for cell in found if cell.label == "shortcut=none depth=56")
    errors = [9 + seed + NOISE["none"][seed] for seed in range(3)]
    assert cell.value.mean == pytest.approx(np.mean(errors))
    assert cell.value.std == pytest.approx(np.std(errors, ddof=1))
    assert cell.train_value.mean == pytest.approx(np.mean(errors) / 2)
    assert (cell.planned, cell.value.n, cell.problems, cell.reasons, cell.flags) == (3, 3, {}, (), ())
    assert (cell.parameters, cell.flops, cell.gpu_hours) == (784_000, 7_280_000, 0)
    assert cell.seconds == pytest.approx(22.41)
    assert [cell.label for cell in found] == [cell.label for cell in design().cells]


def test_runs_without_a_result_are_counted_and_neither_averaged_nor_dropped() -> None:
    given = without(evidence(), "shortcut=B depth=56/1", "diverged", "loss is not finite at step 7")
    given = without(given, "shortcut=B depth=56/2", "oom", "batch 128 on a GPU of 8 GB")
    cell = analyze_study(given).cells[-1]
    assert (cell.planned, cell.value.n, cell.problems) == (3, 1, {"diverged": 1, "oom": 1})
    assert cell.reasons == ("loss is not finite at step 7", "batch 128 on a GPU of 8 GB")
    assert cell.value.mean == given.runs[given.runs["fingerprint"] == "shortcut=B depth=56/0"]["value"].item()
    assert cell.without_result == 1
    assert analyze_study(without(evidence(), "shortcut=B depth=56/1")).cells[-1].reasons == ()


def test_an_error_that_a_run_left_before_it_failed_is_not_averaged() -> None:
    given = evidence(truth=lambda _, seed: 8.0 + seed)
    given.runs.loc[given.runs["seed"] == 2, "outcome"] = "failed"
    assert {cell.value.mean for cell in analyze_study(given).cells} == {8.5}


def test_the_front_is_what_no_cell_beats_in_cost_and_error() -> None:
    errors = {("a", "20"): 8.0, ("a", "56"): 7.0, ("b", "20"): 8.0, ("b", "56"): 9.0, ("c", "20"): 9.0, ("c", "56"): 7.5}
    given = evidence(design({"k": "abc", "depth": ("20", "56")}), lambda levels, _: errors[levels["k"], levels["depth"]])
    front = {cell.label for cell in analyze_study(given).cells if cell.on_pareto_front}
    assert front == {"k=a depth=20", "k=b depth=20", "k=a depth=56"}  # equals in both do not beat each other


def test_a_cell_without_completed_runs_is_not_on_the_front() -> None:
    given = evidence(design({"depth": ("20", "56")}, seeds=1), lambda levels, _: float(levels["depth"]))
    assert [cell.on_pareto_front for cell in analyze_study(without(given, "depth=20/0", "oom")).cells] == [False, True]


def test_differences_are_those_of_equal_seeds() -> None:
    """Seeds differ by whole points and differences do not: an unpaired comparison would see nothing."""
    found = compared(analyze_study(evidence(truth=additive)), "shortcut=none depth=20")
    differences = 2 + NOISE["none"][:3] - NOISE["A"][:3]
    assert found.baseline == "shortcut=A depth=20"
    assert found.difference.mean == pytest.approx(np.mean(differences))
    assert found.difference.std == pytest.approx(np.std(differences, ddof=1))
    assert found.difference.p is not None
    assert found.note == ""


def test_every_cell_but_the_baselines_is_compared() -> None:
    assert [each.cell for each in analyze_study(evidence()).comparisons] == [
        c.label for c in design().cells if c.levels["shortcut"] != "A"
    ]
    assert analyze_study(evidence(design(baseline={}))).comparisons == ()
    nested = analyze_study(evidence(design(baseline={"shortcut": "A", "depth": "20"}))).comparisons
    assert {each.baseline for each in nested} == {"shortcut=A depth=20"}
    assert len(nested) == 5


def test_only_seeds_that_both_completed_are_compared_and_the_others_are_named() -> None:
    given = without(evidence(truth=additive), "shortcut=none depth=20/1", "diverged")
    found = analyze_study(without(given, "shortcut=A depth=56/0"))
    part = compared(found, "shortcut=none depth=20")
    assert part.difference.mean == pytest.approx(np.mean((2 + NOISE["none"] - NOISE["A"])[[0, 2]]))
    assert (part.difference.n, part.difference.p) == (2, None)
    assert all(each in part.note for each in ("2 of 3 pairs", "seed 1 diverged", "no p-value"))
    assert "seed 0 missing in the baseline" in compared(found, "shortcut=B depth=56").note


def test_a_comparison_without_any_pair_says_so() -> None:
    given = evidence(design(seeds=5))
    for seed in range(5):
        given = without(given, f"shortcut=none depth=20/{seed}", "diverged" if seed else "oom")
    found = compared(analyze_study(given), "shortcut=none depth=20")
    assert (found.difference.n, found.difference.mean) == (0, None)
    assert all(each in found.note for each in ("0 of 5 pairs", "seed 0 oom", "4 seeds diverged"))


@pytest.mark.parametrize(("more", "p", "note"), [(0.0, None, "no difference"), (0.3, 0.25, "same difference")])
def test_equal_differences_have_an_exact_p_and_the_note_says_so(more: float, p: float | None, note: str) -> None:
    given = evidence(truth=lambda levels, seed: 8 + 0.1 * seed + more * (levels["shortcut"] == "none"))
    found = compared(analyze_study(given), "shortcut=none depth=20")
    assert (found.difference.std, found.difference.low, found.difference.p) == (0, None, p)
    assert note in found.note


def test_one_factor_alone_is_a_family_with_holms_method() -> None:
    made = design({"shortcut": ("none", "A", "B", "C")}, seeds=5)
    draw = np.random.default_rng(0)
    found = analyze_study(evidence(made, lambda *_: 8 + draw.normal()))
    p_values = [each.difference.p or 0 for each in found.comparisons]
    assert [each.difference.p_adjusted for each in found.comparisons] == pytest.approx(holm_adjust(p_values))
    assert found.tests == 3
    assert found.effect_bonferroni == pytest.approx(3)


def test_a_later_look_raises_p_and_widens_intervals() -> None:
    made = replace(design({"shortcut": ("none", "A")}, seeds=5), planned_seeds=10)
    draw = np.random.default_rng(0)
    given = evidence(made, lambda *_: 8 + draw.normal())
    one, later = (
        analyze_study(replace(given, design=replace(made, planned_seeds=n), looks=looks)) for n, looks in ((5, ()), (10, (3,)))
    )
    difference, same = one.comparisons[0].difference, later.comparisons[0].difference
    share = (5 / 10) ** 2 - (3 / 10) ** 2
    assert same.p == pytest.approx(min(1, (difference.p or 0) / share))
    assert (same.low or 0) < (difference.low or 0)
    assert later.flags[0].startswith("Read at 3 and 5 seeds of 10 planned")
    assert one.flags == ()


def test_the_effect_of_a_level_is_its_mean_difference_over_the_other_factors_in_each_seed() -> None:
    found = analyze_study(evidence(truth=additive))
    none = effect(found, "none")
    assert (none.factor, none.reference, none.combinations) == ("shortcut", "A", 2)
    assert none.difference.mean == pytest.approx(np.mean(2 + NOISE["none"][:3] - NOISE["A"][:3]))
    deeper = effect(found, "56")
    assert (deeper.factor, deeper.reference, deeper.combinations) == ("depth", "20", 3)
    assert deeper.difference.mean == pytest.approx(-1)
    assert deeper.difference.std == 0


def test_a_missing_run_costs_its_combination_a_seed_and_no_other_one() -> None:
    found = analyze_study(without(evidence(design(seeds=5), additive), "shortcut=none depth=56/0"))
    assert [effect(found, level).difference.n for level in ("none", "B", "56")] == [4, 5, 4]
    noise = 2 + NOISE["none"] - NOISE["A"]
    assert effect(found, "none").difference.mean == pytest.approx((np.mean(noise[:5]) + np.mean(noise[1:5])) / 2)
    assert effect(found, "none").of_combinations == 0


def test_combinations_with_too_few_seeds_are_left_out_of_an_average_which_says_so() -> None:
    found = analyze_study(without(evidence(truth=additive), "shortcut=none depth=56/0"))
    none = effect(found, "none")
    assert (none.difference.n, none.combinations, none.of_combinations) == (3, 1, 2)
    assert none.difference.mean == pytest.approx(np.mean((2 + NOISE["none"] - NOISE["A"])[:3]))
    assert "none instead of A (only at depth=20)" in next(each.text for each in found.answers if each.factor == "shortcut")


def test_an_effect_is_averaged_over_combinations_at_which_both_levels_exist() -> None:
    made = missing_cell(design(), "shortcut=none depth=56")
    found = analyze_study(evidence(made, additive))
    assert [effect(found, level).combinations for level in ("none", "B", "56")] == [1, 2, 2]
    assert [each.levels for each in found.interactions] == [("B", "56")]


def test_what_is_said_of_single_combinations_is_what_the_comparisons_say() -> None:
    """If the baseline names one factor, its simple effects are the study's comparisons, in the same family of tests."""
    made = design(seeds=5)
    errors = np.random.default_rng(0).normal(8, 1, (6, 5))
    runs = evidence(made).runs.assign(value=errors.ravel())
    found = {each.cell: each.difference for each in analyze_study(replace(evidence(made), runs=runs)).comparisons}
    scale = Scale(tolerance=zero_tolerance(errors))
    outcomes = [["completed"] * 5] * 6
    family = Family(design=made, values=errors, failures=find_failures(errors, outcomes, made.metric, None), scale=scale)
    simple = {f"shortcut={each.level} {each.at}": each.difference for each in family.simple_effects("shortcut")}
    assert simple == found


def test_an_interaction_is_a_difference_of_differences() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return additive(levels, seed) + (levels["shortcut"] == "none") * (levels["depth"] == "56") * (5 + 0.1 * seed)

    first, second = analyze_study(evidence(truth=truth)).interactions
    assert (first.factors, first.levels, first.references) == (("shortcut", "depth"), ("none", "56"), ("A", "20"))
    assert [first.difference.mean, first.difference.std] == pytest.approx([5.1, 0.1])
    assert second.levels == ("B", "56")
    assert second.difference.mean == pytest.approx(0)


def test_an_interaction_is_averaged_over_the_other_factors() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return 8 + seed + {"110": 2.0, "111": 4.0}.get("".join(levels.values()), 0)

    found = analyze_study(evidence(design({"a": "01", "b": "01", "c": "01"}), truth))
    means = {each.factors: each.difference.mean for each in found.interactions}
    assert means == {("a", "b"): 3, ("a", "c"): 1, ("b", "c"): 1}


def test_factors_with_one_level_are_left_out_of_everything_but_the_cells() -> None:
    given = evidence(design({"shortcut": ("A", "B"), "depth": ("20",), "width": ("16",)}, seeds=4), additive_or_flat)
    found = analyze_study(given)
    assert {each.factor for each in found.effects} == {each.factor for each in found.answers} == {"shortcut"}
    assert found.interactions == ()
    assert found.anova is not None
    assert [term.term for term in found.anova.terms] == ["seed", "shortcut"]


def additive_or_flat(levels: Mapping[str, str], seed: int) -> float:
    return 8 + seed + float(NOISE[levels.get("shortcut", "A")][seed])


def test_analysis_of_variance_says_what_it_was_made_from() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return additive(levels, seed) + float(np.random.default_rng([seed, int(levels["depth"])]).normal(0, 0.2))

    whole = analyze_study(evidence(truth=truth))
    assert whole.anova is not None
    assert [term.term for term in whole.anova.terms] == ["seed", "shortcut", "depth", "shortcut × depth"]
    assert (whole.anova.residual_df, whole.no_anova) == (10, "")
    assert "18 planned runs" in whole.anova.note
    part = analyze_study(without(evidence(truth=truth), "shortcut=none depth=56/0")).anova
    assert part is not None
    assert "17 of 18 runs" in part.note


def test_analysis_of_variance_warns_of_unequal_spread() -> None:
    def truth(levels: Mapping[str, str], seed: int) -> float:
        return 8 + (20 if levels["shortcut"] == "none" else 1) * float(NOISE[levels["shortcut"]][seed])

    found = analyze_study(evidence(truth=truth)).anova
    assert found is not None
    assert "equal variances" in found.note


def test_why_there_is_no_analysis_of_variance() -> None:
    given = evidence()
    for seed in range(3):
        given = without(given, f"shortcut=B depth=20/{seed}", "oom")
    cases = {
        "no run completed in shortcut=B depth=20": given,
        "the design lacks 1 of 6 combinations": evidence(missing_cell(design(), "shortcut=A depth=20")),
        "it needs 3 seeds": evidence(design(seeds=2)),
        "no factor has two levels": evidence(design({"depth": ("20",)})),
        "all runs have the same value": evidence(truth=lambda *_: 8.0),
        "the residual variance is zero": evidence(truth=lambda levels, seed: float(levels["depth"]) + seed),
    }
    for why, case in cases.items():
        found = analyze_study(case)
        assert found.anova is None
        assert found.no_anova.startswith(why)


def test_names_of_factors_and_levels_may_hold_anything() -> None:
    factors = {"optim.lr": ("a:b", "<b>", "C(x)"), "f0 ~ 1": ("None", "nan", "' + 1"), "Intercept": ("", " ", "=")}
    draw = np.random.default_rng(0)
    found = analyze_study(evidence(design(factors, {"optim.lr": "<b>"}), lambda *_: 8 + draw.normal()))
    assert isinstance(found.anova, Anova)
    assert [term.term for term in found.anova.terms][1:5] == [*factors, "optim.lr × f0 ~ 1"]
    assert {term.df for term in found.anova.terms} == {2, 4}
    assert [(each.level, each.reference, each.combinations) for each in found.effects[:2]] == [
        ("a:b", "<b>", 9),
        ("C(x)", "<b>", 9),
    ]


def test_a_study_with_nothing_but_results_has_no_flags() -> None:
    found = analyze_study(evidence())
    assert found.flags == ()
    assert found.complete


def test_runs_that_are_owed_and_runs_that_diverged_are_flagged_apart() -> None:
    given = without(evidence(), "shortcut=B depth=56/1", "diverged")
    assert analyze_study(given).flags == ("1 of 18 runs diverged (shortcut=B depth=56)",)
    found = analyze_study(without(given, "shortcut=A depth=20/2", "running"))
    assert "1 of 18 runs" in found.flags[0]
    assert "shortcut=A depth=20" in found.flags[0]
    assert not found.complete


def test_few_seeds_are_flagged() -> None:
    for seeds in (1, 2):
        (flag,) = analyze_study(evidence(design(seeds=seeds))).flags
        assert "no p-values" in flag
        assert flag.endswith(str(seeds))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("condition", "value", "shown"),
    [
        ("code_version", "0123456789abcdef0123", "code version: cccccccc (4 cells), 01234567"),
        ("code_version", f"{'c' * 20}, {'0' * 20}", "code version: cccccccc (4 cells), cccccccc, 00000000"),
        ("data_version", "0123456789abcdef0123", "data version: dddddddd (4 cells), 01234567"),
        ("world_size", "4", "world size: 1 (4 cells), 4"),
        ("precision", "bf16", "precision: fp32 (4 cells), bf16"),
        ("device", "NVIDIA H200", "device: AMD EPYC (4 cells), NVIDIA H200"),
        ("torch", "2.15.0", "torch: 2.14.1 (4 cells), 2.15.0"),
        ("python", "3.12.1", "python: 3.11 (4 cells), 3.12"),
    ],
)
def test_conditions_that_differ_between_cells_are_named_with_their_cells(condition: str, value: str, shown: str) -> None:
    given = changed(evidence(), ["shortcut=B depth=20", "shortcut=B depth=56"], **{condition: value})
    found = analyze_study(given)
    assert found.flags == (f"Runs differ in {shown} (shortcut=B depth=20, shortcut=B depth=56)",)
    assert not any(cell.flags for cell in found.cells)


def test_conditions_that_differ_within_a_cell_are_said_of_the_cell_and_the_study() -> None:
    given = evidence()
    given.runs.loc[given.runs["fingerprint"] == "shortcut=A depth=20/2", "torch"] = "2.15.0"
    found = analyze_study(given)
    assert found.flags == ("Runs differ in torch: 2.14.1 (17 runs), 2.15.0 (1 run)",)
    assert {cell.label: cell.flags for cell in found.cells if cell.flags} == {
        "shortcut=A depth=20": ("trained with torch 2.14.1 and 2.15.0",)
    }


def test_what_is_unknown_varied_or_of_no_result_is_not_flagged() -> None:
    cells = ["shortcut=B depth=20"]
    assert analyze_study(changed(evidence(), cells, device="", git__commit="b" * 40, python="3.11.9")).flags == ()
    made = design({"precision": ("fp32", "bf16")}, {"precision": "fp32"})
    assert analyze_study(changed(evidence(made), ["precision=bf16"], precision="bf16")).flags == ()
    failed = changed(without(evidence(), "shortcut=B depth=20/0", "failed"), [], device="x")
    failed.runs.loc[failed.runs["outcome"] == "failed", "device"] = "Raspberry Pi"
    assert not any("device" in flag for flag in analyze_study(failed).flags)


def test_local_changes_are_flagged_with_the_files() -> None:
    where = {"git__dirty": "true", "git__changed": "resnet_core/optim.py, resnet_core/new.py (untracked)"}
    (flag,) = analyze_study(changed(evidence(), ["shortcut=B depth=20"], **where)).flags
    assert "3 runs" in flag
    assert "resnet_core/optim.py, resnet_core/new.py (untracked)" in flag
    # Runs of before the files were recorded.
    (flag,) = analyze_study(changed(evidence(), ["shortcut=B depth=20"], git__dirty="true")).flags
    assert "3 runs" in flag


def test_runs_of_a_task_that_may_have_continued_from_a_checkpoint_are_flagged() -> None:
    cells = ["shortcut=B depth=20"]
    of_task = replace(design(), task="chars")
    (flag,) = analyze_study(changed(evidence(of_task), cells, attempts=2)).flags
    assert flag.startswith("3 runs were started more than once. Continuing from a checkpoint is exact only if this training saves")
    given = evidence(of_task)
    given.runs.loc[given.runs["fingerprint"] == "shortcut=A depth=20/2", "attempts"] = 3
    (flag,) = analyze_study(given).flags
    assert flag.startswith("1 run was started more than once.")
    assert analyze_study(evidence(of_task)).flags == ()
    assert analyze_study(changed(evidence(), cells, attempts=2)).flags == (), "image classification continues exactly"
    unfinished = without(changed(evidence(of_task), [], attempts=1), "shortcut=B depth=20/0", "failed")
    unfinished.runs.loc[unfinished.runs["outcome"] == "failed", "attempts"] = 2
    assert not any("more than once" in flag for flag in analyze_study(unfinished).flags)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_study_of_which_no_run_has_ended_is_analysed(seeds: int) -> None:
    given = evidence(design(seeds=seeds))
    for fingerprint in given.runs["fingerprint"]:
        given = without(given, fingerprint, "running")
    found = analyze_study(given)
    assert all(cell.value.n == 0 and cell.parameters is None and not cell.on_pareto_front for cell in found.cells)
    differences = [each.difference for family in (found.comparisons, found.effects, found.interactions) for each in family]
    assert {each.n for each in differences} == {0}
    assert {each.verdict for each in found.answers} == {"cannot be said"}


def test_a_study_of_one_cell_has_an_error_and_no_answers() -> None:
    found = analyze_study(evidence(design({"depth": ("20",)})))
    assert found.cells[0].value.n == 3
    assert (found.comparisons, found.effects, found.interactions, found.answers) == ((), (), (), ())


def test_the_order_of_runs_does_not_matter() -> None:
    given = evidence(truth=additive)
    turned = replace(given, runs=given.runs.sample(frac=1, random_state=0).reset_index(drop=True))
    assert _numbers(analyze_study(turned)) == pytest.approx(_numbers(analyze_study(given)), nan_ok=True)


def _numbers(found: Findings) -> list[float]:
    """Every number of the findings, in order."""

    def walk(value: Any) -> list[float]:
        if isinstance(value, Mapping):
            return list(itertools.chain.from_iterable(map(walk, value.values())))
        if isinstance(value, (tuple, list)):
            return list(itertools.chain.from_iterable(map(walk, value)))
        return [math.nan] if value is None else [float(value)] if isinstance(value, (int, float)) else []

    return walk(asdict(found))


@pytest.mark.slow
def test_of_whole_studies_without_effect_few_say_that_something_matters() -> None:
    """At most 5 % do: `test_conclusions` has more of them."""
    draw = np.random.default_rng(0)
    made = design({"shortcut": ("none", "A", "B"), "depth": ("20", "56")}, seeds=5)
    given = evidence(made, epochs=0)
    false_claims = 0
    for _ in range(30):
        spread = np.where(given.runs["cell"].str.contains("none"), 5.0, 0.3)
        runs = given.runs.assign(value=8 + draw.normal(0, 1, 5)[given.runs["seed"]] + spread * draw.normal(size=len(given.runs)))
        false_claims += any(each.verdict == "matters" for each in analyze_study(replace(given, runs=runs)).answers)
    assert false_claims <= 30 * 0.06 + 3 * math.sqrt(30 * 0.06 * 0.94)


@pytest.mark.slow
def test_two_thousand_runs_are_analysed_in_three_seconds() -> None:
    draw = np.random.default_rng(0)
    levels = [str(i) for i in range(20)]
    given = evidence(design({"a": levels, "b": levels}, {"a": "3"}, seeds=5), lambda *_: 8 + draw.normal(), epochs=0)
    analyze_study(evidence())  # imports
    began = time.process_time()  # other processes are not its fault
    found = analyze_study(given)
    assert time.process_time() - began < 3
    assert found.anova is not None
    assert (len(found.comparisons), len(found.effects), len(found.interactions)) == (380, 38, 361)
