"""The exact oracle: the best keep-set within a budget, for values inside blocks plus weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget
from cahp_opt.costs.knapsack import Knapsack
from cahp_opt.subsets import BestSubsets, join_subsets

MOST_TABULATED = 12
"""Blocks of at most this many units can carry a table of all their subsets."""


class Vertex(NamedTuple):
    """The best keep-set found, bool ``[n]``, and an upper bound on the maximum, equal to its value
    but for rounding unless the deadline passed."""

    kept: Bools
    bound: float


class Oracle:
    """Maximises ``sum_b values_b(kept in b) + weights @ kept`` within a budget, exactly.

    Args:
        budget: the limits.
        values: for every block None, or the value of each of its subsets by code (bit ``u`` set:
            unit ``u`` kept), ``[2^units]``.
        base: weights that are always added, ``[n]``; None for none.
        deadline: the ``time.monotonic()`` after which keep-sets may be less than the best, and
            bounds, still valid, less than tight.
    """

    def __init__(
        self,
        budget: Budget,
        values: Sequence[Floats | None],
        base: Floats | None = None,
        deadline: float = math.inf,
    ) -> None:
        self._budget, self._deadline = budget, deadline
        self._knapsack = Knapsack(budget.allowed, budget.coupling)
        self._base = np.zeros(budget.space.n) if base is None else base
        self._blocks: list[_Block] = [
            _Weighted.of(int(units)) if v is None else _Tabulated.of(v, int(units))
            for v, units in zip(values, budget.space.units, strict=True)
        ]

    def best(self, weights: Floats) -> Vertex:
        """The maximum for these weights, ``[n]``; the bound is minus infinity if no keep-set
        is left."""
        tables = self.tables(weights)
        found = self._knapsack.best([t.values for t in tables], self._deadline)
        counts = self._budget.cheapest if found.counts is None else found.counts
        return Vertex(join_subsets(tables, counts), found.bound)

    def tables(self, weights: Floats) -> list[BestSubsets]:
        """Best subsets of every block for these weights, ``[n]``."""
        weights = weights + self._base
        slices = self._budget.space.slices
        return [b.best(weights[where]) for b, where in zip(self._blocks, slices, strict=True)]

    def fixing(self, unit: int, kept: bool) -> Oracle:
        """The same with one unit kept, or left out, always."""
        block = int(self._budget.space.block_of[unit])
        blocks = list(self._blocks)
        place = unit - self._budget.space.slices[block].start
        blocks[block] = blocks[block].fixing(place, kept)
        return self._with(blocks, self._base)

    def revalued(self, values: Sequence[Floats | None], base: Floats) -> Oracle:
        """The same choices with other values, ``[2^units]`` or None, and base weights, ``[n]``."""
        blocks: list[_Block] = [
            b if v is None else b.revalued(v) for b, v in zip(self._blocks, values, strict=True)
        ]
        return self._with(blocks, base)

    def listed(self) -> list[tuple[Bools, Floats] | None]:
        """For every tabulated block its subsets, bool ``[m, units]``, and their values with the base
        weights, ``[m]``; None for the other blocks."""
        return [
            b.listed(self._base[where])
            for b, where in zip(self._blocks, self._budget.space.slices, strict=True)
        ]

    def hopeful(self, weights: Floats, floor: float) -> Oracle:
        """The same without the subsets that no keep-set worth at least ``floor`` can hold.

        A subset is left out if even a Lagrangian bound with it in place stays below ``floor``, for
        these weights, ``[n]``.
        """
        budget, space = self._budget, self._budget.space
        tables = self.tables(weights)
        weights = weights + self._base
        price = self._prices(tables)
        paid = [
            sum(
                (p * c.costs[b] for p, c in zip(price, budget.coupling, strict=True)),
                np.zeros(int(space.units[b]) + 1),
            )
            for b in range(len(tables))
        ]
        most = [
            float((t.values - cost)[fine].max())
            for t, cost, fine in zip(tables, paid, budget.allowed, strict=True)
        ]
        room = [p * (c.limit - c.fixed) for p, c in zip(price, budget.coupling, strict=True)]
        ceiling = sum(room) + sum(most)
        eps = 1e-10 * (sum(abs(r) for r in room) + sum(abs(m) for m in most) + abs(floor))
        blocks = [
            b.above(weights[where], cost, floor - (ceiling - own) - eps)
            for b, where, cost, own in zip(self._blocks, space.slices, paid, most, strict=True)
        ]
        return self._with(blocks, self._base)

    def _with(self, blocks: list[_Block], base: Floats) -> Oracle:
        other = object.__new__(Oracle)
        other._budget, other._knapsack = self._budget, self._knapsack
        other._deadline = self._deadline
        other._blocks, other._base = blocks, base
        return other

    def _prices(self, tables: Sequence[BestSubsets]) -> Floats:
        """Prices of the limits that make the Lagrangian bound small, by bisection one at a time."""
        budget = self._budget
        price = np.zeros(len(budget.coupling))
        fine = [
            np.flatnonzero(a & np.isfinite(t.values))
            for a, t in zip(budget.allowed, tables, strict=True)
        ]
        costs = [
            np.array([c.costs[b][k] for c in budget.coupling]).T.reshape(len(k), len(price))
            for b, k in enumerate(fine)
        ]
        values = [t.values[k] for t, k in zip(tables, fine, strict=True)]
        if any(not len(v) for v in values):
            return price
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
    """One block by its subsets, sorted by count: bits ``[m, units]``, codes and values ``[m]``."""

    def __init__(self, bits: Bools, codes: Ints, values: Floats) -> None:
        self._bits, self._codes, self._values = bits, codes, values
        self._indicators = bits.astype(np.float64)
        self._counts: Ints = bits.sum(axis=1, dtype=np.int64)
        sizes = np.bincount(self._counts, minlength=bits.shape[1] + 1)
        self._starts: list[int] = [0, *(int(end) for end in np.cumsum(sizes))]

    @staticmethod
    def of(values: Floats, units: int) -> _Tabulated:
        codes = np.arange(1 << units, dtype=np.int64)
        bits: Bools = (codes[:, None] >> np.arange(units)) & 1 == 1
        order = np.argsort(bits.sum(axis=1), kind="stable")
        return _Tabulated(bits[order], codes[order], values[order])

    def best(self, weights: Floats) -> BestSubsets:
        own = self._values + self._indicators @ weights
        units = self._bits.shape[1]
        values = np.full(units + 1, -np.inf)
        kept = np.zeros((units + 1, units), dtype=np.bool_)
        for k in range(units + 1):
            start, end = self._starts[k], self._starts[k + 1]
            if end > start:
                place = start + int(np.argmax(own[start:end]))
                values[k], kept[k] = own[place], self._bits[place]
        return BestSubsets(values, kept)

    def fixing(self, unit: int, kept: bool) -> _Tabulated:
        return self._only(self._bits[:, unit] == kept)

    def revalued(self, values: Floats) -> _Tabulated:
        return _Tabulated(self._bits, self._codes, values[self._codes])

    def listed(self, base: Floats) -> tuple[Bools, Floats]:
        return self._bits, self._values + self._indicators @ base

    def above(self, weights: Floats, paid: Floats, floor: float) -> _Tabulated:
        """Only the subsets worth at least ``floor`` after their count is paid for."""
        own = self._values + self._indicators @ weights - paid[self._counts]
        return self._only(own >= floor)

    def _only(self, fine: Bools) -> _Tabulated:
        if fine.all():
            return self
        return _Tabulated(self._bits[fine], self._codes[fine], self._values[fine])


class _Weighted:
    """One block whose units count only by their weights; some may be fixed."""

    def __init__(self, fixed_in: Bools, fixed_out: Bools) -> None:
        self._in, self._out = fixed_in, fixed_out

    @staticmethod
    def of(units: int) -> _Weighted:
        none = np.zeros(units, dtype=np.bool_)
        return _Weighted(none, none)

    def best(self, weights: Floats) -> BestSubsets:
        units, least = len(weights), int(self._in.sum())
        order = np.lexsort((-weights, self._out, ~self._in))  # fixed in first, fixed out last
        values = np.concatenate([[0.0], np.cumsum(weights[order])])
        values[:least] = -np.inf
        values[units - int(self._out.sum()) + 1 :] = -np.inf
        rank = np.empty(units, dtype=np.int64)
        rank[order] = np.arange(units)
        kept: Bools = rank[None, :] < np.arange(units + 1)[:, None]
        return BestSubsets(values, kept)

    def fixing(self, unit: int, kept: bool) -> _Weighted:
        fixed = self._in.copy() if kept else self._out.copy()
        fixed[unit] = True
        return _Weighted(fixed, self._out) if kept else _Weighted(self._in, fixed)

    def revalued(self, values: Floats) -> _Weighted:
        return self

    def listed(self, base: Floats) -> None:
        return None

    def above(self, weights: Floats, paid: Floats, floor: float) -> _Weighted:
        return self


_Block = _Tabulated | _Weighted
