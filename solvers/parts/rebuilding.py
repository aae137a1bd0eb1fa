"""Ruin and recreate: give up plateaus of some blocks, and fill the budget anew from there."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cahp_opt.arrays import Bools, Floats
from cahp_opt.solvers.parts.neighbourhood import Neighbourhood


def drop_plateau(here: Neighbourhood, ends: list[Bools], block: int) -> bool:
    """Take a block down to its previous plateau end, of ``ends``, bool ``[units + 1]`` per block,
    that keeps the budget, least useful units first; whether there is one."""
    fine = here.budget.allowed[block] & ends[block]
    for low in range(int(here.counts[block]) - 1, -1, -1):
        if fine[low] and here.ledger.fits((block, low)):
            while here.counts[block] > low:
                here.flip(here.best_flip(block, kept=True)[0])
            return True
    return False


def raise_plateau(here: Neighbourhood, ends: list[Bools], block: int) -> bool:
    """Fill a block up to its next plateau end, of ``ends``, bool ``[units + 1]`` per block, most
    useful units first, whatever the limits that tie blocks; whether there is one."""
    fine = here.budget.allowed[block] & ends[block]
    highs = np.flatnonzero(fine[int(here.counts[block]) + 1 :])
    if not len(highs):
        return False
    for _ in range(int(highs[0]) + 1):
        here.flip(here.best_flip(block, kept=False)[0])
    return True


def fill(here: Neighbourhood, ends: list[Bools], closed: Collection[int], reach: int) -> None:
    """Fill blocks up to plateau ends with the most gain per cost, while any that fits gains.

    Args:
        here: the keep-set, changed in place.
        ends: the plateau ends, bool ``[units + 1]`` per block.
        closed: blocks that stay as they are.
        reach: how many plateau ends up are considered.
    """
    spare = here.ledger.spare()
    while True:
        best = _best_rise(here, ends, closed, reach, spare)
        if best is None:
            return
        block, high = best
        while here.counts[block] < high:
            here.flip(here.best_flip(block, kept=False)[0])


def _best_rise(
    here: Neighbourhood,
    ends: list[Bools],
    closed: Collection[int],
    reach: int,
    spare: Floats,
) -> tuple[int, int] | None:
    gains = here.tracker.gains()
    kept = here.tracker.kept
    best, best_rate = None, 0.0
    for b, where in enumerate(here.space.slices):
        count = int(here.counts[b])
        fine = here.budget.allowed[b] & ends[b]
        highs = count + 1 + np.flatnonzero(fine[count + 1 :])[:reach]
        if b in closed or not len(highs):
            continue
        sums = np.cumsum(np.sort(gains[where][~kept[where]])[::-1])
        for high in highs:
            price = 0.0
            for table, left in zip(here.ledger.tables, spare, strict=True):
                extra = float(table.costs[b][high] - table.costs[b][count])
                if extra > 0:
                    price += extra / left if left > 0 else np.inf
            gain = float(sums[high - count - 1])
            rate = np.inf if price == 0 and gain > 0 else gain / price if price else 0.0
            if rate > best_rate and here.ledger.fits((b, int(high))):
                best, best_rate = (b, int(high)), rate
    return best
