"""The order of the neurons of a feed-forward part: by what least squares loses with each of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from cahp_opt.arrays import Floats, Ints
from cahp_opt.space import HeadSpace
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.definite import definite_inverse
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.moments import BlockMoments, Moments
from cahp_opt.stats.sensitivity import BlockSensitivity, Sensitivity
from cahp_opt.stats.statistic import Statistic

_AT_ONCE = 64
_DENSE = 0.8  # of the columns are left when the matrices are made smaller


class Removal(NamedTuple):
    """The columns in the order of their worth.

    Args:
        order: the column at every place, the most valuable first, ``[d]``.
        prices: the variance that least squares explains less when the column at that place goes, after
            those behind it, ``[d]``. They add up to all that the columns explain.
    """

    order: Ints
    prices: Floats


def removal(
    covariance: Floats, factor: Floats, *, ridge: float = 1e-2, at_once: int = _AT_ONCE
) -> Removal:
    """Remove the columns of a least-squares fit, the cheapest first, with a refit after each.

    The fit of ``F z`` on ``z`` has the weights ``B = F C Q``, with ``Q`` the inverse of ``C`` plus its
    ridge; without column ``j`` it explains ``|B_j|^2 / Q_jj`` less, and both are conditioned on that
    (optimal brain surgeon, Hassibi and Stork 1993). All prices are exact after every removal, so that of
    two columns that say the same one stays. The matrices follow many removals later, by products of
    matrices; until then only one row of ``Q`` and the product of one column of ``B`` with the others
    are made up to date, for the column that goes.

    Args:
        covariance: ``C``, ``[d, d]``.
        factor: ``F``, ``[rows, d]``.
        ridge: added to the diagonal, as a share of its mean.
        at_once: removals after which the matrices follow; it changes the time alone.
    """
    d = len(covariance)
    mean = float(np.mean(np.diagonal(covariance)))
    gram = covariance.copy()
    gram[np.diag_indices(d)] += ridge * mean if mean > 0 else 1.0
    inverse = definite_inverse(gram)
    del gram
    weights: Floats = factor @ covariance @ inverse
    room = np.empty_like(inverse)  # to find new memory takes longer than the products
    column = np.arange(d)  # of every place of the matrices
    gone = np.zeros(d, dtype=np.bool_)
    order: list[int] = []
    prices: list[float] = []
    for left in range(d, 0, -at_once):
        if left <= _DENSE * len(column):
            stay = np.flatnonzero(~gone)
            column, gone = column[stay], gone[stay]
            inverse, weights = inverse[np.ix_(stay, stay)], weights[:, stay]
            room = np.empty_like(inverse)
        energy = np.einsum("ij,ij->j", weights, weights)
        diagonal = np.diagonal(inverse).copy()
        # By the removals so far `inverse` is too large by rows' rows, and `weights` by taken' rows.
        rows = np.zeros((min(at_once, left), len(column)))
        taken = np.zeros((len(rows), len(weights)))
        for k in range(len(rows)):
            price = np.where(gone, np.inf, energy / np.where(gone, 1.0, diagonal))
            next_ = int(np.argmin(price))
            before, those = rows[:k], taken[:k]
            row = inverse[next_] - before[:, next_] @ before
            root = np.sqrt(row[next_])
            row /= root
            goes = (weights[:, next_] - before[:, next_] @ those) / root
            along = goes @ weights - (those @ goes) @ before
            worth = float(goes @ goes)
            energy += row * (worth * row - 2 * along)
            diagonal -= row**2
            rows[k], taken[k], gone[next_] = row, goes, True
            order.append(int(column[next_]))
            prices.append(worth)
        inverse -= np.matmul(rows.T, rows, out=room)
        weights -= taken.T @ rows
    return Removal(np.array(order[::-1]), np.array(prices[::-1]))


def loss(second_moment: Floats, form: ColumnForm) -> Removal:
    """Remove the columns of a product, the cheapest first, where nothing is refitted.

    Without the columns ``D`` the output ``F z`` misses ``F_D z_D``, whose mean square is the sum over pairs of
    ``D`` of ``S * F'F``. So the next column to go costs its own entry and twice those with the columns
    that went before: those that cancel each other go together.

    Args:
        second_moment: ``S = E[z z']`` about zero, ``[d, d]``.
        form: ``F'F``.

    Returns:
        The order, and what the output misses more when the column at that place goes.
    """
    pairs: Floats = second_moment * form.matrix
    d = len(pairs)
    own = np.diagonal(pairs).copy()
    order, prices = np.empty(d, dtype=np.int64), np.empty(d)
    for place in range(d - 1, -1, -1):
        next_ = int(np.argmin(own))
        order[place], prices[place] = next_, own[next_]
        own += 2 * pairs[next_]
        own[next_] = np.inf
    return Removal(order, prices)


def in_order_of_price(
    stats: HeadStats,
    *,
    refitted: bool = True,
    ridge: float = 1e-2,
    fixed: Collection[str] = (),
) -> HeadStats:
    """Statistics with the neurons of every feed-forward part grouped by their worth, the most valuable
    in the first group and those of a group as they stand in the model.

    The sensitivity decides where it was measured, and otherwise the moments. Both say the same of every
    neuron as before; attention stays as it is.

    Args:
        stats: calibration statistics, with none but moments and sensitivity.
        refitted: whether what is left is refitted, so that a neuron is worth what the others cannot replace
            (:func:`removal`), or stays as it is (:func:`loss`). On a classifier without recovery the order of the
            latter halved the divergence of whatever was chosen, and after a refit it added a sixth.
        ridge: as in :class:`~cahp_opt.objectives.ExplainedVariance`, of a refit.
        fixed: names of blocks whose groups stay as they are, such as those that were sliced.

    Raises:
        ValueError: if neither was measured, or something that is about whole groups was.
    """
    others = [name for name in stats.statistics if name not in ("moments", "sensitivity")]
    if others:
        raise ValueError(
            f"`stats` has {', '.join(others)}, which is about whole groups of neurons and cannot be put "
            "into other groups; order the neurons first, and measure it then."
        )
    deciding = [*(stats.sensitivity or stats.moments)]
    if not deciding:
        raise ValueError(
            "`stats` has neither moments nor sensitivity, which the order of neurons is made from; "
            "calibrate with one of them."
        )
    blocks = list(stats.space.blocks)
    orders: list[Ints | None] = [None] * len(blocks)
    for b, (block, entry) in enumerate(zip(blocks, deciding, strict=True)):
        if not block.unit.of_attention and block.name not in fixed:
            if refitted:
                found = removal(entry.covariance, entry.form.factor, ridge=ridge).order
            else:
                found = loss(entry.second_moment, entry.form).order
            standing = np.arange(len(found)) if block.order is None else np.array(block.order)
            # Inside of a group neurons stand as in the model: it is kept or goes as one.
            group = np.arange(len(found)) // (len(found) // block.units)
            found = found[np.lexsort((standing[found], group))]
            blocks[b] = block._replace(order=tuple(standing[found].tolist()))
            orders[b] = found
    ordered: dict[str, Statistic] = {}
    if stats.moments:
        moments = (_permuted(entry, o) for entry, o in zip(stats.moments, orders, strict=True))
        ordered["moments"] = BlockMoments(moments)
    if stats.sensitivity:
        weighted = (_permuted(entry, o) for entry, o in zip(stats.sensitivity, orders, strict=True))
        ordered["sensitivity"] = BlockSensitivity(weighted)
    return replace(stats, space=HeadSpace(tuple(blocks)), statistics=ordered)


Entry = TypeVar("Entry", Moments, Sensitivity)


def _permuted(entry: Entry, order: Ints | None) -> Entry:
    return entry if order is None else entry.of(order)
