"""A Lagrangian bound for facility location over the exact oracle.

For any prices ``p`` of at least 0, ``max over kept j of s_ij <= p_i + sum over kept j of
max(s_ij - p_i, 0)``, so that ``w @ p`` plus the best budget-feasible sum of the weights
``sum_i w_i max(s_ij - p_i, 0)`` bounds the optimum (the relaxation of the assignment constraints of
Cornuejols, Fisher and Nemhauser 1977). Subgradient steps in ``p`` make it small.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.bounds.oracle import Oracle
from cahp_opt.costs.budget import Budget
from cahp_opt.objective import CoverageForm
from cahp_opt.rounding import sum_rounding

CERTIFICATE = "Lagrangian prices of the rows over the exact oracle"
"""Where such a bound comes from."""


@dataclass(frozen=True, eq=False)
class CoverageBound:
    """The bound, the prices that prove it, ``[m]``, the best keep-set met on the way, bool ``[n]``,
    and its value."""

    bound: float
    prices: Floats
    kept: Bools
    value: float
    steps: int


def coverage_bound(
    budget: Budget,
    form: CoverageForm,
    start: Bools,
    *,
    steps: int = 15,
    deadline: float = float("inf"),
    precision: float = 1e-9,
) -> CoverageBound:
    """The smallest bound that subgradient steps find.

    Args:
        budget: the limits.
        form: the objective.
        start: a keep-set within the budget, bool ``[n]``; good ones give tight bounds.
        steps: the most oracle calls.
        deadline: the ``time.monotonic()`` at which to stop, between two steps.
        precision: relative gap at which to stop.
    """
    similarity, weights = form.similarity, form.weights
    columns = np.ascontiguousarray(similarity.T)
    row_sums: Floats = similarity.sum(axis=1)
    oracle = Oracle(budget, [None] * len(budget.space.blocks), deadline=deadline)
    kept, value = start, _value(form, start)
    # The best price of a row lies at or below what the best kept unit gives: then units compete.
    prices = similarity[:, start].max(axis=1) if start.any() else np.zeros(len(weights))
    best, chosen = float("inf"), prices
    direction = np.zeros_like(prices)
    stride, stale, taken = 1.0, 0, 0
    while taken < max(steps, 1):
        above = np.maximum(columns - prices, 0.0)
        found = oracle.best(above @ weights)
        taken += 1
        bound = float(weights @ prices) + found.bound
        size = float(weights @ (row_sums + prices))
        bound += sum_rounding(size, float(np.log2(sum(similarity.shape) + 1)))
        own = _value(form, found.kept)
        if own > value:
            kept, value = found.kept, own
        stale = 0 if bound < best - 1e-6 * abs(best - value) else stale + 1
        if bound < best:
            best, chosen = bound, prices
        if stale >= 5:
            stride, stale = stride / 2, 0
            prices, direction = chosen, np.zeros_like(prices)
        if best - value <= precision * max(abs(value), 1e-300) or time.monotonic() > deadline:
            break
        chosen_above = columns[found.kept] > prices
        slope = weights * (1.0 - chosen_above.sum(axis=0))
        direction = 0.7 * direction + slope
        square = float(direction @ direction)
        if square == 0.0:
            break
        step = 0.7 * stride * max(bound - value, 0.0) / square
        prices = np.maximum(prices - step * direction, 0.0)
    return CoverageBound(best, chosen, kept, value, taken)


def _value(form: CoverageForm, kept: Bools) -> float:
    if not kept.any():
        return 0.0
    return float(form.weights @ form.similarity[:, kept].max(axis=1))
