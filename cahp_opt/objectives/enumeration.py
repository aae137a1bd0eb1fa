"""From the values of all subsets of one block to its best subset of every size."""

from __future__ import annotations

import numpy as np

from cahp_opt.problem import BestSubsets
from cahp_opt.space import Floats

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
