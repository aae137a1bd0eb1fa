"""Exchanges inside blocks, against trying all of them."""

from __future__ import annotations

import numpy as np
import pytest

from cahp_opt.arrays import Bools
from cahp_opt.torch.methods.rearranging import rearranged


def damage(fisher: np.ndarray, kept: Bools) -> float:
    dropped = (~kept).astype(np.float64)
    return float(dropped @ fisher @ dropped)


@pytest.mark.parametrize("seed", range(6))
def test_rearranging_makes_the_best_exchange_for_each_kept_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((6, 9)) @ rng.standard_normal((9, 9))
    fisher, kept = slopes.T @ slopes, rng.permutation(9) < 5
    expected = kept.copy()
    for away in sorted(np.flatnonzero(kept), key=lambda unit: fisher[unit, unit]):
        tried = []
        for back in np.flatnonzero(~expected):
            one = expected.copy()
            one[back], one[away] = True, False
            tried.append((damage(fisher, one), one))
        best = min(tried, key=lambda pair: pair[0])
        if best[0] < damage(fisher, expected):
            expected = best[1]
    found = rearranged(fisher, kept)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == kept.sum() and damage(fisher, found) <= damage(fisher, kept)


def test_two_units_that_cancel_are_dropped_together() -> None:
    """The diagonal alone would drop the third and one of the pair."""
    slopes = np.array([[3.0, -3.0, 1.0, 5.0]])
    found = rearranged(slopes.T @ slopes, np.array([False, True, False, True]))
    np.testing.assert_array_equal(found, [False, False, True, True])


def test_nothing_is_rearranged_where_all_or_nothing_stays() -> None:
    fisher = np.eye(3)
    for kept in (np.ones(3, dtype=np.bool_), np.zeros(3, dtype=np.bool_)):
        np.testing.assert_array_equal(rearranged(fisher, kept), kept)
