"""Exchanges of single units that lower the damage of all that is dropped together (Kwon et al. 2022)."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Bools, Floats


def rearranged(fisher: Floats, kept: Bools) -> Bools:
    """The units of one block after swaps that lower the damage of all that is dropped together.

    It is section 4.2 of arXiv 2204.09656. The damage of a keep-set is ``d' F d`` with ``d`` 1 where a unit is dropped.
    Each unit that is dropped at first is exchanged once with the kept unit whose exchange lowers the damage most, if
    any does.

    Args:
        fisher: the block's empirical Fisher matrix ``F``, ``[units, units]``.
        kept: which units stay, bool ``[units]``.

    Returns:
        As many units, bool ``[units]``.
    """
    found, own = kept.copy(), np.diag(fisher)
    slope: Floats = fisher @ (~kept).astype(np.float64)
    for back in np.flatnonzero(~kept):
        change = own[back] - 2 * slope[back] + own + 2 * (slope - fisher[back])
        change[~found] = np.inf
        away = int(np.argmin(change))
        if change[away] < 0:
            found[back], found[away] = True, False
            slope += fisher[away] - fisher[back]
    return found
