"""Fitting a latency table to whole models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt.costs.whole_models import Fit, fit_whole_models

BLOCKS = np.array([1.0, 2.0, 5.0])
KINDS = np.array([[4, 6], [2, 3], [1, 1.5], [0.1, 0.1], [4, 1.5], [1, 6]])
"""Summed times of attention and of feed-forward blocks: even models, then uneven ones."""


def assert_fit(found: Fit, scales: list[float], fixed: float, least: float = 0.0) -> None:
    assert found.scales == pytest.approx(scales)
    assert (found.fixed, found.least) == pytest.approx((fixed, least))


def test_factor_and_offset() -> None:
    assert_fit(fit_whole_models(BLOCKS, 3 * BLOCKS + 4), [3], 4)
    assert_fit(fit_whole_models(np.ones(3), np.array([3.0, 3.0, 3.0])), [1], 2)


def test_no_factor_and_no_offset_below_zero() -> None:
    falling = fit_whole_models(BLOCKS, np.full(3, 6.0) - BLOCKS)
    assert falling.scales == (1,) and falling.fixed >= 0
    steep = fit_whole_models(BLOCKS, np.array([0.5, 1.5, 5.0]))
    assert steep.fixed == 0 and 0.6 < steep.scales[0] < 0.7


@given(
    st.floats(0.5, 2), st.floats(0, 3), st.integers(0, 8), st.integers(0, 2**32 - 1), st.booleans()
)
def test_launch_bound_models_are_told_from_the_others(
    scale: float, fixed: float, flat: int, seed: int, noisy: bool
) -> None:
    rng = np.random.default_rng(seed)
    blocks = np.cumsum(rng.uniform(0.5, 1.5, size=8))
    least = fixed + scale * float(blocks[flat - 1]) if flat else 0.0
    noise = rng.uniform(0.998, 1.002, size=8) if noisy else np.ones(8)
    measured = np.maximum(least, fixed + scale * blocks) * noise
    fit = fit_whole_models(blocks, measured)
    predicted = fit.at(blocks)
    assert np.abs(predicted / measured - 1).max() < (0.01 if noisy else 1e-6)
    assert fit.scales[0] > 0 and fit.fixed >= 0 and fit.least >= 0


def test_kinds_of_blocks_have_their_own_factors() -> None:
    assert_fit(fit_whole_models(KINDS, KINDS @ [1.3, 1.1] + 2), [1.3, 1.1], 2)
    assert_fit(fit_whole_models(KINDS, KINDS @ [1.3, 1.1]), [1.3, 1.1], 0)
    more = np.concatenate([KINDS, KINDS[:3] * [1.0, 0.8]])
    launching = np.maximum(5.5, more @ [1.3, 1.1] + 2)
    found = fit_whole_models(more, launching)
    np.testing.assert_allclose(found.at(more), launching, rtol=1e-6)
    assert found.least == pytest.approx(5.5)


def test_a_common_factor_where_the_kinds_cannot_be_told_apart() -> None:
    even = KINDS[:4]
    rng = np.random.default_rng(0)
    measured = (even @ [1.3, 1.1] + 2) * rng.uniform(0.99, 1.01, len(even))
    found = fit_whole_models(even, measured)
    assert found.scales[0] == found.scales[1]
    alone = fit_whole_models(even.sum(axis=1), measured)
    assert_fit(alone, [found.scales[0]], found.fixed)
    # Nor where one kind would cost nothing, or less: a price of 0 would be believed.
    free = fit_whole_models(KINDS, KINDS @ [1.0, -0.1] + 2)
    assert free.scales[0] == free.scales[1] > 0


@given(st.floats(0.8, 2), st.floats(0.8, 2), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_noise_moves_the_factors_little(one: float, other: float, fixed: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    measured = (KINDS @ [one, other] + fixed) * rng.uniform(0.995, 1.005, len(KINDS))
    found = fit_whole_models(KINDS, measured)
    assert np.abs(found.at(KINDS) / measured - 1).max() < 0.01
    assert np.abs(np.array(found.scales) / [one, other] - 1).max() < 0.05
