"""Best subsets of wide units of one least-squares fit, and how much better any other could be.

With ``Q`` the inverse Gram matrix and ``B`` the fitted weights, removing the columns ``D`` loses::

    loss(D) = tr(B_D Q_DD^-1 B_D') = max over Y of 2 <Y, B_D> - <Y Q_DD, Y>

so that any ``Y`` bounds it from below. Where ``Y`` is confined to a few matrices for every unit, the best
of them is a problem of the same kind whose units are a few columns wide instead of hundreds, and all of
its subsets can be tabulated. With the matrices that are best for some sets, the bound is exact for these
and close for others; only subsets that could be the best by it are fitted in full.

The inverse of nearly singular equations is not exact. What the first units explain is known without it, so
that the two ways to this number show how far off it is; the bounds are widened by that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.stats.definite import definite_form, definite_inverse, solved_lower
from cahp_opt.subsets import MOST_UNITS, BestSubsets

_SHARES = (
    1 / 4,
    1 / 2,
    2 / 3,
    5 / 6,
)  # of the units, removed from the back: sets with exact bounds
_MOST_WORK, _MOST_FITS = 2e10, 2000  # floating-point operations in full fits of one block, and fits
_CLOSE, _RIDGE = 1e-8, 1e-7  # so that rounding lies far below what counts as equal
_WIDER = 10.0  # times the rounding that was seen

_CHEAP = 4e9

SubsetValues = Callable[[Floats, Floats, int], Floats]
"""The explained variance of all subsets from a Gram matrix, a target and the number of units."""


class _Fit(NamedTuple):
    """A fit of ``units`` equal shares of ``d`` columns: Gram matrix ``[d, d]`` and target factor ``H``,
    ``[rows, d]``."""

    gram: Floats
    target: Floats
    units: int

    @property
    def width(self) -> int:
        return len(self.gram) // self.units


class _Factored(NamedTuple):
    """A fit with the triangle of its Gram matrix, which knows what the first units explain.

    Args:
        fit: the fit.
        lower: ``L`` with ``L L'`` its Gram matrix, ``[d, d]``.
        taken: ``L^-1 H'``, ``[d, rows]``.
        explained: by the first ``k`` units, ``[units + 1]``.
    """

    fit: _Fit
    lower: Floats
    taken: Floats
    explained: Floats

    @staticmethod
    def of(fit: _Fit) -> _Factored:
        lower: Floats = np.linalg.cholesky(fit.gram).astype(np.float64, copy=False)
        taken = solved_lower(lower, fit.target.T)
        energy = np.einsum("ij,ij->i", taken, taken).reshape(fit.units, fit.width).sum(axis=1)
        return _Factored(fit, lower, taken, np.concatenate([[0.0], np.cumsum(energy)]))

    def value(self, chosen: Bools) -> float:
        """What some units explain, bool ``[units]``: the first of them by the triangle, and what the others
        add to these by a triangle of their own."""
        first = len(chosen) if chosen.all() else int(np.argmin(chosen))
        known = first * self.fit.width
        rest = known + np.flatnonzero(np.repeat(chosen[first:], self.fit.width))
        if not len(rest):
            return float(self.explained[first])
        beside = self.lower[rest, :known]
        gram = self.fit.gram[np.ix_(rest, rest)] - beside @ beside.T
        target = self.fit.target[:, rest] - (beside @ self.taken[:known]).T
        return float(self.explained[first]) + definite_form(gram, target)


def group_subsets(
    gram: Floats, target: Floats, units: int, subset_values: SubsetValues
) -> BestSubsets:
    """The best subsets found of every size, at least as good as the first units, and bounds for any.

    Args:
        gram: with its ridge, ``[d, d]``; every unit owns an equal share of the columns, the most valuable
            first.
        target: ``H``, ``[rows, d]``: the columns ``S`` explain ``tr(gram_SS^-1 H_S' H_S)``.
        units: their number.
        subset_values: tabulates small problems.

    Returns:
        The subsets; ``bound`` is None where all of them are proved best.
    """
    fit = _Fit(gram, target, units)
    ahead = _Factored.of(fit)
    lowest = ahead.explained
    first: Bools = np.tri(units + 1, units, -1, dtype=np.bool_)
    inverse = definite_inverse(gram)
    weights: Floats = target @ inverse
    total = float(lowest[-1])
    try:
        # From the back, so that the triangle of every suffix is a corner of one.
        behind = _Factored.of(_Fit(inverse[::-1, ::-1], weights[:, ::-1], units))
    except np.linalg.LinAlgError:  # not even the signs are right: nothing but the whole is a bound
        return BestSubsets(lowest, first, np.array([0.0, *[total] * units]))
    rounding = float(np.max(np.abs(total - behind.explained[::-1] - lowest)))
    relaxed = _Relaxed.of(fit, inverse, weights, _answers(behind))
    if units <= MOST_UNITS:
        exact = behind if rounding <= _CLOSE * total else None
        found = _searched(ahead, exact, relaxed, first, subset_values)
        return _bounded(found, total, rounding)
    bound = total - relaxed.losses_in_parts(subset_values)[::-1]
    bound[0], bound[units] = lowest[0], lowest[units]
    return _bounded(BestSubsets(lowest, first, bound), total, rounding)


def is_cheaper_whole(rows: int, width: int, units: int) -> bool:
    """Whether all subsets are tabulated with about as little work as :func:`group_subsets` takes.

    Args:
        rows: of the target's factor.
        width: columns of every unit.
        units: their number.
    """
    if units > MOST_UNITS:
        return False
    d, directions = units * width, len(_SHARES) + 2
    relaxed = 6.0 * d**3 + 2.0 * directions * rows * d**2 + _MOST_WORK
    work = 16.0 * width**3 * float(2**units)
    return work <= max(_CHEAP, relaxed if width > 1 else math.inf)


def _bounded(found: BestSubsets, total: float, rounding: float) -> BestSubsets:
    """With bounds that rise with the size, as the best values do; without, where they prove nothing more."""
    assert found.bound is not None  # it was just made
    close = _CLOSE * total
    bound = np.minimum.accumulate(np.minimum(found.bound, total)[::-1])[::-1]
    values = found.values
    if rounding <= close and np.all(bound <= values + close):
        return BestSubsets(values, found.kept)
    return BestSubsets(values, found.kept, np.maximum(bound + close + _WIDER * rounding, values))


def _answers(behind: _Factored) -> Iterator[Floats]:
    """The best ``Y`` for some sets of last units, each ``[rows, d]`` and 0 for the units that stay.

    Args:
        behind: the inverse Gram matrix and the fitted weights, back to front.
    """
    units, width = behind.fit.units, behind.fit.width
    steps = {round(share * units) for share in _SHARES} | {units - 1}
    for removed in sorted(steps - {0}):
        size = removed * width
        own = np.zeros_like(behind.fit.target)
        # With L L' = Q_DD, Y = B_D Q_DD^-1 = (L^-1 B_D')' L^-1; back to front, L' is a lower triangle.
        corner = behind.lower[:size, :size].T[::-1, ::-1]
        own[:, -size:] = solved_lower(corner, behind.taken[:size][::-1]).T
        yield own


def _each_alone(inverse: Floats, weights: Floats, units: int) -> Floats:
    """The best ``Y`` for every unit that goes alone, ``[rows, d]``."""
    width = len(inverse) // units
    found = np.empty_like(weights)
    for u in range(units):
        own = slice(u * width, (u + 1) * width)
        found[:, own] = np.linalg.solve(inverse[own, own], weights[:, own].T).T
    return found


class _Relaxed(NamedTuple):
    """The problem with ``Y`` confined: a Gram matrix ``[units * m, units * m]``, with a little added to its
    diagonal, and its right-hand side, ``[units * m]``."""

    gram: Floats
    side: Floats
    units: int

    @staticmethod
    def of(fit: _Fit, inverse: Floats, weights: Floats, answers: Iterable[Floats]) -> _Relaxed:
        units, width = fit.units, fit.width
        rows = len(weights)
        # By unit; each is as large as the target, so that one at a time is there in both forms.
        chosen = [
            np.ascontiguousarray(y.reshape(rows, units, width).swapaxes(0, 1)).reshape(units, -1)
            for y in chain([_each_alone(inverse, weights, units)], answers)
        ]
        m = len(chosen)
        live = [  # answers are 0 for the first units
            np.flatnonzero([y[u].any() for y in chosen]) for u in range(units)
        ]

        def directions(u: int) -> Floats:
            found: Floats = np.array([chosen[k][u] for k in live[u]])
            return found.reshape(-1, rows * width)

        gram = np.zeros((units, m, units, m))
        side = np.zeros((units, m))
        for u in range(units):
            own, here = slice(u * width, (u + 1) * width), live[u]
            mine = directions(u)
            side[u, here] = mine @ np.ascontiguousarray(weights[:, own]).reshape(-1)
            for v in range(u, units):  # the matrix is symmetric
                other = inverse[own, v * width : (v + 1) * width]
                reach = (mine.reshape(-1, width) @ other).reshape(len(here), rows * width)
                gram[u, here[:, None], v, live[v]] = reach @ directions(v).T
        square = gram.reshape(units * m, units * m)
        square = np.triu(square) + np.triu(square, 1).T
        scale = np.sqrt(np.maximum(np.diagonal(square), 0.0))
        scale[scale == 0] = 1.0  # a matrix that is 0: its place stays empty
        square = square / scale / scale[:, None]
        # More on the diagonal makes the bound smaller, and equations that hardly differ solvable.
        square[np.diag_indices(len(square))] += _RIDGE
        return _Relaxed(square, side.reshape(-1) / scale, units)

    def losses(self, subset_values: SubsetValues) -> Floats:
        """Lower bounds on what every set loses that is removed, by code, ``[2^units]``."""
        return subset_values(self.gram, np.outer(self.side, self.side), self.units)

    def losses_in_parts(self, subset_values: SubsetValues) -> Floats:
        """Lower bounds on what any removed set of every size loses, ``[units + 1]``, for many units.

        The units fall into parts of few enough to tabulate. A set loses at least what its share of any part
        does, and at least the sum of these over ``t``, with ``t`` the largest eigenvalue of the Gram
        matrix when every part is made the identity.
        """
        m = len(self.side) // self.units
        parts = np.array_split(np.arange(self.units), -(-self.units // (MOST_UNITS - 4)))
        together = np.array([0.0])
        worst = np.array([0.0])
        scaled = self.gram.copy()
        for part in parts:
            own = slice(int(part[0]) * m, (int(part[-1]) + 1) * m)
            small = _Relaxed(self.gram[own, own], self.side[own], len(part))
            least = _least_by_size(small.losses(subset_values), len(part))
            together = _combined(together, least, np.add)
            worst = _combined(worst, least, np.maximum)
            root = np.linalg.inv(np.linalg.cholesky(self.gram[own, own]))
            scaled[own] = root @ scaled[own]
            scaled[:, own] = scaled[:, own] @ root.T
        largest = float(np.linalg.eigvalsh(scaled)[-1]) * (1 + 1e-9)
        losses: Floats = np.maximum(worst, together / max(largest, 1.0))
        return losses


def _least_by_size(losses: Floats, units: int) -> Floats:
    """The smallest loss of every number of removed units, ``[units + 1]``."""
    sizes = _sizes(units)
    least = np.full(units + 1, np.inf)
    np.minimum.at(least, sizes, losses)
    return least


def _combined(one: Floats, other: Floats, join: Callable[[Floats, Floats], Floats]) -> Floats:
    """The smallest ``join(one[i], other[j])`` for every ``i + j``."""
    found = np.full(len(one) + len(other) - 1, np.inf)
    for i, value in enumerate(one):
        place = slice(i, i + len(other))
        found[place] = np.minimum(found[place], join(np.full(len(other), value), other))
    return found


def _sizes(units: int) -> Ints:
    codes = np.arange(1 << units, dtype=np.int64)
    sizes: Ints = ((codes[:, None] >> np.arange(units)) & 1).sum(axis=1)
    return sizes


def _searched(
    ahead: _Factored,
    behind: _Factored | None,
    relaxed: _Relaxed,
    first: Bools,
    subset_values: SubsetValues,
) -> BestSubsets:
    """Fit the subsets that could be the best of their size, the most hopeful first, while work is left.

    Where ``behind`` is given, the inverse Gram matrix with the fitted weights, back to front, what few units lose
    in it shows that many a subset is not the best; only others are fitted themselves.
    """
    fit, lowest = ahead.fit, ahead.explained
    units, total = fit.units, float(lowest[-1])
    hopes = total - relaxed.losses(subset_values)  # by the code of what is removed
    sizes, bits = _sizes(units), np.arange(units)
    values, kept, bound = lowest.copy(), first.copy(), lowest.copy()
    tiny, work, fits = _CLOSE * total, 0.0, 0
    for removed in range(1, units):
        k = units - removed
        codes = np.flatnonzero(sizes == removed)
        codes = codes[np.argsort(-hopes[codes], kind="stable")]
        effort = (k * fit.width) ** 2 * (k * fit.width / 3 + len(fit.target))
        for code in codes:
            bound[k] = max(values[k], hopes[code])
            if hopes[code] <= values[k] + tiny:
                bound[k] = values[k]
                break
            if work > _MOST_WORK or fits >= _MOST_FITS:
                break
            work, fits = work + effort, fits + 1
            chosen = ((int(code) >> bits) & 1) == 0
            if (
                behind is not None
                and removed < k
                and total - behind.value(~chosen[::-1]) <= values[k] + tiny
            ):
                continue
            value = ahead.value(chosen)
            if value > values[k]:
                values[k], kept[k] = value, chosen
        else:
            bound[k] = values[k]
    return BestSubsets(values, kept, bound)
