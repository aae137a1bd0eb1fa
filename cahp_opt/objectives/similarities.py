"""Checked similarity matrices: float32 or float64, never copied without need."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats, finite

Matrix = npt.NDArray[np.float32 | np.float64]
"""A matrix of similarities or features, in single or double precision."""

_TILE = 256  # two tiles of this side fit a second-level cache


def checked_matrix(given: npt.ArrayLike, argument: str, shape: str = "[m, n]") -> Matrix:
    """``given`` as a read-only matrix ``[m, n]`` of numbers of at least 0.

    A float32 array is used as it is, without a copy, so that one of gigabytes is held once; do not
    write to it afterwards. Everything else is copied to float64.

    Args:
        given: the numbers.
        argument: its name, for messages.
        shape: the required shape, for messages.

    Raises:
        ValueError: for NaN, infinity, negative numbers, or another number of axes than two.
    """
    array: npt.NDArray[Any] = np.asarray(given)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"`{argument}` must have shape {shape}, got {list(array.shape)}.")
    matrix = array.view() if array.dtype == np.float32 else np.array(array, dtype=np.float64)
    check_range(matrix, argument)
    matrix.flags.writeable = False
    return matrix


def check_range(array: npt.NDArray[Any], argument: str) -> None:
    """Refuse NaN, infinity and negative numbers in an array ``[...]``, without temporary arrays.

    Raises:
        ValueError: naming ``argument``.
    """
    if not array.size:
        return
    low, high = float(array.min()), float(array.max())  # NaN goes through both
    if not (np.isfinite(low) and np.isfinite(high)):
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise ValueError(
            f"`{argument}` holds {bad} values that are NaN or infinite; every value must be finite."
        )
    if low < 0:
        raise ValueError(f"`{argument}` must be at least 0, got {low:.6g}; shift or clip it first.")


def square(matrix: Matrix, argument: str) -> Matrix:
    """``matrix`` if it is square.

    Raises:
        ValueError: if it is not.
    """
    if matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"`{argument}` must have shape [n, n], got {list(matrix.shape)}.")
    return matrix


def is_symmetric(matrix: Matrix) -> bool:
    """Whether the matrix equals its transpose bit by bit; compared tile by tile, without a copy."""
    if matrix.shape[0] != matrix.shape[1]:
        return False
    starts = range(0, len(matrix), _TILE)
    return all(
        np.array_equal(matrix[a : a + _TILE, b : b + _TILE], matrix[b : b + _TILE, a : a + _TILE].T)
        for a in starts
        for b in starts
        if a <= b
    )


def columns_of(matrix: Matrix) -> Matrix:
    """The transpose with contiguous rows, ``[n, m]``; the matrix itself if that is the same."""
    if matrix.flags.c_contiguous and is_symmetric(matrix):
        return matrix
    return np.ascontiguousarray(matrix.T)


def symmetric(matrix: Matrix, argument: str) -> Matrix:
    """``matrix`` if it is symmetric to the bit, a symmetric copy if it is so up to rounding.

    Raises:
        ValueError: if it is not square, or not symmetric.
    """
    square(matrix, argument)
    if is_symmetric(matrix):
        return matrix
    closeness = 1e-5 if matrix.dtype == np.float32 else 1e-9
    if not np.allclose(matrix, matrix.T, rtol=0, atol=closeness * float(np.abs(matrix).max())):
        raise ValueError(
            f"`{argument}` must be symmetric; pass (S + S.T) / 2 if its order has no meaning."
        )
    half: Matrix = np.array((matrix + matrix.T) / 2, dtype=matrix.dtype)
    half.flags.writeable = False
    return half


def sum_rows(matrix: Matrix, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """The sum of the kept rows of ``[rows, columns]`` in double precision, ``[columns]``, a few
    rows at a time."""
    total = np.zeros(matrix.shape[1])
    rows = np.flatnonzero(kept)
    for start in range(0, len(rows), 64):
        total += matrix[rows[start : start + 64]].sum(axis=0, dtype=np.float64)
    return total


def row_weights(weights: npt.ArrayLike | None, m: int) -> Floats:
    """Weights of ``m`` rows, ``[m]``; 1 each for None.

    Raises:
        ValueError: for NaN, infinity, negative numbers or another shape.
    """
    rows = finite(np.ones(m) if weights is None else weights, "weights")
    if rows.shape != (m,):
        raise ValueError(
            f"`weights` must have shape [{m}], one per row of `similarity`, got {list(rows.shape)}."
        )
    if np.any(rows < 0):
        raise ValueError(
            f"`weights` must be at least 0, got {rows.min():.6g}; shift or clip it first."
        )
    return rows
