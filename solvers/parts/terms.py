"""Concave terms of objectives and their cuts, for the outer approximation."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cahp_opt.arrays import Floats
from cahp_opt.objective import CoverageForm
from cahp_opt.solvers.parts.master import Master


class Terms(Protocol):
    """A concave function of the units, as terms of a master."""

    def cut(self, point: Floats) -> None:
        """Add cuts that make the master exact at a point, ``[n]``."""
        ...

    def value(self, point: Floats) -> float:
        """The concave function at a point, ``[n]``."""
        ...


class Squares:
    """``-x' R x`` with semidefinite ``R``: tangents of squares along eigenvectors, and of the rest.

    Args:
        master: where the terms go.
        rest: ``R``, ``[n, n]``.
        share: directions with at least this share of the largest eigenvalue get a term of their own.
    """

    def __init__(self, master: Master, rest: Floats, share: float = 0.01) -> None:
        values, vectors = np.linalg.eigh(rest)
        apart = values > share * max(float(values[-1]), 1e-300)
        self._master, self._all = master, rest
        self._sizes, self._directions = values[apart], vectors[:, apart].T
        self._left = rest - (self._directions.T * self._sizes) @ self._directions
        n = len(rest)
        most = [float(s) * n for s in self._sizes]
        self._along: list[Any] = [master.expression(d) for d in self._directions]
        self._squares: list[Any] = [master.term(-m, 0.0) for m in most]
        small = float(np.abs(self._left).sum())
        self._rest = master.term(-small, small)

    def cut(self, point: Floats) -> None:
        """Tangents at a point."""
        along = self._directions @ point
        for size, t, variable, term in zip(
            self._sizes, along, self._along, self._squares, strict=True
        ):
            self._master.cut_along(term, float(size * t * t), float(-2 * size * t), variable)
        slope = self._left @ point
        # The rest is semidefinite up to rounding, which the constant covers.
        eps = 1e-12 * float(np.abs(self._all).sum())
        self._master.cut(self._rest, float(point @ slope) + eps, -2 * slope)

    def value(self, point: Floats) -> float:
        """``-point' R point``."""
        return -float(point @ self._all @ point)


class Rows:
    """``sum_i w_i max over kept j of s_ij``: one term per row, with the cuts of Fischetti, Ljubic and
    Sinnl (2017), "Redesigning Benders decomposition for large-scale facility location".

    Args:
        master: where the terms go.
        form: the objective.
    """

    def __init__(self, master: Master, form: CoverageForm) -> None:
        self._master, self._form = master, form
        self._order = np.argsort(-form.similarity, axis=1, kind="stable")
        self._sorted = np.take_along_axis(form.similarity, self._order, axis=1)
        tops = form.weights * self._sorted[:, 0]
        self._terms: list[Any] = [master.term(0.0, float(top)) for top in tops]
        self._prices = [set[float]() for _ in tops]

    def cut(self, point: Floats) -> None:
        """For every row the cut of the price at which the point's units are worth one."""
        for i, price in enumerate(self._critical(point)):
            self.cut_at(i, float(price))

    def cut_at(self, row: int, price: float) -> None:
        """``term <= w (price + sum_j max(s_j - price, 0) x_j)``, once for each price."""
        if price in self._prices[row]:
            return
        self._prices[row].add(price)
        w = float(self._form.weights[row])
        slope = w * np.maximum(self._form.similarity[row] - price, 0.0)
        self._master.cut(self._terms[row], w * price, slope)

    def value(self, point: Floats) -> float:
        """The concave extension: every row served by its best units, up to one in all."""
        shares = point[self._order]
        before = np.cumsum(shares, axis=1) - shares
        used = np.clip(1.0 - before, 0.0, shares)
        return float(self._form.weights @ (used * self._sorted).sum(axis=1))

    def _critical(self, point: Floats) -> Floats:
        total = np.cumsum(point[self._order], axis=1)
        reached = total >= 1 - 1e-9
        place = np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
        prices: Floats = np.where(
            place >= 0, self._sorted[np.arange(len(place)), np.maximum(place, 0)], 0.0
        )
        return prices


class Products:
    """``x' P x`` off the diagonal, exactly at 0/1 points, by one term per unit (Glover 1975).

    Args:
        master: where the terms go.
        pairwise: symmetric with a zero diagonal, ``[n, n]``.
    """

    def __init__(self, master: Master, pairwise: Floats) -> None:
        self._pairwise = pairwise
        upper = 2 * np.triu(pairwise, 1)
        for i, row in enumerate(upper):
            if not row.any():
                continue
            high, low = float(np.maximum(row, 0).sum()), float(np.minimum(row, 0).sum())
            term = master.term(low, high)
            alone = np.zeros(len(row))
            alone[i] = high
            master.cut(term, 0.0, alone)  # nothing without unit i
            beside = row.copy()
            beside[i] += low
            master.cut(term, -low, beside)  # at most its pairs with it

    def cut(self, point: Floats) -> None:
        """Nothing to add: the terms are exact at 0/1 points."""

    def value(self, point: Floats) -> float:
        """The form at a 0/1 point."""
        return float(point @ self._pairwise @ point)
