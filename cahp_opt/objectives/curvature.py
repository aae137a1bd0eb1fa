"""Second-order matrices: how the output, or the task loss, changes with pairs of gates."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from cahp_opt.arrays import Floats
from cahp_opt.stats.head_stats import HeadStats
from cahp_opt.stats.totals import Total


class Curvature(Enum):
    """A second-order matrix of the gates, taken under random masks."""

    GAUSS_NEWTON = "Gauss-Newton"
    """That of the fidelity distance (Schraudolph 2002), which needs no labels."""
    FISHER = "Fisher"
    """The empirical one of the task loss (Kwon et al. 2022, "A fast post-training pruning framework for
    transformers", who take it at the unpruned model, density 1)."""

    def of(self, stats: HeadStats, density: float | None = None) -> Floats:
        """The mean matrix, ``[n, n]``.

        It is a polynomial in the density of the masks: between two measured densities it is
        interpolated linearly, and outside of them it is refused.

        Args:
            stats: calibration statistics.
            density: of the masks; for heads best the share of units that will be kept. None for the smallest
                measured, or the largest where there are groups of neurons: these are in the order of their worth,
                and random masks take away first groups, which no good choice does.

        Raises:
            ValueError: if there is none, or the density lies outside of those measured.
        """
        measured: Mapping[float, Total] = (
            stats.fisher if self is Curvature.FISHER else stats.gauss_newton
        )
        if not measured:
            how = "`fisher=True` and labels" if self is Curvature.FISHER else "`densities`"
            raise ValueError(f"`stats` has no {self.value} matrix; calibrate with {how}.")
        usual = min if stats.space.of_attention.all() else max
        rho = usual(measured) if density is None else float(density)
        below = max((found for found in measured if found <= rho), default=None)
        above = min((found for found in measured if found >= rho), default=None)
        if below is None or above is None:
            raise ValueError(
                f"`density` {rho} was not measured and does not lie between two that were, "
                f"{list(measured)}; calibrate with this one among `densities`."
            )
        if below == above:
            return measured[below].mean
        share = (rho - below) / (above - below)
        return (1 - share) * measured[below].mean + share * measured[above].mean
