"""How far numbers are apart: a value from its bound, and floating-point sums from the exact ones."""

from __future__ import annotations

import math

import numpy as np


def rounding_slack(value: float, bound: float) -> float:
    """How far two sums of the same terms in another order may lie apart."""
    finite = [abs(x) for x in (value, bound) if math.isfinite(x)]
    return 1e-9 * max([1e-12, *finite])


def relative_gap(value: float, bound: float) -> float:
    """``|bound - value| / max(|value|, 1e-12)``; infinite without a bound or a value."""
    if not (math.isfinite(bound) and math.isfinite(value)):
        return math.inf
    return abs(bound - value) / max(abs(value), 1e-12)


def sum_rounding(size: float, depth: float = 1.0) -> float:
    """How far a floating-point sum may lie from the exact one.

    Args:
        size: the sum of the sizes of all terms.
        depth: how many additions a term goes through.
    """
    return 4 * float(np.finfo(np.float64).eps) * size * depth
