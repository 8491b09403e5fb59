"""Lenth's pseudo standard error and half-normal quantiles agree with published values."""

import numpy as np
import pytest

from ablations.engine.analysis.designs.half_normal import half_normal_quantiles, margin_of_error, pseudo_standard_error

CHEMICAL_PROCESS = [-6.3125, 17.8125, 0.1875, 0.6875, -5.3125, 0.8125, -0.3125, 2.0625, -0.0625, -0.6875, -0.1875, -0.6875, 2.4375]
CHEMICAL_PROCESS += [-0.4375, -0.3125]
"""Coefficients of a chemical process (`chem` of R's daewr; Lawson, Design and Analysis of Experiments with R, section 3.7.5)."""


def test_lenths_standard_error_and_margin_are_those_of_rs_lenthplot() -> None:
    assert pseudo_standard_error(CHEMICAL_PROCESS) == pytest.approx(0.84375, abs=1e-9)
    assert margin_of_error([62.3125, *CHEMICAL_PROCESS]) == pytest.approx(2.128783, abs=1e-6)  # there with the intercept


def test_large_contrasts_do_not_change_it() -> None:
    larger = [each * 1000 if abs(each) > 5 else each for each in CHEMICAL_PROCESS]
    assert pseudo_standard_error(larger) == pseudo_standard_error(CHEMICAL_PROCESS)


def test_contrasts_of_zero_have_none() -> None:
    assert pseudo_standard_error([0.0] * 7) == margin_of_error([0.0] * 7) == 0.0


def test_half_normal_quantiles_are_where_sorted_absolute_normal_values_are_expected() -> None:
    drawn = np.sort(np.abs(np.random.default_rng(0).normal(size=(40_000, 15))), axis=1)
    np.testing.assert_allclose(half_normal_quantiles(15), drawn.mean(axis=0), atol=0.08)
    assert half_normal_quantiles(1) == pytest.approx([0.6745], abs=1e-4)
