"""Synthetic predictions: which test examples the runs of a study predict correctly, with known true errors."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from ablations.engine.analysis.evidence import Evidence

EXAMPLES = 360


@dataclass(frozen=True)
class Population:
    """Seeds and examples from which studies of two settings are drawn.

    An example is wrong with a probability whose logit is the sum of the intercept, an effect of the example that both settings
    share, an effect of the example in one setting, and an effect of the seed.
    """

    intercept: float
    example_std: float
    own_example_std: float
    seed_std: float
    shift: float
    """Added to the intercept of the second setting."""

    def true_errors(self) -> tuple[float, float]:
        """Return the errors of both settings over all seeds and examples, in percent."""
        rng = np.random.default_rng(0)
        std = float(np.hypot(np.hypot(self.example_std, self.own_example_std), self.seed_std))
        effects = self.intercept + rng.normal(0, std, 400_000)
        return float(100 * expit(effects).mean()), float(100 * expit(effects + self.shift).mean())

    def studies(self, count: int, seeds: int) -> Iterator[tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
        """Yield studies with new seeds and new examples: what is wrong in each setting (seeds, examples)."""
        rng = np.random.default_rng([1, seeds])
        for _ in range(count):
            common = self.intercept + rng.normal(0, self.example_std, EXAMPLES)
            yield self._draw(rng, common, seeds), self._draw(rng, common + self.shift, seeds)

    def _draw(self, rng: np.random.Generator, common: npt.NDArray[np.float64], seeds: int) -> npt.NDArray[np.bool_]:
        effects = common + rng.normal(0, self.own_example_std, EXAMPLES) + rng.normal(0, self.seed_std, (seeds, 1))
        return np.asarray(rng.random((seeds, EXAMPLES)) < expit(effects))


DIGITS = Population(intercept=-8.2, example_std=3.2, own_example_std=0.3, seed_std=0.25, shift=0.15)
"""Like ResNets of 8 layers on the digits. Of these, 30 seeds were trained: 1.6 % error, and 4 of the 25 images that some seed
classifies wrongly are wrong in most seeds."""
HARD = Population(intercept=-4.2, example_std=2.6, own_example_std=0.8, seed_std=0.2, shift=0.3)
"""A harder task: 10 % error."""


def with_predictions(given: Evidence, examples: int = EXAMPLES) -> Evidence:
    """Return evidence whose completed runs have predictions with about their errors: the hardest examples are wrong most often."""
    correct = {}
    completed = given.runs[given.runs["outcome"] == "completed"]
    hardness = np.random.default_rng(5).normal(0, 1, examples)
    for number, (fingerprint, error) in enumerate(zip(completed["fingerprint"], completed["value"], strict=True)):
        noise = np.random.default_rng([6, number]).normal(0, 0.3, examples)
        wrong = np.argsort(-(hardness + noise))[: round(error / 100 * examples)]
        correct[fingerprint] = ~np.isin(np.arange(examples), wrong)
    return replace(given, design=replace(given.design, test_examples=examples), correct=correct)
