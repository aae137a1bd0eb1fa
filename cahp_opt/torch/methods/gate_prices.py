"""Prices of units by which gates that are open at random meet a budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.costs.budget import Budget

_SWEEPS, _HALVINGS = 3, 30
_CLOSED = -30.0  # a logit at which every gate is closed


class GatePrices:
    """What a budget asks of gates: a price per limit, which lowers the logits of the units that it is about.

    Limits are those of tables that tie several blocks together, and the most units of a block where that is
    fewer than all. With ``k`` the (expected) numbers of open gates per block and prices ``mu >= 0``, the gates
    are drawn from the logits ``theta - sum_t mu_t slopes_t``, with the smallest prices at which every
    ``costs_t(k)`` is within its limit. Costs between two counts are interpolated.

    Args:
        budget: the limits.

    Attributes:
        slopes: the mean cost of one unit by every limit, the largest 1, ``[limits, n]``.
    """

    slopes: Floats

    def __init__(self, budget: Budget) -> None:
        space = budget.space
        caps = [int(np.flatnonzero(fine)[-1]) for fine in budget.allowed]
        capped = [b for b, cap in enumerate(caps) if cap < space.units[b]]
        self._costs = np.zeros(
            (len(budget.coupling) + len(capped), len(space.blocks), space.units.max() + 1)
        )
        for t, table in enumerate(budget.coupling):
            for b, costs in enumerate(table.costs):
                self._costs[t, b] = np.pad(
                    costs, (0, self._costs.shape[2] - len(costs)), mode="edge"
                )
        for t, b in enumerate(capped, start=len(budget.coupling)):
            self._costs[t, b] = np.arange(self._costs.shape[2])
        room = [table.limit - table.fixed for table in budget.coupling]
        self.limits: Floats = np.array([*room, *(float(caps[b]) for b in capped)])
        self._member = np.eye(len(space.blocks))[space.block_of]
        blocks = np.arange(len(space.blocks))
        ends = self._costs[:, blocks, space.units] - self._costs[:, :, 0]
        slopes = np.maximum(ends, 0.0) / space.units
        largest = slopes.max(axis=1, keepdims=True)
        self.slopes = (slopes / np.where(largest > 0, largest, 1.0))[:, space.block_of]

    def costs(self, opened: Floats) -> Floats:
        """The cost of gates by every limit, ``[rows, limits]``.

        Args:
            opened: how far every gate is open, or the probability that it is, ``[rows, n]``.
        """
        counts = opened @ self._member
        low = np.clip(np.floor(counts).astype(np.int64), 0, self._costs.shape[2] - 2)
        blocks = np.arange(self._costs.shape[1])
        below, above = self._costs[:, blocks, low], self._costs[:, blocks, low + 1]
        found: Floats = (below + (counts - low) * (above - below)).sum(axis=2).T
        return found

    def meeting(
        self, logits: Floats, openness: Callable[[Floats], Floats], limits: Floats
    ) -> Floats:
        """The smallest prices that meet the limits, ``[rows, limits]``.

        They are found limit by limit, in three rounds where there are several.

        Args:
            logits: of the gates, ``[rows, n]``.
            openness: how far gates with such logits are open, ``[rows, n]``.
            limits: to be met, ``[limits]``.
        """
        prices = np.zeros((len(logits), len(limits)))
        highest = np.array(
            [(logits.max() - _CLOSED) / s[s > 0].min() if s.any() else 0.0 for s in self.slopes]
        )
        for _ in range(_SWEEPS if len(limits) > 1 else 1):
            for t in range(len(limits)):
                prices[:, t] = 0.0
                free = self._excess(logits, prices, openness, t, limits) <= 0
                low, high = np.zeros(len(logits)), np.full(len(logits), highest[t])
                for _ in range(_HALVINGS if not free.all() else 0):
                    prices[:, t] = (low + high) / 2
                    fits = self._excess(logits, prices, openness, t, limits) <= 0
                    high = np.where(fits, prices[:, t], high)
                    low = np.where(fits, low, prices[:, t])
                prices[:, t] = np.where(free, 0.0, high)
        return prices

    def _excess(
        self,
        logits: Floats,
        prices: Floats,
        openness: Callable[[Floats], Floats],
        limit: int,
        limits: Floats,
    ) -> Floats:
        found: Floats = (
            self.costs(openness(logits - prices @ self.slopes))[:, limit] - limits[limit]
        )
        return found

    def projected(self, gradient: Floats, steepness: Floats, prices: Floats) -> Floats:
        """The gradient of a loss by the logits, ``[n]``, with the prices that follow them.

        A unit whose gate opens raises the prices of all. With ``A_t = slopes_t * steepness`` for the limits
        whose price is not 0, the multipliers ``m`` solve ``(A slopes') m = slopes gradient``, and what is left
        is ``gradient - A' m``: of units that share one limit, more for those that are worth more than the mean.

        Args:
            gradient: by the logits at fixed prices, ``[n]``.
            steepness: the derivative of the openness by the logits, ``[n]``.
            prices: the prices, ``[limits]``.
        """
        slopes = self.slopes[prices > 0]
        if not len(slopes):
            return gradient
        by_cost = slopes * steepness
        multipliers = np.linalg.lstsq(by_cost @ slopes.T, slopes @ gradient, rcond=None)[0]
        found: Floats = gradient - multipliers @ by_cost
        return found
