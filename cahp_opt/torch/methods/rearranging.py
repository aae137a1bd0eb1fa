"""Exchanges of single units that lower the damage of all that is dropped together (Kwon et al. 2022)."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Bools, Floats


def rearranged(fisher: Floats, kept: Bools) -> Bools:
    """The units of one block after swaps that lower the damage of all that is dropped together.

    It is section 4.2 of arXiv 2204.09656, in the order of the authors' code. The damage of a keep-set is ``d' F d``
    with ``d`` 1 where a unit is dropped. Each unit that is kept at first, the least informative by itself first, is
    exchanged once with the dropped unit whose exchange lowers the damage most, if any does.

    Args:
        fisher: the block's empirical Fisher matrix ``F``, ``[units, units]``.
        kept: which units stay, bool ``[units]``.

    Returns:
        As many units, bool ``[units]``.
    """
    found, own = kept.copy(), np.diag(fisher)
    slope: Floats = fisher @ (~kept).astype(np.float64)
    if kept.all():
        return found
    for away in np.argsort(np.where(kept, own, np.inf), kind="stable")[: kept.sum()]:
        change = own[away] + 2 * slope[away] + own - 2 * (slope + fisher[away])
        change[found] = np.inf
        back = int(np.argmin(change))
        if change[back] < 0:
            found[back], found[away] = True, False
            slope += fisher[away] - fisher[back]
    return found
