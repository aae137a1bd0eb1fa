"""Fitting a latency table to whole models."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahp_opt.costs.whole_models import fit_whole_models

BLOCKS = np.array([1.0, 2.0, 5.0])


def test_factor_and_offset() -> None:
    assert fit_whole_models(BLOCKS, 3 * BLOCKS + 4) == pytest.approx((3, 4, 0))
    assert fit_whole_models(np.ones(3), np.array([3.0, 3.0, 3.0])) == pytest.approx((1, 2, 0))


def test_no_factor_and_no_offset_below_zero() -> None:
    falling = fit_whole_models(BLOCKS, np.full(3, 6.0) - BLOCKS)
    assert falling.scale == 1 and falling.fixed >= 0
    steep = fit_whole_models(BLOCKS, np.array([0.5, 1.5, 5.0]))
    assert steep.fixed == 0 and 0.6 < steep.scale < 0.7


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
    assert fit.scale > 0 and fit.fixed >= 0 and fit.least >= 0
