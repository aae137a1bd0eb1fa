"""Units that complement one another: every unit is close to a kept one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cahp_opt.arrays import Floats, finite
from cahp_opt.objective import BehaviourForm
from cahp_opt.objectives.facility_location import FacilityLocation
from cahp_opt.space import HeadSpace
from cahp_opt.stats.class_distances import closeness, signature_features
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.needs import needs


@dataclass(frozen=True, eq=False)
class Complementarity(FacilityLocation):
    """Facility location over how differently units behave, which is k-medoids: the seed method's idea
    ("Complementary Attention Head Pruning for Efficient Transformers", arXiv 2606.19150) as a set
    function, for any budget and solver.

    The value is ``sum_i max over kept j of (1 - distance(i, j) / largest distance)``: ``n`` minus
    the scaled sum of distances to the nearest kept unit, and 0 if none is kept.
    :class:`~cahp_opt.solvers.CAHP` is the seed method itself on it.

    Args:
        features: the behaviour of every unit, shape ``[n, d]``; distances are Euclidean.
        salience: how much each unit matters by itself, shape ``[n]``, at least 0: the value does not
            depend on it, but the seed method takes the most salient unit of each cluster.

    Raises:
        ValueError: for NaN, infinity, a negative salience or a wrong shape.
    """

    features: Floats
    salience: Floats

    def __init__(self, features: npt.ArrayLike, salience: npt.ArrayLike) -> None:
        points = finite(features, "features")
        if points.ndim != 2 or not points.size:
            raise ValueError(f"`features` must have shape [n, d], got {list(points.shape)}.")
        matters = finite(salience, "salience")
        if matters.shape != (len(points),) or np.any(matters < 0):
            raise ValueError(
                f"`salience` must be {len(points)} numbers of at least 0, one per row of `features`, got "
                f"shape {list(matters.shape)}."
            )
        super().__init__(closeness(points))
        object.__setattr__(self, "features", points)
        object.__setattr__(self, "salience", matters)

    @staticmethod
    @needs("signatures", "salience")
    def from_stats(stats: HeadStats) -> Complementarity:
        """Features are the Jeffries-Matusita features of the units' signatures.

        Raises:
            ValueError: if signatures or salience were not measured, or of one class only, or feed-forward parts
                are among the blocks.
        """
        return Complementarity(signature_features(stats), stats.salience.mean)

    @staticmethod
    def example(space: HeadSpace) -> Complementarity:
        """Units that all behave alike; for trying a solver before anything is measured."""
        return Complementarity(np.zeros((space.n, 1)), np.ones(space.n))

    def behaviour(self) -> BehaviourForm:
        return BehaviourForm(self.features, self.salience)
