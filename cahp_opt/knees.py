"""The knee of a curve: where more stops paying."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def knee(x: npt.ArrayLike, y: npt.ArrayLike, *, degree: int | None = None) -> float:
    """Where a rising curve that flattens bends most (Kneedle: Satopaa et al. 2011, "Finding a
    'kneedle' in a haystack").

    Both axes are scaled to 0..1, and the knee is the point farthest above the diagonal. So it depends
    on where the curve begins and ends, not only on its shape: without a steep start, the knee moves
    up. On a polynomial of low degree it says more about the degree than about the data: degree 2
    always gives the middle of ``x``. :meth:`Frontier.cheapest_within` takes an acceptable loss
    instead and does not have these faults.

    Args:
        x: the abscissae, ``[points]``, at least three different ones, in any order.
        y: the ordinates, ``[points]``.
        degree: of a polynomial that smooths the curve first, as the seed method does (its degree is in
            effect the dial of sparsity: a larger one stops earlier); None for the points themselves.

    Returns:
        The abscissa of the knee, one of ``x``; the largest if the curve never rises above the
        diagonal.

    Raises:
        ValueError: for fewer than three points, other shapes, NaN, or a degree that is not in
            ``1 .. points - 1``.
    """
    abscissa, ordinate = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if abscissa.ndim != 1 or abscissa.shape != ordinate.shape:
        raise ValueError(
            f"`x` and `y` must be lists of the same length, got shapes {list(abscissa.shape)} and "
            f"{list(ordinate.shape)}."
        )
    if not (np.all(np.isfinite(abscissa)) and np.all(np.isfinite(ordinate))):
        raise ValueError("`x` and `y` must be finite; leave points without a value out.")
    places, first = np.unique(abscissa, return_index=True)
    heights = ordinate[first]
    if len(places) < 3:
        raise ValueError(f"a knee needs at least 3 different abscissae, got {len(places)}.")
    if degree is not None and not 1 <= degree < len(places):
        raise ValueError(f"`degree` must lie in 1..{len(places) - 1}, got {degree}.")
    across = (places - places[0]) / (places[-1] - places[0])
    if degree is not None:
        heights = np.polynomial.Polynomial.fit(across, heights, degree)(across)
    rise = heights[-1] - heights[0]
    if not rise > 0:
        return float(places[-1])
    above = (heights - heights[0]) / rise - across
    best = int(np.argmax(above))
    return float(places[best] if above[best] > 1e-12 else places[-1])
