"""Positive definite equations give what NumPy gives for any, with no more rounding."""

from __future__ import annotations

import numpy as np
import pytest

from cahp_opt.arrays import Floats
from cahp_opt.stats.definite import definite_form, definite_inverse, solved_lower


def ill_conditioned(d: int) -> Floats:
    """A covariance in which directions differ by ten thousand, as those of neurons do, with a ridge."""
    rng = np.random.default_rng(d)
    rows = rng.standard_normal((2 * d, d)) @ (
        rng.standard_normal((d, d)) * np.geomspace(1, 1e-3, d)[:, None]
    )
    covariance: Floats = rows.T @ rows / len(rows)
    covariance[np.diag_indices(d)] += 1e-2 * np.trace(covariance) / d
    return (covariance + covariance.T) / 2


@pytest.mark.parametrize("d", [1, 5, 64, 65, 131, 300])
def test_the_inverse_is_nearly_as_close_as_that_of_any_matrix(d: int) -> None:
    matrix = ill_conditioned(d)
    inverse = definite_inverse(matrix)
    off, general = (
        np.abs(found @ matrix - np.eye(d)).max() for found in (inverse, np.linalg.inv(matrix))
    )
    assert off <= 100 * general + 1e-14
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-9 * np.abs(inverse).max())


@pytest.mark.parametrize("d", [1, 64, 200])
def test_triangles_are_solved_whatever_lies_above_them(d: int) -> None:
    lower = np.linalg.cholesky(ill_conditioned(d))
    right = np.random.default_rng(0).standard_normal((d, 7))
    found = solved_lower(lower + np.triu(np.ones((d, d)), 1), right)
    np.testing.assert_allclose(lower @ found, right, atol=1e-9)


def test_a_form_is_that_of_the_inverse() -> None:
    matrix, rows = ill_conditioned(150), np.random.default_rng(1).standard_normal((9, 150))
    expected = float(np.trace(rows @ np.linalg.solve(matrix, rows.T)))
    assert definite_form(matrix, rows) == pytest.approx(expected, rel=1e-9)


def test_a_matrix_that_is_not_definite_is_refused() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        definite_form(-np.eye(3), np.ones((1, 3)))
