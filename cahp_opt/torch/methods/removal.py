"""Greedy removal: each time the unit that does least damage for the cost that it saves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from cahp_opt.arrays import Bools, Floats, Ints
from cahp_opt.costs.budget import Budget

Damages = Callable[[Bools, Ints], Floats]
"""The damage with one unit less, for each of some units ``[units]`` of a keep-set bool ``[n]``."""


def removal_path(
    budget: Budget,
    damages: Damages,
    *,
    shortlist: int | None = None,
    deadline: float = math.inf,
    progress: Callable[[int], None] = lambda removed: None,
) -> list[int]:
    """Units in the order in which they are removed, until the budget allows what is left.

    Each time the unit goes whose removal adds the least damage for the cost that it saves
    (:func:`savings`). The path ends early where no removal helps any more: with costs that rise when a
    unit goes.

    Args:
        budget: the limits.
        damages: what is removed by.
        shortlist: the number of units that are tried each time, those that were cheapest when they were
            tried last; None for all.
        deadline: the ``time.monotonic()`` after which units go by the damages that are known.
        progress: called with the number of removed units.
    """
    space = budget.space
    kept: Bools = np.ones(space.n, dtype=np.bool_)
    known = np.zeros(space.n)  # what the removal of every unit added when it was tried last
    now, path = 0.0, list[int]()
    while not budget.allows(space.counts(kept)):
        saved = savings(budget, space.counts(kept))[space.block_of]
        units = np.flatnonzero(kept & (saved > 0))
        if not len(units):
            break
        ratio = known / np.where(saved > 0, saved, 1.0)
        if path and shortlist is not None:
            units = units[np.argsort(ratio[units], kind="stable")][:shortlist]
        if time.monotonic() <= deadline:
            known[units] = damages(kept, units) - now
        unit = int(units[np.argmin(known[units] / saved[units])])
        now += float(known[unit])
        kept[unit] = False
        path.append(unit)
        progress(len(path))
    return path


def savings(budget: Budget, counts: Ints) -> Floats:
    """What one unit less saves in every block, ``[blocks]``; 0 where none may go.

    It is the saving by the table whose limit is exceeded most. Where costs fall in steps, it is the mean over
    the steepest way down. Where all limits are met and a count is too large or no multiple, all that helps
    counts alike.

    Args:
        budget: the limits.
        counts: units per block, ``[blocks]``.
    """
    over = [table for table in budget.coupling if not table.fits(counts)]
    allowed = budget.allowed
    misfit = np.array([not fine[k] for fine, k in zip(allowed, counts, strict=True)])
    if over:
        worst = max(over, key=lambda table: 1 - table.limit / table.cost(counts))
        pairs = zip(worst.costs, counts, strict=True)
        found = np.array([_steepest(cost[: k + 1]) for cost, k in pairs])
    elif budget.even:
        found = (misfit | ~_level(budget, counts)).astype(np.float64)
    else:
        found = misfit.astype(np.float64)
    least = np.array([int(np.argmax(fine)) for fine in allowed])
    found[counts <= least] = 0.0
    if budget.even:
        found[counts < _largest_of_kind(budget, counts)] = 0.0
    return found


def _steepest(costs: Floats) -> float:
    """The largest mean saving per unit on the way down from the last of some costs, ``[units + 1]``."""
    steps = np.arange(len(costs) - 1, 0, -1)
    return max(0.0, float(np.max((costs[-1] - costs[:-1]) / steps))) if len(steps) else 0.0


def _largest_of_kind(budget: Budget, counts: Ints) -> Ints:
    """The most units of any block of its kind, ``[blocks]``."""
    attention = budget.space.of_attention
    found = counts.copy()
    for kind in (attention, ~attention):
        if kind.any():
            found[kind] = counts[kind].max()
    return found


def _level(budget: Budget, counts: Ints) -> Bools:
    """Whether all blocks of its kind keep as many units as it, bool ``[blocks]``."""
    attention = budget.space.of_attention
    found = np.ones(len(counts), dtype=np.bool_)
    for kind in (attention, ~attention):
        if kind.any():
            found[kind] = bool(np.all(counts[kind] == counts[kind][0]))
    return found
