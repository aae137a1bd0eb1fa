"""How far floating-point sums may be off: what counts as equal, and what keeps a bound valid."""

from __future__ import annotations

import math

import numpy as np


def rounding_slack(value: float, bound: float) -> float:
    """How far two sums of the same terms in another order may lie apart."""
    finite = [abs(x) for x in (value, bound) if math.isfinite(x)]
    return 1e-9 * max([1e-12, *finite])


def sum_rounding(size: float, depth: float = 1.0) -> float:
    """How far a floating-point sum may lie from the exact one.

    Args:
        size: the sum of the sizes of all terms.
        depth: how many additions a term goes through.
    """
    return 4 * float(np.finfo(np.float64).eps) * size * depth
