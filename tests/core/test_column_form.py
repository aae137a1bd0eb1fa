"""Squared lengths of columns as small factors are those of the whole matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cahp_opt import HeadSpace, HeadStats
from cahp_opt.arrays import Floats
from cahp_opt.objectives import ExplainedVariance, Modular
from cahp_opt.space import Block, Unit
from cahp_opt.stats.column_form import ColumnForm
from cahp_opt.stats.moments import Moments
from cahp_opt.stats.sensitivity import Sensitivity

SPACE = HeadSpace((Block("part", 4, Unit.NEURON_GROUP, tuple(range(8))),))


def both(seed: int) -> tuple[HeadStats, HeadStats]:
    """The statistics of one feed-forward part with its forms whole, and as factors."""
    rng = np.random.default_rng(seed)
    z, w, g = rng.normal(size=(30, 8)), np.arange(24.0).reshape(3, 8) % 5, rng.normal(size=(30, 3))
    apart = z - z.mean(axis=0)

    def stats(readout: Floats | ColumnForm, metric: Floats | ColumnForm) -> HeadStats:
        moments = Moments(z.sum(axis=0), apart.T @ apart, readout, 30)
        weighted = Sensitivity(z.sum(axis=0), apart.T @ apart, metric, 7.5, 10)
        return HeadStats(SPACE, "m", 10, 30, moments=[moments], sensitivity=[weighted])

    back = g @ w
    small = stats(ColumnForm.small(w), ColumnForm.small(w, g.T @ g))
    return stats(w.T @ w, back.T @ back), small


def test_factors_mean_what_the_matrix_means_however_they_are_used(tmp_path: Path) -> None:
    (one, few), (two, more) = both(0), both(1)
    few.save(tmp_path / "few.safetensors")
    read = HeadStats.load(tmp_path / "few.safetensors")
    assert read.moments[0].form.projection is not None  # and not the matrix
    assert read.sensitivity[0].form.inner is not None and len(read.sensitivity[0].form.inner) == 3
    some = np.array([True, False, True, True])
    for whole, small in (
        (one, read),
        (one + two, few + more),
        (one + two, few + two),  # one of them from a record with whole matrices
        (one.restricted(some), read.restricted(some)),
    ):
        pairs: list[tuple[Moments | Sensitivity, Moments | Sensitivity]] = [
            *zip(whole.moments, small.moments, strict=True),
            *zip(whole.sensitivity, small.sensitivity, strict=True),
        ]
        for a, b in pairs:
            np.testing.assert_allclose(a.readout, b.readout, atol=1e-12)
            np.testing.assert_allclose(a.covariance, b.covariance, atol=1e-12)
        np.testing.assert_allclose(
            Modular.from_energy(whole).weights, Modular.from_energy(small).weights
        )
        for make in (ExplainedVariance.from_stats, ExplainedVariance.from_sensitivity):
            for kept in (np.arange(whole.space.n) < k for k in (1, 2, 3)):
                assert make(small).value(kept) == pytest.approx(make(whole).value(kept), rel=1e-9)


def test_factors_are_kept_only_where_they_are_smaller() -> None:
    rng = np.random.default_rng(0)
    wide, square = rng.normal(size=(2, 6)), rng.normal(size=(6, 6))
    assert ColumnForm.small(wide).projection is not None
    assert ColumnForm.small(square, np.eye(6)).projection is None
    np.testing.assert_allclose(ColumnForm.small(square).matrix, square.T @ square)
    c = square.T @ square
    for form in (ColumnForm.small(wide), ColumnForm.small(wide, np.eye(2)), ColumnForm.of(c)):
        assert form.trace(c) == pytest.approx(np.trace(form.matrix @ c))
        np.testing.assert_allclose((form / 2.0).matrix, form.matrix / 2)
        np.testing.assert_allclose(
            form.of_columns(np.array([5, 4, 3, 2, 1, 0])).matrix, form.matrix[::-1, ::-1]
        )
    with pytest.raises(ValueError, match="as many rows"):
        ColumnForm(np.eye(3), wide)
    with pytest.raises(ValueError, match="square"):
        ColumnForm(wide)


def test_an_output_that_never_depends_on_a_part_costs_nothing() -> None:
    blank = Sensitivity(np.zeros(4), np.zeros((4, 4)), ColumnForm(np.eye(1), np.ones((1, 4))), 0, 3)
    assert blank.cost == 0 and not blank.readout.any()
