"""Analysis of a search: its cost, choices and gains, and the order of variants before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ablations.engine.analysis.evidence import Evidence
from ablations.engine.analysis.statistics.inference import holm_adjust
from ablations.engine.analysis.study_analysis import analyze_study
from ablations.engine.analysis.trial_table import search_design
from ablations.engine.analysis.tuning.findings import Ranking, SearchFindings
from ablations.engine.analysis.tuning.importance import field_importances
from tests.helpers.synthetic_search import FIELDS, OFFSETS, TUNED, search_evidence
from tests.helpers.synthetic_study import without

TWO = {name: FIELDS[name] for name in ("optim.lr", "model.width")}


def found(evidence: Evidence) -> SearchFindings:
    search = analyze_study(evidence).search
    assert search
    return search


def ranked(shifts: Mapping[str, tuple[float, float]], seeds: int = 5, drop: str = "") -> Ranking:
    """Return the search of variants that are so many points worse than A before and after tuning."""

    def truth(levels: Mapping[str, str], seed: int) -> float:
        before, after = shifts.get(levels["shortcut"], (0, 0))
        noise = 0.1 * ((7 * seed + 3 * ord(levels["shortcut"][0]) + 2 * len(levels["configuration"])) % 5)
        return 10 + seed + noise + (before if levels["configuration"] == "default" else after - 1)

    given = search_evidence({"shortcut": ("A", *shifts)}, TWO, trials=3, seeds=seeds, truth=truth)
    if drop:
        given = replace(given, runs=without(given, drop).runs)
    ranking = found(given).ranking
    assert ranking
    return ranking


def with_value(given: Evidence, field: str, value: Any) -> Evidence:
    """The same, where the trial that the first cell chose has another value."""
    assert given.trials is not None
    search = search_design(given)
    label = search.cells[0].label
    trials = given.trials.copy()
    trials.loc[(trials["cell"] == label) & (trials["number"] == search.chosen[label]["tuned"]), field] = value
    return replace(given, trials=trials)


def test_what_each_search_took_is_the_sum_of_its_trials_whatever_came_of_them() -> None:
    given = search_evidence(fields=TWO)
    assert given.trials is not None
    for cell in found(given).cells:
        trials = given.trials[given.trials["cell"] == cell.label]
        assert cell.trials == 30
        assert cell.outcomes == trials["outcome"].value_counts().to_dict()
        assert (cell.epochs, cell.seconds) == (trials["epochs"].sum(), trials["seconds"].sum())
        assert cell.gpu_hours == pytest.approx(trials["gpu_hours"].sum())


@pytest.mark.slow
def test_a_choice_has_its_own_values_as_they_were_searched() -> None:
    given = search_evidence()
    assert given.trials is not None
    for cell in found(given).cells:
        (chosen,) = cell.chosen
        row = given.trials[(given.trials["cell"] == cell.label) & (given.trials["number"] == chosen.number)].iloc[0]
        assert (chosen.level, chosen.score) == ("tuned", row["value"])
        assert {type(value) for value in chosen.values.values()} == {float, str, int}, (
            "a width is whole, though a table has it as 14.0"
        )
        assert ("optim.momentum" in chosen.values) == (chosen.values["optim.schedule"] == "cosine")
        assert chosen.values["optim.lr"] == row["optim.lr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "edge"),
    [
        ("optim.lr", 0.0014, "low"),
        ("optim.lr", 0.0015, ""),
        ("optim.lr", 0.05, ""),
        ("optim.lr", 0.72, "high"),
        ("model.width", 8, "low"),
        ("model.width", 23, ""),
        ("model.width", 24, "high"),
    ],
)
def test_a_choice_close_to_an_end_of_its_range_is_told_on_the_scale_that_was_searched(field: str, value: float, edge: str) -> None:
    search = found(with_value(search_evidence(fields=TWO, trials=5), field, value))
    assert search.cells[0].chosen[0].at_edge.get(field, "") == edge
    assert any(f"chose {field}={value:g}, at the {edge} end of its range" in note for note in search.notes) == bool(edge)


@pytest.mark.slow
def test_the_field_that_moves_the_error_has_the_largest_share_and_only_it_is_above_chance() -> None:
    given = search_evidence({}, TWO, prunes=False)
    (cell,) = search_design(given).cells
    shares = field_importances(given, cell)
    assert not isinstance(shares, str)
    assert [each.field for each in shares] == ["optim.lr", "model.width"]
    assert sum(each.share for each in shares) == pytest.approx(1)
    assert shares[0].low > 0.5, "the width moves nothing"
    assert [each.above_chance for each in shares] == [True, False]
    assert shares[1].low > 0, "the range over resamples never holds the true importance, 0"
    assert all(0 <= each.low < each.high <= 1 for each in shares)
    assert all(0 < each.floor < 1 for each in shares)
    assert field_importances(given, cell) == shares, "the same report twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("searches", "most"), [(30, 0.2), pytest.param(600, 0.07, marks=pytest.mark.nightly)], ids=("reduced", "full")
)
def test_an_irrelevant_field_is_above_chance_in_five_percent(searches: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablations.engine.analysis.tuning.importance.BOOTSTRAP_RESAMPLES", 1)
    fields = {"optim.lr": {"low": 0.001, "high": 0.5, "log": True}, "model.width": FIELDS["model.width"]}
    given = search_evidence({}, fields, prunes=False)
    assert given.trials is not None
    (cell,) = search_design(given).cells
    above: dict[str, list[bool]] = {name: [] for name in fields}
    for search in range(searches):
        random, n = np.random.default_rng(search), len(given.trials)
        lr, width = 10 ** random.uniform(-3, np.log10(0.5), n), random.integers(8, 25, n)
        value = 10 + 3 * np.log10(lr / 0.1) ** 2 + random.normal(0, 0.3, n)
        columns: dict[str, Any] = {"optim.lr": lr, "model.width": width, "value": value, "outcome": "completed"}
        shares = field_importances(replace(given, trials=given.trials.assign(**columns)), cell)
        assert not isinstance(shares, str)
        for each in shares:
            above[each.field].append(each.above_chance)
    assert np.mean(above["model.width"]) <= most
    assert np.mean(above["optim.lr"]) > 0.7


@pytest.mark.parametrize(
    ("fields", "trials", "reason"),
    [(TWO, 9, "10 completed trials"), ({"optim.lr": FIELDS["optim.lr"]}, 20, "only one"), (TWO, 20, "same validation error")],
)
def test_why_there_are_no_importances_is_said(fields: Any, trials: int, reason: str) -> None:
    given = search_evidence({}, fields, trials, prunes=False)
    assert given.trials is not None
    if reason == "same validation error":
        given = replace(given, trials=given.trials.assign(value=5.0))
    (cell,) = found(given).cells
    assert reason in cell.no_importances
    assert not cell.importances


def test_gains_are_of_test_errors_paired_by_seed_and_one_family_of_tests() -> None:
    gains = found(search_evidence(fields=TWO, trials=5)).gains
    assert [gain.cell for gain in gains] == ["shortcut=none", "shortcut=A", "shortcut=B"]
    for gain in gains:
        truth = TUNED[gain.cell.rpartition("=")[2]]
        assert gain.difference.low is not None
        assert gain.difference.high is not None
        assert gain.difference.low < truth < gain.difference.high
    assert [gain.difference.p_adjusted for gain in gains] == pytest.approx(holm_adjust([gain.difference.p or 1 for gain in gains]))


def test_all_pairs_before_and_after_are_paired_and_corrected_as_one_family_and_their_changes_as_another() -> None:
    ranking = found(search_evidence(fields=TWO, trials=5)).ranking
    assert ranking
    pairs = [(each.cell.rpartition("=")[2], each.other.rpartition("=")[2]) for each in ranking.changes]
    assert pairs == [("none", "A"), ("B", "A"), ("B", "none")], "those with the baseline first"
    for each, (one, other) in zip(ranking.changes, pairs, strict=True):
        before, tuned = OFFSETS[one] - OFFSETS[other], TUNED[one] - TUNED[other]
        assert each.before.mean == pytest.approx(before, abs=0.3)
        assert each.after.mean == pytest.approx(before + tuned, abs=0.3)
        assert (each.after.mean or 0) - (each.before.mean or 0) == pytest.approx(each.change.mean)
    differences = [estimate for each in ranking.changes for estimate in (each.before, each.after)]
    assert len(differences) == 6
    for family in (differences, [each.change for each in ranking.changes]):
        assert [estimate.p_adjusted for estimate in family] == pytest.approx(holm_adjust([estimate.p or 1 for estimate in family]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shifts", "verdict", "numbers"),
    [
        ({"B": (3, 3), "C": (-2, -2)}, "survives", ("shortcut=B", "shortcut=C", "shortcut=A")),
        ({"B": (-2, -2)}, "survives", ("shortcut=B", "better", "2.00 points [1.66, 2.34]")),
        ({"B": (3, 1)}, "survives", ("worse", "narrows")),
        ({"B": (3, 3), "C": (0, 0)}, "survives", ("shortcut=C",)),
        ({"B": (3, -3), "C": (2, 2)}, "reverses", ("worse", "better")),
        ({"B": (3, 0)}, "changes", ("worse", "narrows")),
        ({"B": (0, 3)}, "changes", ("worse", "widens")),
        ({"B": (0, 0)}, "no order shown", ("No order of the variants is shown: ", "shortcut=B", "shortcut=A")),
        ({"B": (0, 0), "C": (0, 0)}, "no order shown", ("Of 3 pairs of variants, none is certainly ordered",)),
        (
            {"B": (2, 6), "C": (6, 2)},
            "reverses",
            (
                "reverses with tuning: shortcut=B and shortcut=C change places. Of 3 pairs of variants, 3 are certainly ordered "
                "with the default configuration and 3 after tuning: shortcut=C is worse than shortcut=B by 4.00 points",
            ),
        ),
        (
            {"B": (-3, -1), "C": (-1, -3)},
            "reverses",
            ("shortcut=B and shortcut=C change places", "The best variant changes from shortcut=B to shortcut=C."),
        ),
        (
            {"B": (1, 1), "C": (2, 2), "D": (3, 3)},
            "survives",
            (
                "Of 6 pairs of variants, 6 are",
                "and 6 after tuning, and each of these orders is kept",
                "the table shows 3 more pairs",
            ),
        ),
        (
            {"B": (3, 3), "C": (-0.1, 0.1)},
            "survives",
            (
                "2 are certainly ordered",
                "Which variant is best is not shown: the best mean is that of shortcut=C with the default configuration and that "
                "of shortcut=A after tuning.",
            ),
        ),
    ],
)
def test_the_verdict_on_the_ranking_follows_from_significant_differences(
    shifts: Mapping[str, tuple[float, float]], verdict: str, numbers: Sequence[str]
) -> None:
    ranking = ranked(shifts)
    assert ranking.verdict == verdict
    assert all(each in ranking.text for each in numbers)


def test_a_difference_that_is_no_longer_certain_is_not_taken_for_one_that_tuning_changed() -> None:
    after = (0.6, 1.4, -0.2, 1.5, 0.9)

    def truth(levels: Mapping[str, str], seed: int) -> float:
        worse = (1 + seed / 50) if levels["configuration"] == "default" else after[seed]
        return 10 + (worse if levels["shortcut"] == "B" else 0)

    ranking = found(search_evidence({"shortcut": ("A", "B")}, TWO, trials=3, truth=truth)).ranking
    assert ranking
    assert ranking.verdict == "no change shown"
    assert "−0.20 points [−1.05, +0.65], may be chance" in ranking.text


def test_an_order_that_only_becomes_certain_does_not_stop_the_others_from_surviving() -> None:
    """B gains no certain place before tuning; its change may be chance, and the order of A and C is kept."""
    before = (0.6, 1.4, -0.2, 1.5, 0.9)

    def truth(levels: Mapping[str, str], seed: int) -> float:
        worse = {"B": before[seed] if levels["configuration"] == "default" else 1 + seed / 50, "C": 6 + seed / 30}
        return 10 + worse.get(levels["shortcut"], 0)

    ranking = found(search_evidence({"shortcut": ("A", "B", "C")}, TWO, trials=3, truth=truth)).ranking
    assert ranking
    assert ranking.verdict == "survives"
    assert "2 are certainly ordered with the default configuration and 3 after tuning, and each of these" not in ranking.text
    assert "certainly ordered with the default configuration and 3 after tuning, and each order of the default" in ranking.text


def test_a_certain_turn_is_said_although_another_variant_cannot_be_tested() -> None:
    ranking = ranked({"B": (2, 6), "C": (6, 2)}, seeds=3, drop="shortcut=A configuration=tuned/1")
    assert ranking.verdict == "reverses"
    assert "shortcut=B and shortcut=C change places; shortcut=C is worse than shortcut=B" in ranking.text
    assert "2 of 3 pairs cannot be tested yet: a test needs 3 seeds" in ranking.text
    assert "shortcut=A by" not in ranking.text
    tested = [each for each in ranking.changes if "shortcut=A" not in (each.cell, each.other)]
    assert [each.before.p_adjusted for each in tested] > [each.before.p for each in tested], "the family has all pairs"


def test_variants_are_ranked_within_the_levels_of_factors_without_a_baseline() -> None:
    factors = {"shortcut": ("none", "A", "B"), "depth": ("20", "56")}
    given = search_evidence(factors, TWO, trials=3)
    ranking = found(given).ranking
    assert ranking
    assert len(ranking.changes) == 6
    assert all(each.cell.rpartition(" ")[2] == each.other.rpartition(" ")[2] for each in ranking.changes)


def test_too_few_seeds_or_missing_runs_leave_the_ranking_unsaid() -> None:
    few = ranked({"B": (3, 3)}, seeds=2)
    assert few.verdict == "cannot be said yet"
    assert all(each in few.text for each in ("3 seeds", "2", "shortcut=B"))
    lost = ranked({"B": (3, 3)}, seeds=3, drop="shortcut=A configuration=tuned/1")
    assert lost.verdict == "cannot be said yet"
    left_out = ranked({"B": (3, 3)}, seeds=4, drop="shortcut=A configuration=tuned/1")
    assert left_out.verdict == "survives"
    assert "3 of 4 seeds" in left_out.text


def test_a_search_that_chose_the_default_ranks_with_it_and_gains_nothing() -> None:
    given = search_evidence(fields=TWO, trials=5)
    gone = "shortcut=B configuration=tuned"
    design = replace(
        given.design,
        cells=tuple(cell for cell in given.design.cells if cell.label != gone),
        skipped=((gone, "the search chose the default configuration"),),
    )
    search = found(replace(given, design=design))
    assert [gain.cell for gain in search.gains] == ["shortcut=none", "shortcut=A"]
    assert search.ranking
    assert search.ranking.verdict == "survives"
    b = next(each for each in search.ranking.changes if (each.cell, each.other) == ("shortcut=B", "shortcut=A"))
    assert b.after.mean == pytest.approx(OFFSETS["B"] - TUNED["A"], abs=0.3)
    assert any("shortcut=B chose the default configuration" in note for note in search.notes)


def test_there_is_no_ranking_without_variants_or_with_a_front_or_before_the_choice() -> None:
    assert found(search_evidence({}, TWO, trials=5)).ranking is None
    front = found(search_evidence(fields=TWO, trials=5, objective="flops"))
    assert front.ranking is None
    assert {gain.level for gain in front.gains} <= {"front-1", "front-2"}
    searching = found(search_evidence(fields=TWO, trials=5, over=False))
    assert searching.ranking is None
    assert not searching.gains
    assert not any(cell.chosen for cell in searching.cells)


def test_searches_that_took_unequal_time_are_named() -> None:
    given = search_evidence(fields=TWO, trials=5)
    assert given.trials is not None
    seconds = {"shortcut=none": 1.0, "shortcut=A": 1.5, "shortcut=B": 2.1}
    unequal = replace(given, trials=given.trials.assign(seconds=given.trials["cell"].map(seconds)))
    (note,) = (note for note in found(unequal).notes if "time" in note)
    assert "shortcut=B took 10 s, 2.1 times as long as shortcut=none (5 s)" in note
    assert not [note for note in found(replace(given, trials=given.trials.assign(seconds=1.0))).notes if "time" in note]


@pytest.mark.slow
def test_trials_of_an_earlier_submission_that_searched_elsewhere_are_counted_and_break_nothing() -> None:
    given = with_value(search_evidence({}, prunes=False, trials=12), "optim.lr", 3.0)
    given = with_value(given, "optim.schedule", "constant")
    (cell,) = found(given).cells
    assert cell.chosen[0].values["optim.lr"] == 3.0
    assert cell.chosen[0].values["optim.schedule"] == "constant"
    assert sum(cell.outcomes.values()) == 12
