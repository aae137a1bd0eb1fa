"""Fill a budget with units in a given order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Bools, Floats
from cahp_opt.costs.budget import Budget
from cahp_opt.problem import Problem
from cahp_opt.solvers.parts.ledger import Ledger


def filled_up(problem: Problem, kept: Bools, gains: Floats) -> Bools:
    """What a search that ran out of time has, with what is left of the budget filled by old gains.

    Args:
        problem: the objective and the budget.
        kept: a keep-set within the budget, bool ``[n]``.
        gains: of every unit beside it, ``[n]``.

    Returns:
        The fuller keep-set, or ``kept`` itself if that is worth more.
    """
    order = np.argsort(-np.where(kept, np.inf, gains), kind="stable")
    useful = None if problem.objective.monotone else kept | (gains > 0)
    full = fill_in_order(problem.budget, order, useful)
    return full if problem.objective.value(full) > problem.objective.value(kept) else kept


def fill_in_order(budget: Budget, order: npt.NDArray[np.int64], useful: Bools | None) -> Bools:
    """Keep units in this order while the budget holds; units that do not fit are passed over.

    Where a block may not keep just one more, as with multiples, a unit enters with the next ones of its block.
    Starts from counts that are within the budget, so that block minima and tables that fall with a
    larger count are met too. A pass may make room for units passed over before (costs need not grow
    with the count), so passes repeat until nothing enters.

    Args:
        budget: the limits.
        order: all units, ``[n]``.
        useful: bool ``[n]``: units worth more than nothing; others enter only where the starting
            counts need them. None if all are.
    """
    space = budget.space
    ledger = Ledger(budget, budget.cheapest)
    missing = budget.cheapest.tolist()
    kept = np.zeros(space.n, dtype=np.bool_)
    for unit, block in zip(order.tolist(), space.block_of[order].tolist(), strict=True):
        if missing[block]:
            kept[unit] = True
            missing[block] -= 1
    waiting = order[~kept[order]] if useful is None else order[~kept[order] & useful[order]]
    entered = True
    while entered:
        entered = False
        blocks = space.block_of[waiting]
        for place, (unit, block) in enumerate(zip(waiting.tolist(), blocks.tolist(), strict=True)):
            now = int(ledger.counts[block])
            larger = np.flatnonzero(budget.allowed[int(block)][now + 1 :])
            if kept[unit] or not len(larger):
                continue
            step = int(larger[0]) + 1
            behind = waiting[place:][blocks[place:] == block] if step > 1 else waiting[[place]]
            enter = behind[~kept[behind]][:step]
            if len(enter) == step and ledger.fits((block, now + step)):
                ledger.move(block, now + step)
                kept[enter] = entered = True
        waiting = waiting[~kept[waiting]]
    return kept
