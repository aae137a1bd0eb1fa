"""Best subsets of a block by the number of units kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.space import HeadSpace


def subset_values(linear: Floats, pairwise: Floats) -> Floats:
    """``linear @ x + x' pairwise x`` of every subset ``x``, by code (bit ``u`` set: unit ``u``
    kept), ``[2^units]``; ``linear`` is ``[units]``, ``pairwise`` ``[units, units]``.

    By doubling: the subsets with unit ``u`` are those without it plus the gain of ``u`` beside
        them.
    """
    values = np.zeros(1)
    beside = np.zeros((1, len(linear)))  # pairwise @ x of every subset
    for u in range(len(linear)):
        gain = linear[u] + pairwise[u, u] + 2 * beside[:, u]
        values = np.concatenate([values, values + gain])
        beside = np.concatenate([beside, beside + pairwise[u]])
    return values


class BestSubsets(NamedTuple):
    """For one block and every count ``k``, the best set of ``k`` units and its value.

    Args:
        values: their values, ``[units + 1]``.
        kept: the sets, bool ``[units + 1, units]``.
        bound: where they are the best that were found, and no more is proved, an upper bound on the value
            of any set of ``k`` units, ``[units + 1]``; None if every set is the best of its size.
    """

    values: Floats
    kept: Bools
    bound: Floats | None = None

    def times(self, weight: float) -> BestSubsets:
        """The same for values that count ``weight`` times, at least 0."""
        bound = None if self.bound is None else weight * self.bound
        return BestSubsets(weight * self.values, self.kept, bound)

    @property
    def most(self) -> Floats:
        """An upper bound on the value of any set of every size, ``[units + 1]``."""
        return self.values if self.bound is None else self.bound


def modular_subsets(weights: Floats, space: HeadSpace) -> tuple[BestSubsets, ...]:
    """Best subsets per block of a sum of weights ``[n]``: the ``k`` heaviest units, for every
    ``k``."""
    tables: list[BestSubsets] = []
    for where in space.slices:
        own = weights[where]
        order = np.argsort(-own, kind="stable")
        values = np.concatenate([[0.0], np.cumsum(own[order])])
        rank = np.empty(len(own), dtype=np.int64)
        rank[order] = np.arange(len(own))
        kept: Bools = rank[None, :] < np.arange(len(own) + 1)[:, None]
        tables.append(BestSubsets(values, kept))
    return tuple(tables)


def join_subsets(
    tables: Sequence[BestSubsets],
    counts: Sequence[int] | np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> Bools:
    """The keep-set, bool ``[n]``, of every block's best subset of these counts, ``[blocks]``."""
    return np.concatenate([t.kept[k] for t, k in zip(tables, counts, strict=True)])


MOST_UNITS = 16
"""A block of this many units has 65 536 subsets; beyond it, tabulating is refused."""


def check_enumerable(name: str, units: int) -> None:
    """Refuse a block whose subsets are too many to tabulate.

    Raises:
        ValueError: for more than :data:`MOST_UNITS` units.
    """
    if units > MOST_UNITS:
        raise ValueError(
            f"block {name!r} has {units} units, and its 2^{units} subsets are too many to tabulate "
            f"(at most 2^{MOST_UNITS}); use `LazyGreedy` or `Greedy` for this model."
        )


def best_by_count(units: int, values: Floats) -> BestSubsets:
    """The best subset of every size.

    Args:
        units: units of the block.
        values: the value of every subset, shape ``[2^units]``; bit ``u`` of the index says whether
            unit ``u`` is kept.
    """
    codes = np.arange(1 << units, dtype=np.int64)
    bits = (codes[:, None] >> np.arange(units)) & 1
    sizes = bits.sum(axis=1)
    order = np.lexsort((codes, -values, sizes))  # by size, best first, smallest code among equals
    best = order[np.searchsorted(sizes[order], np.arange(units + 1))]
    return BestSubsets(values[best], bits[best].astype(np.bool_))
