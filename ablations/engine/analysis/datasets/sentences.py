"""Sentences about effects over data sets. They claim no more than the tests support."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablations.engine.analysis.datasets.findings import (
    COMMON,
    DIFFERS,
    NOT_SHOWN,
    UNTESTED,
    DatasetStudy,
    EffectOverDatasets,
    Ranks,
)
from ablations.engine.analysis.designs.screening import aliases_of
from ablations.engine.analysis.findings import Effect
from ablations.engine.analysis.number_format import MIN_DISPLAYED_P, ValueFormat
from ablations.engine.analysis.verdicts.claims import claims_difference, claims_failures, favors_failing_level, may_differ
from ablations.engine.analysis.verdicts.sentences import level_change, sentence
from ablations.engine.study.designs import LADDER, ONE_AT_A_TIME
from resnet_core.fields import counted

PLACES = {ONE_AT_A_TIME: ", with all other factors at the baseline", LADDER: ", added to the rung below"}
"""Clause that names the setting in which a design's effects hold, for designs that do not average over the other factors."""
MAX_LISTED = 3
"""Largest number of data sets or cells that a sentence lists one by one."""


class DatasetSentences:
    """Sentences about the effects of levels over data sets.

    Args:
        formats: formats of the values.
        tests: number of tests in the summary's family.
        studies: the study on each data set.
    """

    def __init__(self, formats: ValueFormat, tests: int, studies: Sequence[DatasetStudy]) -> None:
        self._formats, self._tests, self._studies = formats, tests, studies

    def described(self, effect: EffectOverDatasets) -> EffectOverDatasets:
        """Return an effect with its verdict and its sentences."""
        return replace(effect, verdict=self._verdict(effect), text=self._text(effect))

    def ranking(self, ranks: Ranks) -> str:
        """Return what the mean ranks show."""
        best, rank = next(iter(ranks.mean_ranks.items()))
        p = f"Friedman's test, adjusted {_p(ranks.p_adjusted)}"
        if not ranks.significant:
            return f"No difference in ranks shown over {len(self._studies)} data sets ({p})."
        near = next((group for group in ranks.groups if best in group), (best,))
        others = [cell for cell in ranks.mean_ranks if cell not in near]
        text = f"Ranks differ over {len(self._studies)} data sets ({p}). The best mean rank, {rank:.2f}, is that of {best}"
        if not others:
            return f"{text}, but it is not shown to differ from any other single cell (Nemenyi)."
        named = ", ".join(others) if len(others) <= MAX_LISTED else counted(len(others), "cell")
        return f"{text}, which is shown to be better than {named} (Nemenyi)."

    def _verdict(self, effect: EffectOverDatasets) -> str:
        if len(effect.by_dataset) < 2:
            return UNTESTED
        if effect.mean.significant and not self._favoring(effect) and not self._aliased(effect):
            return COMMON
        return DIFFERS if effect.heterogeneity and effect.heterogeneity.significant else NOT_SHOWN

    def _text(self, effect: EffectOverDatasets) -> str:
        found = effect.by_dataset
        change = level_change(next(iter({**found, **effect.without_estimate}.values())))
        kinds = {each.evidence.design.kind for each in self._studies}
        lead = f"{effect.factor}{PLACES.get(kinds.pop(), '') if len(kinds) == 1 else ''}"
        if len(found) < 2:
            only = [f"{name} only: {self._signed(each)}" for name, each in found.items()] or ["no data set"]
            parts = [f"{change} has an estimate on {only[0]}", self._failures(effect)]
        else:
            parts = [self._mean(effect, change), self._by_dataset(found), self._failures(effect)]
            parts += [self._differences(effect), self._elsewhere(effect)]
        first, *rest = [part for part in parts if part]
        return " ".join([f"{lead}: {first}.", *(f"{sentence(part)}." for part in rest)])

    def _mean(self, effect: EffectOverDatasets, change: str) -> str:
        """Return what is shown of the mean effect."""
        mean, formats = effect.mean, self._formats
        value, count = mean.mean or 0.0, len(effect.by_dataset)
        over = f"on average over {count} data sets"
        if mean.low is None:
            same = "the same on all of them" if mean.std == 0 else "without a test"
            return f"{change} gives {self._in_points(value)} {over}, {same}"
        interval = f"95 % CI {formats.signed(mean.low)} to {formats.signed(mean.high)}"
        label = f"the {formats.metric.label}"
        if mean.significant and self._favoring(effect):
            return f"{change} gives {self._in_points(value)} {over} ({interval}), which the failures may explain"
        if mean.significant and self._aliased(effect):
            return (
                f"{change} gives {self._in_points(value)} {over} ({interval}), together with interactions that the design does not "
                "tell apart from it"
            )
        if mean.significant:
            verb = "raises" if value > 0 else "lowers"
            return (
                f"on data sets like these, {change} {verb} {label} by {formats.size(value)} on average ({interval}, over {count})"
            )
        if may_differ(mean):
            chance = f"adjusted for {counted(self._tests, 'test')}, {_p(mean.p_adjusted or 1.0)}"
            verb = "raise" if value > 0 else "lower"
            return f"{change} may {verb} {label}: {self._in_points(value)} {over} ({interval}), but this may be chance ({chance})"
        if mean.p is None:
            return f"{change} gives {self._in_points(value)} {over} ({interval}), too few for a test of a common effect"
        return f"{change} gives {self._in_points(value)} {over} ({interval}): no common effect shown"

    def _by_dataset(self, found: Mapping[str, Effect]) -> str:
        """Return the effects on the data sets, their directions, and on which of them the studies show one."""
        means = {name: each.difference.mean or 0.0 for name, each in found.items()}
        if len(found) <= MAX_LISTED:
            values = "the effects are " + ", ".join(f"{self._signed(each)} on {name}" for name, each in found.items())
        else:
            least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            values = f"the effects are from {self._signed(found[least])} on {least} to {self._signed(found[most])} on {most}"
        higher, lower = (sum(sign * mean > 0 for mean in means.values()) for sign in (1, -1))
        if max(higher, lower) == len(found):
            values += ", in the same direction on " + ("both" if len(found) == 2 else f"all {len(found)}")
        elif higher and lower:
            values += f", higher on {higher} and lower on {lower}"
        shown = [name for name, each in found.items() if claims_difference(each, self._formats.metric)]
        if not shown:
            return f"{values}; none of the single studies shows a difference"
        if len(shown) == len(found):
            return f"{values}; each of the single studies shows a difference"
        where = ", ".join(shown) if len(shown) <= MAX_LISTED else f"{len(shown)} of {len(found)} data sets"
        return f"{values}; the single studies show a difference on {where} only"

    def _failures(self, effect: EffectOverDatasets) -> str:
        """Return where runs failed to train, since those that diverged are in no difference."""
        where, without_value = [], False
        for name, each in {**effect.by_dataset, **effect.without_estimate}.items():
            if (test := each.failures) and (test.without_value or claims_failures(each) or name in effect.without_estimate):
                without_value |= bool(test.without_value)
                where.append(
                    f"on {name}, {each.level} fails to train in {test.failed} of {counted(test.runs, 'run')}, {each.reference} in "
                    f"{test.reference_failed} of {test.reference_runs}"
                )
        silent = [name for name, each in effect.without_estimate.items() if not each.failures]
        missing = [f"there is no estimate on {', '.join(silent)}, which lacks runs"] if silent else []
        if not where:
            return "".join(missing)
        more = f"; there are failures on {counted(len(where) - MAX_LISTED, 'more data set')}" if len(where) > MAX_LISTED else ""
        trained = ["differences are over the seeds in which both trained"] if without_value else []
        return "; ".join([*where[:MAX_LISTED], *missing]) + more + "".join(f", and {text}" for text in trained)

    def _differences(self, effect: EffectOverDatasets) -> str:
        """Return whether the effects are shown to differ between the data sets."""
        spread = effect.heterogeneity
        if spread is None or spread.p_adjusted is None:
            return ""
        if spread.significant:
            one, other = spread.pair
            p = f"adjusted {_p(spread.p_adjusted)}"
            return (
                f"the effect differs between the data sets, most clearly between {one} and {other} ({p}; "
                f"I² {spread.i_squared:.0f} %, standard deviation {self._formats.size(spread.tau)})"
            )
        return f"no difference of the effect between the data sets is shown (adjusted {_p(spread.p_adjusted)})"

    def _elsewhere(self, effect: EffectOverDatasets) -> str:
        """Return where the effect on another data set is expected."""
        if effect.prediction is None:
            return ""
        low, high = map(self._formats.signed, effect.prediction)
        return f"on one more such data set, the effect is expected from {self._formats.in_points(f'{low} to {high}')}"

    def _favoring(self, effect: EffectOverDatasets) -> bool:
        """Return whether the mean favors a level that fails more often on one of the data sets."""
        better = self._formats.metric.is_better(effect.mean.mean or 0.0)
        return any(
            favors_failing_level(each, self._formats.metric)
            and self._formats.metric.is_better(each.difference.mean or 0.0) == better
            for each in effect.by_dataset.values()
        ) or any(self._fails_more(each, level=better) for each in effect.without_estimate.values())

    def _fails_more(self, effect: Effect, *, level: bool) -> bool:
        """Return whether the level, or else its reference, fails more often on a data set without an estimate."""
        test = effect.failures
        if test is None:
            return False
        excess = test.failed * test.reference_runs - test.reference_failed * test.runs
        return excess > 0 if level else excess < 0

    def _aliased(self, effect: EffectOverDatasets) -> bool:
        """Return whether a study estimates the effect together with interactions."""
        return any(aliases_of(each.findings.screening, effect.factor) for each in self._studies)

    def _signed(self, effect: Effect) -> str:
        return self._in_points(effect.difference.mean or 0.0)

    def _in_points(self, value: float) -> str:
        return self._formats.in_points(self._formats.signed(value))


def scope_sentence(datasets: Sequence[str]) -> str:
    """Return what the intervals of a summary are about."""
    return (
        f"Intervals are over these {len(datasets)} data sets, which were chosen, not drawn: they describe data sets like them, "
        "with their recipes and test images. Each data set counts once, whatever its size."
    )


def _p(p: float) -> str:
    return f"p < {MIN_DISPLAYED_P}" if p < MIN_DISPLAYED_P else f"p = {p:.2g}"
