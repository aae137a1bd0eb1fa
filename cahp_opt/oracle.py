"""The exact oracle: the best keep-set within a budget for values inside blocks plus a sum of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.budget import Budget
from cahp_opt.heads import Bools, Floats
from cahp_opt.knapsack import Knapsack
from cahp_opt.problem import BestSubsets, join_subsets, modular_subsets

MOST_TABULATED = 12
"""Blocks of at most this many units can carry a table of all their subsets."""


class Vertex(NamedTuple):
    """The best keep-set found, and an upper bound on the maximum; they agree but for rounding."""

    kept: Bools
    bound: float


class Oracle:
    """Maximises ``sum_b values_b(kept in b) + weights @ kept`` within a budget, exactly.

    Args:
        budget: the limits.
        values: for every block None, or the value of each of its subsets by code (bit ``u`` set:
            unit ``u`` kept), ``[2^units]``.
        base: weights that are always added, ``[n]``; None for none.
    """

    def __init__(
        self, budget: Budget, values: Sequence[Floats | None], base: Floats | None = None
    ) -> None:
        self._budget = budget
        self._knapsack = Knapsack(budget.allowed, budget.coupling)
        self._base = np.zeros(budget.space.n) if base is None else base
        self._blocks = [
            None if v is None else _Tabulated(v, int(units))
            for v, units in zip(values, budget.space.units, strict=True)
        ]

    def best(self, weights: Floats) -> Vertex:
        """The maximum for these weights, ``[n]``."""
        tables = self.tables(weights)
        found = self._knapsack.best([t.values for t in tables])
        counts = self._budget.cheapest if found.counts is None else found.counts
        return Vertex(join_subsets(tables, counts), found.bound)

    def tables(self, weights: Floats) -> list[BestSubsets]:
        """Best subsets of every block for these weights, ``[n]``."""
        space, weights = self._budget.space, weights + self._base
        if not any(self._blocks):
            return list(modular_subsets(weights, space))
        return [
            _sorted(weights[where]) if block is None else block.best(weights[where])
            for block, where in zip(self._blocks, space.slices, strict=True)
        ]

    def hopeful(self, weights: Floats, floor: float) -> list[tuple[Bools, Floats] | None]:
        """For every tabulated block the subsets that a keep-set worth at least ``floor`` can hold.

        A subset is left out if even a Lagrangian bound with it in place stays below ``floor``, for
        these weights, ``[n]``. Returns the subsets, bool ``[m, units]``, and their tabulated values
        with the base weights, ``[m]``; None for the other blocks.
        """
        budget, space = self._budget, self._budget.space
        tables = self.tables(weights)
        weights = weights + self._base
        price = self._prices(tables)
        priced = [
            np.where(
                budget.allowed[b],
                t.values
                - sum((p * c.costs[b] for p, c in zip(price, budget.coupling, strict=True)), 0.0),
                -np.inf,
            )
            for b, t in enumerate(tables)
        ]
        room = sum(p * (c.limit - c.fixed) for p, c in zip(price, budget.coupling, strict=True))
        ceiling = float(room) + sum(float(v.max()) for v in priced)
        eps = 1e-10 * (abs(float(room)) + sum(float(np.abs(t.values).max()) for t in tables))
        result: list[tuple[Bools, Floats] | None] = []
        for b, (block, where) in enumerate(zip(self._blocks, space.slices, strict=True)):
            if block is None:
                result.append(None)
                continue
            # The price of a count is what separates its tabulated value from its priced one.
            paid = tables[b].values - priced[b]
            left = ceiling - float(priced[b].max()) + eps
            result.append(block.above(self._base[where], weights[where], paid, floor - left))
        return result

    def _prices(self, tables: Sequence[BestSubsets]) -> Floats:
        """Prices of the limits that make the Lagrangian bound small, by bisection one at a time."""
        budget = self._budget
        price = np.zeros(len(budget.coupling))
        fine = [np.flatnonzero(a) for a in budget.allowed]
        costs = [
            np.array([c.costs[b][k] for c in budget.coupling]).T.reshape(len(k), len(price))
            for b, k in enumerate(fine)
        ]
        values = [t.values[k] for t, k in zip(tables, fine, strict=True)]
        for _ in range(1 if len(price) == 1 else 4):
            for t, table in enumerate(budget.coupling):
                steps = [np.diff(np.unique(c[:, t])) for c in costs]
                least = min((float(s.min()) for s in steps if s.size), default=1.0)
                low, high = 0.0, 2 * sum(float(np.ptp(v)) for v in values) / least
                for _ in range(60):
                    price[t] = (low + high) / 2
                    spent = sum(
                        float(c[np.argmax(v - c @ price), t])
                        for v, c in zip(values, costs, strict=True)
                    )
                    if spent > table.limit - table.fixed:
                        low = float(price[t])
                    else:
                        high = float(price[t])
                price[t] = high
        return price


class _Tabulated:
    """One block with the values of all its subsets."""

    def __init__(self, values: Floats, units: int) -> None:
        codes = np.arange(1 << units)
        bits: Bools = (codes[:, None] >> np.arange(units)) & 1 == 1
        counts = bits.sum(axis=1)
        order = np.argsort(counts, kind="stable")
        self._starts: npt.NDArray[np.intp] = np.searchsorted(counts[order], np.arange(units + 1))
        self._bits = bits[order]
        self._indicators = self._bits.astype(np.float64)
        self._values = values[order]

    def best(self, weights: Floats) -> BestSubsets:
        values = self._values + self._indicators @ weights
        ends = [*self._starts[1:], len(values)]
        place = np.array(
            [s + int(np.argmax(values[s:e])) for s, e in zip(self._starts, ends, strict=True)]
        )
        return BestSubsets(values[place], self._bits[place])

    def above(
        self, base: Floats, weights: Floats, paid: Floats, floor: float
    ) -> tuple[Bools, Floats]:
        """The subsets whose value with ``weights``, less what their count pays, is at least a floor."""
        own = self._values + self._indicators @ weights - paid[self._bits.sum(axis=1)]
        fine = own >= floor
        return self._bits[fine], self._values[fine] + self._indicators[fine] @ base


def _sorted(weights: Floats) -> BestSubsets:
    order = np.argsort(-weights, kind="stable")
    rank = np.empty(len(weights), dtype=np.int64)
    rank[order] = np.arange(len(weights))
    kept: Bools = rank[None, :] < np.arange(len(weights) + 1)[:, None]
    return BestSubsets(np.concatenate([[0.0], np.cumsum(weights[order])]), kept)
