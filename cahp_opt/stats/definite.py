"""Positive definite equations, by products of matrices: NumPy itself takes none of them for such."""

from __future__ import annotations

import numpy as np

from cahp_opt.arrays import Floats

_SMALL = 64  # rows that are left to NumPy


def definite_inverse(matrix: Floats) -> Floats:
    """The inverse of a symmetric positive definite matrix ``[d, d]``, from the halves and their Schur complement.

    It takes less than half as long as that of any matrix. Schur complements are made symmetric to the bit:
    rounding that is not would grow with every halving. It is for equations with a ridge; those that are
    nearly singular lose more digits here.

    Raises:
        numpy.linalg.LinAlgError: if it is singular.
    """
    middle = len(matrix) // 2
    if len(matrix) <= _SMALL:
        return _symmetric(np.linalg.inv(matrix).astype(np.float64, copy=False))
    above = matrix[:middle, middle:]
    first = definite_inverse(matrix[:middle, :middle])
    through = first @ above
    rest = definite_inverse(_symmetric(matrix[middle:, middle:] - above.T @ through))
    beside = through @ rest
    found = np.empty_like(matrix)
    found[:middle, :middle] = first + beside @ through.T
    found[:middle, middle:] = -beside
    found[middle:, :middle] = -beside.T
    found[middle:, middle:] = rest
    return found


def _symmetric(matrix: Floats) -> Floats:
    middle: Floats = (matrix + matrix.T) / 2
    return middle


def solved_lower(lower: Floats, right: Floats) -> Floats:
    """``L^-1 R`` for a lower triangle ``L``, ``[d, d]``, and ``R``, ``[d, columns]``; what is above the diagonal
    is not read."""
    found = right.copy()
    for start in range(0, len(lower), _SMALL):
        own, later = slice(start, start + _SMALL), slice(start + _SMALL, None)
        found[own] = np.linalg.solve(np.tril(lower[own, own]), found[own])
        found[later] -= lower[later, own] @ found[own]
    return found


def definite_form(matrix: Floats, rows: Floats) -> float:
    """``tr(R M^-1 R')`` for a symmetric positive definite ``M``, ``[d, d]``, and ``R``, ``[rows, d]``.

    Raises:
        numpy.linalg.LinAlgError: if ``M`` is not positive definite.
    """
    lower: Floats = np.linalg.cholesky(matrix).astype(np.float64, copy=False)
    taken = solved_lower(lower, rows.T)
    return float(np.vdot(taken, taken))
