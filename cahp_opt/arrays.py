"""Arrays from outside, checked at the door."""

from __future__ import annotations

import math
import mmap
from typing import TypeGuard

import numpy as np
import numpy.typing as npt


def finite(array: npt.ArrayLike, argument: str) -> Floats:
    """``array`` as a read-only float64 array of the same shape, ``[...]``.

    One that nobody can write to is not copied.

    Raises:
        ValueError: naming ``argument`` if it holds NaN or infinity.
    """
    result = array if _is_constant(array) else np.array(array, dtype=np.float64)
    if not np.all(np.isfinite(result)):
        bad = int(np.count_nonzero(~np.isfinite(result)))
        raise ValueError(
            f"`{argument}` holds {bad} values that are NaN or infinite; every value must be finite."
        )
    result.flags.writeable = False
    return result


def constant(array: Floats) -> Floats:
    """The same array, ``[...]``, made read-only, for one that is handed out and not needed here."""
    array.flags.writeable = False
    return array


def _is_constant(array: npt.ArrayLike) -> TypeGuard[Floats]:
    """Whether it is a read-only float64 array with memory of its own, or with that of a file that is mapped to be
    read."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.flags.writeable:
        return False
    owner: object = array.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    mapped = isinstance(owner, mmap.mmap) and memoryview(owner).readonly
    return array.base is None or mapped


def scatter_between(sum_: Floats, weight: float, other_sum: Floats, other_weight: float) -> Floats:
    """The scatter of two parts' means about their common mean, ``[d, d]``:
    ``w v / (w + v) * (b - a)(b - a)'`` with weights ``w``, ``v`` and means ``a``, ``b`` (Chan,
    Golub and LeVeque 1979). The sums of weighted rows are ``[d]``.
    """
    if not (weight and other_weight):
        return np.zeros((len(sum_), len(sum_)))
    apart = other_sum / other_weight - sum_ / weight
    step: Floats = apart * math.sqrt(weight * (other_weight / (weight + other_weight)))
    return step[:, None] * step


def scatter_about_mean(outer: npt.ArrayLike, sum_: npt.ArrayLike, weight: float) -> Floats:
    """The scatter about the mean, ``[d, d]``, from that about zero, which older records hold, and
    the sum ``[d]``: ``outer - sum sum' / weight``.

    Few digits are left if the mean is large against the spread.
    """
    total = np.asarray(sum_, dtype=np.float64)
    moved = np.asarray(outer, dtype=np.float64)
    return moved - np.outer(total, total / weight) if weight else moved


Bools = npt.NDArray[np.bool_]


Ints = npt.NDArray[np.int64]


Floats = npt.NDArray[np.float64]


Columns = Bools | Ints
"""Some columns, bool ``[d]``, or all of them in another order, ``[d]``."""


def is_whole(x: object) -> bool:
    """Whether ``x`` is a whole number, of any numeric type but bool."""
    if isinstance(x, float):
        return x.is_integer()
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)
