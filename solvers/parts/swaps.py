"""Gains of swapping a kept unit for another: of all pairs at once if the structure allows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats
from cahp_opt.objective import CoverageForm, Objective, QuadraticForm
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood

_MOST_UNITS = 4096  # beyond it a matrix of all pairs is too large

Places = npt.NDArray[np.intp]
Interaction = Callable[[Places, Places, Floats], Floats]
"""From the kept units ``[k]``, those outside ``[m]`` and all gains ``[n]`` to what swapping each pair
gains beyond the sum of both gains, ``[k, m]``."""


class Swap(NamedTuple):
    """A unit that leaves, one that enters (``n`` stands for none), and the change of the value."""

    leaving: int
    entering: int
    gain: float


def interaction(objective: Objective) -> Interaction | None:
    """All pairs at once from the objective's linear, quadratic or coverage form; None if it has none."""
    if objective.n > _MOST_UNITS:
        return None
    if objective.linear() is not None:
        return lambda inside, outside, gains: np.zeros((len(inside), len(outside)))
    form = objective.quadratic()
    if form is not None:
        return _of_quadratic(form)
    cover = objective.coverage()
    return None if cover is None else _of_coverage(cover)


def _of_quadratic(form: QuadraticForm) -> Interaction:
    together = -2 * form.pairwise
    return lambda inside, outside, gains: together[inside[:, None], outside]


def _of_coverage(form: CoverageForm) -> Interaction:
    """Rows served by the leaving unit fall back on their second best, or on the entering unit."""

    def between(inside: Places, outside: Places, gains: Floats) -> Floats:
        result = np.zeros((len(inside), len(outside)))
        if not len(inside):
            return result
        near = form.similarity[:, inside]
        rows = np.arange(len(near))
        owner = near.argmax(axis=1)
        best = near[rows, owner]
        near[rows, owner] = 0
        second = near.max(axis=1)
        order = np.argsort(owner, kind="stable")
        entering = form.similarity[order[:, None], outside]
        change = np.maximum(entering, second[order, None]) - np.maximum(entering, best[order, None])
        change *= form.weights[order, None]
        owners, starts = np.unique(owner[order], return_index=True)
        result[owners] = np.add.reduceat(change, starts, axis=0)
        return result - gains[inside, None]

    return between


def all_swaps(
    here: Neighbourhood, gains: Floats, between: Interaction
) -> tuple[Places, Places, Floats]:
    """The gain of every swap, addition and removal; minus infinity where the budget forbids it.

    Returns:
        The kept units and ``n`` for none, ``[k + 1]``; those outside and none, ``[m + 1]``; gains of
        the pairs, ``[k + 1, m + 1]``.
    """
    kept, n = here.tracker.kept, here.space.n
    inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
    blocks = here.space.block_of
    none = len(here.counts)
    table = np.zeros((len(inside) + 1, len(outside) + 1))
    table[:-1, :-1] = between(inside, outside, gains)
    table[:-1] += gains[inside, None]
    table[:, :-1] += gains[outside]
    penalty = np.where(here.ledger.room(), 0.0, -np.inf)
    table += penalty[np.append(blocks[inside], none)][:, np.append(blocks[outside], none)]
    return np.append(inside, n), np.append(outside, n), table


def best_swap(here: Neighbourhood, between: Interaction) -> Swap | None:
    """The swap, addition or removal that gains most; None if none gains anything."""
    gains = here.tracker.gains()
    inside, outside, table = all_swaps(here, gains, between)
    row, column = divmod(int(table.argmax()), table.shape[1])
    gain = float(table[row, column])
    if gain <= here.tolerance(gains):
        return None
    return Swap(int(inside[row]), int(outside[column]), gain)


def swaps_of(here: Neighbourhood, leaving: int) -> tuple[float, Floats]:
    """By way of the tracker: the value change of dropping a unit, then of adding each other ``[n]``;
    minus infinity where that unit may not enter."""
    block_of, n = here.space.block_of, here.space.n
    room = here.ledger.room()
    if leaving < n:
        may = room[block_of[leaving]][block_of] & ~here.tracker.kept
        loss = here.tracker.gain(leaving)
        here.tracker.remove(leaving)
        gains = np.where(may, here.tracker.gains(), -np.inf)
        here.tracker.add(leaving)
        return loss, gains
    may = room[-1][block_of] & ~here.tracker.kept
    return 0.0, np.where(may, here.tracker.gains(), -np.inf)


def swap_in_turn(here: Neighbourhood, deadline: float) -> bool:
    """Go once through the kept units, least loss first, and make every best swap that gains.

    For objectives without a form that gives all pairs at once. Returns whether anything improved.
    """
    gains = here.tracker.gains()
    tolerance = here.tolerance(gains)
    improved = False
    kept = np.flatnonzero(here.tracker.kept)
    n, block_of = here.space.n, here.space.block_of
    for leaving in (n, *kept[np.argsort(-gains[kept], kind="stable")]):
        if time.monotonic() > deadline:
            break
        unit = int(leaving)
        while True:
            loss, entering = swaps_of(here, unit)
            best = int(entering.argmax())
            if loss + entering[best] > tolerance:
                here.swap(unit, best)
                improved = True
                if unit == n and time.monotonic() <= deadline:
                    continue  # more may be added
            elif loss > tolerance and here.ledger.room()[block_of[unit], -1]:
                here.flip(unit)
                improved = True
            break
    return improved


def flip_while_better(here: Neighbourhood, deadline: float) -> bool:
    """Flip the unit that gains most until none that fits gains; whether that came before the deadline.

    For a monotone objective this fills what the budget leaves.
    """
    block_of = here.space.block_of
    while time.monotonic() <= deadline:
        gains = here.tracker.gains()
        room = here.ledger.room()
        fits = np.where(here.tracker.kept, room[:, -1][block_of], room[-1][block_of])
        gains = np.where(fits, gains, -np.inf)
        best = int(gains.argmax())
        if not gains[best] > here.tolerance(np.where(fits, gains, 0.0)):
            return True
        here.flip(best)
    return False
